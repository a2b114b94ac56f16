"""A cross-validation: a sweep over folds, whose runs are one score of all images."""

from __future__ import annotations

import json
import re
from pathlib import Path

from commands import run
from sweeping import TINY

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import groups, read_runs
from vit.data.manifest import Manifest
from vit.report.interval import wilson


def test_folds_are_joined_to_one_score_of_every_image(tmp_path: Path) -> None:
    done = run("train", "-m", "data.folds=3", "data.fold=0,1,2", *TINY, "name=cv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tested, right = [], 0
    for fold in range(3):
        folder = RunDir(tmp_path / "outputs" / "cv" / f"data.fold-{fold}")
        names = Manifest.from_bytes(folder.images.read_bytes()).splits["test"].names
        tested += names
        top1 = json.loads(folder.summary.read_text())["test_top1"]
        right += round(top1 * len(names) / 100)
    assert sorted(map(int, tested)) == list(range(1797))
    low, high = wilson(right, 1797)
    told = f"{right / 17.97:.2f} ({100 * low:.1f} to {100 * high:.1f}) of 1,797"
    assert re.search(rf"data\.fold-\d and 2 more .* {re.escape(told)}  +3/3", done.stdout)
    found = run("runs", "outputs/cv", cwd=tmp_path)
    assert told in found.stdout
    assert "data: " not in found.stdout  # the folds are of one data set
    (group,) = groups(read_runs(tmp_path / "outputs"))
    assert group.out_of_fold() == (right, 1797)


def test_folds_that_are_not_all_there_are_no_cross_validation(tmp_path: Path) -> None:
    done = run("train", "-m", "data.folds=3", "data.fold=0,2", *TINY, "name=cv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out of fold" not in done.stdout
    (group,) = groups(read_runs(tmp_path / "outputs"))
    assert len(group.runs) == 2
    assert group.out_of_fold() is None
