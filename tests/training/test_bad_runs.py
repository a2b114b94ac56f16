"""Whole runs on folders with damaged images: stopped and mended, skipped, verified."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from commands import SMALL, run
from kill_resume import differences, metrics
from pictures import data_config, noise, save

from vit.artifacts.run_dir import RunDir
from vit.data.sampler import Sampler
from vit.data.sources.registry import load_data_set

ARGS = [
    *(a for a in SMALL if not a.startswith(("trainer.batch_size", "data.workers"))),
    "data=folder", "data.root=photos", "data.image_size=24", "data.memory=stream",
    "data.workers=2", "data.val_fraction=0.2", "data.test_fraction=0.2", "trainer.batch_size=8",
    "trainer.epochs=3", "trainer.log_every=1", "augment.policy=randaugment", "data.verify=false",
]  # fmt: skip
TORN = b"\xff\xd8\xff\xe0 no photo"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """60 images of two classes: 34 to train on, 13 to validate and 13 to test."""
    for label in "ab":
        for i in range(30):
            size = ((24, 24), (30, 40), (50, 30))[i % 3]
            save(tmp_path / "photos" / label / f"{i:02}.jpg", noise(*size, seed=ord(label) + i))
    return tmp_path / "photos"


def splits(photos: Path):
    config = data_config(
        "folder", root=str(photos), image_size=24, val_fraction=0.2, test_fraction=0.2
    )
    return load_data_set(config).splits


def test_stopped_by_a_damaged_image_a_mended_run_equals_an_unbroken_one(photos, tmp_path):
    train = splits(photos)["train"]
    victim = Sampler(train.labels, 0, balanced=False).positions(3 * 8, 4 * 8)[2]  # of step 3
    name = train.names[victim]
    whole = (photos / name).read_bytes()
    unbroken = run("train", *ARGS, "name=unbroken", cwd=tmp_path)
    assert unbroken.returncode == 0, unbroken.stderr

    (photos / name).write_bytes(TORN)
    broken = run("train", *ARGS, "name=broken", cwd=tmp_path)
    assert broken.returncode == 2
    assert "Traceback" not in broken.stderr
    assert "1 of 34 images cannot be decoded" in broken.stderr
    assert name in broken.stderr
    assert "saved at step 3; go on with `vit-train resume=outputs/broken`" in broken.stderr
    left = RunDir(tmp_path / "outputs" / "broken")
    assert metrics(left)[-1]["step"] == 3

    again = run("train", "resume=outputs/broken", cwd=tmp_path)  # still damaged
    assert again.returncode == 2
    assert name in again.stderr
    (photos / name).write_bytes(whole)
    mended = run("train", "resume=outputs/broken", "data.workers=1", cwd=tmp_path)
    assert mended.returncode == 0, mended.stderr
    other = RunDir(tmp_path / "outputs" / "unbroken")
    assert metrics(left) == metrics(other)
    unequal = [found for found in differences(left, other) if not found.endswith(": /images")]
    assert unequal == []  # the list of its images has the damaged one


def test_skipped_images_are_told_once_and_left_out(photos, tmp_path):
    found = splits(photos)
    bad = {split: [found[split].names[i] for i in (1, 4)] for split in ("train", "val", "test")}
    everything = sorted(name for names in bad.values() for name in names)
    for name in everything:
        (photos / name).write_bytes(TORN)
    skip = ["data.on_bad_image=skip", "data.bad_image_limit=0.2"]
    done = run("train", *ARGS, *skip, "name=skip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "damaged images" in line]
    named = [re.search(r"[ab]/\d\d\.jpg", line)[0] for line in warnings]
    assert sorted(named) == everything
    for line, name in zip(warnings, named, strict=True):
        fate = "replaced by the next ones" if name in bad["train"] else "left out of the scores"
        assert fate in line
    log = metrics(RunDir(tmp_path / "outputs" / "skip"))
    counts = [line["bad_images"] for line in log if line["event"] == "train"]
    assert counts == sorted(counts)
    assert counts[-1] == 2

    summary = RunDir(tmp_path / "outputs" / "skip").read_summary()
    for split in ("val", "test"):
        assert summary[f"images_{split}"] == len(found[split]) - 2

    scored = run("eval", "checkpoint=outputs/skip", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    folder = tmp_path / "outputs" / "skip" / "eval" / "test"
    result = json.loads((folder / "metrics.json").read_text())
    assert sorted(result["bad_images"]) == sorted(bad["test"])
    assert result["images"] == 11
    test = next(line for line in log if line["event"] == "test")
    assert {key: result[key] for key in ("loss", "top1", "top5")} == {
        key: test[key] for key in ("loss", "top1", "top5")
    }
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    good = [name for name in found["test"].names if name not in bad["test"]]
    assert [row["image"] for row in rows] == good
    assert all(row["label"] == Path(row["image"]).parent.name for row in rows)

    longer = run("train", "resume=outputs/skip", "trainer.epochs=4", cwd=tmp_path)
    assert longer.returncode == 0, longer.stderr
    last = [line for line in metrics(RunDir(tmp_path / "outputs" / "skip"))
            if line["event"] == "train"][-1]  # fmt: skip
    assert last["bad_images"] == 2


def test_too_many_damaged_images_end_the_run(photos, tmp_path):
    names = splits(photos)["train"].names[:4]
    for name in names:
        (photos / name).write_bytes(TORN)
    done = run(
        "train", *ARGS, "data.memory=device", "data.on_bad_image=skip",
        "data.bad_image_limit=0.1", "name=many", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "4 of 34 images cannot be decoded, 3 allowed by data.bad_image_limit" in done.stderr
    assert not (tmp_path / "outputs" / "many").exists()


def test_a_damaged_test_image_may_be_skipped_by_vit_eval(photos, tmp_path):
    """As the answer says, word for word; the run itself skips none."""
    args = [a for a in ARGS if not a.startswith("data.workers")]
    assert run("train", *args, "name=run", cwd=tmp_path).returncode == 0
    (photos / splits(photos)["test"].names[0]).write_bytes(TORN)
    for command in (["eval", "report=false"], ["export", "split=test"]):
        refused = run(*command, "checkpoint=outputs/run", cwd=tmp_path)
        assert refused.returncode == 2
        assert "1 of 13 images cannot be decoded" in refused.stderr
        assert "or skip them with data.on_bad_image=skip" in refused.stderr
        done = run(*command, "checkpoint=outputs/run", "data.on_bad_image=skip", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verify", ["true", "auto"])
def test_verify_names_all_before_training(photos, tmp_path, verify):
    names = [samples.names[2] for samples in splits(photos).values()]
    names += [splits(photos)["train"].names[i] for i in (7, 30)]
    for name in names:
        (photos / name).write_bytes(TORN)
    done = run("train", *ARGS, f"data.verify={verify}", "name=verified", cwd=tmp_path)
    assert done.returncode == 2
    for name in names:
        assert name in done.stderr
    assert not (tmp_path / "outputs" / "verified").exists()
