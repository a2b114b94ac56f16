"""Scores of models that give any number of labels to an image, with intervals; thresholds.

Legend: N images, K labels. Labels are 0 or 1, (N, K); scores of the labels (logits or
probabilities) are (N, K), the more likely the higher. Everything is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vit.report.metrics import INTERVAL, RESAMPLES, Score

_ELEMENTS = 1e9
"""Of all resamples together, at most: a bootstrap of more labels has fewer of them."""
_FEWEST = 100
_RESAMPLED = (
    "ap", "map", "map_micro", "macro_f1", "micro_f1", "sample_f1", "exact", "loss"
)  # fmt: skip


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each label, float64 (K,) in [0, 1]; nan where no image has it.

    The mean of the precision over the images that have the label, without interpolation, as
    scikit-learn has it.
    """
    from sklearn.metrics import average_precision_score

    there = labels.any(axis=0)
    found = np.full(labels.shape[1], np.nan)
    for k in np.flatnonzero(there):
        found[k] = average_precision_score(labels[:, k], scores[:, k])
    return found


def mean_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """mAP, in percent: the mean average precision of the labels that some image has; 0 without."""
    return _mean(average_precision(labels, scores))


def fit_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The probability from which on each label is given, float64 (K,): that of the highest F1.

    It lies midway between two neighbouring probabilities, and of several that are equally good
    nearest to one half. Of a label that no image has, or all, it is one half.
    """
    found = np.full(labels.shape[1], 0.5)
    for k, total in enumerate(labels.sum(axis=0, dtype=np.int64).tolist()):
        if not 0 < total < len(labels):
            continue
        order = np.argsort(-probabilities[:, k], kind="stable")
        falling = probabilities[order, k].astype(np.float64)
        hits = np.cumsum(labels[order, k], dtype=np.int64)
        f1 = 2 * hits / (np.arange(1, len(labels) + 1) + total)
        f1[:-1][falling[1:] == falling[:-1]] = -1  # there is no threshold between equal ones
        middle = (falling + np.append(falling[1:], 0)) / 2
        best = np.flatnonzero(f1 == f1.max())
        found[k] = middle[best[np.argmin(np.abs(middle[best] - 0.5))]]
    return found


@dataclass(frozen=True)
class LabelScores:
    """What N images say of a model.

    Attributes:
        labels: the truth.
        probabilities: float64.
        thresholds: from which probability on each label is given, (K,).
        losses: mean binary cross-entropy of each image in nats, (N,).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    thresholds: np.ndarray
    losses: np.ndarray

    @cached_property
    def given(self) -> np.ndarray:
        """The labels that the model gives, bool (N, K)."""
        given: np.ndarray = self.probabilities >= self.thresholds
        return given

    @property
    def hits(self) -> np.ndarray:
        """Labels that are there and given, int64 (N, K)."""
        hits: np.ndarray = self.given.astype(np.int64) * self.labels
        return hits

    @property
    def either(self) -> np.ndarray:
        """0, 1 where a label is there or given, 2 where it is both, int64 (N, K)."""
        either: np.ndarray = self.given.astype(np.int64) + self.labels
        return either

    @cached_property
    def sample_f1(self) -> np.ndarray:
        """F1 of the labels of each image, 1 where it has none and is given none, (N,)."""
        either = self.either.sum(axis=1)
        return np.where(either, _share(2 * self.hits.sum(axis=1), either), 1.0)

    @property
    def missed(self) -> np.ndarray:
        """Labels that are there and not given, bool (N, K)."""
        missed: np.ndarray = ~self.given & (self.labels == 1)
        return missed

    @property
    def wrong(self) -> np.ndarray:
        """Labels that are given and not there, bool (N, K)."""
        wrong: np.ndarray = self.given & (self.labels == 0)
        return wrong

    @property
    def precision_range(self) -> np.ndarray:
        """95 % interval of each label's average precision, (2, K); nan where there is none."""
        drawn = self.resampled["ap"]
        found = np.full((2, drawn.shape[1]), np.nan)
        there = np.isfinite(drawn).any(axis=0)
        found[:, there] = np.nanquantile(drawn[:, there], INTERVAL, axis=0)
        return found

    @cached_property
    def right(self) -> np.ndarray:
        """Images on which every label is right, bool (N,)."""
        right: np.ndarray = (self.given == self.labels).all(axis=1)
        return right

    @cached_property
    def precisions(self) -> np.ndarray:
        """`average_precision`."""
        return average_precision(self.labels, self.probabilities)

    def values(self) -> dict[str, float]:
        """Every score: `map` and `map_micro`, `exact` in percent; F1 in [0, 1], `macro` over the
        labels that some image has or is given; `loss` in nats.
        """
        return {
            "map": _mean(self.precisions),
            "map_micro": mean_precision(
                self.labels.reshape(-1, 1), self.probabilities.reshape(-1, 1)
            ),
            **_f1(self.hits.sum(axis=0), self.either.sum(axis=0)),
            "sample_f1": float(self.sample_f1.mean()),
            "exact": float(100 * self.right.mean()),
            "loss": float(self.losses.sum() / len(self.losses)),
        }

    def per_label(self) -> dict[str, np.ndarray]:
        """`precision`, `recall`, `f1` and `support` of each label, (K,)."""
        hits, support = self.hits.sum(axis=0), self.labels.sum(axis=0, dtype=np.int64)
        return {
            "precision": _share(hits, self.given.sum(axis=0)),
            "recall": _share(hits, support),
            "f1": _share(2 * hits, self.either.sum(axis=0)),
            "support": support,
        }

    @cached_property
    def resampled(self) -> dict[str, np.ndarray]:
        """Scores of bootstrap resamples (Efron 1979) by name, (R,); `ap` of each label, (R, K).

        Equally many images with the same numbers are drawn for every model.
        """
        count, labels = self.labels.shape
        rounds = int(np.clip(_ELEMENTS / self.labels.size, _FEWEST, RESAMPLES))
        order = np.argsort(-self.probabilities, axis=0, kind="stable")
        sorted_labels = np.take_along_axis(self.labels, order, axis=0).astype(np.float64)
        by_all = np.argsort(-self.probabilities, axis=None, kind="stable")
        flat, of = self.labels.reshape(-1, 1)[by_all].astype(np.float64), by_all[:, None] // labels
        both, all_given = self.hits.astype(np.float64), self.either.astype(np.float64)
        rng = np.random.default_rng(0)
        rows = []
        for _ in range(rounds):
            times = np.bincount(rng.integers(count, size=count), minlength=count).astype(float)
            ap = _weighted_precision(sorted_labels, times[order])
            rows.append((
                ap, _mean(ap), _mean(_weighted_precision(flat, times[of])),
                *_f1(times @ both, times @ all_given).values(),
                times @ self.sample_f1 / count, 100 * times @ self.right / count,
                times @ self.losses / count,
            ))  # fmt: skip
        return dict(zip(_RESAMPLED, map(np.array, zip(*rows, strict=True)), strict=True))

    def scores(self) -> dict[str, Score]:
        """`values`, with 95 % percentile intervals of the bootstrap where it has them."""
        values = self.values()
        ranges = {
            key: np.nanquantile(self.resampled[key], INTERVAL).tolist()
            for key in values.keys() & self.resampled.keys()
        }
        return {key: Score(value, *ranges[key]) for key, value in values.items()}


def _mean(precisions: np.ndarray) -> float:
    """In percent, of those that are numbers; 0 if there is none."""
    return float(100 * np.nanmean(precisions)) if np.isfinite(precisions).any() else 0.0


def _f1(hits: np.ndarray, either: np.ndarray) -> dict[str, float]:
    """Of labels that are right so often, (K,), and there or given so often."""
    each = _share(2 * hits, either)[either > 0]
    return {
        "macro_f1": float(each.mean()) if len(each) else 0.0,
        "micro_f1": float(_share(2 * hits.sum(), either.sum())),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, and 0 where both are 0."""
    share: np.ndarray = part / np.where(whole == 0, 1, whole)
    return share


def _weighted_precision(labels: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Average precision (K,) of sorted labels (N, K), each image so many times, (N, K)."""
    found = labels * times
    hits, seen = np.cumsum(found, axis=0), np.cumsum(times, axis=0)
    total = hits[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (found * hits / np.maximum(seen, 1)).sum(axis=0) / total, np.nan)
