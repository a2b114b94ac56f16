"""The evaluation report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from vit.report.chart import Points, chart
from vit.report.comparison import Comparison
from vit.report.course import Course
from vit.report.drawing import scale_stops
from vit.report.figures import alike_together, reliability
from vit.report.gallery import FULL_MATRIX, PAIRS
from vit.report.headline import right, sureness, weakest, weakest_labels
from vit.report.metrics import Bins, Score, confusion, guessing, per_class
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
LOSSES, TRAINING, VALIDATION = "loss (nats)", "training", "validation"
"""What curves of losses are called, and the lines of each."""
_TOP = 5
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
        labels, predicted: classes (N,); of several labels per image 0 or 1, (N, K).
        probabilities: as users are told them, (N, K).
        losses, margin: of each image in nats, and how certain its answer is, (N,).
        scores: by keys of SCORES.
        compared: plain scores of evaluations to be seen side by side, by what they are called;
            of two, the second is compared with the first.
        versus: the model and a second one on the same images; None without one.
        corruptions: top-1 in percent of images made worse, by name and severity; may be empty.
        confidence: of the answers without a temperature, (N,); empty for several labels.
        temperature: that of `probabilities`; None: there is none.
        reliability: by caption.
        calibration: what was done about calibration, a sentence.
        limits: by percent, of `sets` how many hold the truth and how many labels they have, of
            `unknown` how many images are refused and how many of these were right, in percent;
            empty without any.
        curves: learning curves by what they show and name, (epoch, value); empty without a run.
        epoch, epochs: that of the weights, and how many the run had.
        settings, command: of the run, by key, and what made the page.
        issues: likely label errors and what they rather are, the surest first.
        order: the images that a page has, the most telling first.
    """

    title: str
    facts: Sequence[str]
    classes: Sequence[str]
    names: Sequence[str]
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    margin: np.ndarray
    scores: Mapping[str, Score]
    compared: Mapping[str, Mapping[str, float]]
    versus: Comparison | None
    corruptions: Mapping[str, Mapping[int, float]]
    confidence: np.ndarray
    temperature: float | None
    reliability: Mapping[str, Bins]
    calibration: str
    limits: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    curves: Mapping[str, Mapping[str, Points]]
    epoch: float | None
    epochs: float | None
    settings: Mapping[str, Any]
    command: str
    issues: Sequence[tuple[int, int]]
    order: Sequence[int]

    @property
    def several(self) -> bool:
        """An image has any number of labels."""
        return self.labels.ndim == 2

    @cached_property
    def baselines(self) -> dict[str, float]:
        """What guessing would get, of some of the scores."""
        return guessing(self.labels)

    @cached_property
    def counts(self) -> np.ndarray:
        """The confusion matrix (K, K)."""
        return confusion(self.labels, self.predicted, len(self.classes))

    def shown(self) -> list[int]:
        """The images that are to be shown, the most important first."""
        different = () if self.versus is None else self.versus.shown()
        return list(dict.fromkeys([*chain(*different), *self.order]))

    def entry(self, number: int) -> dict[str, Any]:
        """What the page knows of an image: names of classes are their numbers, shares percents."""
        chances = self.probabilities[number]
        label, said = self.classes_of(self.labels, number), self.classes_of(self.predicted, number)
        best = np.argsort(-chances, kind="stable")[:_TOP].tolist()
        return {
            "name": str(self.names[number]),
            "label": label,
            "said": said,
            "top": [(k, round(100 * float(chances[k]), 1)) for k in dict.fromkeys([*best, *label])],
            "sure": round(100 * float(chances.max()), 1),
            "loss": round(float(self.losses[number]), 4),
            "margin": round(float(self.margin[number]), 4),
        }

    def classes_of(self, labels: np.ndarray, number: int) -> list[int]:
        """The classes of an image."""
        own = labels[number]
        found: list[int] = np.flatnonzero(own).tolist() if self.several else [int(own)]
        return found

    def totals(self) -> dict[str, int]:
        """How many images there are, in the page or not, of each kind that it can show."""
        same = self.labels == self.predicted
        right = int((same.all(axis=1) if self.several else same).sum())
        count = len(self.labels)
        return {"all": count, "right": right, "wrong": count - right, "issue": len(self.issues)}

    def headline(self) -> list[str]:
        """The page in sentences."""
        correct = self.labels == self.predicted
        told = self.probabilities.max(axis=1)
        return [
            f"{right(self.labels, self.predicted, self.classes)} "
            f"{weakest(self.counts, self.classes)}",
            sureness(self.confidence, told, correct, self.temperature),
            *self.course(),
        ]

    def course(self) -> list[str]:
        """What the curves say."""
        found = Course.of(self.curves.get(LOSSES, {}).get(VALIDATION, ()), self.epochs or 0)
        if found is None:
            return []
        later = ""
        if found.overfitted and self.epoch is not None and self.epoch > found.best:
            later = f" These weights are from epoch {self.epoch:.3g}, where the score was best."
        return [found.sentence + later]

    def own(self) -> tuple[str, dict[str, Any]]:
        """The template, and what it shows besides what all reports do."""
        classes = self.classes
        table = per_class(self.labels, self.predicted, len(classes))
        whole = len(classes) <= FULL_MATRIX
        return "report.html", {
            "what": "class",
            "scores": {key: SCORES[key] for key in SCORES if key in self.scores},
            "rows": zip(classes, *(column.tolist() for column in table.values()), strict=True),
            "matrix": self.counts.tolist() if whole else None,
            "order": alike_together(self.counts) if whole else (),
            "pairs": [] if whole else self._pairs(),
            "support": table["support"].tolist(),
            "full_matrix": FULL_MATRIX,
            "reliability": {text: reliability(bins) for text, bins in self.reliability.items()},
        }

    def _pairs(self) -> list[tuple[int, int, int]]:
        """The largest numbers beside the diagonal of the confusion matrix: row, column, number."""
        wrong = self.counts * (1 - np.eye(len(self.classes), dtype=np.int64))
        most = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
        pairs = zip(*np.unravel_index(most, wrong.shape), wrong.flat[most], strict=True)
        return [(int(i), int(j), int(count)) for i, j, count in pairs if count]


@dataclass(frozen=True)
class LabelReport(Report):
    """A report of several labels per image.

    Attributes:
        found: the scores.
    """

    found: LabelScores

    def headline(self) -> list[str]:
        """See Report."""
        found, count = self.found, len(self.labels)
        return [
            f"Right in all labels of {int(found.right.sum()):,} of {count:,} images; mAP "
            f"{self.scores['map'].value:.1f}, by guessing {self.baselines['map']:.1f}.",
            weakest_labels(
                found.precisions, found.missed.sum(axis=0), found.wrong.sum(axis=0), self.classes
            ),
            *self.course(),
        ]

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
        return "labels.html", {
            "what": "label", "rows": rows, "scores": {**scores, "loss": _LABEL_LOSS},
        }  # fmt: skip


def report_page(report: Report, pictures: Mapping[int, str], heats: Mapping[int, str]) -> str:
    """The page. Images, and where the model looked, are data URIs by number; others do not show."""
    template, own = report.own()
    name = SCORES[next(iter(report.scores))][0]
    return rendered(
        template,
        title=report.title,
        report=report,
        headline=report.headline(),
        shown=_shown,
        named=lambda classes, numbers: ", ".join(classes[k] for k in numbers) or "no label",
        compared=_comparison(report.compared),
        sides=_sides(report, report.versus, pictures) if report.versus else (),
        corruptions=_corruptions(report.corruptions) if report.corruptions else None,
        first=name.capitalize() if name.islower() else name,
        clean=next(iter(report.scores.values())).value,
        charts={text: chart(lines, report.epoch) for text, lines in report.curves.items()},
        issues=report.issues,
        scale=", ".join(scale_stops()),
        data=_data(report, pictures, heats),
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


def _sides(report: Report, versus: Comparison, pictures: Mapping[int, str]) -> Iterable[Any]:
    """Of both models the name, how many images it alone is right on, and those that are shown."""
    by_other = (replace(report, predicted=versus.predicted[1]), report)
    shown = (
        [(i, wrong.entry(i)) for i in numbers if i in pictures]
        for wrong, numbers in zip(by_other, versus.shown(), strict=True)
    )
    return zip(versus.names, versus.counts[1:3], shown, strict=True)


def _corruptions(scores: Mapping[str, Mapping[int, float]]) -> dict[str, list[float]]:
    """Top-1 at each severity: of each corruption, by what it is called, and of all in the mean."""
    table = {_SPELT.get(name, name): list(row.values()) for name, row in scores.items()}
    return {**table, "mean": np.mean(list(table.values()), axis=0).tolist()}


def _data(report: Report, pictures: Mapping[int, str], heats: Mapping[int, str]) -> dict[str, Any]:
    """What the page's script reads."""
    images: dict[int, dict[str, Any]] = {
        i: {**report.entry(i), "picture": pictures[i]} for i in report.shown() if i in pictures
    }
    for i, heat in heats.items():
        images[i]["heat"] = heat
    for rank, (i, instead) in enumerate(report.issues):
        if i in images:
            images[i] |= {"issue": rank, "instead": instead}
    return {
        "classes": list(report.classes), "several": report.several, "images": images,
        "total": report.totals(),
    }  # fmt: skip
