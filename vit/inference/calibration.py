"""Calibration: what is fitted on validation images so that answers can be acted on.

A set of labels holds the truth in a given share of cases (split conformal prediction, Vovk et al.
2005), by adaptive scores (Romano, Sesia & Candès 2020, without their randomisation): the score of a
label is the probability of all that are more probable. So the most probable label is in every set,
and where it alone is right more often than is asked for, sets of one hold the truth more often.

An image is unknown where its energy, T log sum exp(logits / T), is lower than that of most
validation images (Liu et al. 2020).

Legend: N images, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from torch import Tensor

from vit.artifacts import checkpoint
from vit.config.saved import Calibration
from vit.errors import ConfigError
from vit.report.metrics import fit_temperature, probability_scores

SETS, UNKNOWN = range(50, 100), range(1, 51)
"""Percents of cases in which sets hold the truth, and of known images that count as unknown."""
_ROWS = 2048
FOLDS = 5
"""A temperature is used where it helps images that it was not fitted on, in so many parts."""


def digest(weights: Mapping[str, Tensor]) -> str:
    """Of names, shapes and bytes, in the order of the names."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {[*tensor.shape]} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def fitted(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """The record for logits (N, K) of validation images, which are of the classes (N,).

    The temperature is Guo et al.'s (2017), where it lowers the NLL of images that it was not fitted
    on, by FOLDS-fold cross-validation.
    """
    count = len(labels)
    value, why = _temperature(logits, labels)
    parts = [slice(first, first + _ROWS) for first in range(0, count, _ROWS)]
    scores = _sorted([_score(logits[rows], labels[rows], value or 1.0) for rows in parts])
    energies = _sorted([energy(logits[rows], value or 1.0) for rows in parts])
    ranks = [-(-(count + 1) * percent // 100) for percent in SETS]
    below = [(count + 1) * percent // 100 for percent in UNKNOWN]
    return Calibration(
        images=count,
        temperature=value,
        why=why,
        sets=[scores[rank - 1] if rank <= count else None for rank in ranks],
        unknown=[energies[rank - 1] if rank else None for rank in below],
    )


def _sorted(parts: list[np.ndarray]) -> list[float]:
    found: list[float] = np.sort(np.concatenate(parts)).tolist()
    return found


def _temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float | None, str]:
    """The temperature; or None, and why it is not used."""
    count = len(labels)
    if count < 2 * FOLDS:
        return None, f"{count} validation images are too few to fit a temperature on"
    if (value := fit_temperature(logits, labels)) is None:
        return None, "no finite temperature is the best on validation"
    fold, losses = np.arange(count) % FOLDS, np.empty(count)
    for part in range(FOLDS):
        own = fold == part
        other = fit_temperature(logits[~own], labels[~own]) or 1.0
        losses[own] = probability_scores(logits[own], labels[own], other).loss
    before, after = probability_scores(logits, labels).loss.mean(), losses.mean()
    if after >= before:
        why = (
            f"fitted on {FOLDS - 1} of {FOLDS} parts of the {count:,} validation images, it makes "
            f"the others no better (NLL {after:.4f}, without {before:.4f})"
        )
        return None, why
    return value, ""


def energy(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Of each image, (N,), by its logits (N, K): the higher, the more like known images."""
    found: np.ndarray = temperature * logsumexp(logits.astype(np.float64) / temperature, axis=1)
    return found


def _score(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """The probability of all labels that are more probable than the true one, (N,); of equal ones
    the first counts as more probable.
    """
    chances = softmax(logits.astype(np.float64) / temperature, axis=1)
    own = np.take_along_axis(chances, labels[:, None], axis=1)
    first = np.arange(chances.shape[1]) < labels[:, None]
    score: np.ndarray = np.where((chances > own) | ((chances == own) & first), chances, 0).sum(1)
    return score


@dataclass(frozen=True)
class Limits:
    """What answers are held against.

    Attributes:
        calibration: the record.
        set, unknown: percents, of SETS and of UNKNOWN; None: not asked for.
    """

    calibration: Calibration
    set: int | None = None
    unknown: int | None = None

    @classmethod
    def of(
        cls, record: Calibration | None, set: str | None, unknown: str | None, place: Path
    ) -> Limits | None:
        """From settings such as `95%`; None: nothing is asked for.

        Raises:
            ConfigError: the model has no record, or one of too few images.
        """
        if set is None and unknown is None:
            return None
        asked = {"set": set, "unknown": unknown}
        told = " ".join(f"{key}={value}" for key, value in asked.items() if value is not None)
        if record is None or not record.sets:
            raise ConfigError(
                f"{told}: {place} has nothing that was fitted on validation; try "
                f"`vit-eval {place} calibration=save` (one label per image alone)"
            )
        found = cls(record, *(v if v is None else int(v[:-1]) for v in asked.values()))
        if (set and found.most is None) or (unknown and found.least is None):
            raise ConfigError(
                f"{told}: {record.images:,} validation images are too few to say; try "
                f"{'a smaller set=' if set and found.most is None else 'a larger unknown='}"
            )
        return found

    @property
    def most(self) -> float | None:
        """What a label may score to be in the set; None: there are no sets."""
        return None if self.set is None else self.calibration.sets[self.set - SETS[0]]

    @property
    def least(self) -> float | None:
        """The energy from which on an image is known; None: every image is."""
        if self.unknown is None:
            return None
        return self.calibration.unknown[self.unknown - UNKNOWN[0]]

    def sets(self, logits: np.ndarray) -> list[np.ndarray]:
        """The labels in the set of each image, the most probable first, by its logits (N, K)."""
        assert self.most is not None
        chances = softmax(logits.astype(np.float64) / self._temperature, axis=1)
        order = np.argsort(-chances, axis=1, kind="stable")
        ranked = np.take_along_axis(chances, order, axis=1)
        counts = (ranked.cumsum(axis=1) - ranked <= self.most).sum(axis=1)
        return [numbers[:count] for numbers, count in zip(order, counts, strict=True)]

    def refused(self, logits: np.ndarray) -> np.ndarray:
        """Which images are unknown, bool (N,)."""
        assert self.least is not None
        refused: np.ndarray = energy(logits, self._temperature) < self.least
        return refused

    @property
    def _temperature(self) -> float:
        return self.calibration.temperature or 1.0


def keep(path: Path, found: Calibration) -> None:
    """Write the record of a checkpoint's weights into it; it is there whole or as it was.

    Raises:
        BadCheckpointError: it is damaged.
        DiskFullError: no space; the file that was there is intact.
    """
    content = checkpoint.load(path)
    own = replace(found, weights=digest(content["weights"]))
    checkpoint.save(path, {**content, "calibration": asdict(own)})
