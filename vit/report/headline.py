"""An evaluation in sentences: how often it is right, what it confuses, how far it can be trusted.

Legend: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vit.errors import shortened
from vit.report.interval import wilson
from vit.report.metrics import guessing

ABOUT = 0.85, 0.95
"""Confidences that are about 90 %."""
FEW = 10
"""Of less images no share is told."""
_NAMED = 2
_CLOSE = 2
"""Points."""


def right(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> str:
    """How often labels (N,) were predicted (N,), and what always naming one class would get."""
    count, hits = len(labels), int((labels == predicted).sum())
    low, high = (100 * bound for bound in wilson(hits, count))
    often = int(np.bincount(labels).argmax())
    guess = guessing(labels)["top1"]
    verdict = ", so it is not shown to be better" if low <= guess else ""
    return (
        f"Right {hits:,} times of {count:,} ({low:.0f} to {high:.0f} %). Always "
        f"'{classes[often]}' would be right {guess:.0f} %{verdict}."
    )


def weakest(counts: np.ndarray, classes: Sequence[str]) -> str:
    """The classes that are never recognised, else the one that most often is not, and what they go
    to, of a confusion matrix (K, K) with true classes as rows.
    """
    support, found = counts.sum(axis=1), counts.diagonal()
    if (found == support).all():
        return "It is wrong on none of them."
    never = np.flatnonzero((found == 0) & (support > 0))
    if len(never):
        shown = never[np.argsort(-support[never], kind="stable")][:_NAMED].tolist()
        to = [_goes_to(counts[k], k, classes) for k in shown]
        if len(never) == 1:
            return f"It never recognises {classes[shown[0]]}: {to[0]}."
        told = ", ".join(f"{classes[k]} ({goes})" for k, goes in zip(shown, to, strict=True))
        more = f" and {len(never) - len(shown):,} more" if len(never) > len(shown) else ""
        return f"It never recognises {len(never):,} of {len(classes):,} classes: {told}{more}."
    shares = np.where(support > 0, found / np.maximum(support, 1), np.inf)
    worst = int(shares.argmin())
    return (
        f"Worst is {classes[worst]}, recognised {found[worst]:,} times of {support[worst]:,}: "
        f"{_goes_to(counts[worst], worst, classes)}."
    )


def _goes_to(row: np.ndarray, label: int, classes: Sequence[str]) -> str:
    others = [k for k in np.argsort(-row, kind="stable").tolist() if k != label and row[k]]
    named = others if len(others) <= _NAMED + 1 else others[:_NAMED]
    told = [f"{row[k]:,} went to {classes[k]}" for k in named]
    more = int(sum(row[k] for k in others[len(named) :]))
    return ", ".join([*told, *([f"{more:,} to others"] if more else [])])


def weakest_labels(
    precisions: np.ndarray, missed: np.ndarray, wrong: np.ndarray, classes: Sequence[str]
) -> str:
    """The labels of the lowest average precision (K,), and how often they were missed and wrongly
    given, each (K,).
    """
    order = [k for k in np.argsort(precisions, kind="stable").tolist() if precisions[k] < 1]
    told = [
        f"{classes[k]} (AP {precisions[k]:.2f}, {missed[k]:,} missed, {wrong[k]:,} wrongly given)"
        for k in order[:_NAMED]
    ]
    return f"Worst found: {shortened(told)}." if told else "Every label is told from the others."


def sureness(
    trained: np.ndarray, told: np.ndarray, correct: np.ndarray, temperature: float | None
) -> str:
    """Whether confidences (N,) are as high as answers are right, (N,).

    Args:
        trained, told: without and with the temperature; the same where there is none.
        correct: which answers are right.
        temperature: that; None: there is none.
    """
    gap, noise = _gap(trained, correct)
    if abs(gap) <= noise:
        text = f"As sure as it is right, as far as {len(correct):,} images tell ({_within(gap)})"
    else:
        text = f"Its probabilities are too {_way(gap)} by {abs(gap):.0f} points"
    if temperature is not None:
        gap, noise = _gap(told, correct)
        is_close = abs(gap) <= max(noise, _CLOSE)
        how = _within(gap) if is_close else f"too {_way(gap)} by {abs(gap):.0f}"
        text += f"; with temperature {temperature:.2f} {how}"
    low, high = ABOUT
    with_it = ", with it," if temperature is not None else ""
    around = (told >= low) & (told < high)
    what = "about 90 %"
    if around.sum() < FEW:
        around, what = told >= low, f"{100 * low:.0f} % or more"
    hits, of = int(correct[around].sum()), int(around.sum())
    if of < FEW:
        return f"{text}. It is{with_it} {what} sure of {of} answers, too few to tell."
    first, last = (100 * bound for bound in wilson(hits, of))
    return (
        f"{text}. Where it is{with_it} {what} sure, it is right {hits:,} times of {of:,} "
        f"({first:.0f} to {last:.0f} %)."
    )


def _gap(sure: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
    """How much the mean confidence is above the share that is right, in points, and how much it
    would be by chance (95 %) if every confidence were the true share.
    """
    noise = 196 * math.sqrt(float((sure * (1 - sure)).sum())) / len(sure)
    return 100 * float(sure.mean() - correct.mean()), noise


def _way(gap: float) -> str:
    return "high" if gap > 0 else "low"


def _within(gap: float) -> str:
    return f"within {max(1, math.ceil(abs(gap)))} point{'s' * (abs(gap) > 1)}"
