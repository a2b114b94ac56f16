"""Scores of a classifier beyond accuracy: intervals, calibration, temperature.

Legend: N images, K classes, R resamples. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vit.report.interval import wilson

BINS = 15
"""Of the confidence, equally wide (Guo et al. 2017)."""
RESAMPLES = 1000
INTERVAL = (0.025, 0.975)
"""Quantiles between which 95 % lie."""
EXACT_BELOW = 25
"""Images on which two models differ: of fewer, McNemar's test is computed exactly."""
SIGNIFICANT = 0.05
"""A p-value below it counts as evidence."""
_ROWS = 2048
_COLDEST, _HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Score:
    """A score with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ProbabilityScores:
    """What the probabilities of N images are worth, each (N,).

    Attributes:
        loss: cross-entropy in nats.
        brier: squared distance of the probabilities from the truth, summed over classes (Brier
            1950), in [0, 2].
        confidence: the largest probability.
        margin: the largest probability less the second.
    """

    loss: np.ndarray
    brier: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True)
class Bins:
    """Images by their confidence: how many, the share that was right, and the mean confidence, each
    (BINS,); nan in bins without images.
    """

    count: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray

    def error(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence| over all images (Naeini
        et al. 2015; Guo et al. 2017, eq. 3)."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(gaps @ self.count / self.count.sum())


def probability_scores(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> ProbabilityScores:
    """Judge logits (N, K), divided by `temperature`, by the true classes (N,)."""
    parts = []
    for scaled, there in _rows(logits, labels, 1 / temperature):
        weights = np.exp(scaled)
        total = weights.sum(axis=1)
        rows = np.arange(len(there))
        loss = np.log(total) - scaled[rows, there]
        probabilities = weights / total[:, None]
        brier = np.square(probabilities).sum(axis=1) - 2 * probabilities[rows, there] + 1
        second, first = np.partition(probabilities, (-2, -1), axis=1)[:, -2:].T
        parts.append((loss, brier, first, first - second))
    return ProbabilityScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax of logits (N, K) divided by `temperature`: float32 (N, K)."""
    found = np.empty(logits.shape, np.float32)
    first = 0
    for scaled, _ in _rows(logits, np.zeros(len(logits), np.int64), 1 / temperature):
        weights = np.exp(scaled)
        found[first : first + len(scaled)] = weights / weights.sum(axis=1, keepdims=True)
        first += len(scaled)
    return found


def mcnemar(first: int, second: int) -> tuple[float, str]:
    """Whether two models are equally often right (McNemar 1947), by the number of images that the
    first alone was right on, and the second alone.

    Returns:
        The two-sided p-value, and how it was computed: `exact`, from the binomial distribution, or
        `chi-square`, of one degree of freedom with Edwards' continuity correction (1948).
    """
    from scipy.stats import binomtest, chi2

    count = first + second
    if count < EXACT_BELOW:
        return float(binomtest(first, count).pvalue) if count else 1.0, "exact"
    statistic = max(abs(first - second) - 1, 0) ** 2 / count
    return float(chi2.sf(statistic, 1)), "chi-square"


def calibration(confidence: np.ndarray, correct: np.ndarray) -> Bins:
    """Sort images into BINS bins (low, high] by their confidence (N,)."""
    place = _bins(confidence)
    count = np.bincount(place, minlength=BINS)
    filled = np.where(count, count, np.nan)
    accuracy, mean = (np.bincount(place, x, BINS) / filled for x in (correct, confidence))
    return Bins(count, accuracy, mean)


def per_class(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """`precision`, `recall`, `f1`, `support` of each class, (K,); never there or never said: 0."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(classes), zero_division=0
    )
    return dict(zip(("precision", "recall", "f1", "support"), columns, strict=True))


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many images of class i (row) were taken for j (column): (K, K)."""
    from sklearn.metrics import confusion_matrix

    counts: np.ndarray = confusion_matrix(labels, predicted, labels=np.arange(classes))
    return counts


def all_scores(
    top: np.ndarray, labels: np.ndarray, losses: np.ndarray, judged: ProbabilityScores
) -> dict[str, Score]:
    """Every score of a set of images, with its interval.

    Args:
        top: the most probable classes, best first (N, up to 5).
        labels: the truth (N,).
        losses: cross-entropy in nats as the evaluation has it (N,); the mean is the NLL.
        judged: the other terms.

    Returns:
        `loss` in nats; `top1` and `top5` in percent; `macro_f1` in [0, 1], the mean over the
        classes that are there or are said; `brier` in [0, 2]; `ece` in [0, 1]. Intervals of the
        percentages are Wilson's; of the others percentiles of a bootstrap over the images.
    """
    from sklearn.metrics import f1_score

    count, hits = len(labels), top == labels[:, None]
    predicted, correct = top[:, 0], hits[:, 0]
    values = {
        "loss": float(losses.sum() / count),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "brier": float(judged.brier.mean()),
        "ece": calibration(judged.confidence, correct).error(),
    }
    scores = {}
    for key, right in (("top1", correct), ("top5", hits.any(axis=1))):
        low, high = wilson(int(right.sum()), count)
        scores[key] = Score(float(100 * right.sum() / count), 100 * low, 100 * high)
    ranges = _bootstrap(labels, predicted, losses, judged)
    return scores | {key: Score(value, *ranges[key]) for key, value in values.items()}


def guessing(labels: np.ndarray) -> dict[str, float]:
    """What one who knows how frequent the classes (N,) or labels (N, K) are, and sees no image,
    would get, by keys of `all_scores` or `LabelScores.values`.

    The best guess of each score: the most frequent class for top-1, F1 and the like, the shares
    themselves for NLL and Brier score.
    """
    if labels.ndim == 2:
        shares = labels.mean(axis=0)
        unsure = shares[(shares > 0) & (shares < 1)]
        entropy = -(unsure * np.log(unsure) + (1 - unsure) * np.log1p(-unsure)).sum()
        return {
            "map": float(100 * shares[shares > 0].mean()) if shares.any() else 0.0,
            "map_micro": float(100 * labels.mean()),
            "loss": float(entropy / labels.shape[1]),
        }
    shares = np.sort(np.bincount(labels) / len(labels))[::-1]
    shares = shares[shares > 0]
    return {
        "top1": float(100 * shares[0]),
        "top5": float(100 * shares[:5].sum()),
        "macro_f1": float(2 * shares[0] / (1 + shares[0]) / len(shares)),
        "loss": float(-(shares * np.log(shares)).sum()),
        "brier": float(1 - np.square(shares).sum()),
    }


def label_errors(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[int, int]]:
    """Images whose label is likely wrong, and the class that they rather are, the surest first.

    Confident learning (Northcutt, Jiang & Chuang 2021, arXiv 1911.00068, section 3.1): the model is
    confident of a class where its probability is at least the mean over the images that have that
    label. Likely errors are those that it is most confident to be of another class; they are ranked
    by the probability of the label less that of the other class.

    Args:
        labels: classes (N,).
        probabilities: (N, K), of a model that was not trained on these images.
    """
    least = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(labels).tolist():
        least[label] = probabilities[labels == label, label].mean(dtype=np.float64)
    confident = np.where(probabilities >= least, probabilities, -1.0)
    instead = confident.argmax(axis=1)
    rows = np.arange(len(labels))
    found = np.flatnonzero((confident[rows, instead] >= 0) & (instead != labels))
    margin = probabilities[found, labels[found]] - probabilities[found, instead[found]]
    found = found[np.argsort(margin, kind="stable")]
    return list(zip(found.tolist(), instead[found].tolist(), strict=True))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature that minimises the mean cross-entropy (Guo et al. 2017, section 4.2).

    The loss is convex in the inverse temperature: its slope has one root (Brent's method). The
    images, of logits (N, K) and labels (N,), should be ones that the model was not trained on.

    Returns:
        In (0.05, 20), to ten digits; None where no such temperature is the best: every image is
        right, or the logits say nothing.
    """
    from scipy.optimize import brentq

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    if _slope(low, logits, labels) >= 0 or _slope(high, logits, labels) <= 0:
        return None
    return 1 / float(brentq(_slope, low, high, (logits, labels), rtol=1e-12))


def _slope(inverse: float, logits: np.ndarray, labels: np.ndarray) -> float:
    """The derivative of the mean cross-entropy by the inverse temperature."""
    total = 0.0
    for centred, there in _rows(logits, labels, 1.0):
        weights = np.exp(inverse * centred)
        weights /= weights.sum(axis=1, keepdims=True)
        mean = np.einsum("ik,ik->i", weights, centred)
        total += float((mean - centred[np.arange(len(there)), there]).sum())
    return total / len(labels)


def _rows(
    logits: np.ndarray, labels: np.ndarray, scale: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some rows at a time, in float64, times `scale`, with 0 as the largest; and their labels."""
    for first in range(0, len(labels), _ROWS):
        rows = slice(first, first + _ROWS)
        block = logits[rows].astype(np.float64)
        yield (block - block.max(axis=1, keepdims=True)) * scale, labels[rows]


def _bins(confidence: np.ndarray) -> np.ndarray:
    """Number of each confidence's bin, (N,)."""
    place: np.ndarray = np.ceil(confidence * BINS).astype(np.int64) - 1
    return place.clip(0, BINS - 1)


def _bootstrap(
    labels: np.ndarray, predicted: np.ndarray, losses: np.ndarray, judged: ProbabilityScores
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals (Efron 1979) of the means of N images drawn from N images."""
    rng = np.random.default_rng(0)
    count = len(labels)
    classes = int(max(labels.max(), predicted.max())) + 1
    correct = predicted == labels
    right = labels[correct]
    place = _bins(judged.confidence)
    excess = judged.confidence - correct
    drawn = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(count, size=count), minlength=count).astype(float)
        true = np.bincount(right, times[correct], classes)
        either = np.bincount(labels, times, classes) + np.bincount(predicted, times, classes)
        seen = either > 0
        error = np.abs(np.bincount(place, times * excess, BINS)).sum() / count
        f1 = (2 * true[seen] / either[seen]).mean()
        drawn.append((f1, times @ losses / count, times @ judged.brier / count, error))
    low, high = np.quantile(np.array(drawn), INTERVAL, axis=0).tolist()
    names = ("macro_f1", "loss", "brier", "ece")
    return dict(zip(names, zip(low, high, strict=True), strict=True))
