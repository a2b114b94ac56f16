"""Two models on the same images: paired counts and McNemar's test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vit.data.types import Samples
from vit.errors import DataError
from vit.inference.evaluator import Evaluator
from vit.inference.load import Trained
from vit.inference.predict import Predictions
from vit.report import metrics
from vit.report.page import Versus

_SHOWN = 12
"""Images that one model alone is right on, at most."""


@dataclass(frozen=True)
class Comparison:
    """Two models, and their predictions of the same images in the same order.

    Raises:
        DataError: not the same images turned out damaged.
    """

    models: tuple[Trained, Trained]
    predictions: tuple[Predictions, Predictions]

    def __post_init__(self) -> None:
        first, second = (predictions.index.tolist() for predictions in self.predictions)
        if first != second:
            raise DataError(
                f"checkpoint: not the same images can be decoded for {self.models[0].path} and "
                f"for {self.models[1].path}; repair or remove the damaged ones"
            )

    def counts(self) -> tuple[int, int, int, int]:
        """Images that both are right on, the first alone, the second alone, and none."""
        a, b = (predictions.correct for predictions in self.predictions)
        both, first, second, none = (int(x.sum()) for x in (a & b, a & ~b, b & ~a, ~a & ~b))
        return both, first, second, none

    def as_json(self) -> dict[str, Any]:
        """For metrics.json: who the second model is, its top-1, the counts and the test."""
        other = self.models[1]
        both, first, second, none = self.counts()
        p, test = metrics.mcnemar(first, second)
        return {
            "checkpoint": str(other.path),
            "step": other.step,
            "image_size": other.preprocessing["image_size"],
            "top1": self.predictions[1].scores()["top1"],
            "both_right": both,
            "only_first_right": first,
            "only_second_right": second,
            "both_wrong": none,
            "p": p,
            "test": test,
        }

    def names(self) -> tuple[str, str]:
        """What to call the models: their runs, where these differ."""
        a, b = (model.name for model in self.models)
        if a == b:
            a, b = (str(model.path) for model in self.models)
        return a, b

    def statement(self) -> str:
        """What came of it, in words."""
        a, b = self.names()
        _, first, second, _ = self.counts()
        p, _ = metrics.mcnemar(first, second)
        shown = "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"
        verdict = (
            f"evidence that {a if first > second else b} is the better one"
            if p < metrics.SIGNIFICANT
            else "no evidence of a difference at this size"
        )
        return (
            f"{b} is right on {second:,} image{'s' * (second != 1)} where {a} is wrong, "
            f"{a} on {first:,} where {b} is wrong: {shown}, {verdict}."
        )

    def shown(self) -> Versus:
        """As the page shows it, with the images on which the losses differ most."""
        ours, theirs = self.predictions
        a, b = ours.correct, theirs.correct
        worse = theirs.losses - ours.losses
        rising = np.argsort(worse, kind="stable")
        second, first = rising[(b & ~a)[rising]], rising[::-1][(a & ~b)[rising[::-1]]]
        return Versus(
            names=self.names(),
            top1=(ours.scores()["top1"], theirs.scores()["top1"]),
            counts=self.counts(),
            statement=self.statement(),
            predicted=theirs.top[:, 0],
            first=first[:_SHOWN].tolist(),
            second=second[:_SHOWN].tolist(),
        )


def check_comparable(one: Evaluator, other: Evaluator, samples: Samples) -> None:
    """Whether a second model can be compared with the first one, on what that is evaluated on.

    Raises:
        DataError: it knows other classes, or its split holds other images.
    """
    first, second = one.trained, other.trained
    if first.classes != second.classes:
        differ = sorted(set(first.classes) ^ set(second.classes))
        which = f"{', '.join(differ[:5])}{', ...' * (len(differ) > 5)}" if differ else "the order"
        raise DataError(
            f"checkpoint: {second.path} knows other classes than {first.path} (not in both: "
            f"{which}); compare models of the same classes"
        )
    theirs, what = other.find(one.config.split)
    if list(theirs.names) != list(samples.names) or (theirs.labels != samples.labels).any():
        raise DataError(
            f"checkpoint: {what} of {second.path} holds other images than that of {first.path}; "
            f"compare them on images=<folder> that neither has seen"
        )
