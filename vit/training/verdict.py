"""The verdict on a finished run: how good it is, whether it overfitted, what to try."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vit.errors import printable
from vit.report.interval import wilson
from vit.training.header import FEW

RISE = 1.1
"""A validation loss that ends so many times above its lowest is said to have risen."""
LATE, FALL = 0.95, 0.98
"""One that after this share of the run is below so many times its lowest of before still falls."""
LONGER = 1.5
"""A best score so many times later than the lowest loss says that a shorter run would be worse."""
EARLY = 0.9
"""A lowest validation loss before this share of the run was not where the run ended."""


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
    finite = [(epoch, loss) for epoch, loss in validations if np.isfinite(loss)]
    if len(finite) < 2:
        return []
    best, lowest = min(finite, key=lambda validation: validation[1])
    last = finite[-1][1]
    tries = []
    if not started and per_class < FEW:
        tries.append("weights to start from (experiment=finetune model.weights=<file or timm/...>)")
    if last > RISE * lowest and best < EARLY * epochs:
        tries += ["augment=strong", "more images"]
        if kept <= LONGER * best:
            tries.append(f"trainer.epochs={max(1, round(best))}")
        but = " (right answers came later: it grew too sure of wrong ones)" * (kept > LONGER * best)
        return [
            f"it overfitted from epoch {round(best, 1):g} on: validation loss {lowest:.2f} there, "
            f"{last:.2f} at the end{but}; try {', or '.join(tries)}"
        ]
    before = min((loss for epoch, loss in finite if epoch < LATE * epochs), default=math.inf)
    if lowest < FALL * before:
        return [
            f"the validation loss was still falling at the end ({last:.2f}); try "
            f"{', or '.join([*tries, f'trainer.epochs={2 * round(epochs)}'])}"
        ]
    return [f"try {', or '.join(tries)}"] if tries else []
