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
from vit.artifacts.runs_table import effects_table, groups_table, head, row
from vit.report.chart import chart
from vit.report.render import rendered

_AXES = 8
_TOP, _BOTTOM = 40.0, 290.0


def runs_page(title: str, runs: list[Run], place: Path) -> str:
    """The page: of the runs on the same images a sortable table, means over seeds, the effects of
    settings, parallel coordinates, curves.

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
        "best": found[0].spread(),
        "head": head(runs, keys),
        "score": called(runs),
        "rows": [(run.path, row(run, keys)) for run in runs],
        "groups": groups_table(found) if len(found) < len(runs) else None,
        "effects": effects_table(mattered, called(runs)) if mattered else None,
        "coordinates": _coordinates(runs, [effect.key for effect in mattered[:_AXES]]),
        "curves": _curves(runs),
    }


def _hues(scores: Sequence[float]) -> list[int]:
    """From red (0, the lowest score) to green (140, the highest)."""
    low, high = min(scores), max(scores)
    return [round(140 * (s - low) / (high - low)) if high > low else 140 for s in scores]


def _coordinates(runs: list[Run], keys: list[str]) -> dict[str, Any] | None:
    """Axes and lines of the parallel coordinates; None where there is nothing to compare."""
    scored = [(run, score) for run in runs if run.config and (score := run.score()) is not None]
    if not keys:
        return None
    scores = [score for _, score in scored]
    columns = {key: [run.config.get(key) for run, _ in scored] for key in keys}
    columns[f"val {called(runs)}"] = [*scores]
    places = [round(60 + i * 860 / len(keys)) for i in range(len(columns))]
    ticks, heights = zip(*map(_axis, columns.values()), strict=True)
    points = [
        " ".join(f"{x},{y:.1f}" for x, y in zip(places, across, strict=True))
        for across in zip(*heights, strict=True)
    ]
    names = [f"{run.name}: {score:.2f}" for run, score in scored]
    return {
        "axes": list(zip(columns, places, ticks, strict=True)),
        "lines": list(zip(names, _hues(scores), points, strict=True)),
    }


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
    ticks = [(f"{number:.6g}", _height(scale(number), *ends)) for number in shown]
    return ticks, [_height(scale(value), *ends) for value in values]


def _height(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _curves(runs: list[Run]) -> dict[str, Any] | None:
    """Validation curves of all runs, as `chart` has them; None where there is none."""
    found = {run.name: p for run in runs if len(p := curve(run.path, "val", run.main)) > 1}
    drawn = chart(found, size=(1000, 380))
    if drawn is None:
        return None
    hues = _hues([max(y for _, y in points) for points in found.values()])
    return {**drawn, "lines": list(zip(found, hues, drawn["lines"].values(), strict=True))}
