"""Runs that start from the weights of each family, and the recipes by which they are fine-tuned."""

from __future__ import annotations

from pathlib import Path

import pictures
import pytest
import torch
from commands import run
from other_models import HUGGING_FACE, TIMM, of_hugging_face, of_timm, of_torchvision
from pictures import save

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.config.model import ViTConfig
from vit.model.vit import VisionTransformer

pytestmark = pytest.mark.slow

RUNS = [
    "vit_tiny_patch16_224", "deit_small_distilled_patch16_224", "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2", "vit_small_patch16_dinov3", "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224", "vit_wee_patch16_reg1_gap_256",
    "vit_dlittle_patch16_reg1_gap_256", "vit_small_patch16_rope_ape_224", "eva02_tiny_patch14_224",
    *HUGGING_FACE, "torchvision",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k in range(2):
        for i in range(4):
            save(folder / str(k) / f"{i}.png", pictures.noise(30, 30, seed=10 * k + i))
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_fine_tune_of_each_goes_on_to_the_same_bits(
    name: str, photos: Path, tmp_path: Path
) -> None:
    """The header is read; a run whose last steps are lost ends as one that lost none."""
    place, heads, patch = tmp_path / "w.pth", 4, 8
    if name == "torchvision":
        torch.save(of_torchvision().state_dict(), place)
    elif name in HUGGING_FACE:
        place = tmp_path / "hub"
        of_hugging_face(name).save_pretrained(place)
    else:
        theirs, heads, patch = of_timm(name, **TIMM[name]), 2, 14 if "patch14" in name else 16
        torch.save({"state_dict": theirs.state_dict(), "arch": name}, place)
    args = [
        "experiment=finetune", f"model.weights={place}", f"model.heads={heads}", "trainer.steps=3",
        "trainer.epochs=null", f"data.root={photos}", f"data.image_size={4 * patch}",
        "data.val_fraction=0", "trainer.batch_size=2", "trainer.save_every=1", "outputs=o",
        "trainer.precision=fp32", "trainer.device=cpu",
    ]  # fmt: skip
    whole = run("train", *args, "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "tensors taken" in " ".join(whole.stdout.split())
    died = run("train", *args, "name=died", "trainer.save_every=2", cwd=tmp_path)
    assert died.returncode == 0, died.stderr
    for file in (tmp_path / "o/died/checkpoints").glob("*"):
        if file.name != "step-000000002.pt":
            file.unlink()
    again = run("train", "resume=o/died", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    one, other = (
        checkpoint.load(sorted((tmp_path / "o" / run / "checkpoints").glob("step*"))[-1])
        for run in ("whole", "died")
    )
    assert one["step"] == other["step"] == 3
    for key, tensor in one["training"]["model"].items():
        assert torch.equal(tensor, other["training"]["model"][key]), key


FINETUNED = {
    "mae_pretrain_vit_base.pth": ({}, {"lr": 3.54e-4, "layer_decay": 0.65, "mixup": 0.8}),
    "w.pth": ({"decoder_pos_embed": torch.ones(1)}, {"layer_decay": 0.65, "cutmix": 1.0}),
    "dino_vits16.pth": ({}, {"lr": 7.5e-5, "layer_decay": 0.6, "freeze": "blocks:0"}),
    "ViT-B-16-clip.pt": ({}, {"lr": 7.5e-5, "layer_decay": 0.6, "mixup": 0.0}),
    "maeda.pth": ({}, {"layer_decay": 0.75, "freeze": "none", "mixup": 0.0}),
}


@pytest.mark.parametrize("file", FINETUNED)
def test_a_family_is_fine_tuned_by_its_recipe(file: str, photos: Path, tmp_path: Path) -> None:
    """The header says it with its source; what the user gives wins, also a whole group."""
    more, expected = FINETUNED[file]
    torch.save({**of_timm("vit_tiny_patch16_224").state_dict(), **more}, tmp_path / file)
    args = [
        "experiment=finetune", f"model.weights={file}", "model.heads=2", f"data.root={photos}",
        "data.image_size=32", "data.val_fraction=0", "trainer.steps=1", "trainer.epochs=null",
        "trainer.device=cpu", "outputs=o",
    ]  # fmt: skip
    done = run("train", *args, "name=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("arXiv" in done.stdout) == (expected["layer_decay"] != 0.75)
    config = RunDir(tmp_path / "o" / "a").read_config()
    made = {**config["optim"], **config["augment"], "freeze": config["trainer"]["freeze"]}
    assert {key: made[key] for key in expected} == expected
    given = ["optim.lr=0.01", "augment=none", "trainer.freeze=blocks:1", "name=b"]
    assert run("train", *args, *given, cwd=tmp_path).returncode == 0
    config = RunDir(tmp_path / "o" / "b").read_config()
    assert (config["optim"]["lr"], config["trainer"]["freeze"]) == (0.01, "blocks:1")
    assert (config["augment"]["mixup"], config["augment"]["cutmix"]) == (0.0, 0.0)


def test_without_weights_there_is_no_recipe(tmp_path: Path) -> None:
    done = run("train", "trainer.recipe=weights", cwd=tmp_path)
    assert done.returncode == 2
    assert "trainer.recipe=weights needs trained weights; give model.weights=" in done.stderr


def test_what_comes_before_the_blocks_is_embedding() -> None:
    """Its rate decays most, and it is frozen with the embedding."""
    model = VisionTransformer(ViTConfig(image_size=(16, 16), patch_size=8, dim=32, heads=2, depth=2,
                                        pre_norm=True, pooled_norm=True))  # fmt: skip
    depths = {model.depth_of(name) for name in ("norm_pre.weight", "cls_token", "pos_embed")}
    assert depths == {0}
    assert model.depth_of("fc_norm.weight") == model.depth_of("head.weight") == 3
