"""The evaluation of a trained model: scores, temperature scaling, corruptions, the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import curve, read_runs
from vit.config.validate import flatten
from vit.data.augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vit.data.loader import EvalLoader
from vit.evaluation.comparison import Comparison
from vit.inference.evaluator import Evaluator
from vit.inference.explain import MOST_TOKENS, heat_of_each, pictures_of_each, rollout
from vit.inference.load import Trained
from vit.inference.predict import Predictions
from vit.report import metrics
from vit.report.drawing import overlay
from vit.report.gallery import choose, within
from vit.report.page import BUDGET, Report, report_page
from vit.runtime import console

_AT_ONCE = 2**27
"""Attention weights of a batch of images, at most."""


@dataclass(frozen=True)
class Temperature:
    """What came of fitting a temperature on the validation split.

    Attributes:
        value: None where there is none.
        images: how many they were.
        why: there is none, as the end of a sentence.
    """

    value: float | None
    images: int = 0
    why: str = ""


@dataclass(frozen=True)
class Review:
    """Scores of predictions.

    Attributes:
        predictions: with logits.
        judged: what their probabilities are worth.
        scores: by name; see `metrics.all_scores`.
        calibrated: `judged`, with the temperature; None without one.
        temperature: what came of fitting one.
        corruptions: see `under_corruptions`; empty where it was not asked for.
        comparison: with a second model; None without one.
    """

    predictions: Predictions
    judged: metrics.ProbabilityScores
    scores: dict[str, metrics.Score]
    calibrated: metrics.ProbabilityScores | None
    temperature: Temperature
    corruptions: Mapping[str, Sequence[float]] = field(default_factory=dict)
    comparison: Comparison | None = None

    def as_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """For metrics.json: scores, intervals, what the temperature makes of them, classes."""
        table = metrics.per_class(self.predictions.labels, self.predictions.top[:, 0], len(classes))
        columns = {key: column.tolist() for key, column in vars(table).items()}
        rows = zip(classes, *columns.values(), strict=True)
        values = {key: score.value for key, score in self.scores.items()}
        calibrated = None
        if self.calibrated is not None:
            bins = metrics.calibration(self.calibrated.confidence, self.predictions.correct)
            loss, brier = (float(x.mean()) for x in (self.calibrated.loss, self.calibrated.brier))
            calibrated = {"loss": loss, "brier": brier, "ece": bins.error()}
        return {
            **self.predictions.scores(),
            **{key: values[key] for key in ("macro_f1", "brier", "ece")},
            "intervals": {key: [score.low, score.high] for key, score in self.scores.items()},
            "temperature": self.temperature.value,
            "calibrated": calibrated,
            **self._corruptions(),
            **({"compared_with": self.comparison.as_json()} if self.comparison else {}),
            "per_class": [dict(zip(("class", *columns), row, strict=True)) for row in rows],
        }

    def _corruptions(self) -> dict[str, Any]:
        """Top-1 under each, the mean of all, and how far it lies below the clean one."""
        if not self.corruptions:
            return {}
        mean = float(np.mean(list(self.corruptions.values())))
        return {
            "corruptions": self.corruptions,
            "corruption_mean": mean,
            "corruption_drop": self.scores["top1"].value - mean,
        }


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        trained: the model.
        what: what the images are called.
        loader: of the images.
        result: their scores.
        metrics: the content of metrics.json.
        others: checkpoints that it is compared with.
    """

    trained: Trained
    what: str
    loader: EvalLoader
    result: Review
    metrics: dict[str, Any]
    others: list[Path]


def review(predictions: Predictions, temperature: Temperature) -> Review:
    """Score predictions that have their logits."""
    assert predictions.logits is not None
    logits, labels = predictions.logits, predictions.labels
    judged = metrics.probability_scores(logits, labels)
    scores = metrics.all_scores(predictions.top, labels, predictions.losses, judged)
    value = temperature.value
    calibrated = None if value is None else metrics.probability_scores(logits, labels, value)
    return Review(predictions, judged, scores, calibrated, temperature)


def fitted(predictions: Predictions) -> Temperature:
    """The temperature for predictions on validation."""
    assert predictions.logits is not None
    value = metrics.fit_temperature(predictions.logits, predictions.labels)
    why = "" if value else "no finite temperature is the best on the validation images"
    return Temperature(value, images=len(predictions.labels), why=why)


def under_corruptions(job: Evaluator, loader: EvalLoader) -> dict[str, list[float]]:
    """Top-1 in percent of the images of `loader` made worse: by corruption, at each of SEVERITIES.

    Args:
        job: the model.
        loader: of the images.
    """
    scores: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    rounds = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    for name, severity in console.progress(rounds, desc="corruptions", unit="it"):
        changed = loader.with_transform(partial(corrupt, name=name, severity=severity))
        scores[name].append(job.predict(changed)[-1].scores()["top1"])
    return scores


def page(
    done: Evaluation, facts: Sequence[str], compared: dict[str, dict[str, float]], command: str
) -> str:
    """The report as HTML.

    Args:
        done: what is reported.
        facts: short texts for below the heading.
        compared: scores of other evaluations; see `Report`.
        command: that makes the page.
    """
    result, trained, loader = done.result, done.trained, done.loader
    predictions, classes = result.predictions, trained.classes
    labels, predicted = predictions.labels, predictions.top[:, 0]
    judged, correct = result.judged, predictions.correct
    chosen = choose(labels, predicted, predictions.losses, judged.margin, len(classes))
    bins = {"as trained": judged.confidence}
    if result.calibrated is not None:
        bins[f"with temperature {result.temperature.value:.3f}"] = result.calibrated.confidence
    reliability = {text: metrics.calibration(shares, correct) for text, shares in bins.items()}
    report = Report(
        title=f"{trained.name}: {done.what}",
        facts=facts,
        classes=classes,
        names=[loader.names[i] for i in predictions.index],
        labels=labels,
        predicted=predicted,
        confidence=judged.confidence,
        scores=result.scores,
        compared=compared,
        versus=None if result.comparison is None else result.comparison.shown(),
        corruptions={
            name: dict(zip(SEVERITIES, row, strict=True))
            for name, row in result.corruptions.items()
        },
        reliability={f"{k} (ECE {b.error():.4f})": b for k, b in reliability.items()},
        calibration=_about(done),
        settings=flatten(trained.config),
        command=command,
        chosen=chosen,
        **_curves(trained),
    )
    shown = list(dict.fromkeys([*report.different(), *chosen.in_order()]))
    thumbnails = within(_pictures(done, shown), BUDGET)
    closer = [i for i in dict.fromkeys([*chosen.worst, *chosen.uncertain]) if i in thumbnails]
    overlays = within(_explained(done, closer), BUDGET // 4)
    return report_page(report, thumbnails, overlays)


def _about(done: Evaluation) -> str:
    """What was done about calibration."""
    result, found = done.result, done.result.temperature
    if found.value is None:
        return f"No temperature scaling: {found.why}."
    text = (
        f"Temperature scaling (Guo et al. 2017) divides the logits by {found.value:.3f}, the "
        f"number that minimises the NLL of {found.images:,} validation images: "
        f"{'less' if found.value > 1 else 'more'} sure than before, with the same answers. Here it "
        f"takes the NLL from {result.judged.loss.mean():.4f} to "
    )
    assert result.calibrated is not None
    text += f"{result.calibrated.loss.mean():.4f}."
    if done.what == "val":
        text += " It was fitted on the very images that are shown, so this is an optimistic figure."
    return text


def _curves(trained: Trained) -> dict[str, Any]:
    """The learning curves of the run, and which epoch the weights are from."""
    run = RunDir.of(trained.path)
    if run is None:
        return {"loss": {}, "top1": {}, "epoch": None}
    (logged,) = read_runs(run.path)
    names = {"training": "train", "validation": "val"}
    curves = {
        key: {name: curve(logged.path, event, key) for name, event in names.items()}
        for key in ("loss", "top1")
    }
    is_best = trained.path.resolve() == run.best.resolve()
    return {**curves, "epoch": logged.summary.get("best_epoch") if is_best else None}


def _batches(
    done: Evaluation, rows: Sequence[int], size: int
) -> Iterator[tuple[list[int], list[np.ndarray], Tensor, Tensor | None]]:
    """Rows, pictures uint8 (H, W, 3), normalised images and their mask, of some predictions."""
    for first in range(0, len(rows), size):
        wanted = {int(done.result.predictions.index[i]): i for i in rows[first : first + size]}
        images, _, index, mask = done.loader.take(np.array(list(wanted)))
        pictures = pictures_of_each(done.loader.normalise.undo(images), mask)
        yield [wanted[place] for place in index.tolist()], pictures, images, mask


def _pictures(done: Evaluation, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Rows and pictures, uint8 (H, W, 3), of some predictions."""
    for numbers, pictures, _, _ in _batches(done, rows, 64):
        yield from zip(numbers, pictures, strict=True)


def _explained(done: Evaluation, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Rows, and their pictures with the rollout over them; none where it would take too much."""
    model = done.trained.model
    tokens = model.coordinates[..., 0].numel() + model.prefix
    if tokens > MOST_TOKENS:
        return
    weights = model.config.depth * model.config.heads * tokens**2
    at_once = max(1, min(64, _AT_ONCE // weights))
    for numbers, pictures, images, mask in _batches(done, rows, at_once):
        heats = heat_of_each(rollout(model, images, mask), mask)
        for number, picture, heat in zip(numbers, pictures, heats, strict=True):
            yield number, overlay(picture, heat)
