"""The runs below a folder as one self-contained HTML page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vit.artifacts.runs import Run, curve, effects, groups
from vit.artifacts.runs_table import group_rows
from vit.report.render import rendered

_AXES = 8
_TOP, _BOTTOM = 40.0, 290.0


def runs_page(title: str, runs: list[Run]) -> str:
    """The page: a sortable table, the effects of settings, parallel coordinates, curves.

    The runs are as `read_runs` gives them; their names are hostile text and are escaped.
    """
    states = Counter(run.state.partition(" at ")[0] for run in runs)
    head, rows = group_rows(groups(runs))
    return rendered(
        "runs.html",
        title=title,
        runs=runs,
        states=", ".join(f"{count} {state}" for state, count in states.items()) or "none",
        best=rows[0][head.index("val top-1")] if rows else None,
        head=head,
        rows=rows,
        effects=effects(runs),
        coordinates=_coordinates(runs),
        curves=_curves(runs),
    )


def _hues(scores: Sequence[float]) -> list[int]:
    """From red (0, the lowest score) to green (140, the highest)."""
    low, high = min(scores), max(scores)
    return [round(140 * (s - low) / (high - low)) if high > low else 140 for s in scores]


def _coordinates(runs: list[Run]) -> dict[str, Any] | None:
    """Axes and lines of the parallel coordinates; None where there is nothing to compare."""
    scored = [run for run in runs if run.config and run.score() is not None]
    keys = [effect.key for effect in effects(scored)][:_AXES]
    if len(scored) < 2 or not keys:
        return None
    scores = [run.score() or 0.0 for run in scored]
    columns: dict[str, list[Any]] = {key: [run.config.get(key) for run in scored] for key in keys}
    columns["val top-1"] = list(scores)
    places = [round(60 + i * 860 / len(keys)) for i in range(len(columns))]
    ticks, heights = zip(*map(_axis, columns.values()), strict=True)
    axes = [
        {"name": name, "x": x, "ticks": at}
        for name, x, at in zip(columns, places, ticks, strict=True)
    ]
    lines = [
        {
            "name": f"{run.name}: {score:.2f}",
            "hue": hue,
            "points": " ".join(f"{x},{y:.1f}" for x, y in zip(places, across, strict=True)),
        }
        for run, score, hue, across in zip(
            scored, scores, _hues(scores), zip(*heights, strict=True), strict=True
        )
    ]
    return {"axes": axes, "lines": lines}


def _axis(values: list[Any]) -> tuple[list[dict[str, Any]], list[float]]:
    """Ticks of an axis, and where each value lies on it: numbers by size, names side by side."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        names = sorted({str(value) for value in values})
        place = {name: _height(i, 0, max(len(names) - 1, 1)) for i, name in enumerate(names)}
        return [{"text": n, "y": y} for n, y in place.items()], [place[str(v)] for v in values]
    low, high = min(numbers), max(numbers)
    scale = math.log if low > 0 and high / low > 20 else float
    shown = sorted(set(numbers))
    shown = shown if len(shown) <= 6 else [low, high]
    ends = scale(low), scale(high)
    ticks = [{"text": f"{n:.6g}", "y": _height(scale(n), *ends)} for n in shown]
    return ticks, [_height(scale(value), *ends) for value in values]


def _height(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _curves(runs: list[Run]) -> dict[str, Any] | None:
    """Validation curves of all runs, with ticks; None where there is none."""
    found = [(run, points) for run in runs if len(points := curve(run.path)) > 1]
    if not found:
        return None
    last = max(x for _, points in found for x, _ in points)
    values = [y for _, points in found for _, y in points]
    low, high = math.floor(min(values) / 5) * 5, min(100, math.ceil(max(values) / 5) * 5)
    high = max(high, low + 5)

    def place(x: float, y: float) -> str:
        return f"{50 + 935 * x / last:.1f},{350 - 330 * (y - low) / (high - low):.1f}"

    hues = _hues([max(y for _, y in points) for _, points in found])
    return {
        "lines": [
            {"name": run.name, "hue": hue, "points": " ".join(place(*point) for point in points)}
            for (run, points), hue in zip(found, hues, strict=True)
        ],
        "y_ticks": [
            {"text": f"{low + (high - low) * i / 5:g}", "at": 350 - 66 * i} for i in range(6)
        ],
        "x_ticks": [{"text": f"{last * i / 5:.3g}", "at": 50 + 187 * i} for i in range(6)],
    }
