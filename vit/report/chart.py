"""Geometry of learning curves in SVG; no NumPy, for what answers at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Points = Sequence[tuple[float, float]]
_MOST_POINTS = 300


def chart(
    lines: Mapping[str, Points], mark: float | None = None, size: tuple[int, int] = (460, 260)
) -> dict[str, Any] | None:
    """Lines, by name, over a common x axis that starts at 0, in a width and height, and an x to be
    marked.

    None where there is no line. Points are in rising x.
    """
    lines = {name: thinned(points) for name, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    left, right, top, bottom = 48.0, size[0] - 12.0, 12.0, size[1] - 44.0
    last = max(points[-1][0] for points in lines.values())
    values = [y for points in lines.values() for _, y in points]
    y_ticks, x_ticks = nice_ticks(min(values), max(values)), nice_ticks(0, last)
    low, high = min(y_ticks[0], min(values)), max(y_ticks[-1], max(values))

    def across(x: float) -> float:
        return left + (right - left) * x / last

    def height(y: float) -> float:
        return bottom - (bottom - top) * (y - low) / (high - low)

    return {
        "lines": {
            name: " ".join(f"{across(x):.1f},{height(y):.1f}" for x, y in points)
            for name, points in lines.items()
        },
        "y_ticks": [{"text": f"{y:g}", "y": height(y)} for y in y_ticks],
        "x_ticks": [{"text": f"{x:g}", "x": across(x)} for x in x_ticks if x <= last],
        "mark": across(mark) if mark is not None and 0 <= mark <= last else None,
        "left": left, "right": right, "top": top, "bottom": bottom,
    }  # fmt: skip


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most 300 points: means of neighbours."""
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    span = max(high - low, 1e-9 * max(abs(high), 1.0))
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]
