"""What the model is fed as a function of the step, and positions that spread over an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composing import changed, problems
from torch import Tensor

from vit.cli.overrides import Overrides
from vit.cli.train import train
from vit.model.positions import POSITIONS, grid_coordinates
from vit.model.vit import VisionTransformer
from vit.training import trainer as trainer_module
from vit.training.state import flops_per_image

TINY: dict[str, Any] = {
    "model__dim": 16, "model__depth": 1, "model__heads": 2, "model__patch_size": 2,
    "trainer__steps": 10, "trainer__epochs": None, "trainer__precision": "fp32",
    "trainer__device": "cpu",
}  # fmt: skip


def seen_by_step(monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> list[Any]:
    """(patch dropout, image side, whether positions spread) of each step of a run."""
    seen = []
    step = trainer_module.train_step

    def spy(state, batch, *args, **kwargs):
        model = state.model
        seen.append((model.patch_dropout.rate, batch.images.shape[-1], model.interpolate_positions))
        step(state, batch, *args, **kwargs)

    monkeypatch.setattr(trainer_module, "train_step", spy)
    monkeypatch.chdir(folder)
    train(changed(**TINY, **settings), Overrides([]))
    return seen


def test_nothing_changes_unless_it_is_asked_for(monkeypatch, tmp_path):
    assert seen_by_step(monkeypatch, tmp_path) == [(0.0, 8, False)] * 10


def test_patches_and_size_grow_at_their_steps(monkeypatch, tmp_path):
    seen = seen_by_step(
        monkeypatch, tmp_path, model__patch_dropout=0.5, schedule__patch_dropout_end="70%",
        schedule__small_images=4, schedule__small_images_end=3,
    )  # fmt: skip
    assert seen == [(0.5, 4, True)] * 3 + [(0.5, 8, False)] * 4 + [(0.0, 8, False)] * 3


def test_the_small_image_is_the_whole_image(monkeypatch, tmp_path):
    """Antialiased and resized on the device, after augmentation."""
    small: list[Tensor] = []

    def keep(into):
        def spy(state, batch, *args, **kwargs):
            into.append(batch.images)
            raise KeyboardInterrupt

        return spy

    whole: list[Tensor] = []
    monkeypatch.chdir(tmp_path)
    for into, settings in ((whole, {}), (small, {"schedule__small_images": 6})):
        monkeypatch.setattr(trainer_module, "train_step", keep(into))
        with pytest.raises(KeyboardInterrupt):
            train(changed(**TINY, **settings), Overrides([]))
    expected = F.interpolate(whole[0], (6, 6), mode="bilinear", antialias=True)
    assert torch.equal(small[0], expected)


@pytest.mark.parametrize("name", ["learned", "sincos1d", "sincos2d"])
def test_between_two_patches_is_the_mean_of_their_positions(name):
    grid = (3, 4)
    positions = POSITIONS[name](grid, 16, 2)
    table = positions.table()
    assert table is not None
    patches = torch.zeros(2, 12, 16)
    whole = grid_coordinates(*grid).flatten(0, 1)
    exact, _ = positions(patches, whole, table)
    torch.testing.assert_close(positions(patches, whole.float(), table)[0], exact)
    rows = table[0].view(3, 4, 16)
    for place, expected in {
        (0.5, 0.0): (rows[0, 0] + rows[1, 0]) / 2,
        (1.0, 2.25): 0.75 * rows[1, 2] + 0.25 * rows[1, 3],
        (0.5, 1.5): rows[0:2, 1:3].mean(dim=(0, 1)),
        (-0.5, 3.5): rows[0, 3],
        (2.5, 0.0): rows[2, 0],
    }.items():
        found, _ = positions(torch.zeros(1, 1, 16), torch.tensor([place]), table)
        torch.testing.assert_close(found[0, 0], expected)


@pytest.mark.parametrize("positions", sorted(POSITIONS))
def test_a_stretched_model_sees_patches_where_they_are_in_the_image(positions):
    """Half as many patches a side: each sits in the middle of the four it stands for."""
    model = VisionTransformer(
        image_size=(16, 24),
        patch_size=4,
        num_classes=5,
        dim=16,
        depth=1,
        heads=2,
        positions=positions,
    ).eval()
    images = torch.randn(2, 3, 8, 12)
    corner = model.embed(images)
    model.interpolate_positions = True
    spread = model.embed(images)
    y, x = (torch.arange(2) * 2 + 0.5), (torch.arange(3) * 2 + 0.5)
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    patches, angles = model.positions(model.patch_embed(images), centres, model.pos_embed)
    torch.testing.assert_close(spread[0][:, model.prefix :], patches)
    if "rope2d" in positions:
        assert not torch.allclose(spread[1], corner[1])
        torch.testing.assert_close(spread[1], angles)
    if positions in ("learned", "sincos1d", "sincos2d"):
        assert not torch.allclose(spread[0], corner[0])
    whole = torch.randn(2, 3, 16, 24)
    logits = model(whole)
    model.interpolate_positions = False
    assert torch.equal(model(whole), logits)


def test_small_images_are_less_work():
    model = VisionTransformer(32, 4, 10, dim=32, depth=2, heads=2)
    half = VisionTransformer(16, 4, 10, dim=32, depth=2, heads=2)
    assert flops_per_image(model, size=(16, 16)) == flops_per_image(half)


@pytest.mark.parametrize(
    ("small", "words"),
    [(5, "no multiple of the patch of 2 px"), (10, "try schedule.small_images=6"), ([4, 10], "8")],
)
def test_a_size_that_does_not_fit_is_refused(small, words):
    (problem,) = problems(changed(schedule__small_images=small))
    assert words in problem
    assert problem.startswith(f"schedule.small_images={small} ")
