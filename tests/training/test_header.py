"""What a run says of its data before the first step."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composing import composed
from pictures import data_config, noise, save

from vit.config.model import ViTConfig
from vit.config.validate import to_config
from vit.data.sources.registry import load_data_set
from vit.data.types import DataSet
from vit.model.vit import VisionTransformer
from vit.training.header import _about, _wrapped, doubts, slow_size


def photos(root: Path, **counts: int) -> DataSet:
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            save(root / name / f"{i:03}.png", noise(8 + 2 * (i % 3), 8, seed=1000 * number + i))
    return load_data_set(data_config("folder", root=str(root), image_size=8))


def settings(*overrides: str):
    return to_config(composed("data=folder", "data.root=x", *overrides))


def test_a_usual_set_raises_no_doubt(tmp_path: Path) -> None:
    data = photos(tmp_path, a=60, b=60)
    assert doubts(settings("trainer.batch_size=16"), data) == []


DOUBTS = {
    "batch": ({"a": 20, "b": 20}, ["trainer.batch_size=64"], "a step shows some of them again"),
    "single": ({"a": 60, "b": 1}, ["data.balance=loss"], "one training image alone: b"),
    "uneven": ({"a": 100, "b": 5}, [], "try data.balance=sampler"),
}


@pytest.mark.parametrize("kind", DOUBTS)
def test_what_makes_data_doubtful_is_told(tmp_path: Path, kind: str) -> None:
    counts, overrides, words = DOUBTS[kind]
    data = photos(tmp_path, **counts)
    (told,) = doubts(settings("trainer.batch_size=16", *overrides), data)
    assert words in told


def test_missing_splits_are_told(tmp_path: Path) -> None:
    data = photos(tmp_path, a=60, b=60)
    alone = replace(data, splits={"train": data.splits["train"]})
    told = doubts(settings("trainer.batch_size=16"), alone)
    assert [line.split(" images")[0] for line in told] == ["no validation", "no test"]


def test_the_header_has_counts_sizes_and_notes(tmp_path: Path) -> None:
    data = photos(tmp_path, **{f"class{i:02}": 12 for i in range(15)})
    counts = [int((data.splits["train"].labels == k).sum()) for k in range(15)]
    classes, files, *notes = _about(settings("data.memory=stream"), data)
    assert classes.startswith(f"classes  class00 {counts[0]}, class01 {counts[1]}, ")
    assert classes.endswith(f"class11 {counts[11]} and 3 more")
    assert files == "files    8x10 px (8x8 to 8x12 in 46 of them); streamed"
    few, *notes = notes
    assert (
        "9 images a class are few to start from nothing; better: vit-train experiment=finet" in few
    )
    assert len(notes) == bool(data.small)
    assert few not in _about(settings("data.memory=stream", "model.weights=x"), data)
    for i in range(12):
        (tmp_path / "class00" / f"{i:03}.png").write_bytes(b"damaged")
    assert "class00" in _about(settings("data.memory=device"), data)[0]


def test_a_long_line_is_wrapped_but_not_what_one_copies() -> None:
    counts = " ".join(f"class-{i}" for i in range(40))
    first, *rest = _wrapped(f"classes  {counts}").splitlines()
    assert max(map(len, (first, *rest))) < 100
    assert all(line.startswith(" " * 9 + "class-") for line in rest)
    assert " ".join([first.removeprefix("classes  "), *map(str.strip, rest)]) == counts
    assert _wrapped(f"note     vit-train data.root={counts}").count("\n") == 0


def test_a_large_size_of_weights_is_told_with_what_a_usual_one_takes():
    def model(side):
        config = ViTConfig(image_size=(side, side), patch_size=14, num_classes=2, dim=16, depth=1,
                           heads=2)  # fmt: skip
        with torch.device("meta"):
            return VisionTransformer(config)

    (told,) = slow_size(model(518))
    assert "data.image_size=[518, 518]" in told
    assert re.search(r"data.image_size=224 needs 1/[5-9] of the time", told)
    assert slow_size(model(224)) == []
