"""What a finished run says of itself: counts, an interval, guessing, overfitting, what to try."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vit.training.verdict import advice, judged

TRAIN = np.repeat([0, 1, 2], [5, 30, 10])


def test_a_score_is_told_in_counts_with_its_interval_and_the_guess() -> None:
    labels = np.repeat([0, 1, 2], [20, 12, 14])
    told = judged(100 * 20 / 46, labels, TRAIN, ["cat", "dog", "owl"])
    assert told == "20 of 46 right, 95 % 30 to 58; always 'dog' would get 26 %"


@pytest.mark.parametrize(("right", "better"), [(12, False), (16, False), (25, True)])
def test_no_better_than_guessing_is_said(right: int, better: bool) -> None:
    """It is better where guessing lies below the interval."""
    labels = np.repeat([0, 1, 2], [20, 12, 14])
    told = judged(100 * right / 46, labels, TRAIN, ["cat", "dog", "owl"])
    assert told.startswith(f"{right} of 46 right")
    assert told.endswith("not shown to be better than guessing") != better


def test_a_name_from_a_disk_is_made_harmless() -> None:
    assert "\x1b" not in judged(50.0, np.array([0, 1]), np.array([1]), ["a", "\x1b[31m"])


def losses(*values: float) -> list[tuple[float, float]]:
    return [(float(i), value) for i, value in enumerate(values, start=1)]


def test_overfitting_is_told_from_its_epoch_on() -> None:
    (told,) = advice(losses(2.0, 1.2, 0.9, 1.0, 1.4), 5, 1000, started=False)
    assert told.startswith("it overfitted from epoch 3 on: validation loss 0.90 there, 1.40 at ")
    assert "weights to start from" not in told
    assert "trainer.epochs=3" in told
    (odd,) = advice([(0.5, 2.0), (2.0268, 0.9), (9.9, 2.5)], 10, 1000, started=False)
    assert odd.startswith("it overfitted from epoch 2 on: ")
    (few,) = advice(losses(2.0, 1.2, 0.9, 1.0, 1.4), 5, 40, started=False)
    assert "weights to start from (experiment=finetune model.weights=" in few
    (begun,) = advice(losses(2.0, 1.2, 0.9, 1.0, 1.4), 5, 40, started=True)
    assert "weights to start from" not in begun


def test_no_shorter_run_is_told_where_the_best_answers_came_late() -> None:
    course = losses(2.0, 1.2, 0.9, 1.0, 1.4)
    (late,) = advice(course, 5, 1000, started=False, kept=5.0)
    assert "right answers came later" in late
    assert "trainer.epochs" not in late
    (soon,) = advice(course, 5, 1000, started=False, kept=4.0)
    assert "trainer.epochs=3" in soon


def test_a_loss_that_still_falls_wants_a_longer_run() -> None:
    (told,) = advice(losses(2.0, 1.5, 1.2), 3, 1000, started=False)
    assert told == "the validation loss was still falling at the end (1.20); try trainer.epochs=6"


def test_a_loss_that_is_level_at_the_end_does_not_fall() -> None:
    level = [(float(i), 1.0 - 0.001 * i) for i in range(1, 101)]
    assert advice(level, 100, 1000, started=False) == []
    annealed = [(1.0, 1.0), (80.0, 0.17), (91.0, 0.16), (96.0, 0.1585), (100.0, 0.159)]
    assert advice(annealed, 100, 1000, started=False) == []
    (told,) = advice([*level, (101.0, 0.85)], 101, 1000, started=False)
    assert told.startswith("the validation loss was still falling at the end (0.85)")


def test_of_little_little_is_said() -> None:
    assert advice([], 5, 1000, started=False) == []
    assert advice(losses(1.0), 1, 10, started=False) == []
    assert advice(losses(math.nan, math.inf), 2, 10, started=False) == []
    assert advice(losses(2.0, 1.0, 1.02, 1.03), 4, 1000, started=True) == []
    (told,) = advice(losses(2.0, 1.0, 1.02, 1.03), 4, 299, started=False)
    assert told.startswith("try weights to start from (experiment=finetune")
