"""Fine-tuning from weights: what is trained, what comes along, exact resume, features seen once."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import SMALL, lines, run
from composing import changed, problems
from kill_resume import differences
from pictures import noise, save
from stepping import ADAMW, CPU, batch, model, train

from vit.api import load_run
from vit.artifacts.checkpoint import load
from vit.artifacts.run_dir import RunDir
from vit.config.validate import to_config
from vit.errors import ConfigError
from vit.model.vit import VisionTransformer
from vit.optim.build import build_optimizer, freeze
from vit.optim.lora import LEARNED, add_lora
from vit.training.state import TrainState

SHORT = [
    "trainer.batch_size=16", "trainer.log_every=5", "data.workers=0", "trainer.precision=fp32",
    "trainer.steps=30", "trainer.save_every=10", "trainer.eval_every=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of little noise pictures in colour, brighter from class to class."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(("dark", "grey", "light")):
        for i in range(20):
            picture = noise(9, 9, seed=label * 100 + i).point(lambda v, k=label: v // 3 + 80 * k)
            save(root / name / f"{i:02}.png", picture)
    return root


def tuned(photos: Path, finished: Path, cwd: Path, *args: str) -> RunDir:
    """A run that starts from the digits run, on three classes in colour."""
    done = run(
        "train", *SHORT, "data=folder", f"data.root={photos}", f"model.weights={finished}",
        *args, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = next(line for line in done.stdout.splitlines() if line.startswith("folder"))
    return RunDir(cwd / folder.split()[1])


def weights(place: Path) -> dict[str, torch.Tensor]:
    return load_run(place).model.state_dict()


def test_shape_size_and_normalisation_come_with_the_weights(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    tune = tuned(photos, finished, tmp_path, "optim.lr=0", "name=tune")
    config = yaml.safe_load(tune.config.read_text())
    shape = {"dim": 16, "depth": 2, "heads": 2, "patch_size": 2, "weights": str(finished)}
    assert {key: config["model"][key] for key in shape} == shape
    assert config["data"]["image_size"] == [8, 8]
    assert config["data"]["mean"] == [0.5] * 3  # the digits' is of one channel
    before, after = weights(finished), weights(tune.path)
    for name in before.keys() - {"head.weight", "head.bias", "patch_embed.proj.weight"}:
        assert torch.equal(before[name], after[name]), name
    channels = after["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(channels, before["patch_embed.proj.weight"])
    assert after["head.weight"].shape == (3, 16)


def test_mean_and_deviation_come_along_unless_given(finished: Path, tmp_path: Path) -> None:
    own = ["data.mean=[0.3]", "data.std=[0.4]", "trainer.steps=5", "name=first"]
    assert run("train", *SMALL, *own, cwd=tmp_path).returncode == 0
    start = ["model.weights=outputs/first", *SMALL[3:]]
    for name, more, expected in (
        ("brought", [], ([0.3], [0.4])),
        ("given", ["data.mean=[0.1]", "data.std=[0.2]"], ([0.1], [0.2])),
    ):
        done = run("train", *start, *more, "trainer.steps=5", f"name={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        preprocessing = load_run(tmp_path / "outputs" / name).preprocessing
        assert (preprocessing["mean"], preprocessing["std"]) == expected
        said = f"mean {expected[0]}, deviation {expected[1]}"
        assert said in done.stdout
    again = run("train", *start, "name=brought", "resume=auto", "trainer.steps=9", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumed  at step 5" in again.stdout


@pytest.mark.parametrize("more", [
    [], ["trainer.precision=fp16"], ["trainer.freeze=blocks:1", "trainer.ema=1"],
    ["trainer.freeze=lora:2", "trainer.ema=1"],
    ["trainer.freeze=all-but-head", "trainer.cache_features=true", "augment=none"],
])  # fmt: skip
def test_a_fine_tune_resumes_exactly(
    photos: Path, finished: Path, tmp_path: Path, more: list[str]
) -> None:
    whole = tuned(photos, finished, tmp_path, *more, "name=whole")
    cut = Path(shutil.copytree(whole.path, tmp_path / "outputs" / "cut"))
    for path in RunDir(cut).step_files()[:1]:  # as if killed after step 20
        path.unlink()
    (cut / "summary.json").unlink()
    config = cut / "config.yaml"  # the weights may be gone by then
    config.write_text(config.read_text().replace(str(finished), "gone"))
    shutil.copytree(cut, tmp_path / "outputs" / "typed")
    done = run("train", f"resume={cut}", f"model.weights={finished}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed  at step 20" in done.stdout
    assert differences(whole, RunDir(cut)) == []


FROZEN = {
    "none": lambda name, p: False,
    "all-but-head": lambda name, p: not name.startswith("head"),
    "norm+bias": lambda name, p: p.ndim != 1 and not name.startswith("head"),
    "blocks:1": lambda name, p: name.startswith(("patch_embed", "cls_", "pos_", "blocks.0.")),
    "lora:2": lambda name, p: not name.startswith("head") and LEARNED not in name,
}


@pytest.mark.parametrize("how", FROZEN)
def test_frozen_weights_stay_to_the_bit(how: str) -> None:
    built = model()
    if how == "lora:2":
        add_lora(built, 2)
    freeze(built, how)
    state = TrainState(built, None, build_optimizer(built, ADAMW), CPU)
    before = {name: p.detach().clone() for name, p in built.named_parameters()}
    for number in range(2):  # the head is zero at first, and with it the gradient of the rest
        train(state, batch(number), lr=1e-2)
    for name, now in built.named_parameters():
        assert torch.equal(now, before[name]) == FROZEN[how](name, now), name


def test_lora_learns_updates_and_keeps_whole_matrices(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    tune = tuned(photos, finished, tmp_path, "trainer.freeze=lora:2", "name=tune")
    before, after = weights(finished), weights(tune.path)
    assert after.keys() == before.keys()
    ranks = {
        name: int(torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5))
        for name in before.keys() - {"head.weight", "head.bias", "patch_embed.proj.weight"}
        if not torch.equal(before[name], after[name])
    }
    assert ranks.keys() == {name for name in before if re.match(r"blocks.*[a-z12]\.weight", name)
                            and before[name].ndim == 2}  # fmt: skip
    assert set(ranks.values()) == {2}
    last = load(tune.step_files()[-1])
    assert any(LEARNED in name for name in last["training"]["model"])
    assert sum(p.numel() for n, p in last["training"]["model"].items() if LEARNED in n) < 4000


def test_features_seen_once_train_the_same_head(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    probe = ["trainer.freeze=all-but-head", "augment=none", "trainer.log_every=1", "optim.lr=0.01"]
    every = tuned(photos, finished, tmp_path, *probe, "name=every")
    once = tuned(photos, finished, tmp_path, *probe, "trainer.cache_features=true", "name=once")
    keys = ("loss", "top1", "grad_norm")
    curves = [
        [[line[key] for key in keys] for line in lines(run.metrics) if line["event"] == "train"]
        for run in (every, once)
    ]
    assert len(curves[0]) == 30
    assert curves[0][-1][0] < 0.9 * curves[0][0][0]
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        weights(every.path)["head.weight"], weights(once.path)["head.weight"], rtol=1e-3, atol=1e-5
    )
    speeds = [
        np.median([line["images_per_second"] for line in lines(run.metrics) if "lr" in line])
        for run in (every, once)
    ]
    assert speeds[1] > speeds[0]


def test_a_damaged_photo_gives_way_to_the_next(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    (root / "grey" / "07.png").write_bytes(b"no picture")
    more = ["trainer.freeze=all-but-head", "trainer.cache_features=true", "augment=none"]
    more += ["data.on_bad_image=skip", "data.bad_image_limit=0.1", "data.test_fraction=0"]
    tune = tuned(root, finished, tmp_path, *more, "data.val_fraction=0", "name=skips")
    assert lines(tune.metrics)[-1]["bad_images"] == 1


def test_experiments_for_it_run(photos: Path, finished: Path, tmp_path: Path) -> None:
    for name in ("finetune", "linear_probe"):
        more = [f"experiment={name}", "trainer.steps=2", f"name={name}", "data.workers=0"]
        start = [f"data.root={photos}", f"model.weights={finished}"]
        done = run("train", *more, *start, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer__freeze": "all-but-head"}, "needs trained weights; give model.weights="),
        ({"trainer__freeze": "head"}, "must be none, all-but-head, norm+bias, blocks:"),
        ({"trainer__freeze": "blocks:x", "model__weights": "x"}, "must be none"),
        ({"trainer__freeze": "lora:0", "model__weights": "x"}, "or lora:<rank>"),
        (
            {"trainer__freeze": "blocks:9", "model__weights": "x", "model__depth": 4},
            "the model has 4 blocks",
        ),
        ({"trainer__cache_features": True}, "try trainer.freeze=all-but-head"),
        (
            {
                "trainer__cache_features": True, "trainer__freeze": "all-but-head",
                "model__weights": "x",
            },
            "try augment=none",
        ),
        (
            {"trainer__freeze": "blocks:1", "model__weights": "x", "trainer__shard": "fsdp"},
            "was not tried with trainer.freeze=blocks:1",
        ),
    ],
)  # fmt: skip
def test_contradictions_are_answered(changes: dict, words: str) -> None:
    assert any(words in problem for problem in problems(changed(**changes), 2))


def test_fine_tuning_without_weights_is_no_training_from_scratch(
    photos: Path, tmp_path: Path
) -> None:
    for name, words in (("finetune", "model.weights=<run"), ("linear_probe", "give model.wei")):
        done = run("train", f"experiment={name}", f"data.root={photos}", cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
    assert not list((tmp_path / "outputs").glob("*"))


def test_how_many_heads_must_be_known(photos: Path, tmp_path: Path) -> None:
    odd = VisionTransformer(16, 8, 3, dim=40, depth=1, heads=5)
    torch.save(odd.state_dict(), tmp_path / "odd.pth")
    args = [*SHORT[:4], "trainer.steps=1", "data=folder", f"data.root={photos}"]
    done = run("train", *args, "model.weights=odd.pth", cwd=tmp_path)
    assert done.returncode == 2
    assert "how many heads its 40 features have; give model.heads=" in done.stderr
    done = run("train", *args, "model.weights=odd.pth", "model.heads=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dim 40, depth 1, heads 5" in done.stdout


def test_contradictions_with_what_weights_bring_wait_for_them(photos: Path, tmp_path: Path) -> None:
    plain = changed(model__dim=64, model__heads=5, model__weights="x")
    with pytest.raises(ConfigError, match=r"not divisible by model\.heads=5"):
        to_config(plain)
    assert to_config(plain, complete=False).model.heads == 5
    plain["model"]["weights"] = None
    with pytest.raises(ConfigError, match=r"not divisible by model\.heads=5"):
        to_config(plain, complete=False)
    made = VisionTransformer(16, 8, 3, dim=48, depth=1, heads=6)
    torch.save(made.state_dict(), tmp_path / "made.pth")
    args = [*SHORT[:4], "data=folder", f"data.root={photos}", "model.weights=made.pth"]
    done = run("train", *args, "trainer.steps=1", "model.heads=5", cwd=tmp_path)
    assert done.returncode == 2
    assert "model.dim=48 is not divisible by model.heads=5" in done.stderr
