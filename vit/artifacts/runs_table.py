"""The runs below a folder as text tables and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from shlex import join as quoted
from statistics import mean
from typing import Any

from vit.artifacts.runs import Effect, Group, Run, by_images, called, differing
from vit.errors import printable, shortened
from vit.report.interval import difference, wilson
from vit.runtime.files import to_csv_line

MEASURED = {
    "best_epoch": "best epoch", "params": "params", "images_per_second": "images/s",
    "seconds": "seconds",
}  # fmt: skip
SAID = {"best_epoch": "at epoch", "seconds": "seconds"}
"""Of these what fits on a screen."""
WIDE = 100
"""Lines have fewer columns."""
Table = tuple[list[str], list[list[str]]]
"""Head and rows."""


def runs_table(runs: list[Run]) -> str:
    """One line per run, the best first; the CSV and the page have more of each."""
    keys = differing(runs)
    rows = [[*row(run, (), SAID), _settings(run.config, keys)] for run in runs]
    return aligned([*head(runs, (), SAID), "what differs" if keys else ""], rows)


def head(
    runs: list[Run], keys: Iterable[str] = (), measured: Mapping[str, str] = MEASURED
) -> list[str]:
    """What stands above `row`."""
    score = called(runs)
    own = ["run", f"val {score}", "95 %", "n", "state", *keys, f"test {score}"]
    return [*own, *measured.values()]


def row(run: Run, keys: Iterable[str] = (), measured: Iterable[str] = MEASURED) -> list[str]:
    """What stands of a run below `head`: the settings `keys`, and what was `measured`."""
    within = run.interval(run.score())
    return [
        run.name, show(run.score()), "{:.1f} to {:.1f}".format(*within) if within else "-",
        show(run.summary.get("images_val")), run.state,
        *(show(run.config.get(key)) for key in keys),
        show(run.summary.get(f"test_{run.main}")),
        *(show(run.summary.get(key)) for key in measured),
    ]  # fmt: skip


def first_place(runs: list[Run]) -> list[str]:
    """Which of several runs, the best first, is the best on validation, which of the others are not
    shown to be worse, and how to compare two; nothing of less than two.

    The test is of images that are not the same: the comparison image by image sees more.
    """
    scored = [run for run in runs if run.state == "finished" and run.score() is not None]
    if len(scored) < 2:
        return []
    best, second = scored[:2]
    lines = [f"best on validation: {printable(best.name)}, {show(best.score())}"]
    hits = {run.path: counted for run in scored if (counted := run.hits(run.score())) is not None}
    if len(hits) == len(scored):
        close = [r.name for r in scored[1:] if difference(hits[best.path], hits[r.path])[0] <= 0]
        lines.append(f"not shown to be worse: {shortened(close, 2) or 'no other'}")
    compare = quoted(["vit-eval", str(best.path), str(second.path)])
    return [*lines, f"image by image: {compare}"]


def groups_table(found: list[Group]) -> Table:
    """One line per setting that was tried, with mean and deviation over its seeds or folds; of a
    cross-validation also the score of all images together.
    """
    rows = []
    joined = [group.out_of_fold() for group in found]
    for group, whole in zip(found, joined, strict=True):
        seconds = group.scores("seconds")
        finished = sum(run.state == "finished" for run in group.runs)
        rows.append([
            shortened([run.name for run in group.runs], 1), group.spread(),
            group.spread(f"test_{group.runs[0].main}"), *([_joined(whole)] if any(joined) else []),
            f"{finished}/{len(group.runs)}",
            f"{mean(seconds):,.0f}" if seconds else "-", _settings(group.settings, group.settings),
        ])  # fmt: skip
    score = called(run for group in found for run in group.runs)
    first = ["runs", f"val {score}", f"test {score}", *(["out of fold"] if any(joined) else [])]
    return [*first, "finished", "seconds", "what differs"], rows


def _joined(whole: tuple[int, int] | None) -> str:
    if whole is None:
        return "-"
    low, high = wilson(*whole)
    return f"{100 * whole[0] / whole[1]:.2f} ({100 * low:.1f} to {100 * high:.1f}) of {whole[1]:,}"


def effects_table(found: list[Effect], score: str) -> Table:
    """One line per setting: how much of the variance it explains, and the mean of each value."""
    rows = [
        [
            effect.key, "-" if effect.share is None else f"{100 * effect.share:.0f} %",
            ", ".join(f"{value}: {score:.2f}" for value, score in effect.means.items()),
        ]
        for effect in found
    ]  # fmt: skip
    return ["setting", "share of variance", f"mean val {score} by value"], rows


def runs_csv(runs: list[Run]) -> str:
    """One line per run: name, folder, state, data, seed, what differs between runs, every score."""
    keys = ["seed", *differing(runs)]
    titles = {run.path: title for title, alike in by_images(runs).items() for run in alike}
    scores = list(dict.fromkeys(
        key for run in runs for key, value in run.summary.items()
        if isinstance(value, (int, float)) or value is None
    ))  # fmt: skip
    rows: list[list[Any]] = [["run", "folder", "state", "scored on", *keys, *scores]]
    for run in runs:
        settings = [run.config.get(key, "") for key in keys]
        values = ["" if (v := run.summary.get(key)) is None else v for key in scores]
        rows.append([run.name, str(run.path), run.state, titles[run.path], *settings, *values])
    printables = ([printable(c) if isinstance(c, str) else c for c in row] for row in rows)
    return b"".join(map(to_csv_line, printables)).decode()


def show(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


def aligned(head: list[str], rows: list[list[str]]) -> str:
    """Columns of equal width: the first and the last to the left, the others to the right; the last
    below the others where lines would be too wide.
    """
    table = [list(map(printable, row)) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head) - 1)]
    lines = [
        [row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:]), row[-1]] for row in table
    ]
    whole = ["  ".join(line).rstrip() for line in lines]
    if max(map(len, whole)) < WIDE:
        return "\n".join(whole)
    return "\n".join(
        "\n    ".join(filter(None, ("  ".join(line[:-1]).rstrip(), line[-1]))) for line in lines
    )


def _settings(config: dict[str, Any], keys: Iterable[str]) -> str:
    return shortened([f"{key}={config[key]}" for key in keys if key in config], 4)
