"""What the tests of the report share: pages of real and of made-up evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vit.report import metrics
from vit.report.comparison import Comparison
from vit.report.gallery import choose, side_within, within
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
    issues = metrics.label_errors(labels, metrics.probabilities(logits))
    return Report(
        title="made up", facts=[f"{n} images"], classes=names,
        names=[f"{names[k]}/{i}.jpg" for i, k in enumerate(labels)],
        labels=labels, predicted=predicted, probabilities=metrics.probabilities(logits),
        losses=judged.loss, margin=judged.margin, confidence=judged.confidence, temperature=None,
        scores=metrics.all_scores(top, labels, judged.loss, judged), compared={},
        versus=None, corruptions={},
        reliability={"as it is": metrics.calibration(judged.confidence, predicted == labels)},
        calibration="None.", curves={},
        limits={
            "sets": {"95%": {"holds": 94.9, "labels": 2.06}},
            "unknown": {"5%": {"refused": 5.5, "right": None}},
        },
        epoch=None, epochs=None, settings={"a.key": None},
        command="vit-eval", issues=issues,
        order=choose(
            labels, predicted, judged.loss, judged.margin, classes, [i for i, _ in issues]
        ),
    )  # fmt: skip


def against(report: Report, name: str) -> Comparison:
    """A second model that says the first class of every image."""
    losses = np.zeros(len(report.labels))
    said = (report.predicted, np.zeros_like(report.labels))
    return Comparison((name, f"{name} 2"), report.labels, said, (losses, losses))


def pictures_of(report: Report, side: int = 8) -> dict[int, str]:
    """Noise for all images of a report."""
    rng = np.random.default_rng(0)
    shown = report.shown()
    noise = ((i, rng.integers(0, 256, (side, side, 3), np.uint8)) for i in shown)
    return within(noise, BUDGET, side_within(BUDGET, len(shown)))
