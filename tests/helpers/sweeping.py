"""What the tests of sweeps and searches share: tiny runs, and what became of many."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from commands import SMALL

from vit.artifacts.runs import read_runs
from vit.artifacts.runs_table import runs_csv

TINY = [
    *(a for a in SMALL if not a.startswith(("model.depth", "trainer.log"))), "model.depth=1",
    "trainer.steps=12", "trainer.log_every=4", "trainer.save_every=4", "trainer.eval_every=6",
]  # fmt: skip
NOT_THE_SAME = ("seconds", "images_per_second", "matrix_tflops", "folder")
PLAIN: dict[str, Any] = {
    "trials": 8, "sampler": "random", "seed": 0, "min_epochs": 1, "reduction": 3,
    "space": {
        "optim.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "optim.weight_decay": {"low": 0.0, "high": 1.0},
        "model.depth": [1, 2, 3],
    },
}  # fmt: skip
"""The section `search` of a sweep."""


def changed(**values: Any) -> dict[str, Any]:
    """PLAIN with other values, or without those that are `absent`."""
    return {key: v for key, v in {**PLAIN, **values}.items() if v != "absent"}


def table(folder: Path) -> list[dict[str, str]]:
    """What `vit-runs --csv` says, without times and places."""
    rows = csv.DictReader(io.StringIO(runs_csv(read_runs(folder))))
    return [{key: v for key, v in row.items() if key not in NOT_THE_SAME} for row in rows]


def written(folder: Path) -> dict[Path, int]:
    """When the files of the finished runs were last changed."""
    return {
        file: file.stat().st_mtime_ns
        for found in read_runs(folder)
        if found.state == "finished"
        for file in found.path.rglob("*")
        if file.is_file() and file.name != ".lock"
    }
