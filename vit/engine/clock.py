"""Training time: stands still during evaluation, saving and compilation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from vit.runtime.device import synchronize


class Clock:
    """Seconds since `start`, without what happens under `paused`.

    Args:
        device: is waited for before the time is read at a pause.
        seconds: where to go on from.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._before = seconds
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._before + time.perf_counter() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time does not pass inside."""
        synchronize(self._device)
        before = self.seconds
        try:
            yield
        finally:
            synchronize(self._device)
            self._before = before
            self._since = time.perf_counter()
