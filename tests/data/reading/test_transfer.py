"""Small arrays to a device in one copy: whole, as they were, and never from a buffer in use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vit.data.reading.transfer import BUFFERS, Transfer

CPU = torch.device("cpu")


class Late:
    """The event of a copy that is made as late as may be: when somebody waits for it."""

    def __init__(self, source: Tensor, waits: list[int]) -> None:
        self.source, self.there, self.waits = source, torch.empty_like(source), waits
        self.done = False

    def synchronize(self) -> None:
        if not self.done:
            self.there.copy_(self.source)
            self.done = True
            self.waits.append(len(self.source))


class Delayed(Transfer):
    """To a device that copies late."""

    def __init__(self) -> None:
        super().__init__(torch.device("meta"))
        self.events: list[Late] = []
        self.waits: list[int] = []

    def _pinned(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8)

    def _copy(self, buffer: Tensor) -> tuple[Tensor, Late]:
        self.events.append(Late(buffer, self.waits))
        return self.events[-1].there, self.events[-1]


class Careless(Delayed):
    """Writes into a buffer without waiting."""

    def _free_buffer(self, size: int) -> Tensor:
        self._sent = [None] * BUFFERS
        return super()._free_buffer(size)


def batch(step: int, images: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        "index": rng.integers(0, 10**12, images),
        "flip": rng.random(images) < 0.5,
        "nothing": np.empty((0, images, 8), np.float32),
        "numbers": rng.random((2, images, 3)).astype(np.float32),
        "rows": rng.integers(0, images, (3, images)).T,  # not contiguous
        "byte": rng.integers(0, 255, 1).astype(np.uint8),
    }


def sent_late(transfer: Delayed, steps: int) -> list[bool]:
    """Whether each of so many batches arrives as it was sent, if all copies are late."""
    tensors = [transfer(batch(step, 6 + step % 3)) for step in range(steps)]
    for event in transfer.events:
        event.synchronize()
    return [
        all(np.array_equal(there[name].numpy(), array)
            for name, array in batch(step, 6 + step % 3).items())
        for step, there in enumerate(tensors)
    ]  # fmt: skip


def test_a_buffer_waits_for_its_last_copy() -> None:
    transfer = Delayed()
    assert sent_late(transfer, 9) == [True] * 9
    assert len(transfer.events) == 9


def test_a_buffer_that_does_not_wait_is_seen() -> None:
    assert sent_late(Careless(), 9).count(False) >= 9 - BUFFERS - 2


def test_the_host_is_ahead_by_the_buffers_before_it_waits() -> None:
    transfer = Delayed()
    for step in range(BUFFERS):
        transfer(batch(step))
    assert transfer.waits == []
    transfer(batch(BUFFERS))
    assert len(transfer.waits) == 1


@pytest.mark.parametrize("make", [Delayed, lambda: Transfer(CPU)])
def test_arrays_keep_type_and_shape(make) -> None:
    transfer = make()
    there = transfer(batch(0))
    for event in getattr(transfer, "events", []):
        event.synchronize()
    for name, array in batch(0).items():
        assert there[name].shape == array.shape
        assert there[name].dtype == torch.from_numpy(array).dtype
        assert np.array_equal(there[name].numpy(), array)
