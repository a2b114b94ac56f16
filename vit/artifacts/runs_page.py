"""The runs below a folder as one self-contained HTML page."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vit.artifacts.runs import (
    APART,
    NO_SHARE,
    Run,
    by_images,
    called,
    curve,
    differing,
    effects,
    groups,
)
from vit.artifacts.runs_table import effects_table, first_place, groups_table, head, row
from vit.report.chart import chart
from vit.report.render import rendered

_AXES = 8
_SIZE = 760, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 8.0, 752.0, 56.0, 294.0
_COLOURS = 8
"""Lines that each have a colour of their own; of more the colour is between that of the best and
that of the worst."""


def runs_page(title: str, runs: list[Run], place: Path) -> str:
    """The page: of the runs on the same images the best, a sortable table, curves, means over
    seeds, the effects of settings, parallel coordinates.

    The runs are as `read_runs` gives them; their names are hostile text and are escaped. Links are
    relative to the folder `place`.
    """
    states = Counter(run.state.partition(" at ")[0] for run in runs)
    return rendered(
        "runs.html",
        title=title,
        count=len(runs),
        states=", ".join(f"{count} {state}" for state, count in states.items()) or "none",
        apart=APART,
        no_share=NO_SHARE,
        parts={data: _part(alike) for data, alike in by_images(runs).items()},
        link=lambda path: quote(os.fsencode(os.path.relpath(path, place))),
    )


def _part(runs: list[Run]) -> dict[str, Any]:
    """What the page says of runs that are scored on the same images."""
    keys, found, mattered = differing(runs), groups(runs), effects(runs)
    return {
        "first": first_place(runs),
        "best": found[0].spread(),
        "head": head(runs, keys),
        "score": called(runs),
        "rows": [(run.path, run.path, row(run, keys)) for run in runs],
        "groups": groups_table(found) if len(found) < len(runs) else None,
        "effects": effects_table(mattered, called(runs)) if mattered else None,
        "coordinates": _coordinates(runs, [effect.key for effect in mattered[:_AXES]]),
        "curves": _curves(runs),
    }


def _drawn(lines: Sequence[tuple[Run, str, float, str]]) -> list[dict[str, Any]]:
    """Lines, each of a run, with what it is called, its score and its points: the best first."""
    ranked = sorted(lines, key=lambda line: -line[2])
    return [
        {"run": run.path, "name": name, "points": points, "colour": _colour(rank, len(ranked))}
        for rank, (run, name, _, points) in enumerate(ranked)
    ]


def _colour(rank: int, count: int) -> str:
    if count <= _COLOURS:
        return f"var(--c{rank})"
    return f"color-mix(in oklab, var(--c1) {100 * rank / (count - 1):.0f}%, var(--c0))"


def _coordinates(runs: list[Run], keys: list[str]) -> dict[str, Any] | None:
    """Axes and lines of the parallel coordinates; None where there is nothing to compare."""
    scored = [(run, score) for run in runs if run.config and (score := run.score()) is not None]
    if not keys:
        return None
    columns = {key: [run.config.get(key) for run, _ in scored] for key in keys}
    columns[f"val {called(runs)}"] = [score for _, score in scored]
    places = [_LEFT + i * (_RIGHT - _LEFT) / len(keys) for i in range(len(columns))]
    ticks, heights = zip(*map(_axis, columns.values()), strict=True)
    points = [
        " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, across, strict=True))
        for across in zip(*heights, strict=True)
    ]
    axes = [
        {"name": name, "x": round(x, 1), "ticks": found, "last": x == places[-1]}
        for name, x, found in zip(columns, places, ticks, strict=True)
    ]
    lines = [
        (run, f"{run.name}: {score:.2f}", score, line)
        for (run, score), line in zip(scored, points, strict=True)
    ]
    return {"axes": axes, "lines": _drawn(lines)}


def _axis(values: list[Any]) -> tuple[list[tuple[str, float]], list[float]]:
    """Ticks of an axis, and where each value lies on it: numbers by size, names side by side."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        names = sorted({str(value) for value in values})
        place = {name: _height(i, 0, max(len(names) - 1, 1)) for i, name in enumerate(names)}
        return list(place.items()), [place[str(value)] for value in values]
    low, high = min(numbers), max(numbers)
    scale = math.log if low > 0 and high / low > 20 else float
    shown = sorted(set(numbers))
    shown = shown if len(shown) <= 6 else [low, high]
    ends = scale(low), scale(high)
    ticks = [(f"{number:.4g}", _height(scale(number), *ends)) for number in shown]
    return ticks, [_height(scale(value), *ends) for value in values]


def _height(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _curves(runs: list[Run]) -> dict[str, Any] | None:
    """Validation curves of all runs, as `chart` has them; None where there is none."""
    found = [(run, p) for run in runs if len(p := curve(run.path, "val", run.main)) > 1]
    drawn = chart({str(run.path): points for run, points in found}, size=_SIZE)
    if drawn is None:
        return None
    lines = [
        (run, run.name, max(y for _, y in points), drawn["lines"][str(run.path)])
        for run, points in found
    ]
    return {**drawn, "lines": _drawn(lines)}
