"""One evaluation, as `vit-eval` and `Run.evaluate` make it: from its settings to its scores."""

from __future__ import annotations

from pathlib import Path

import torch

from vit.config.commands import EvalConfig
from vit.config.saved import Calibration
from vit.data.task import ONE_LABEL
from vit.errors import ConfigError
from vit.evaluation.comparison import check_comparable, compare
from vit.evaluation.review import (
    Evaluation,
    LabelEvaluation,
    under_corruptions,
)
from vit.inference.calibration import fitted
from vit.inference.evaluator import Evaluator
from vit.inference.predict import Predictions


def evaluate(config: EvalConfig, device: torch.device) -> Evaluation:
    """Score a checkpoint on a split of its own data, or on a folder with the same classes.

    Raises:
        NoCheckpointError: nothing there, or nothing undamaged.
        ConfigError, DataError: the settings do not fit the model, or the images are not there.
        DivergedError: an answer is not finite.
    """
    job, *others = (Evaluator.of(Path(place), config, device) for place in config.checkpoints)
    trained = job.trained
    samples, what = job.find(config.split)
    trained_on = job.trained_on(samples)
    for other in others:
        check_comparable(job, other, samples)
        other.trained_on(samples)
    loader = job.open(samples, what)
    predictions = job.predict(loader)
    calibration = _calibration(job, what, predictions)
    about = {
        **trained.about(),
        "data": what,
        "images": len(predictions.index),
        "trained_on": trained_on,
        "bad_images": loader.corrupt.named(),
        "tta": config.tta,
        "merge": config.merge,
    }
    comparison = None
    for other in others:
        theirs = other.predict(other.open(samples, what))
        comparison = compare((trained, other.trained), predictions, theirs)
        about["compared_with"] = {**other.trained.about(), **comparison.as_json()}
    kind = Evaluation if loader.task is ONE_LABEL else LabelEvaluation
    return kind(
        trained, what, loader, about, predictions,
        calibration=calibration,
        corruptions=under_corruptions(job, loader) if config.corruptions else {},
        comparison=comparison,
    )  # fmt: skip


def _calibration(job: Evaluator, what: str, predictions: Predictions) -> Calibration:
    """That of the checkpoint, or what is fitted on the run's validation split, as far as it has one
    that can be read.
    """
    config, record = job.config, job.trained.calibration
    if predictions.task is not ONE_LABEL:
        return Calibration(why="several labels have thresholds of their own")
    if config.calibration == "none":
        return Calibration(why="calibration=none")
    if record is not None and config.tta == "none" and config.calibration == "auto":
        return record
    try:
        splits = job.splits()
        if what != "val" and "val" not in splits:
            return Calibration(why="the run has no validation images to fit it on")
        val = predictions if what == "val" else job.predict(job.open(splits["val"], "val"))
    except ConfigError as error:
        return Calibration(why=f"the run's validation images cannot be used ({error})")
    assert val.logits is not None
    return fitted(val.logits, val.labels)
