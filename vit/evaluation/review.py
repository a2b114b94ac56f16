"""The evaluation of a trained model: scores, temperature scaling, corruptions, the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, compress
from typing import Any

import numpy as np

from vit.artifacts.predictions import joined
from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import curve
from vit.config.saved import Calibration
from vit.config.validate import flatten
from vit.data.augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vit.data.loader import EvalLoader
from vit.inference.calibration import Limits
from vit.inference.evaluator import Evaluator
from vit.inference.explain import MOST_TOKENS, heat_of_each, rollout
from vit.inference.load import Trained
from vit.inference.pictures import seen_at
from vit.inference.predict import Predictions
from vit.report import metrics as scoring
from vit.report.comparison import Comparison
from vit.report.drawing import heat_map
from vit.report.gallery import choose, choose_labels, side_within, within
from vit.report.multilabel import LabelScores
from vit.report.page import (
    BUDGET,
    LOSSES,
    SCORES,
    TRAINING,
    VALIDATION,
    LabelReport,
    Report,
    report_page,
)
from vit.runtime import console

_SETS, _UNKNOWN = (90, 95, 99), (1, 5, 10)
"""Percents of sets and of unknown images that are evaluated."""
_ROWS = 2048
_AT_ONCE = 2**27
"""Attention weights of a batch of images, at most."""
_EXPLAINED = 200
"""Images of a report that have a heat map."""


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        trained: the model.
        what, loader: what the images are called, and what reads them.
        about: for metrics.json: the model, the images, and how they were seen.
        predictions: with logits.
        calibration: what was fitted on validation.
        corruptions: see `under_corruptions`; empty where it was not asked for.
        comparison: with a second model; None without one.
    """

    trained: Trained
    what: str
    loader: EvalLoader
    about: dict[str, Any]
    predictions: Predictions
    calibration: Calibration
    corruptions: dict[str, list[float]]
    comparison: Comparison | None

    @cached_property
    def judged(self) -> scoring.ProbabilityScores:
        """What the probabilities are worth."""
        return _judged(self.predictions)

    @cached_property
    def calibrated(self) -> scoring.ProbabilityScores | None:
        """`judged`, with the temperature; None without one."""
        value = self.calibration.temperature
        return None if value is None else _judged(self.predictions, value)

    @property
    def told(self) -> scoring.ProbabilityScores:
        """What users are told: `calibrated`, where there is a temperature."""
        return self.calibrated or self.judged

    @cached_property
    def scores(self) -> dict[str, scoring.Score]:
        """By name; see `metrics.all_scores`."""
        return _scores(self.predictions, self.judged)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: scores, intervals, and those of each class."""
        values: dict[str, Any] = {
            **self.about,
            **{key: score.value for key, score in self.scores.items()},
            "intervals": {key: [score.low, score.high] for key, score in self.scores.items()},
            **self.probabilities(),
            **self.held,
        }
        if self.corruptions:
            mean = float(np.mean(list(self.corruptions.values())))
            values["corruptions"] = self.corruptions
            values["corruption_mean"] = mean
            values["corruption_drop"] = self.scores[self.predictions.task.score].value - mean
        table = self.per_class()
        rows = zip(self.trained.classes, *(x.tolist() for x in table.values()), strict=True)
        values["per_class"] = [dict(zip(("class", *table), row, strict=True)) for row in rows]
        if self.predictions.alone is not None:
            alone = replace(self, predictions=self.predictions.alone)
            values["without_tta"] = {key: score.value for key, score in alone.scores.items()}
        return values

    def probabilities(self) -> dict[str, Any]:
        """For metrics.json: the temperature, and what it makes of the probabilities."""
        own: dict[str, Any] = {"temperature": self.calibration.temperature, "calibrated": None}
        if self.calibrated is not None:
            bins = scoring.calibration(self.calibrated.confidence, self.predictions.correct)
            loss, brier = (float(x.mean()) for x in (self.calibrated.loss, self.calibrated.brier))
            own["calibrated"] = {"loss": loss, "brier": brier, "ece": bins.error()}
        return own

    @cached_property
    def held(self) -> dict[str, Any]:
        """For metrics.json, of some percents: `sets`, in percent how many hold the truth, and how
        many labels they have; `unknown`, how many images are, and how many of these were right.
        """
        logits, labels = self.predictions.logits, self.predictions.labels
        assert logits is not None
        parts = [slice(first, first + _ROWS) for first in range(0, len(labels), _ROWS)]
        sets, unknown = {}, {}
        for percent in _SETS if self.calibration.sets else ():
            limits = Limits(self.calibration, set=percent)
            if limits.most is not None:
                found = chain.from_iterable(limits.sets(logits[rows]) for rows in parts)
                pairs = [(label in own, len(own)) for label, own in zip(labels, found, strict=True)]
                share, size = np.mean(pairs, axis=0).tolist()
                sets[f"{percent}%"] = {"holds": 100 * share, "labels": size}
        for percent in _UNKNOWN if self.calibration.unknown else ():
            limits = Limits(self.calibration, unknown=percent)
            if limits.least is not None:
                refused = np.concatenate([limits.refused(logits[rows]) for rows in parts])
                right = self.predictions.correct[refused]
                unknown[f"{percent}%"] = {
                    "refused": 100 * float(refused.mean()),
                    "right": 100 * float(right.mean()) if len(right) else None,
                }
        return {"sets": sets, "unknown": unknown}

    def per_class(self) -> dict[str, np.ndarray]:
        """Scores of each class by name, (K,)."""
        labels, predicted = self.predictions.labels, self.predictions.top[:, 0]
        return scoring.per_class(labels, predicted, len(self.trained.classes))

    def rows(self) -> Iterator[Sequence[str | float]]:
        """Of predictions.csv, the head first: of each image label, prediction and probability."""
        yield "image", "label", "prediction", "probability"
        names, classes, predictions = self.loader.names, self.trained.classes, self.predictions
        sure = predictions.probability if self.calibrated is None else self.calibrated.confidence
        columns = predictions.labels, predictions.top[:, 0], sure
        for i, label, best, chance in zip(
            predictions.index, *(column.tolist() for column in columns), strict=True
        ):
            yield names[i], classes[label], classes[best], chance

    @cached_property
    def probabilities_told(self) -> np.ndarray:
        """What users are told, (N, K)."""
        assert self.predictions.logits is not None
        return scoring.probabilities(self.predictions.logits, self.calibration.temperature or 1.0)

    @cached_property
    def label_errors(self) -> list[tuple[int, int]]:
        """Likely wrong labels, and what is likelier. None where it cannot be told: the model was
        trained on these images, or is not shown to be better than guessing.
        """
        guess = scoring.guessing(self.predictions.labels)["top1"]
        if self.about["trained_on"] or self.scores["top1"].low <= guess:
            return []
        return scoring.label_errors(self.predictions.labels, self.probabilities_told)

    def label_error_rows(self) -> Iterator[Sequence[str | float]]:
        """Of label_errors.csv, the head first."""
        yield "image", "label", "probability", "rather", "probability_rather"
        classes, chances = self.trained.classes, self.probabilities_told
        for i, instead in self.label_errors:
            label = int(self.predictions.labels[i])
            yield (
                self.loader.names[self.predictions.index[i]], classes[label],
                float(chances[i, label]), classes[instead], float(chances[i, instead]),
            )  # fmt: skip

    def report(self) -> Report:
        """What the page shows of it, but for the images."""
        predictions, judged = self.predictions, self.judged
        labels, predicted = predictions.labels, predictions.top[:, 0]
        reliability = {"as trained": scoring.calibration(judged.confidence, predictions.correct)}
        if self.calibrated is not None:
            bins = scoring.calibration(self.calibrated.confidence, predictions.correct)
            reliability[f"with temperature {self.calibration.temperature:.3f}"] = bins
        return Report(
            **self.for_report(),
            predicted=predicted,
            probabilities=self.probabilities_told,
            margin=self.told.margin,
            confidence=judged.confidence,
            temperature=self.calibration.temperature,
            reliability={f"{k} (ECE {b.error():.4f})": b for k, b in reliability.items()},
            calibration=_about(self),
            issues=self.label_errors,
            order=choose(
                labels,
                predicted,
                predictions.losses,
                self.told.margin,
                len(self.trained.classes),
                [i for i, _ in self.label_errors],
            ),
        )

    def for_report(self) -> dict[str, Any]:
        """What a `Report` of every kind holds."""
        return {
            "title": f"{self.trained.name}: {self.what}",
            "facts": (), "compared": {}, "command": "",
            "classes": self.trained.classes,
            "names": [self.loader.names[i] for i in self.predictions.index],
            "labels": self.predictions.labels,
            "losses": self.predictions.losses,
            "scores": self.scores,
            "limits": self.held,
            "versus": self.comparison,
            "corruptions": {
                name: dict(zip(SEVERITIES, row, strict=True))
                for name, row in self.corruptions.items()
            },
            "settings": flatten(self.trained.config),
            **_curves(self.trained),
        }  # fmt: skip


class LabelEvaluation(Evaluation):
    """An evaluation of several labels per image, with the thresholds of the checkpoint."""

    @cached_property
    def found(self) -> LabelScores:
        """What its labels are worth."""
        return label_scores(self.trained, self.predictions)

    @cached_property
    def scores(self) -> dict[str, scoring.Score]:
        """By name; see `LabelScores.values`."""
        return self.found.scores()

    def probabilities(self) -> dict[str, Any]:
        """For metrics.json: nothing, the labels have thresholds."""
        return {}

    @cached_property
    def held(self) -> dict[str, Any]:
        """For metrics.json: nothing, as above."""
        return {}

    @cached_property
    def label_errors(self) -> list[tuple[int, int]]:
        """None: confident learning is of one label."""
        return []

    def per_class(self) -> dict[str, np.ndarray]:
        """Scores of each label by name, (K,): `ap` with its interval, those at the threshold."""
        low, high = self.found.precision_range
        ap = {"ap": self.found.precisions, "ap_low": low, "ap_high": high}
        return {**ap, "threshold": self.found.thresholds, **self.found.per_label()}

    def rows(self) -> Iterator[Sequence[str | float]]:
        """Of predictions.csv, the head first: each image's labels, those that it is given, and the
        probability of each.
        """
        classes = self.trained.classes
        yield "image", "labels", "given", *classes
        found = self.found
        for i, *own, chances in zip(
            self.predictions.index, found.labels, found.given, found.probabilities, strict=True
        ):
            named = (joined(compress(classes, row)) for row in own)
            yield self.loader.names[i], *named, *chances.tolist()

    def report(self) -> Report:
        """See Evaluation."""
        found = self.found
        return LabelReport(
            **self.for_report(),
            predicted=found.given,
            probabilities=found.probabilities,
            margin=np.abs(found.probabilities - found.thresholds).min(axis=1),
            confidence=np.empty(0),
            temperature=None,
            reliability={},
            calibration="",
            issues=(),
            order=choose_labels(found),
            found=found,
        )


def label_scores(trained: Trained, predictions: Predictions) -> LabelScores:
    """What predictions of several labels are worth, with the thresholds of the model."""
    return LabelScores(
        predictions.labels, predictions.probabilities, np.array(trained.thresholds),
        predictions.losses,
    )  # fmt: skip


def _judged(predictions: Predictions, temperature: float = 1.0) -> scoring.ProbabilityScores:
    assert predictions.logits is not None
    return scoring.probability_scores(predictions.logits, predictions.labels, temperature)


def _scores(
    predictions: Predictions, judged: scoring.ProbabilityScores
) -> dict[str, scoring.Score]:
    return scoring.all_scores(predictions.top, predictions.labels, predictions.losses, judged)


def under_corruptions(job: Evaluator, loader: EvalLoader) -> dict[str, list[float]]:
    """Score in percent of the loader's images made worse: by corruption, at each of SEVERITIES."""
    scores: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    rounds = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    for name, severity in console.progress(rounds, desc="corruptions", unit="it"):
        changed = loader.with_transform(partial(corrupt, name=name, severity=severity))
        scores[name].append(job.predict(changed).scores()[loader.task.score])
    return scores


def page(
    done: Evaluation, facts: Sequence[str], compared: dict[str, dict[str, float]], command: str
) -> str:
    """The report as HTML; `facts`, `compared` and `command` are those of `Report`."""
    report = replace(done.report(), facts=facts, compared=compared, command=command)
    places = {int(done.predictions.index[i]): i for i in report.shown()}
    side = side_within(BUDGET, len(places))
    seen = (
        (places[at], picture)
        for found, own, _, _ in seen_at(done.loader.enlarged(side), list(places))
        for at, picture in zip(found, own, strict=True)
    )
    pictures = within(seen, BUDGET, side)
    first = set(list(pictures)[:_EXPLAINED])
    explained = {at: i for at, i in places.items() if i in first}
    heats = within(_explained(done, explained), BUDGET // 4)
    return report_page(report, pictures, heats)


def _about(done: Evaluation) -> str:
    """What was done about calibration."""
    found, calibrated = done.calibration, done.calibrated
    if found.temperature is None or calibrated is None:
        return f"No temperature scaling, probabilities are those of training: {found.why}."
    text = (
        f"Temperature scaling (Guo et al. 2017) divides the logits by {found.temperature:.3f}, the "
        f"number that minimises the NLL of {found.images:,} validation images: "
        f"{'less' if found.temperature > 1 else 'more'} sure than before, with the same answers; "
        f"probabilities on this page, of vit-predict and of exports are with it. Here it "
        f"takes the NLL from {done.judged.loss.mean():.4f} to {calibrated.loss.mean():.4f}."
    )
    if done.what == "val":
        text += " It was fitted on the very images that are shown, so this is an optimistic figure."
    return text


def _curves(trained: Trained) -> dict[str, Any]:
    """The learning curves of the run, and which epoch the weights are from."""
    run = RunDir.of(trained.path)
    if run is None:
        return {"curves": {}, "epoch": None, "epochs": None}
    task = trained.task
    named = {f"{SCORES[key][0]} (%)": key for key in dict.fromkeys((task.score, task.right_key))}
    names = {TRAINING: "train", VALIDATION: "val"}
    curves = {
        caption: {name: curve(run.path, event, key) for name, event in names.items()}
        for caption, key in ((LOSSES, "loss"), *named.items())
    }
    is_best = trained.path.resolve() == run.best.resolve()
    summary = run.read_summary()
    ends = [points[-1][0] for points in curves[LOSSES].values() if points]
    return {
        "curves": curves, "epochs": max(ends, default=None),
        "epoch": summary.get("best_epoch") if is_best else None,
    }  # fmt: skip


def _explained(done: Evaluation, rows: Mapping[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Rows, which are by their places among the images, and their rollout as a heat map; none where
    it would take too much.
    """
    model = done.trained.model
    tokens = model.coordinates[..., 0].numel() + model.prefix
    if tokens > MOST_TOKENS:
        return
    weights = model.config.depth * model.config.heads * tokens**2
    at_once = max(1, min(64, _AT_ONCE // weights))
    for places, _, images, mask in seen_at(done.loader, list(rows), at_once):
        heats = heat_of_each(rollout(model, images, mask), mask)
        yield from ((rows[at], heat_map(heat)) for at, heat in zip(places, heats, strict=True))
