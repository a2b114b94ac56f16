"""The sentences that a report begins with."""

from __future__ import annotations

import numpy as np
import pytest

from vit.report.course import Course
from vit.report.headline import right, sureness, weakest
from vit.report.metrics import guessing, label_errors

PETS = ["bird", "dog", "food"]


def test_right_answers_stand_beside_those_of_always_the_same_class() -> None:
    labels = np.repeat([0, 1, 2], [20, 12, 14])
    said = np.where(np.arange(46) < 20, labels, (labels + 1) % 3)
    assert right(labels, said, PETS) == (
        "Right 20 times of 46 (30 to 58 %). Always 'bird' would be right 43 %, so it is not shown "
        "to be better."
    )
    assert right(labels, labels, PETS).endswith("Always 'bird' would be right 43 %.")


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (
            [[9, 0, 1], [4, 0, 4], [1, 0, 9]],
            "It never recognises dog: 4 went to bird, 4 went to food.",
        ),
        (
            [[0, 5, 0], [3, 0, 0], [0, 1, 9]],
            "It never recognises 2 of 3 classes: bird (5 went to dog), dog (3 went to bird).",
        ),
        (
            [[9, 1, 0], [1, 5, 4], [0, 0, 9]],
            "Worst is dog, recognised 5 times of 10: 4 went to food, 1 went to bird.",
        ),
        ([[9, 0, 0], [0, 0, 0], [0, 0, 9]], "It is wrong on none of them."),
        (
            [[9, 0, 0], [0, 0, 0], [1, 0, 9]],
            "Worst is food, recognised 9 times of 10: 1 went to bird.",
        ),
    ],
)
def test_the_weakest_class_is_named(counts: list[list[int]], sentence: str) -> None:
    assert weakest(np.array(counts), PETS) == sentence


def test_confidence_is_compared_with_what_came_true() -> None:
    correct = np.arange(1000) < 810
    sure = np.full(1000, 0.9)
    assert sureness(sure, np.full(1000, 0.8), correct, 1.4) == (
        "Its probabilities are too high by 9 points; with temperature 1.40 within 1 point. It is, "
        "with it, 85 % or more sure of 0 answers, too few to tell."
    )
    assert sureness(sure, sure, np.arange(1000) < 905, None) == (
        "As sure as it is right, as far as 1,000 images tell (within 1 point). Where it is about "
        "90 % sure, it is right 905 times of 1,000 (89 to 92 %)."
    )
    low = sureness(sure - 0.3, sure - 0.3, correct, None)
    assert low.startswith("Its probabilities are too low by 21 points. ")
    worse = sureness(sure - 0.2, sure - 0.5, correct, 4.0)
    words = "Its probabilities are too low by 11 points; with temperature 4.00 too low by 41. "
    assert worse.startswith(words)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1.0, 0.5, 0.4, 0.6, 0.9], "best at epoch 3 of 5 (0.40) and rose to 0.90"),
        ([1.0, 0.8, 0.6, 0.5, 0.4], "still falling at the end (0.40)"),
        ([1.0, 0.5, 0.42, 0.4, 0.41], "levelled off (0.40 at epoch 4 of 5, 0.41 at the end)"),
    ],
)
def test_the_course_of_the_loss_is_told(losses: list[float], words: str) -> None:
    course = Course.of([(i + 1.0, loss) for i, loss in enumerate(losses)], 5)
    assert course is not None
    assert words in course.sentence
    assert Course.of([(1.0, 1.0), (2.0, float("nan"))], 5) is None


def test_guesses_are_what_scikit_learn_gives_them() -> None:
    from sklearn.metrics import brier_score_loss, f1_score, log_loss

    labels = np.repeat([0, 1, 2], [5, 3, 2])
    shares = np.tile([0.5, 0.3, 0.2], (10, 1))
    found = guessing(labels)
    assert found["top1"] == pytest.approx(50)
    assert found["top5"] == pytest.approx(100)
    assert found["loss"] == pytest.approx(log_loss(labels, shares))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, np.zeros(10), average="macro"))
    one_hot = np.eye(3)[labels]
    assert found["brier"] == pytest.approx(np.square(shares - one_hot).sum(axis=1).mean())
    assert brier_score_loss(one_hot[:, 0], shares[:, 0]) == pytest.approx(0.25)
    several = guessing(one_hot.astype(np.uint8))
    assert several["map"] == pytest.approx(100 / 3)
    assert several["loss"] == pytest.approx(
        np.mean([log_loss(one_hot[:, k], shares[:, k]) for k in range(3)])
    )


def test_wrong_labels_are_found_first() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 1000)
    logits = 1.5 * rng.standard_normal((1000, 5))
    logits[np.arange(1000), truth] += 12
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = truth.copy()
    wrong = rng.choice(1000, 30, replace=False)
    labels[wrong] = (truth[wrong] + 1) % 5
    found = label_errors(labels, chances)
    first = found[:30]
    assert len({i for i, _ in first} & set(wrong.tolist())) >= 28
    assert sum(instead == truth[i] for i, instead in first) >= 28
    assert label_errors(truth[:0], chances[:0]) == []
