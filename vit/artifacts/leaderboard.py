"""The runs below a folder as a table, the best first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit.artifacts.run_dir import RunDir

COLUMNS = ("val_top1", "test_top1", "best_epoch", "params", "images_per_second", "seconds", "state")


@dataclass(frozen=True)
class Run:
    """A run folder's name and the content of its summary.json."""

    name: str
    summary: dict[str, Any]


def read_runs(folder: Path) -> list[Run]:
    """All runs directly below `folder`, the best validation score first."""
    runs = [
        Run(path.name, summary)
        for path in sorted(folder.iterdir())
        if path.is_dir() and (summary := RunDir(path).read_summary())
    ]
    return sorted(runs, key=_score, reverse=True)


def leaderboard(runs: list[Run]) -> str:
    """The runs as a text table."""
    rows = [["run", *COLUMNS]]
    rows += [[run.name, *(_show(run.summary.get(column)) for column in COLUMNS)] for run in runs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join(lines)


def _score(run: Run) -> float:
    score = run.summary.get("val_top1")
    return float(score) if isinstance(score, (int, float)) else -1.0


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)
