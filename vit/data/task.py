"""What the labels of images are: one class each, or any number of labels. Here alone it is known.

Legend: N images, B batch, K classes or labels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit.report.multilabel import mean_precision


class Task(ABC):
    """Labels of a kind.

    Attributes:
        score: key of the score by which models are chosen, in percent: one of `saved.MAIN`.
        right_key: key of the share of images that are wholly right, in percent.
        classes: what the K things are called that are told apart.
    """

    score: str
    right_key: str
    classes: str

    @abstractmethod
    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Probabilities that training aims at, float32 (B, K)."""

    @abstractmethod
    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which images are wholly right, bool (B,), of logits (B, K)."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each image in evaluation, in nats, float32 (B,)."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Of all classes, (B, K)."""

    @abstractmethod
    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits (B, K) of the mean of the probabilities that two logits (B, K) give."""

    @abstractmethod
    def counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """How many of N images have each class, int64 (K,)."""

    @abstractmethod
    def scores(
        self, top: np.ndarray, labels: np.ndarray, logits: np.ndarray | None
    ) -> dict[str, float]:
        """Scores of N images by name, in percent: `score`, `right_key` and others.

        Args:
            top: the most probable classes, best first (N, up to 5).
            labels: the truth.
            logits: (N, K); None: they were not kept, which of several labels they are.
        """


class OneLabel(Task):
    """Every image is of one class; labels are class numbers, int64 (N,)."""

    score = right_key = "top1"
    classes = "classes"

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """See Task."""
        return F.one_hot(labels, classes).float()

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See Task."""
        return logits.argmax(dim=-1) == labels

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, labels, reduction="none")

    def probabilities(self, logits: Tensor) -> Tensor:
        """See Task."""
        return logits.softmax(dim=-1)

    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        """See Task."""
        return torch.logaddexp(first.log_softmax(-1), second.log_softmax(-1)) - math.log(2)

    def counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """See Task."""
        return np.bincount(labels, minlength=classes)

    def scores(
        self, top: np.ndarray, labels: np.ndarray, logits: np.ndarray | None
    ) -> dict[str, float]:
        """`top1` and `top5`."""
        hits = top == labels[:, None]
        return {
            "top1": float(100 * hits[:, 0].sum() / len(labels)),
            "top5": float(100 * hits.any(axis=1).sum() / len(labels)),
        }


class SeveralLabels(Task):
    """An image has any number of K labels, each for itself; they are 0 or 1, uint8 (N, K)."""

    score = "map"
    right_key = "exact"
    classes = "labels"

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """See Task."""
        return labels.float()

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Images on which every label is, at a probability of one half."""
        return ((logits > 0) == labels.bool()).all(dim=-1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the labels of binary cross-entropies."""
        each = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        return each.mean(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """See Task."""
        return logits.sigmoid()

    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        """See Task."""
        yes = torch.logaddexp(F.logsigmoid(first), F.logsigmoid(second))
        return yes - torch.logaddexp(F.logsigmoid(-first), F.logsigmoid(-second))

    def counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """See Task."""
        counts: np.ndarray = labels.sum(axis=0, dtype=np.int64)
        return counts

    def scores(
        self, top: np.ndarray, labels: np.ndarray, logits: np.ndarray | None
    ) -> dict[str, float]:
        """`map`: mean over the labels that are there of their average precisions; `exact`: images
        on which every label is right at a probability of one half.
        """
        assert logits is not None
        return {
            "map": mean_precision(labels, logits),
            "exact": float(100 * ((logits > 0) == labels).all(axis=1).mean()),
        }


def numbers(labels: np.ndarray) -> list[list[int]]:
    """The numbers of the classes that each of N images has."""
    if labels.ndim == 1:
        return [[label] for label in labels.tolist()]
    return [np.flatnonzero(row).tolist() for row in labels]


ONE_LABEL, SEVERAL_LABELS = OneLabel(), SeveralLabels()


def task_of(labels: np.ndarray) -> Task:
    """The task that labels are of, by their shape."""
    return ONE_LABEL if labels.ndim == 1 else SEVERAL_LABELS
