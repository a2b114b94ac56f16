"""An export is compared with its checkpoint on every image; beyond the bounds it is removed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from exporting import SIZE, expected, pixels, trained
from pictures import array_samples, reader

from vit.config.commands import EvalDataConfig, ExportConfig
from vit.data.loader import EvalLoader
from vit.errors import DataError, ExportError
from vit.export import export
from vit.export.formats import FORMATS
from vit.export.parity import BOUNDS, Parity, as_bytes, compare, milliseconds


def test_bytes_are_those_that_were_normalised():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    read = reader((16, 16))
    loader = EvalLoader(array_samples(1), 1, read)
    normalised = read.normalise(torch.from_numpy(every).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(as_bytes(normalised, loader), every)


def test_the_comparison_sees_every_image_once():
    source = trained(num_classes=3)
    loader = EvalLoader(array_samples(70, SIZE), 66, reader(SIZE))
    source.preprocessing.update(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    sizes = []

    def answer(images):
        sizes.append(len(images))
        return expected(source, images)

    parity, some = compare(source.model, answer, loader)
    assert sizes == [64, 2, 4]
    assert some.shape == (64, *SIZE, 3)
    assert parity.difference < 1e-5
    assert parity.labels.tolist() == [i % 3 for i in range(70)]


@pytest.mark.parametrize(
    ("precision", "change", "words"),
    [
        ("fp32", "none", None),
        ("fp32", "rounding", None),
        ("fp32", "a logit", "a logit differs by 0.01"),
        ("fp16", "a logit", None),
        ("fp16", "nan", "not finite"),
        ("int8", "inf", "not finite"),
        ("fp16", "20 labels", "20 of 1,000 images get another label"),
        ("int8", "20 labels", "20 of 1,000 images less are right"),
        ("int8", "10 labels", None),
        ("int8", "60 wrong labels", "60 of 1,000 images get another label"),
        ("int8", "50 wrong labels", None),
    ],
)
def test_bounds(precision, change, words):
    labels = np.arange(1000) % 4
    logits = np.eye(4, dtype=np.float32)[np.where(labels < 2, labels, 0)]
    changed = logits.copy()
    if change == "rounding":
        changed += 5e-5
    elif change == "a logit":
        changed[3, 1] += 0.01
    elif change in ("nan", "inf"):
        changed[500, 2] = float(change)
    elif change.endswith("labels"):
        some = np.flatnonzero(labels == (3 if "wrong" in change else 1))[: int(change.split()[0])]
        changed[some] = [0, 0, 2, 0]
    broken = Parity((logits, changed), labels).broken(BOUNDS[precision])
    assert broken is None if words is None else words in broken


def test_two_logits_that_are_all_but_equal_may_change_places_once():
    logits = np.array([[0, 1e-6], [0, 1], [1e-6, 0]], np.float32)
    swapped = logits[:, ::-1]
    labels = np.array([1, 1, 1])
    one = np.concatenate([swapped[:1], logits[1:]])
    two = np.concatenate([swapped[:1], logits[1:2], swapped[2:]])
    assert Parity((logits, one), labels).broken(BOUNDS["fp32"]) is None
    assert "2 of 3 images get another" in Parity((logits, two), labels).broken(BOUNDS["fp32"])


def test_times_are_of_one_image():
    calls = []
    answers = [lambda images, i=i: calls.append((i, len(images))) for i in range(2)]
    taken = milliseconds(answers, pixels(4), seconds=0)
    assert calls == [(0, 4), (1, 4)] * 4
    assert all(0 < time < 10 for time in taken)


# The whole


class Job:
    """An evaluator of a model on images of an array."""

    def __init__(self, source, splits):
        self.trained = source
        self.model = source and source.model
        self.parts = splits

    def splits(self):
        return self.parts

    def find(self, split):
        if split not in self.parts:
            raise DataError(f"split={split}: none")
        return self.parts[split], split

    def open(self, samples, what):
        seen = self.trained.preprocessing
        read = reader(SIZE)
        read.normalise.mean[:] = torch.tensor(seen["mean"])[:, None, None]
        read.normalise.std[:] = torch.tensor(seen["std"])[:, None, None]
        return EvalLoader(samples, 4, read)


def settings(**changes):
    data = EvalDataConfig(
        root=None, image_size=None, workers=0, on_bad_image=None, bad_image_limit=None
    )
    plain = {
        "checkpoint": "run", "format": "safetensors", "precision": "fp32", "merge": 0,
        "output": None, "split": None, "images": None, "limit": None, "data": data,
            "calibration": "auto", "batch_size": 64,
    }  # fmt: skip
    return ExportConfig(**{**plain, **changes})


def test_images_are_those_of_val_else_of_test_spread_evenly():
    val, test = array_samples(100), array_samples(7)
    for splits, asked, found in (
        ({"val": val, "test": test}, None, "val"),
        ({"train": val, "test": test}, None, "test"),
        ({"val": val, "test": test}, "test", "test"),
    ):
        samples, what = export.find_images(settings(split=asked), Job(None, splits))
        assert (what, samples) == (found, splits[found])
    few, _ = export.find_images(settings(limit=4), Job(None, {"val": val}))
    assert few.names == ["0", "33", "66", "99"]
    assert few.labels.tolist() == [0, 0, 0, 0]
    with pytest.raises(DataError, match=r"none\nan export is compared.*images="):
        export.find_images(settings(split="val"), Job(None, {"test": test}))


def test_of_merging_patches_labels_count_and_not_logits(tmp_path, monkeypatch):
    source = trained(tmp_path / "best.pt", num_classes=3)
    source.path.write_bytes(b"123")
    job = Job(source, {"val": array_samples(9, SIZE)})
    ours = np.eye(3, dtype=np.float32)[[0] * 9]
    theirs = ours + 0.3 * np.eye(9, 3, dtype=np.float32)
    found = Parity((ours, theirs), np.zeros(9, int)), pixels(2)
    monkeypatch.setattr(export, "compare", lambda *_: found)
    for merge in (0, 2):
        config, output = settings(format="torch", merge=merge), tmp_path / f"{merge}.pt2"
        with contextlib.nullcontext() if merge else pytest.raises(ExportError, match=r"by 0\.3"):
            export.export(config, job, job.parts["val"], "val", output)
        assert output.exists() == bool(merge)


@pytest.mark.parametrize("form", ["safetensors", "timm"])
def test_a_failed_export_leaves_what_was_there(form, tmp_path, monkeypatch):
    source = trained(tmp_path / "best.pt", num_classes=3)
    source.path.write_bytes(b"123")
    source = replace(source, classes=["a", "b", "c"])
    job, output = Job(source, {"val": array_samples(9, SIZE)}), tmp_path / "export"
    samples, config = job.parts["val"], settings(format=form)
    done = export.export(config, job, samples, "val", output)
    assert done.parity.broken(BOUNDS["fp32"]) is None
    files = [output] if output.is_file() else sorted(output.iterdir())
    assert done.sizes == (3, sum(file.stat().st_size for file in files))
    assert set(done.times) == {1, 64}
    before = [file.read_bytes() for file in files]
    (tmp_path / "mine").write_text("mine")

    other = trained(num_classes=3, depth=1)
    module = import_module(FORMATS[form].module)
    write = module.write
    monkeypatch.setattr(
        module,
        "write",
        lambda _, *how: write(replace(source, model=other.model), *how),
    )
    with pytest.raises(ExportError, match=r"a logit differs by .* \(9 of val\); take another"):
        export.export(config, job, samples, "val", output)
    assert [file.read_bytes() for file in files] == before
    assert {file.name for file in tmp_path.iterdir()} == {"best.pt", "export", "mine"}
    monkeypatch.undo()
    export.export(config, job, samples, "val", output)
    assert [file.read_bytes() for file in files] == before
    assert ExportError("").exit_code == 1
