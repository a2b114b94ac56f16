"""Neighbours among embeddings: the nearest, what they say of an image, and a linear probe.

Legend: N images, M labelled ones, D features, K classes, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARPNESS = 0.07
"""Neighbours vote by exp(similarity / SHARPNESS) (Wu et al. 2018, arXiv 1805.01978)."""
PARTS = 5
_ROWS = 1024


@dataclass(frozen=True)
class Neighbours:
    """The k nearest labelled images of each of N images, the nearest first.

    Attributes:
        index: which they are, int64 (N, k).
        similarity: the cosine of the angle between both, float32 (N, k).
    """

    index: np.ndarray
    similarity: np.ndarray

    def vote(self, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """The class (N,) that the labels (M,) of the neighbours speak for, and its share."""
        weights = np.exp((self.similarity - self.similarity[:, :1]) / SHARPNESS)
        votes = np.zeros((len(self.index), classes))
        rows = np.arange(len(self.index))
        for place, weight in zip(self.index.T, weights.T, strict=True):
            votes[rows, labels[place]] += weight
        best = votes.argmax(axis=1)
        return best, votes[rows, best] / votes.sum(axis=1)


def nearest(
    images: np.ndarray, labelled: np.ndarray, count: int, *, among_themselves: bool = False
) -> Neighbours:
    """The `count` nearest by the cosine, of embeddings (N, D) and (M, D).

    Args:
        among_themselves: both are the same images, of which none is its own neighbour.
    """
    ours, theirs = _unit(images), _unit(labelled).T
    count = min(count, theirs.shape[1] - among_themselves)
    found = []
    for first in range(0, len(ours), _ROWS):
        close = ours[first : first + _ROWS] @ theirs
        if among_themselves:
            own = np.arange(first, first + len(close))
            close[own - first, own] = -np.inf
        some = np.argpartition(-close, count - 1, axis=1)[:, :count]
        similarity = np.take_along_axis(close, some, axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")
        found.append([np.take_along_axis(x, order, axis=1) for x in (some, similarity)])
    return Neighbours(*map(np.concatenate, zip(*found, strict=True)))


def probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray | None = None) -> np.ndarray:
    """The classes that a linear classifier on standardised embeddings says, (N,): ridge regression
    to the classes, in closed form, its strength by leave-one-out.

    Args:
        train: embeddings (M, D) of images with `labels` (M,).
        test: those that are asked for, (N, D); None: the former, each by a classifier that did not
            see it, of PARTS.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-2, 5, 8)))
    if test is not None:
        said: np.ndarray = model.fit(train, labels).predict(test)
        return said
    parts = StratifiedKFold(PARTS, shuffle=True, random_state=0)
    held_out: np.ndarray = cross_val_predict(model, train, labels, cv=parts)
    return held_out


def _unit(embeddings: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: np.ndarray = embeddings / np.maximum(norms, 1e-12)
    return unit
