"""Two models on the same images: paired counts and McNemar's test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vit.report.metrics import SIGNIFICANT, mcnemar

_SHOWN = 12
"""Images that one model alone is right on, at most."""


@dataclass(frozen=True)
class Comparison:
    """Two models on N images.

    Attributes:
        names: what to call them.
        labels: the truth (N,).
        predicted: classes by each (N,).
        losses: of each, in nats (N,).
    """

    names: tuple[str, str]
    labels: np.ndarray
    predicted: tuple[np.ndarray, np.ndarray]
    losses: tuple[np.ndarray, np.ndarray]

    @cached_property
    def right(self) -> tuple[np.ndarray, np.ndarray]:
        """Which images each is right on, (N,)."""
        first, second = (predicted == self.labels for predicted in self.predicted)
        return first, second

    @cached_property
    def counts(self) -> tuple[int, int, int, int]:
        """Images that both are right on, the first alone, the second alone, and none."""
        a, b = self.right
        both, first, second, none = (int(x.sum()) for x in (a & b, a & ~b, b & ~a, ~a & ~b))
        return both, first, second, none

    @property
    def top1(self) -> tuple[float, float]:
        """Of each, in percent."""
        first, second = (float(100 * right.sum() / len(right)) for right in self.right)
        return first, second

    def as_json(self) -> dict[str, Any]:
        """For metrics.json: top-1 of the second model, the counts and the test."""
        keys = ("both_right", "only_first_right", "only_second_right", "both_wrong")
        p, test = mcnemar(*self.counts[1:3])
        counts = dict(zip(keys, self.counts, strict=True))
        return {"top1": self.top1[1], **counts, "p": p, "test": test}

    @property
    def statement(self) -> str:
        """What came of it, in words."""
        a, b = self.names
        _, first, second, _ = self.counts
        p, _ = mcnemar(first, second)
        shown = "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"
        verdict = (
            f"evidence that {a if first > second else b} is the better one"
            if p < SIGNIFICANT
            else "no evidence of a difference at this size"
        )
        return (
            f"{b} is right on {second:,} image{'s' * (second != 1)} where {a} is wrong, "
            f"{a} on {first:,} where {b} is wrong: {shown}, {verdict}."
        )

    def shown(self) -> tuple[list[int], list[int]]:
        """Images that the first alone is right on, and the second alone: those on which the losses
        differ most, by number.
        """
        a, b = self.right
        rising = np.argsort(self.losses[1] - self.losses[0], kind="stable")
        first, second = rising[::-1][(a & ~b)[rising[::-1]]], rising[(b & ~a)[rising]]
        return first[:_SHOWN].tolist(), second[:_SHOWN].tolist()
