"""What the tests of the report share: pages of real and of made-up evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vit.report import metrics
from vit.report.comparison import Comparison
from vit.report.gallery import choose, within
from vit.report.page import BUDGET, Report

HOSTILE = "<script>alert(1)</script>"


def index(folder: Path) -> str:
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


def made_up(
    n: int, classes: int, name: Callable[[int], str] = "class {}".format, right: float = 0.7
) -> Report:
    """A report of random predictions."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    logits = rng.standard_normal((n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += np.where(rng.random(n) < right, 9, 0)
    predicted = logits.argmax(axis=1)
    judged = metrics.probability_scores(logits, labels)
    top = np.argpartition(-logits, 1, axis=1)[:, :2] if classes > 2 else np.zeros((n, 2), int)
    top[:, 0] = predicted
    names = [name(k) for k in range(classes)]
    return Report(
        title="made up", facts=[f"{n} images"], classes=names,
        names=[f"{names[k]}/{i}.jpg" for i, k in enumerate(labels)],
        labels=labels, predicted=predicted, confidence=judged.confidence,
        scores=metrics.all_scores(top, labels, judged.loss, judged), compared={},
        versus=None, corruptions={},
        reliability={"as it is": metrics.calibration(judged.confidence, predicted == labels)},
        calibration="None.", curves={}, epoch=None, settings={"a.key": None},
        command="vit-eval", chosen=choose(labels, predicted, judged.loss, judged.margin, classes),
    )  # fmt: skip


def against(report: Report, name: str) -> Comparison:
    """A second model that says the first class of every image."""
    losses = np.zeros(len(report.labels))
    said = (report.predicted, np.zeros_like(report.labels))
    return Comparison((name, f"{name} 2"), report.labels, said, (losses, losses))


def pictures_of(report: Report, side: int = 8) -> dict[int, str]:
    """Noise for all images of a report."""
    rng = np.random.default_rng(0)
    noise = ((i, rng.integers(0, 256, (side, side, 3), np.uint8)) for i in report.shown())
    return within(noise, BUDGET)
