"""Two models on the same images: paired counts and McNemar's test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vit.report.metrics import INTERVAL, SIGNIFICANT, mcnemar
from vit.report.multilabel import LabelScores

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
        label_scores: of each, of several labels per image, where the others are (N, K); None: one.
    """

    names: tuple[str, str]
    labels: np.ndarray
    predicted: tuple[np.ndarray, np.ndarray]
    losses: tuple[np.ndarray, np.ndarray]
    label_scores: tuple[LabelScores, LabelScores] | None = None

    @cached_property
    def right(self) -> tuple[np.ndarray, np.ndarray]:
        """Which images each is right on, in all labels, (N,)."""
        first, second = (
            (predicted == self.labels).reshape(len(self.labels), -1).all(axis=1)
            for predicted in self.predicted
        )
        return first, second

    @cached_property
    def counts(self) -> tuple[int, int, int, int]:
        """Images that both are right on, the first alone, the second alone, and none."""
        a, b = self.right
        both, first, second, none = (int(x.sum()) for x in (a & b, a & ~b, b & ~a, ~a & ~b))
        return both, first, second, none

    @property
    def scores(self) -> tuple[float, float]:
        """Top-1 of each, or the mAP, in percent."""
        if self.label_scores is not None:
            a, b = (of.values()["map"] for of in self.label_scores)
            return a, b
        first, second = (float(100 * right.sum() / len(right)) for right in self.right)
        return first, second

    @cached_property
    def map_difference(self) -> tuple[float, float]:
        """95 % interval of the second mAP less the first, by a bootstrap over the images."""
        assert self.label_scores is not None
        first, second = (of.resampled["map"] for of in self.label_scores)
        low, high = np.quantile(second - first, INTERVAL).tolist()
        return low, high

    def as_json(self) -> dict[str, Any]:
        """For metrics.json: the score of the second model, the counts and the test."""
        keys = ("both_right", "only_first_right", "only_second_right", "both_wrong")
        p, test = mcnemar(*self.counts[1:3])
        own: dict[str, Any] = {"top1": self.scores[1]}
        if self.label_scores is not None:
            own = {"map": self.scores[1], "map_difference": [*self.map_difference]}
        return {**own, **dict(zip(keys, self.counts, strict=True)), "p": p, "test": test}

    @property
    def statement(self) -> str:
        """What came of it, in words."""
        a, b = self.names
        _, first, second, _ = self.counts
        p, _ = mcnemar(first, second)
        shown = "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"
        paired = (
            f"{b} is right on {second:,} image{'s' * (second != 1)} where {a} is wrong, "
            f"{a} on {first:,} where {b} is wrong: {shown}"
        )
        better = a if first > second else b
        is_shown = p < SIGNIFICANT
        if self.label_scores is not None:
            low, high = self.map_difference
            better, is_shown = (a if high < 0 else b), low > 0 or high < 0
        verdict = (
            f"evidence that {better} is the better one"
            if is_shown
            else "no evidence of a difference at this size"
        )
        if self.label_scores is None:
            return f"{paired}, {verdict}."
        change = self.scores[1] - self.scores[0]
        return (
            f"the mAP of {b} is {abs(change):.2f} {'lower' if change < 0 else 'higher'} than that "
            f"of {a} (95 % {low:+.2f} to {high:+.2f}), {verdict}. In all labels of an image "
            f"{paired}."
        )

    def shown(self) -> tuple[list[int], list[int]]:
        """Images that the first alone is right on, and the second alone: those on which the losses
        differ most, by number.
        """
        a, b = self.right
        rising = np.argsort(self.losses[1] - self.losses[0], kind="stable")
        first, second = rising[::-1][(a & ~b)[rising[::-1]]], rising[(b & ~a)[rising]]
        return first[:_SHOWN].tolist(), second[:_SHOWN].tolist()
