"""Images that stay in their files: rendered batch by batch, ahead of their use.

Legend: B images of a batch, C channels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from vit.config.errors import DataError
from vit.data.images import FileImages
from vit.data.pool import Bad, Chunk, WorkerPool, render_into, shared_memory
from vit.data.views import View

AHEAD = 2
"""Batches that are rendered while one is used."""


@dataclass(frozen=True)
class Request:
    """One batch.

    Attributes:
        positions: which images of the split, int64 (B,).
        lots: what their random crops are drawn with, as in `views.crop_boxes`; None: no crop.
    """

    positions: np.ndarray
    lots: np.ndarray | None


class Stream:
    """Batches 0, 1, 2, ... of a split's images, rendered.

    Args:
        images: the files.
        index: which of them the split has, int64 (N,).
        request_at: what batch `k` is.
        batches: how many there are; None: without end.
        rows: most images of a batch.
        view: from an image to pixels.
        pool: renders; with no workers this process does.
    """

    def __init__(
        self, images: FileImages, index: np.ndarray, request_at: Callable[[int], Request],
        batches: int | None, rows: int, view: View, pool: WorkerPool,
    ) -> None:  # fmt: skip
        self.images = images
        self.index = index
        self.request_at = request_at
        self.batches = batches
        self.rows = rows
        self.view = view
        self.pool = pool
        self._under_way: dict[int, list[Future[Bad]]] = {}
        self._memory: SharedMemory | None = None

    def fetch(self, k: int) -> tuple[np.ndarray, Bad]:
        """Batch `k`, best asked for in order: later ones are rendered meanwhile.

        Returns:
            uint8 (B, C, height, width), and the rows that cannot be decoded, with the reason;
            they are black.

        Raises:
            DataError: a worker died or hangs.
        """
        request = self.request_at(k)
        if self.pool.workers == 0:
            return self.render(request)
        if self._memory is None:
            size = (AHEAD + 1) * self.rows * int(np.prod(self.view.shape))
            self._memory = shared_memory(size)
            weakref.finalize(self, _release, self._memory)
        try:
            bad = self._rendered(k)
        except DataError:
            self._under_way.clear()  # what the failed workers were given
            raise
        return self._slot(k)[: len(request.positions)].copy(), bad

    def _rendered(self, k: int) -> Bad:
        """Wait for batch `k`, with the next ones under way."""
        last = k + AHEAD if self.batches is None else min(k + AHEAD, self.batches - 1)
        for number in self._under_way.keys() - set(range(k, last + 1)):
            for future in self._under_way.pop(number):
                if not future.cancel():
                    self.pool.result(future)  # it must not write while others do
        for number in range(k, last + 1):
            if number not in self._under_way:
                self._under_way[number] = self._submit(number)
        bad: Bad = {}
        for future in self._under_way[k]:
            rendered: Bad = self.pool.result(future)
            bad |= rendered
        return bad

    def render(self, request: Request) -> tuple[np.ndarray, Bad]:
        """As `fetch`, of any images, here and now."""
        pixels = np.empty((len(request.positions), *self.view.shape), np.uint8)
        return pixels, render_into(pixels, self._chunk(request, slice(None)))

    def _submit(self, k: int) -> list[Future[Bad]]:
        request = self.request_at(k)
        count = len(request.positions)
        size = max(1, -(-count // (2 * self.pool.workers)))
        start = (k % (AHEAD + 1)) * self.rows
        parts = [slice(first, first + size) for first in range(0, count, size)]
        return [self.pool.submit(self._chunk(request, part, start)) for part in parts]

    def _chunk(self, request: Request, part: slice, start: int = 0) -> Chunk:
        """Part of a request, for rows from `start` on of the shared memory."""
        first = part.start or 0
        return Chunk(
            memory=self._memory.name if self._memory is not None else "",
            offset=(start + first) * int(np.prod(self.view.shape)),
            first=first,
            sources=[self.images.source(i) for i in self.index[request.positions[part]]],
            lots=None if request.lots is None else request.lots[part],
            view=self.view,
        )

    def _slot(self, k: int) -> np.ndarray:
        """Where batch `k` is rendered: uint8 (rows, C, height, width)."""
        assert self._memory is not None
        slots = (AHEAD + 1, self.rows, *self.view.shape)
        whole: np.ndarray = np.ndarray(slots, np.uint8, self._memory.buf)
        batch: np.ndarray = whole[k % (AHEAD + 1)]
        return batch


def _release(memory: SharedMemory) -> None:
    memory.close()
    memory.unlink()
