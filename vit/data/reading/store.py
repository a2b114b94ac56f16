"""Image stores: the pixels of a split, in memory or streaming from files.

Legend: B images of a batch, C channels, N images of a split.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import torch
from torch import Tensor

from vit.data.reading.transfer import pin, unpin
from vit.data.reading.transform import Transform, crop_boxes, resize_boxes
from vit.data.reading.workers import (
    Corrupt,
    WorkerPool,
    WorkerTask,
    render_into,
    render_shared,
    shared_memory,
)
from vit.data.types import FileImages

AHEAD = 2
"""Batches that workers render while one is used."""


@dataclass(frozen=True)
class BatchRequest:
    """One batch.

    Attributes:
        positions: which images of the split, int64 (B,).
        crop_uniforms: what random crops are drawn with, see `crop_boxes`; None: none.
    """

    positions: np.ndarray
    crop_uniforms: np.ndarray | None = None

    def part(self, rows: slice) -> BatchRequest:
        """Some of its images."""
        uniforms = self.crop_uniforms
        return BatchRequest(self.positions[rows], None if uniforms is None else uniforms[rows])


class ImageStore:
    """The pixels of a split, batch by batch, as a `Transform` renders them.

    Attributes:
        ahead: so many batches after the one that is collected are best submitted by then.
    """

    ahead = 0

    def submit(self, k: int, request: BatchRequest) -> None:
        """Have batch number `k` rendered, if that is done ahead of its use.

        Raises:
            DataError: a worker died or hangs.
        """

    def arrays(self, request: BatchRequest) -> dict[str, np.ndarray]:
        """What of `request` the device must be told."""
        return {}

    def collect(
        self, k: int, request: BatchRequest, sent: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Corrupt]:
        """Batch number `k`, which was submitted.

        Args:
            k: its number.
            request: what it holds.
            sent: its `arrays` on the device; None: they are sent here.

        Returns:
            uint8 (B, C, height, width) on the device, and the rows that cannot be decoded, with the
            reason; their pixels mean nothing.

        Raises:
            DataError: a worker died or hangs; what else was submitted is lost.
        """
        return self.render(request, sent)

    def render(
        self, request: BatchRequest, sent: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Corrupt]:
        """As `collect`, of any images, here and now."""
        raise NotImplementedError


@dataclass(frozen=True)
class InMemory(ImageStore):
    """Images decoded and held on the device.

    Attributes:
        pixels: uint8 (N, C, height, width).
        damaged: positions whose pixels mean nothing.
        transform: whose random crop is made of the held pixels.
    """

    pixels: Tensor
    damaged: Corrupt
    transform: Transform

    def arrays(self, request: BatchRequest) -> dict[str, np.ndarray]:
        """Positions and, where there are random crops, their boxes."""
        shown, uniforms = self.transform, request.crop_uniforms
        if uniforms is None or shown.crop_scale is None:
            return {"positions": request.positions}
        boxes = crop_boxes(uniforms, shown.height, shown.width, shown.crop_scale)
        return {"positions": request.positions, "boxes": boxes}

    def render(
        self, request: BatchRequest, sent: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Corrupt]:
        """See ImageStore."""
        if sent is None:
            arrays, device = self.arrays(request), self.pixels.device
            sent = {name: torch.from_numpy(a).to(device) for name, a in arrays.items()}
        images = self.pixels.index_select(0, sent["positions"])
        if "boxes" in sent:
            images = resize_boxes(images, sent["boxes"])
        at = request.positions if self.damaged else ()
        return images, {r: self.damaged[p] for r, p in enumerate(at) if p in self.damaged}


@dataclass(eq=False)
class Streaming(ImageStore):
    """Images that stay in their files: workers render them into shared memory, each batch that is
    under way into a slot of its own.

    Attributes:
        index: which of the files the split has, int64 (N,).
        rows: most images of a batch.
        pool: renders; with no workers this process does, when a batch is collected.
        device: where the images go.
    """

    images: FileImages
    index: np.ndarray
    rows: int
    transform: Transform
    pool: WorkerPool
    device: torch.device

    def __post_init__(self) -> None:
        self.ahead = AHEAD if self.pool.workers else 0
        on_gpu = self.device.type == "cuda"
        self._copies = torch.cuda.Stream(self.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._under_way: list[list[Future[Corrupt]]] = [[] for _ in range(AHEAD + 1)]
        self._sent: list[torch.Event | None] = [None] * (AHEAD + 1)
        self._memory: SharedMemory | None = None

    def submit(self, k: int, request: BatchRequest) -> None:
        """See ImageStore."""
        if self.pool.workers == 0:
            return
        if self._memory is None:
            size = (AHEAD + 1) * self.rows * int(np.prod(self.transform.shape))
            self._memory = shared_memory(size)
            on_gpu = self._copies is not None
            if on_gpu:
                pin(self._memory)
            weakref.finalize(self, _release, self._memory, pinned=on_gpu)
        count = len(request.positions)
        size = max(1, -(-count // (2 * self.pool.workers)))
        slot = k % (AHEAD + 1)
        for future in self._under_way[slot]:  # if never collected, it must not write any more
            if not (future.cancel() or future.done()):
                self.pool.result(future)
        sent = self._sent[slot]
        if sent is not None:  # the device still reads what the workers would write over
            sent.synchronize()
        tasks = (
            self._task(request.part(slice(first, first + size)), first, slot * self.rows)
            for first in range(0, count, size)
        )
        self._under_way[slot] = [self.pool.submit(render_shared, task) for task in tasks]

    def collect(
        self, k: int, request: BatchRequest, sent: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Corrupt]:
        """See ImageStore."""
        if self.pool.workers == 0:
            return self.render(request)
        assert self._memory is not None
        bad: Corrupt = {}
        slot = k % (AHEAD + 1)
        for future in self._under_way[slot]:
            rendered: Corrupt = self.pool.result(future)
            bad |= rendered
        slots = (AHEAD + 1, self.rows, *self.transform.shape)
        held: np.ndarray = np.ndarray(slots, np.uint8, self._memory.buf)
        pixels = held[slot, : len(request.positions)]
        if self._copies is None:
            return torch.from_numpy(pixels.copy()).to(self.device), bad
        moved, self._sent[slot] = self._moved(torch.from_numpy(pixels))
        return moved, bad

    def render(
        self, request: BatchRequest, sent: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Corrupt]:
        """See ImageStore."""
        shape = (len(request.positions), *self.transform.shape)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._copies is not None)
        bad = render_into(pixels.numpy(), self._task(request))
        copied = pixels.to(self.device) if self._copies is None else self._moved(pixels)[0]
        return copied, bad

    def _task(self, request: BatchRequest, first: int = 0, start: int = 0) -> WorkerTask:
        """A request that is a batch's from row `first` on, which starts at row `start` of the
        shared memory.
        """
        return WorkerTask(
            memory=self._memory.name if self._memory is not None else "",
            offset=(start + first) * int(np.prod(self.transform.shape)),
            first=first,
            sources=[self.images.source(i) for i in self.index[request.positions]],
            crop_uniforms=request.crop_uniforms,
            transform=self.transform,
        )

    def _moved(self, pixels: Tensor) -> tuple[Tensor, torch.Event]:
        """Pinned pixels on the GPU, while it still computes what came before; and when they are."""
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            moved = pixels.to(self.device, non_blocking=True)
            there = torch.cuda.current_stream(self.device).record_event()
        computing.wait_event(there)
        moved.record_stream(computing)
        return moved, there


def _release(memory: SharedMemory, *, pinned: bool) -> None:
    if pinned:
        unpin(memory)
    memory.close()
    memory.unlink()
