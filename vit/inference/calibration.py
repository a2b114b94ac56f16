"""Calibration: what is fitted on validation images so that probabilities can be acted on.

Legend: N images, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vit.artifacts import checkpoint
from vit.config.saved import Calibration
from vit.report.metrics import fit_temperature, probability_scores

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
    none = Calibration(images=count, why="no finite temperature is the best on validation")
    value = fit_temperature(logits, labels)
    if value is None:
        return none
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
        return replace(none, why=why)
    return replace(none, temperature=value, why="")


def keep(path: Path, found: Calibration) -> None:
    """Write the record of a checkpoint's weights into it; it is there whole or as it was.

    Raises:
        BadCheckpointError: it is damaged.
        DiskFullError: no space; the file that was there is intact.
    """
    content = checkpoint.load(path)
    own = replace(found, weights=digest(content["weights"]))
    checkpoint.save(path, {**content, "calibration": asdict(own)})
