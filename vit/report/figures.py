"""Geometry of a report's reliability diagrams, in SVG, and the order of its confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from vit.report.metrics import Bins


def reliability(bins: Bins) -> dict[str, Any]:
    """A reliability diagram (DeGroot & Fienberg 1983) above a histogram, in 360 x 330.

    Each bar goes up to the accuracy or the mean confidence of a bin, whichever is less; its gap,
    from there to the other.
    """
    left, right, top, bottom = 44.0, 350.0, 10.0, 240.0
    number, total = len(bins.count), int(bins.count.sum())
    width, most = (right - left) / number, max(int(bins.count.max()), 1)

    def height(share: float) -> float:
        return bottom - share * (bottom - top)

    bars = []
    for i in np.flatnonzero(bins.count):
        count, accuracy, confidence = (float(column[i]) for column in vars(bins).values())
        low, high = sorted((accuracy, confidence))
        bars.append(
            {
                "x": left + i * width + 1,
                "width": width - 2,
                "y": height(low),
                "height": bottom - height(low),
                "gap_y": height(high),
                "gap": height(low) - height(high),
                "too_sure": confidence > accuracy,
                "count_y": 300 - 44 * count / most,
                "count": 44 * count / most,
                "text": f"confidence {100 * i / number:.0f} to {100 * (i + 1) / number:.0f} %: "
                f"{count:,.0f} images, mean confidence {100 * confidence:.1f} %, "
                f"accuracy {100 * accuracy:.1f} %",
            }
        )
    ticks = [{"text": f"{20 * i}", "x": left + i * (right - left) / 5, "y": height(i / 5)}
             for i in range(6)]  # fmt: skip
    largest = f"{100 * most / max(total, 1):.0f} %"
    return {"bars": bars, "ticks": ticks, "left": left, "right": right, "top": top,
            "bottom": bottom, "largest": largest}  # fmt: skip


def alike_together(counts: np.ndarray) -> list[int]:
    """An order of the classes of a confusion matrix (K, K) in which those that are confused stand
    together: the leaves of a tree that joins the most confused first (average linkage; Bar-Joseph,
    Gifford & Jaakkola 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(counts) < 3:
        return list(range(len(counts)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    apart = 2 - shares - shares.T
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), "average", optimal_ordering=True)
    order: list[int] = leaves_list(tree).tolist()
    return order if order[0] < order[-1] else order[::-1]
