"""The verdict on a finished run: how good it is, whether it overfitted, what to try."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit.errors import printable
from vit.report.course import Course
from vit.report.interval import wilson
from vit.training.header import FEW

LONGER = 1.5
"""A best score so many times later than the lowest loss says that a shorter run would be worse."""


def judged(
    top1: float, labels: np.ndarray, train_labels: np.ndarray, classes: Sequence[str]
) -> str:
    """A score in counts, with its interval and what guessing would get.

    Args:
        top1: percent of the images that were right.
        labels: of these images, (N,).
        train_labels: of the training images: the guess is their most frequent class.
        classes: names of the labels.
    """
    count = len(labels)
    hits = round(top1 / 100 * count)
    low, high = (100 * bound for bound in wilson(hits, count))
    guess = int(np.bincount(train_labels).argmax())
    share = 100 * float((labels == guess).mean())
    verdict = "" if low > share else ", so it is not shown to be better than guessing"
    return (
        f"{hits:,} of {count:,} right, 95 % {low:.0f} to {high:.0f}; always "
        f"'{printable(classes[guess])}' would get {share:.0f} %{verdict}"
    )


def judged_labels(score: float, labels: np.ndarray) -> str:
    """A mAP in percent beside what guessing would get: of each label (N, K) its share."""
    there = labels.mean(axis=0)
    guess = 100 * float(there[there > 0].mean())
    return f"mAP {score:.1f} on {len(labels):,} images; guessing would get {guess:.1f}"


def advice(
    validations: Sequence[tuple[float, float]],
    epochs: float,
    per_class: float,
    *,
    started: bool,
    kept: float = 0.0,
) -> list[str]:
    """What the course of the validation loss says, and what to try.

    Args:
        validations: (epoch, loss) of each, in their order.
        epochs: length of the run.
        per_class: training images of a class, on average.
        started: the run started from weights, or there are none for such images.
        kept: epoch of the best score, whose weights are kept.
    """
    course = Course.of(validations, epochs)
    if course is None:
        return []
    best = course.best
    tries = []
    if not started and per_class < FEW:
        tries.append("weights to start from (experiment=finetune model.weights=<file or timm/...>)")
    if course.overfitted:
        tries += ["augment=strong", "more images"]
        if kept <= LONGER * best:
            tries.append(f"trainer.epochs={max(1, round(best))}")
        but = " (right answers came later: it grew too sure of wrong ones)" * (kept > LONGER * best)
        return [
            f"it overfitted from epoch {round(best, 1):g} on: validation loss {course.lowest:.2f} "
            f"there, {course.last:.2f} at the end{but}; try {', or '.join(tries)}"
        ]
    if course.falling:
        return [
            f"the validation loss was still falling at the end ({course.last:.2f}); try "
            f"{', or '.join([*tries, f'trainer.epochs={2 * round(epochs)}'])}"
        ]
    return [f"try {', or '.join(tries)}"] if tries else []
