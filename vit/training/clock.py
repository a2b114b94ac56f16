"""The training clock, paused in evaluation, saving and compilation; `due` decides cadences."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from fractions import Fraction

import torch

from vit.runtime.device import synchronize


class Clock:
    """Seconds of training, from `seconds` on, without what happens under `paused`; before the time
    is read at a pause, `device` is waited for.

    Attributes:
        took: seconds that each kind of pause took when it was last made.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._device = device
        self._before = seconds
        self._since = time.perf_counter()
        self.took: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._before + time.perf_counter() - self._since

    @contextlib.contextmanager
    def paused(self, what: str = "") -> Iterator[None]:
        """Time does not pass inside, where `what` is done."""
        synchronize(self._device)
        before, began = self.seconds, time.perf_counter()
        try:
            yield
        finally:
            synchronize(self._device)
            self._before = before
            self._since = time.perf_counter()
            self.took[what] = self._since - began


def due(step: int, every: Fraction) -> bool:
    """Whether a multiple of `every` steps lies in (step - 1, step]: decides every cadence.

    `every` need not be whole: with n images and batch B an epoch is n / B steps, and epoch k
    falls due at ceil(k * n / B).
    """
    return step // every > (step - 1) // every


def times_due(step: int, end: int, every: Fraction) -> int:
    """How many of the steps after `step` are due, where the last one, `end`, always is."""
    at_end = end > step and not due(end, every)
    return min(end - step, int(end // every - step // every) + at_end)
