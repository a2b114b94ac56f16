"""Parity: the logits of an exported model beside its checkpoint's, on real images; latency.

Legend: N images, B batch, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from timeit import timeit

import numpy as np
import torch
from torch import nn

from vit.data.loader import EvalLoader
from vit.errors import DataError
from vit.export.source import Answer
from vit.runtime import console

AT_ONCE = 64
"""Images that are run, and timed, at once."""
_ROUNDS = 30
_SECONDS = 4.0


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from its checkpoint: the difference of one logit, and the shares of
    the images (or one image) that get another label, and that are right less often.
    """

    difference: float
    changed: float
    lost: float


BOUNDS = {
    "fp32": Bounds(1e-4, 0.0, 0.0),
    "fp16": Bounds(np.inf, 0.01, 0.005),
    "int8": Bounds(np.inf, 0.05, 0.01),
}
"""By precision. One image more: two logits that are all but equal may change places."""
MERGING = BOUNDS["fp16"]
"""In fp32 with merging patches: of two pairs that are all but equally alike, rounding chooses which
one merges, and logits jump."""


@dataclass(frozen=True)
class Parity:
    """Logits of a checkpoint (first) and its export (second), float32 (N, K); the truth, (N,), or
    of several labels, which have `thresholds` (K,) of their probabilities, (N, K).
    """

    logits: tuple[np.ndarray, np.ndarray]
    labels: np.ndarray
    thresholds: list[float] | None = None

    @property
    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """What both say of each image: its class (N,), or which labels it has (N, K)."""
        if self.thresholds is None:
            first, second = (logits.argmax(axis=1) for logits in self.logits)
        else:
            cut = np.log(self.thresholds) - np.log1p(-np.array(self.thresholds))
            first, second = (logits >= cut for logits in self.logits)
        return first, second

    @property
    def difference(self) -> float:
        """The largest of two logits; not a number where the export gave none."""
        first, second = self.logits
        return float(np.abs(first - second).max())

    @property
    def changed(self) -> int:
        """Images that the export gives another label."""
        first, second = self.answers
        return len(self.labels) - _equal(first, second)

    @property
    def right(self) -> tuple[int, int]:
        """Images whose class (or all of whose labels) each of them finds."""
        first, second = (_equal(answers, self.labels) for answers in self.answers)
        return first, second

    def broken(self, bounds: Bounds) -> str | None:
        """What is beyond `bounds`, in words; None: nothing."""
        count = len(self.labels)
        first, second = self.right
        if not np.isfinite(self.difference):
            return "some logits are not finite"
        if self.difference > bounds.difference:
            return f"a logit differs by {self.difference:.2g}, and by {bounds.difference:g} at most"
        if self.changed > max(1, bounds.changed * count):
            return f"{self.changed:,} of {count:,} images get another label"
        if first - second > max(1, bounds.lost * count):
            return f"{first - second:,} of {count:,} images less are right"
        return None


def _equal(first: np.ndarray, second: np.ndarray) -> int:
    """Images of which both say the same."""
    return int((first == second).reshape(len(first), -1).all(axis=1).sum())


def compare(
    model: nn.Module, answer: Answer, loader: EvalLoader, thresholds: list[float] | None = None
) -> tuple[Parity, np.ndarray]:
    """Run the checkpoint's model, on the CPU, and the export on the same images: one on the
    loader's tensors, the other on their bytes.

    Returns:
        the answers, and some of the images, uint8 (B, height, width, C).

    Raises:
        DataError: an image is damaged and may not be, all are, or a worker failed.
    """
    ours, theirs, truth = [], [], []
    some: list[np.ndarray] = []
    with console.progress(total=len(loader.labels), desc="comparing") as bar:
        for images, labels, _, _ in loader:
            for part in torch.split(images, AT_ONCE):
                pixels = as_bytes(part, loader)
                with torch.no_grad():
                    ours.append(model(part).numpy())
                theirs.append(answer(pixels))
                some = some or [pixels]
                bar.update(len(part))
            truth.append(labels.numpy())
    if not some:
        raise DataError("no image is left to compare the export on; repair or replace them")
    logits = np.concatenate(ours), np.concatenate(theirs)
    return Parity(logits, np.concatenate(truth), thresholds), some[0]


def as_bytes(images: torch.Tensor, loader: EvalLoader) -> np.ndarray:
    """The bytes that a loader's images were: uint8 (B, height, width, C)."""
    pixels = loader.normalise.undo(images).mul(255).round().byte()
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def milliseconds(
    answers: Sequence[Answer], images: np.ndarray, seconds: float = _SECONDS
) -> list[float]:
    """Of each the median time for one image of a batch, uint8 (B, height, width, C), in rounds that
    take turns; none is begun after `seconds`.
    """
    taken: list[list[float]] = [[] for _ in answers]
    for answer in answers:
        answer(images)  # the first time is longer
    start = time.perf_counter()
    while len(taken[0]) < 3 or (len(taken[0]) < _ROUNDS and time.perf_counter() - start < seconds):
        for times, answer in zip(taken, answers, strict=True):
            times.append(timeit(partial(answer, images), number=1))
    return [1000 * float(np.median(times)) / len(images) for times in taken]
