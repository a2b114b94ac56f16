"""Scores beyond accuracy: against definitions, tables and scikit-learn, of arrays and of a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import lines, run
from sklearn.metrics import brier_score_loss, f1_score, log_loss

import vit
from vit.config.validate import to_config
from vit.data.sources.registry import load_data_set
from vit.inference.predict import Predictions, with_mirror_images
from vit.report.interval import wilson
from vit.report.metrics import (
    BINS,
    all_scores,
    calibration,
    confusion,
    fit_temperature,
    per_class,
    probability_scores,
)

Answers = tuple[np.ndarray, np.ndarray]


def answers(n: int, classes: int, sharpness: float = 1.0, seed: int = 0) -> Answers:
    """Logits and labels drawn from their own probabilities: perfectly calibrated at sharpness 1."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((n, classes))
    drawn = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return (sharpness * logits).astype(np.float32), drawn


def scores_of(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    judged = probability_scores(logits, labels)
    top = np.argsort(-logits, axis=1)[:, :5]
    return all_scores(top, labels, judged.loss, judged)


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (37, 3), (5000, 10)])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_calibration_error_is_that_of_the_definition(n, classes, sharpness):
    logits, labels = answers(n, classes, sharpness)
    sure = [float(np.exp(-np.logaddexp.reduce(row - row.max()))) for row in logits.astype(float)]
    right = [int(row.argmax() == label) for row, label in zip(logits, labels, strict=True)]
    expected = 0.0
    for b in range(BINS):
        inside = [i for i in range(n) if b / BINS < sure[i] <= (b + 1) / BINS]
        expected += abs(sum(right[i] for i in inside) - sum(sure[i] for i in inside)) / n
    bins = calibration(probability_scores(logits, labels).confidence, np.array(right, bool))
    assert bins.error() == pytest.approx(expected, abs=1e-12)
    assert bins.count.sum() == n


def test_confidence_on_an_edge_belongs_below_it():
    bins = calibration(np.array([1 / 3, 1.0]), np.array([True, False]))
    assert np.flatnonzero(bins.count).tolist() == [4, 14]
    assert bins.error() == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),  # Newcombe 1998, table I
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_intervals_are_those_of_the_table(hits, count, low, high):
    assert wilson(hits, count) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_a_known_temperature_is_found():
    logits, labels = answers(20_000, 5)
    own = fit_temperature(logits, labels)
    assert own == pytest.approx(1, abs=0.03)  # calibrated, up to the chance of the labels
    for temperature in (0.2, 0.7, 1.5, 6.0):
        found = fit_temperature(np.float64(temperature) * logits, labels)
        assert found == pytest.approx(temperature * own, rel=1e-8)


def test_no_temperature_is_better_than_the_fitted_one():
    logits, labels = answers(3000, 4, sharpness=2.5, seed=1)
    best = fit_temperature(logits, labels)
    losses = [probability_scores(logits, labels, best * x).loss.mean() for x in (0.99, 1.0, 1.01)]
    assert losses[1] < min(losses[0], losses[2])
    before, after = (
        calibration(
            probability_scores(logits, labels, t).confidence, logits.argmax(axis=1) == labels
        ).error()
        for t in (1.0, best)
    )
    assert after < before / 3


@pytest.mark.parametrize("kind", ["all right", "all wrong", "says nothing"])
def test_where_no_temperature_is_best_there_is_none(kind):
    labels = np.arange(12) % 3
    said = (labels + (kind == "all wrong")) % 3
    logits = np.eye(3, dtype=np.float32)[said] * (kind != "says nothing")
    assert fit_temperature(logits, labels) is None


@pytest.mark.parametrize("classes", [2, 7])
def test_scores_are_scikit_learns(classes):
    logits, labels = answers(600, classes, sharpness=1.7)
    wide = logits.astype(np.float64)
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    said = logits.argmax(axis=1)
    scores = scores_of(logits, labels)
    every = list(range(classes))
    assert scores["loss"].value == pytest.approx(log_loss(labels, probabilities, labels=every))
    expected = brier_score_loss(labels, probabilities, labels=every, scale_by_half=False)
    assert scores["brier"].value == pytest.approx(expected)
    assert scores["macro_f1"].value == f1_score(labels, said, average="macro")
    table = per_class(labels, said, classes)
    assert table["f1"].mean() == pytest.approx(scores["macro_f1"].value)
    counts = confusion(labels, said, classes)
    assert (counts.sum(axis=1) == table["support"]).all()
    assert counts.trace() == (said == labels).sum()


def test_intervals_are_repeatable_and_hold_the_score():
    logits, labels = answers(2000, 6)
    scores = scores_of(logits, labels)
    assert scores_of(logits, labels) == scores
    for name in ("loss", "top1", "top5", "macro_f1", "brier"):
        assert scores[name].low < scores[name].value < scores[name].high, name


def test_intervals_are_as_wide_as_the_normal_ones_of_many_images():
    logits, labels = answers(5000, 4)
    judged, scores = probability_scores(logits, labels), scores_of(logits, labels)
    for name, terms in (("loss", judged.loss), ("brier", judged.brier)):
        width = 2 * 1.96 * terms.std() / np.sqrt(len(terms))
        assert scores[name].high - scores[name].low == pytest.approx(width, rel=0.1)


def test_classes_that_are_never_there_and_never_said_do_not_count():
    logits = np.full((6, 4), -9.0, np.float32)
    labels = np.array([0, 0, 0, 2, 2, 2])
    logits[np.arange(6), [0, 0, 2, 2, 2, 2]] = 9
    expected = (0.8 + 6 / 7) / 2  # 2 of 2 and 2 of 3; 3 of 4 and 3 of 3
    assert scores_of(logits, labels)["macro_f1"].value == pytest.approx(expected)
    assert per_class(labels, logits.argmax(axis=1), 4)["support"].tolist() == [3, 0, 3, 0]


def test_large_logits_overflow_nothing():
    logits = np.array([[1e4, -1e4, 0], [0, 1e4, -1e4]], np.float32)
    judged = probability_scores(logits, np.array([0, 0]), temperature=0.1)
    assert judged.loss.tolist() == [0.0, 1e5]
    assert judged.brier.tolist() == [0.0, 2.0]
    assert judged.margin.tolist() == [1.0, 1.0]


def test_mirror_images_have_half_a_say():
    rng = np.random.default_rng(3)
    plain, mirrored = (rng.standard_normal((40, 7)).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, 7, 40)
    nothing = np.zeros(40)
    predictions = Predictions(nothing, nothing, nothing, labels, np.arange(40), plain, mirrored)
    both = with_mirror_images(predictions)
    mean = sum(torch.from_numpy(x).double().softmax(-1) for x in (plain, mirrored)).numpy() / 2
    assert (both.top[:, 0] == mean.argmax(axis=1)).all()
    np.testing.assert_allclose(both.probability, mean.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(both.losses, -np.log(mean[np.arange(40), labels]), rtol=1e-5)
    np.testing.assert_allclose(probability_scores(both.logits, labels).loss, both.losses, rtol=1e-5)


# Of a real run


def evaluated(finished: Path, folder: Path, *args: str) -> dict[str, Any]:
    """metrics.json of an evaluation into `folder`."""
    done = run("eval", f"checkpoint={finished}", f"output={folder}", *args, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def own_probabilities(
    finished: Path, *views: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[list[np.ndarray], list[str]]:
    """Of the test images, seen in several ways, without the engine; and the images' names."""
    trained = vit.load_run(finished)
    samples = load_data_set(to_config(trained.config).data).splits["test"]
    pixels = torch.from_numpy(samples.images[samples.index]).float() / 255
    mean, std = (trained.preprocessing[key][0] for key in ("mean", "std"))
    with torch.no_grad():
        seen = [trained.model((view(pixels) - mean) / std).double().softmax(-1) for view in views]
    return [probabilities.numpy() for probabilities in seen], list(samples.names)


def test_a_validation_is_evaluated_to_the_last_digit(finished: Path, tmp_path: Path) -> None:
    metrics = evaluated(finished, tmp_path / "val", "split=val", "report=false")
    logged = next(
        line for line in lines(finished / "metrics.jsonl")
        if line["event"] == "val" and line["step"] == metrics["step"]
    )  # fmt: skip
    for key in ("loss", "top1", "top5"):
        assert metrics[key] == logged[key]
    assert metrics["intervals"]["top1"][0] < metrics["top1"] < metrics["intervals"]["top1"][1]


def test_scores_of_a_run_are_scikit_learns(finished: Path, tmp_path: Path) -> None:
    metrics = evaluated(finished, tmp_path / "test", "report=false", "calibration=none")
    with open(tmp_path / "test" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels, said = (np.array([int(row[key]) for row in rows]) for key in ("label", "prediction"))
    assert metrics["macro_f1"] == f1_score(labels, said, average="macro", zero_division=0)
    per_digit = f1_score(labels, said, average=None, labels=range(10), zero_division=0)
    assert [row["f1"] for row in metrics["per_class"]] == per_digit.tolist()

    (probabilities,), names = own_probabilities(finished, lambda images: images)
    assert [row["image"] for row in rows] == names
    listed = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(probabilities.max(axis=1), listed, atol=1e-5)
    assert metrics["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
    brier = brier_score_loss(labels, probabilities, scale_by_half=False)
    assert metrics["brier"] == pytest.approx(brier, rel=1e-5)


def test_the_temperature_is_that_of_validation(finished: Path, tmp_path: Path) -> None:
    test = evaluated(finished, tmp_path / "test", "report=false")
    val = evaluated(finished, tmp_path / "val", "split=val", "report=false")
    assert test["temperature"] == val["temperature"] > 0
    assert val["calibrated"]["loss"] < val["loss"]


def test_mirror_images_are_averaged_and_compared(finished: Path, tmp_path: Path) -> None:
    alone = evaluated(finished, tmp_path / "none", "report=false")
    both = evaluated(finished, tmp_path / "flip", "tta=flip")
    for key, value in both["without_tta"].items():
        assert value == alone[key], key
    seen, names = own_probabilities(finished, lambda x: x, lambda x: x.flip(-1))
    with open(tmp_path / "flip" / "predictions.csv", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    mean = (seen[0] + seen[1]) / 2
    labels = np.array([int(rows[name]["label"]) for name in names])
    assert both["loss"] == pytest.approx(log_loss(labels, mean), rel=1e-5)
    assert [rows[name]["prediction"] for name in names] == [str(k) for k in mean.argmax(axis=1)]
    page = (tmp_path / "flip" / "report" / "index.html").read_text()
    assert "mean of the probabilities of image and mirror image" in page
    assert f"<td>{both['loss']:.4f}</td>" in page
    assert f"<td>{alone['loss']:.4f}</td>" in page


def test_a_run_without_validation_has_no_temperature(tmp_path: Path) -> None:
    args = ["model.dim=8", "model.depth=1", "model.heads=1", "trainer.steps=3", "name=r"]
    done = run("train", *args, "data.val_fraction=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("eval", "checkpoint=outputs/r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "r" / "eval"
    metrics = json.loads((folder / "test" / "metrics.json").read_text())
    assert metrics["temperature"] is metrics["calibrated"] is None
    page = (folder / "test" / "report" / "index.html").read_text()
    assert "as trained" not in done.stdout
    why = "those of training: the run has no validation images to fit it on."
    assert why in page
