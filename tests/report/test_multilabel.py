"""Scores of several labels per image, against scikit-learn; thresholds; intervals."""

import warnings

import numpy as np
import pytest
from sklearn import metrics

from vit.report.multilabel import LabelScores, average_precision, fit_thresholds

RNG = np.random.default_rng(0)


def made_up(images=120, labels=7, ties=False):
    """Labels, probabilities that say something of them, thresholds and losses."""
    truth = (RNG.random((images, labels)) < RNG.uniform(0.05, 0.9, labels)).astype(np.uint8)
    truth[0] = 1
    chance = np.clip(RNG.random((images, labels)) * 0.7 + 0.3 * truth, 0, 1)
    if ties:
        chance = np.round(chance, 1)
    losses = RNG.random(images)
    return LabelScores(truth, chance, RNG.uniform(0.2, 0.8, labels), losses)


@pytest.mark.parametrize("ties", [False, True])
def test_every_score_is_that_of_scikit_learn(ties):
    for _ in range(20):
        found = made_up(int(RNG.integers(2, 80)), int(RNG.integers(2, 9)), ties)
        given, truth, values = found.given, found.labels, found.values()
        for average, key in (("macro", "map"), ("micro", "map_micro")):
            wanted = metrics.average_precision_score(truth, found.probabilities, average=average)
            assert values[key] == pytest.approx(100 * wanted, rel=1e-12)
        for average, key in (("macro", "macro_f1"), ("micro", "micro_f1")):
            wanted = metrics.f1_score(truth, given, average=average, zero_division=np.nan)
            assert values[key] == pytest.approx(wanted, rel=1e-12)
        exact = (given == truth).all(axis=1).mean()
        assert values["exact"] == pytest.approx(100 * exact, rel=1e-12)
        wanted = metrics.f1_score(truth, given, average="samples", zero_division=1)
        assert values["sample_f1"] == pytest.approx(wanted, rel=1e-12)
        columns = metrics.precision_recall_fscore_support(truth, given, zero_division=0)
        for ours, theirs in zip(found.per_label().values(), columns, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_a_label_that_no_image_has_is_left_out_of_the_mean_without_a_warning():
    found = made_up()
    labels = found.labels.copy()
    labels[:, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        each = average_precision(labels, found.probabilities)
    assert np.isnan(each[2])
    assert np.isfinite(np.delete(each, 2)).all()
    other = LabelScores(labels, found.probabilities, found.thresholds, found.losses)
    assert other.values()["map"] == pytest.approx(100 * np.delete(each, 2).mean())
    assert np.isnan(other.precision_range[:, 2]).all()


def test_one_label_alone_is_scored():
    found = made_up(50, 1)
    assert found.values()["map"] == pytest.approx(found.values()["map_micro"], rel=1e-12)
    assert found.per_label()["support"].tolist() == [int(found.labels.sum())]
    wanted = metrics.f1_score(found.labels[:, 0], found.given[:, 0])
    assert found.values()["macro_f1"] == pytest.approx(wanted, rel=1e-12)


def test_images_without_any_label_have_a_score():
    found = made_up(10, 3)
    none = LabelScores(0 * found.labels, found.probabilities, np.ones(3), found.losses)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = none.scores()
    assert scores["map"].value == scores["map"].low == scores["map"].high == 0
    assert scores["exact"].value == scores["sample_f1"].value * 100 == 100


def test_thresholds_have_the_highest_f1_of_all():
    for ties in (False, True):
        found = made_up(60, 5, ties)
        thresholds = fit_thresholds(found.labels, found.probabilities)
        for k, threshold in enumerate(thresholds):
            column, truth = found.probabilities[:, k], found.labels[:, k]
            tried = [metrics.f1_score(truth, column >= t) for t in np.unique(column)]
            own = metrics.f1_score(truth, column >= threshold)
            assert own == pytest.approx(max(tried), rel=1e-12)
            if not ties:
                assert threshold not in column  # it lies between two


def test_thresholds_of_labels_that_say_nothing_are_one_half():
    labels = np.array([[0, 1, 1], [0, 1, 0]], np.uint8)
    found = fit_thresholds(labels, np.array([[0.9, 0.1, 0.7], [0.2, 0.3, 0.6]]))
    assert found.tolist() == [0.5, 0.5, pytest.approx(0.65)]


def test_intervals_hold_the_score_of_all_images_as_often_as_they_say():
    held = 0
    for _ in range(40):
        rng = np.random.default_rng(int(RNG.integers(2**31)))
        truth = (rng.random((400, 2)) < 0.4).astype(np.uint8)
        chance = np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1)
        whole = rng.random((40_000, 2)) < 0.4
        true = average_precision(whole, np.clip(rng.normal(0.4 + 0.2 * whole, 0.2), 0, 1))
        found = LabelScores(truth, chance, np.full(2, 0.5), np.zeros(400))
        low, high = found.precision_range
        held += ((low <= true) & (true <= high)).sum()
    assert 68 <= held <= 80  # of 80; 95 % are 76


def test_a_bootstrap_of_every_image_once_is_the_score():
    found = made_up(40, 3)

    class Same:
        def integers(self, count, size):
            return np.arange(size)

    original = np.random.default_rng
    try:
        np.random.default_rng = lambda seed: Same()
        drawn = found.resampled
    finally:
        np.random.default_rng = original
    values = found.values()
    for key in ("map", "map_micro", "macro_f1", "micro_f1", "sample_f1", "exact", "loss"):
        assert drawn[key] == pytest.approx(values[key], rel=1e-12), key
