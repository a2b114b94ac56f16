"""Learning from a teacher: the losses, the token, whose images it sees, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from commands import SMALL, run
from composing import changed, problems, sized
from kill_resume import differences
from pictures import CPU
from safetensors.torch import save_file
from stepping import CLASSES, batch, trainer

from vit.api import load_run
from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.config.resolve import resolve
from vit.config.schema import DistillConfig
from vit.errors import ConfigError
from vit.model.vit import VisionTransformer
from vit.model.weights import load_matching, timm_kwargs
from vit.training.distill import Teacher, load_teacher
from vit.training.loss import Loss, by_head, cross_entropy, hard_distillation, soft_distillation


def logits_and_taught():
    return torch.randn(2, 8, CLASSES, generator=torch.Generator().manual_seed(3)).unbind()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_is_hintons_divergence(temperature):
    logits, taught = logits_and_taught()
    p, q = ((x.double() / temperature).softmax(dim=1) for x in (taught, logits))
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1)
    torch.testing.assert_close(
        soft_distillation(logits, taught, temperature).double(), expected, rtol=1e-5, atol=1e-6
    )
    assert (soft_distillation(taught, taught, temperature).abs() < 1e-5).all()


def test_hard_is_cross_entropy_to_the_teachers_decision():
    logits, taught = logits_and_taught()
    one_hot = F.one_hot(taught.argmax(dim=1), CLASSES).float()
    assert torch.equal(hard_distillation(logits, taught, 3.0), cross_entropy(logits, one_hot))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_teacher_has_its_share(kind, share):
    logits, taught = logits_and_taught()
    config = DistillConfig("x", None, kind, share, 2.0)
    loss = Loss(trainer(label_smoothing=0.1), config, lambda images: taught)
    alone = Loss(trainer(label_smoothing=0.1))(logits, batch())
    to_teacher = {"soft": soft_distillation, "hard": hard_distillation}[kind](logits, taught, 2.0)
    expected = (1 - share) * alone + share * to_teacher
    torch.testing.assert_close(loss(logits, batch()), expected)


def test_each_head_has_a_loss_of_its_own():
    own, listening = logits_and_taught()
    taught = torch.randn(8, CLASSES)
    loss = Loss(trainer(), DistillConfig("x", None, "hard", 0.5, 1.0), lambda images: taught)
    both = torch.stack([own, listening], dim=1).requires_grad_()
    losses = loss(both, batch())
    expected = (Loss(trainer())(own, batch()) + hard_distillation(listening, taught, 1.0)) / 2
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_two_heads_in_training_their_mean_after(pool):
    built = VisionTransformer(
        8, 4, CLASSES, dim=16, depth=2, heads=2, pool=pool, distillation_token=True,
        registers=1,
    )  # fmt: skip
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    assert built.prefix == 2 + (pool == "cls")
    images = batch().images
    own, listening = by_head(built(images))
    assert not torch.allclose(own, listening)
    torch.testing.assert_close(built.eval()(images), (own + listening) / 2)
    token = built.forward_features(images)[:, int(pool == "cls")]
    torch.testing.assert_close(F.linear(token, *built.head_dist.parameters()), listening)
    assert not built.decays("dist_token")
    assert built.decays("head_dist.weight")
    assert (built.depth_of("dist_token"), built.depth_of("head_dist.weight")) == (0, 3)


def test_timms_distilled_model_is_ours():
    """Its positions of class and distillation token are folded into the tokens."""
    from timm.models.deit import VisionTransformerDistilled

    shape = {"dim": 24, "depth": 2, "heads": 3, "num_classes": CLASSES}
    ours = VisionTransformer(image_size=32, patch_size=8, **shape, distillation_token=True).eval()
    with pytest.raises(ValueError, match="no distillation_token=True"):
        timm_kwargs(ours.config)
    kwargs = timm_kwargs(replace(ours.config, distillation_token=False))
    theirs = VisionTransformerDistilled(**{**kwargs, "no_embed_class": False}).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    report = load_matching(ours, theirs.state_dict(), None, same_classes=True)
    assert report.new == []
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_the_teacher_sees_the_pixels_in_its_own_terms():
    """Its own mean and deviation, and its own size."""
    config = resolve(sized(changed()), precision="fp32")
    seen = []

    class Eye(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean(dim=(2, 3))

    mean, std = config.data.mean[0], config.data.std[0]
    pixels = torch.rand(2, 1, 8, 8)
    student = (pixels - mean) / std
    Teacher(Eye(), [0.5], [0.25], (8, 8), config, CPU)(student)
    torch.testing.assert_close(seen[-1], (pixels - 0.5) / 0.25)
    Teacher(Eye(), [0.5], [0.25], (16, 16), config, CPU)(student)
    larger = F.interpolate((pixels - 0.5) / 0.25, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[-1], larger)


def test_a_timm_teacher_with_its_weights(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10, in_chans=3).eval()
    torch.nn.init.normal_(theirs.head.weight)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    config = changed(
        distill__teacher="timm/vit_tiny_patch16_224",
        distill__weights=str(tmp_path / "weights.safetensors"), trainer__precision="fp32",
        data__name="cifar10", data__mean=[0.5] * 3, data__std=[0.5] * 3, data__image_size=224,
    )  # fmt: skip
    teacher = load_teacher(resolve(sized(config), precision="fp32"), list("abcdefghij"), CPU)
    assert teacher is not None
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(teacher(images), theirs(images).detach())
    with pytest.raises(ConfigError, match=r"holds no weights of timm/vit_tiny.* for 3 classes"):
        load_teacher(resolve(sized(config), precision="fp32"), list("abc"), CPU)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__distillation_token": True}, "has nobody to listen to"),
        ({"distill__teacher": "timm/vit_tiny_patch16_224"}, "needs distill.weights="),
        ({"distill__weights": "x.pth"}, "is of a timm teacher only"),
        ({"distill__kind": "sof"}, "soft"),
    ],
)
def test_contradictions_are_answered(changes, words):
    (problem,) = problems(changed(**changes))
    assert words in problem


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"teacher": "nowhere"}, "does not exist", "run folder"),
        ({"teacher": "timm/vit_tiny_16_224", "weights": "x"}, "no such model", "try timm/vit_tiny"),
        ({"teacher": "timm/vit_tiny_patch16_224", "weights": "no.pth"}, "no.pth", "not exist"),
    ],
)
def test_a_teacher_that_is_not_there(tmp_path, changes, error, words):
    args = [f"distill.{key}={value}" for key, value in changes.items()]
    done = run("train", *SMALL, "trainer.steps=1", *args, cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert error in done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "outputs").iterdir())


def test_a_teacher_of_other_classes_is_refused(finished: Path):
    config = resolve(sized(changed(distill__teacher=str(finished))), precision="fp32")
    with pytest.raises(ConfigError, match="is no teacher for it"):
        load_teacher(config, ["cat", "dog"], CPU)


STUDENT = [
    *SMALL, "trainer.steps=40", "trainer.save_every=20", "model.distillation_token=true",
    "distill.kind=hard",
]  # fmt: skip


def test_a_run_learns_from_a_run_and_resumes_exactly(finished: Path, tmp_path: Path):
    taught = [*STUDENT, f"distill.teacher={finished}"]
    assert run("train", *taught, "name=whole", cwd=tmp_path).returncode == 0
    whole = RunDir(tmp_path / "outputs" / "whole")
    cut = Path(shutil.copytree(whole.path, tmp_path / "outputs" / "cut"))
    for path in RunDir(cut).step_files()[:1]:  # as if killed after step 20
        path.unlink()
    (cut / "summary.json").unlink()
    done = run("train", f"resume={cut}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed  at step 20" in done.stdout
    assert "not bit-exact" not in done.stderr
    assert differences(whole, RunDir(cut)) == []

    alone = [a for a in STUDENT if "distill" not in a]
    assert run("train", *alone, "name=alone", cwd=tmp_path).returncode == 0
    ours, without = (
        load_run(tmp_path / "outputs" / name).model.state_dict() for name in ("whole", "alone")
    )
    assert ours["head_dist.weight"].abs().sum() > 0  # it listened
    assert "head_dist.weight" not in without


def test_another_teacher_is_said_not_to_be_exact(finished: Path, tmp_path: Path):
    place = Path(shutil.copytree(finished, tmp_path / "teacher"))
    args = [*SMALL, "trainer.steps=20", f"distill.teacher={place}", "name=student"]
    assert run("train", *args, cwd=tmp_path).returncode == 0
    best = RunDir(place).best
    content = checkpoint.load(best)
    content["weights"]["head.bias"] += 1
    checkpoint.save(best, {k: v for k, v in content.items() if k != "format_version"})
    done = run(
        "train", f"resume={tmp_path / 'outputs' / 'student'}", "trainer.steps=30", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "not bit-exact: teacher" in done.stderr
