"""What the model is fed as a function of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from composing import changed

from vit.cli.overrides import Overrides
from vit.cli.train import train
from vit.config.resume import migrate
from vit.config.validate import legal_keys
from vit.model.vit import VisionTransformer
from vit.training import trainer as trainer_module
from vit.training.state import flops_per_image

TINY: dict[str, Any] = {
    "model__dim": 16, "model__depth": 1, "model__heads": 2, "model__patch_size": 2,
    "trainer__steps": 10, "trainer__epochs": None, "trainer__precision": "fp32",
    "trainer__device": "cpu",
}  # fmt: skip


def rates_by_step(monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any) -> list[float]:
    """The patch dropout of each step of a run."""
    seen = []
    step = trainer_module.train_step

    def spy(state, batch, *args, **kwargs):
        seen.append(state.model.patch_dropout.rate)
        step(state, batch, *args, **kwargs)

    monkeypatch.setattr(trainer_module, "train_step", spy)
    monkeypatch.chdir(folder)
    train(changed(**TINY, **settings), Overrides([]))
    return seen


def test_nothing_changes_unless_it_is_asked_for(monkeypatch, tmp_path):
    assert rates_by_step(monkeypatch, tmp_path) == [0.0] * 10


@pytest.mark.parametrize(
    ("half", "expected"),
    [
        ("0%", [0.5] * 7 + [0.0] * 3),
        (3, [0.75] * 3 + [0.5] * 4 + [0.0] * 3),
        ("90%", [0.75] * 7 + [0.5] * 2 + [0.0]),
    ],
)
def test_patches_grow_at_their_steps(monkeypatch, tmp_path, half, expected):
    seen = rates_by_step(
        monkeypatch, tmp_path, model__patch_dropout=0.5, schedule__patch_dropout_end="70%",
        schedule__half_patches_end=half,
    )  # fmt: skip
    assert seen == expected


def test_half_of_all_patches(monkeypatch, tmp_path):
    seen = rates_by_step(monkeypatch, tmp_path, schedule__half_patches_end="20%")
    assert seen == [0.5] * 2 + [0.0] * 8


def test_small_images_are_less_work():
    model = VisionTransformer(32, 4, 10, dim=32, depth=2, heads=2)
    half = VisionTransformer(16, 4, 10, dim=32, depth=2, heads=2)
    assert flops_per_image(model, size=(16, 16)) == flops_per_image(half)


def test_runs_that_began_with_small_images_are_not_taken_for_others():
    """Which are gone: settings of earlier versions without them are read, others refused."""
    usual = migrate({**changed(), "schedule": {"small_images": None, "small_images_end": "80%"}})
    assert not {"small_images", "small_images_end"} & usual["schedule"].keys()
    other = migrate({**changed(), "schedule": {"small_images": 16, "small_images_end": "80%"}})
    assert other["schedule"]["small_images"] == 16
    assert "schedule.small_images" not in legal_keys()
