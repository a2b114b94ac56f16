"""The commands on folders as people have them: what is said, and classes without images."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SMALL, run
from pictures import noise, save, write

from vit.config.commands import SCHEMAS

LEFT_OUT = "left out: 2 .heic, 1 special (a pipe, device or the like)"
EMPTY = "Valid has no image of c; test has no image of a: support 0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its `photos` in three splits, of which only that of training has all classes."""
    folder = tmp_path_factory.mktemp("place")
    photos = folder / "photos"
    counts = {"Train/a": 4, "Train/b": 4, "Train/c": 4, "Valid/a": 2, "Valid/b": 2, "test/b": 2,
              "test/c": 2}  # fmt: skip
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            save(photos / name / f"{i}.png", noise(16, 16, seed=10 * number + i))
    for name in ("Train/a/1.heic", "test/a/1.heic"):
        write(photos / name, b"")
    os.mkfifo(photos / "Train" / "b" / "pipe.jpg")
    (photos / "Train" / "c" / "gone.png").symlink_to("gone")
    done = run("train", *SMALL, "data=folder", "data.root=photos", "data.image_size=16",
               "model.patch_size=8", "trainer.batch_size=4", "trainer.epochs=1", "name=r",
               "data.cache=uint8", "data.cache_dir=kept",
               "data.on_bad_image=skip", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"\nnote     {LEFT_OUT}\nnote     {EMPTY}\n" in done.stdout
    assert "Train/c/gone.png (No such file or directory)" in done.stderr
    return folder


def test_classes_without_images_are_in_the_report_with_support_0(place: Path) -> None:
    done = run("eval", "checkpoint=outputs/r", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"warning: {LEFT_OUT}\nwarning: {EMPTY}\n"
    found = json.loads((place / "outputs/r/eval/test/metrics.json").read_text())
    assert [row["support"] for row in found["per_class"]] == [0, 2, 2]
    assert (place / "outputs/r/eval/test/report/index.html").is_file()


def test_another_folder_may_lack_classes_too(place: Path) -> None:
    save(place / "new" / "b" / "1.png", noise(16, 16, seed=999))
    done = run("eval", "checkpoint=outputs/r", "images=new", "output=scores", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: new has no image of a, c: support 0\n"
    found = json.loads((place / "scores" / "metrics.json").read_text())
    assert [row["support"] for row in found["per_class"]] == [0, 1, 0]


def test_flat_folders_are_labelled_and_not_scored(place: Path) -> None:
    flat = ["checkpoint=outputs/r", "images=photos/Train/b"]
    done = run("eval", *flat, cwd=place)
    assert done.returncode == 2
    assert "vit-predict <run> photos/Train/b" in done.stderr
    done = run("predict", *flat, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: left out: 1 special (a pipe, device or the like)\n"
    assert len(done.stdout.splitlines()) == 1 + 4
    done = run("explain", *flat, "output=seen", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: left out: 1 special (a pipe, device or the like)\n"


def test_runs_are_asked_for_with_keys_too(finished: Path, tmp_path: Path) -> None:
    given = run("runs", str(finished.parent), "--csv", cwd=tmp_path)
    keys = run("runs", f"folder={finished.parent}", "csv=true", "html=a.html", cwd=tmp_path)
    assert (given.returncode, keys.returncode) == (0, 0), keys.stderr
    assert given.stdout == keys.stdout
    assert (tmp_path / "a.html").is_file()
    for slip, wrong in (
        (["fodler=x"], "fodler=x is no setting"),
        (["csv=maybe"], "csv=maybe is no setting"),
        (["--tsv"], "unrecognized arguments: --tsv"),
        (["--html"], "argument --html: expected one argument"),
    ):
        done = run("runs", *slip, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"vit-runs: {wrong}; there are folder=, csv=true and html=<file> (--help says more)\n"
        )
    assert run("runs", "--version", cwd=tmp_path).stdout.startswith("vit-train ")


def test_the_package_lists_its_commands(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vit"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    for command in (*SCHEMAS, "runs"):
        assert re.search(rf"^vit-{command} +[A-Z].*\.$", done.stdout, re.M)
