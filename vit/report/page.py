"""The evaluation report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from vit.report.chart import Points, chart
from vit.report.comparison import Comparison
from vit.report.figures import reliability
from vit.report.gallery import FULL_MATRIX, Chosen
from vit.report.metrics import Bins, Score, confusion, per_class
from vit.report.multilabel import LabelScores
from vit.report.render import rendered

BUDGET = 12_000_000
"""Characters that all images of a page may take together."""
SCORES = {
    "top1": ("top-1", "%", "the most probable class is the true one"),
    "top5": ("top-5", "%", "the true class is among the five most probable"),
    "map": ("mAP", "%", "mean over labels of the average precision; rare labels count like others"),
    "map_micro": ("micro mAP", "%", "average precision over all labels of all images together"),
    "exact": ("exact", "%", "every label of the image is right"),
    "macro_f1": ("macro F1", "", "mean over classes, rare ones count like frequent ones; best 1"),
    "micro_f1": ("micro F1", "", "over all labels of all images together; best 1"),
    "sample_f1": ("sample F1", "", "mean over images; best 1"),
    "loss": ("NLL", "nats", "mean negative log-likelihood of the true class; best 0"),
    "brier": ("Brier score", "", "squared error of the probabilities, 0 to 2; best 0"),
    "ece": ("ECE", "", "gap between confidence and accuracy, 15 bins; best 0"),
}
"""By key of metrics.json: name, unit, what it says."""
_LABEL_LOSS = ("loss", "nats", "mean binary cross-entropy of a label; best 0")
_SPELT = {
    "gaussian_noise": "Gaussian noise",
    "gaussian_blur": "Gaussian blur",
    "jpeg_compression": "JPEG compression",
}


@dataclass(frozen=True)
class Report:
    """What a page shows of an evaluation of N images in K classes.

    All texts may be hostile: they are escaped.

    Attributes:
        title, facts: its heading, and short texts below it.
        classes, names: K names of classes, and those of the images (N,).
        labels, predicted, confidence: classes (N,), and the probability of the predicted one (N,);
            of several labels per image all (N, K).
        scores: by keys of SCORES.
        compared: plain scores of evaluations to be seen side by side, by what they are called;
            of two, the second is compared with the first.
        versus: the model and a second one on the same images; None without one.
        corruptions: top-1 in percent of images made worse, by name and severity; may be empty.
        reliability: by caption.
        calibration: what was done about calibration, a sentence.
        curves: learning curves by what they show and name, (epoch, value); empty without a run.
        epoch: that of the weights.
        settings, command: of the run, by key, and what made the page.
        chosen: the images that are shown.
    """

    title: str
    facts: Sequence[str]
    classes: Sequence[str]
    names: Sequence[str]
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    scores: Mapping[str, Score]
    compared: Mapping[str, Mapping[str, float]]
    versus: Comparison | None
    corruptions: Mapping[str, Mapping[int, float]]
    reliability: Mapping[str, Bins]
    calibration: str
    curves: Mapping[str, Mapping[str, Points]]
    epoch: float | None
    settings: Mapping[str, Any]
    command: str
    chosen: Chosen

    def shown(self) -> list[int]:
        """The images that are to be shown, the most important first."""
        different = () if self.versus is None else self.versus.shown()
        return list(dict.fromkeys([*chain(*different), *self.chosen.in_order()]))

    def caption(self, number: int) -> dict[str, Any]:
        """What stands below an image."""
        return {
            "name": str(self.names[number]),
            "label": self.classes[self.labels[number]],
            "predicted": self.classes[self.predicted[number]],
            "right": bool(self.labels[number] == self.predicted[number]),
            "percent": round(100 * float(self.confidence[number]), 1),
        }

    def own(self) -> tuple[str, dict[str, Any]]:
        """The template, and what it shows besides what all reports do."""
        classes = self.classes
        table = per_class(self.labels, self.predicted, len(classes))
        counts = confusion(self.labels, self.predicted, len(classes))
        return "report.html", {
            "scores": {key: SCORES[key] for key in SCORES if key in self.scores},
            "rows": zip(classes, *(column.tolist() for column in table.values()), strict=True),
            "matrix": counts.tolist() if len(classes) <= FULL_MATRIX else None,
            "pairs": [(*cell, int(counts[cell])) for cell in self.chosen.cells],
            "support": table["support"].tolist(),
            "full_matrix": FULL_MATRIX,
            "reliability": {text: reliability(bins) for text, bins in self.reliability.items()},
        }


@dataclass(frozen=True)
class LabelReport(Report):
    """A report of several labels per image.

    Attributes:
        found: the scores.
    """

    found: LabelScores

    def caption(self, number: int) -> dict[str, Any]:
        """See Report; the labels that the image has or is given, and whether that is wrong."""
        labels, given = self.labels[number], self.predicted[number]
        marks = [
            (name, "" if has and gets else "missed" if has else "wrongly")
            for name, has, gets in zip(self.classes, labels, given, strict=True)
            if has or gets
        ]
        text = ", ".join(" ".join(filter(None, mark)) for mark in marks) or "no label"
        return {"name": str(self.names[number]), "marks": marks, "text": text}

    def own(self) -> tuple[str, dict[str, Any]]:
        """See Report; a row of each label."""
        found = self.found
        low, high = found.precision_range
        columns = (
            found.precisions, low, high, *found.per_label().values(), found.thresholds,
            found.missed.sum(axis=0), found.wrong.sum(axis=0),
        )  # fmt: skip
        rows = zip(self.classes, *(column.tolist() for column in columns), strict=True)
        scores = {key: SCORES[key] for key in self.scores}
        return "labels.html", {"rows": rows, "scores": {**scores, "loss": _LABEL_LOSS}}


def report_page(report: Report, thumbnails: Mapping[int, str], overlays: Mapping[int, str]) -> str:
    """The page. Images, and where the model looked, are data URIs by number; others do not show."""
    template, own = report.own()
    name = SCORES[next(iter(report.scores))][0]
    return rendered(
        template,
        report=report,
        shown=_shown,
        compared=_comparison(report.compared),
        sides=_sides(report, report.versus, thumbnails) if report.versus else (),
        corruptions=_corruptions(report.corruptions) if report.corruptions else None,
        first=name.capitalize() if name.islower() else name,
        clean=next(iter(report.scores.values())).value,
        charts={text: chart(lines, report.epoch) for text, lines in report.curves.items()},
        worst=_figures(report, report.chosen.worst, thumbnails),
        uncertain=_figures(report, report.chosen.uncertain, thumbnails),
        overlays=overlays,
        data=_data(report, thumbnails, overlays),
        **own,
    )


def _shown(key: str, value: float) -> str:
    return f"{value:.2f}" if SCORES[key][1] == "%" else f"{value:.4f}"


def _comparison(compared: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A row of each evaluation: its name, its scores; the keys that all of them have."""
    if not compared:
        return []
    keys = [key for key in SCORES if all(key in scores for scores in compared.values())]
    named = (SCORES[key] for key in keys)
    table = [["", *(f"{name} ({unit})" if unit else name for name, unit, _ in named)]]
    for name, scores in compared.items():
        table.append([name, *(_shown(key, scores[key]) for key in keys)])
    if len(compared) == 2:
        before, after = compared.values()
        change = {key: after[key] - before[key] for key in keys}
        signed = ("+" * (change[key] > 0) + _shown(key, change[key]) for key in keys)
        table.append(["difference", *signed])
    return table


def _sides(report: Report, versus: Comparison, thumbnails: Mapping[int, str]) -> Iterable[Any]:
    """Of both models the name, how many images it alone is right on, and those that are shown."""
    by_other = (replace(report, predicted=versus.predicted[1]), report)
    shown = (_figures(*pair, thumbnails) for pair in zip(by_other, versus.shown(), strict=True))
    return zip(versus.names, versus.counts[1:3], shown, strict=True)


def _corruptions(scores: Mapping[str, Mapping[int, float]]) -> dict[str, list[float]]:
    """Top-1 at each severity: of each corruption, by what it is called, and of all in the mean."""
    table = {_SPELT.get(name, name): list(row.values()) for name, row in scores.items()}
    return {**table, "mean": np.mean(list(table.values()), axis=0).tolist()}


def _figures(
    report: Report, numbers: Sequence[int], thumbnails: Mapping[int, str]
) -> list[dict[str, Any]]:
    """The images of these numbers, as far as they are shown."""
    return [{"number": i, **report.caption(i)} for i in numbers if i in thumbnails]


def _data(
    report: Report, thumbnails: Mapping[int, str], overlays: Mapping[int, str]
) -> dict[str, Any]:
    """What the page's script reads."""
    cells = {
        f"{label},{guess}": [i for i in numbers if i in thumbnails]
        for (label, guess), numbers in report.chosen.cells.items()
    }
    in_cells = {i for numbers in cells.values() for i in numbers}
    return {
        "classes": list(report.classes),
        "thumbnails": thumbnails,
        "overlays": overlays,
        "cells": cells,
        "captions": {i: report.caption(i) for i in sorted(in_cells)},
    }
