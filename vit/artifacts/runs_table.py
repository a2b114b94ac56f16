"""The runs below a folder as text tables and as CSV."""

from __future__ import annotations

from statistics import mean
from typing import Any

from vit.artifacts.runs import Effect, Group, Run, differing, groups, spread
from vit.errors import printable
from vit.runtime.files import to_csv_line

COLUMNS = ("val_top1", "test_top1", "best_epoch", "params", "images_per_second", "seconds")


def runs_table(runs: list[Run]) -> str:
    """One line per run, the best first."""
    head = ["run", *COLUMNS, "state"]
    rows = [[run.name, *(show(run.summary.get(c)) for c in COLUMNS), run.state] for run in runs]
    return _aligned(head, rows)


def groups_table(runs: list[Run]) -> str:
    """One line per setting that was tried, with mean and deviation over its seeds."""
    return _aligned(*group_rows(groups(runs)))


def group_rows(found: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of `groups_table`."""
    keys = list(dict.fromkeys(key for group in found for key in group.settings))
    names = keys or ["run"]
    rows = []
    for group in found:
        settings = [show(group.settings.get(key)) for key in keys] or [group.runs[0].name]
        seconds = group.scores("seconds")
        finished = sum(run.state == "finished" for run in group.runs)
        rows.append([
            *settings, spread(group.scores()), spread(group.scores("test_top1")),
            f"{finished}/{len(group.runs)}", f"{mean(seconds):,.0f}" if seconds else "-",
        ])  # fmt: skip
    return [*names, "val top-1", "test top-1", "finished", "seconds"], rows


def effects_table(found: list[Effect]) -> str:
    """One line per setting: how much of the variance it explains, and the mean of each value."""
    head = ["setting", "share", "mean val top-1 by value"]
    rows = [
        [
            effect.key,
            f"{100 * effect.share:.0f} %",
            ", ".join(f"{value}: {score:.2f}" for value, score in effect.means.items()),
        ]
        for effect in found
    ]
    return _aligned(head, rows)


def runs_csv(runs: list[Run]) -> str:
    """One line per run: name, state, seed, what differs between runs, and every score."""
    keys = ["seed", *differing(runs)]
    scores = list(dict.fromkeys(
        key for run in runs for key, value in run.summary.items()
        if isinstance(value, (int, float)) or value is None
    ))  # fmt: skip
    rows: list[list[Any]] = [["run", "state", *keys, *scores]]
    for run in runs:
        settings = [run.config.get(key, "") for key in keys]
        values = [run.summary.get(key) for key in scores]
        rows.append([run.name, run.state, *settings, *("" if v is None else v for v in values)])
    printables = ([printable(c) if isinstance(c, str) else c for c in row] for row in rows)
    return b"".join(map(to_csv_line, printables)).decode()


def show(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


def _aligned(head: list[str], rows: list[list[str]]) -> str:
    """Columns of equal width: the first to the left, the others to the right."""
    table = [list(map(printable, row)) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    )
