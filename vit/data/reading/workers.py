"""Worker processes: they render images into shared memory; one that dies or hangs names its file.

What is rendered is said by the request alone, so the number of workers changes nothing but the
time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_char
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch

from vit.config import plugins
from vit.data.reading.decode import decode, reason
from vit.data.reading.transform import Box, Transform
from vit.data.types import CachedImage, ImageFile
from vit.errors import ConfigError, DataError
from vit.runtime.memory import retain_freed_memory
from vit.runtime.signals import uninterrupted

Corrupt = dict[int, str]
"""Rows whose image cannot be decoded, with the reason."""

Item = TypeVar("Item")
Result = TypeVar("Result")

POOL_FROM = 1024
"""Fewer images than this are decoded in the process itself: workers would take longer to start."""
_LINE = 4096
_OF_GROUP = (signal.SIGINT, signal.SIGUSR1)
_STARTING = 120.0
"""Seconds that a worker may take to start."""
_board: Any = None


@dataclass(frozen=True)
class WorkerTask:
    """Images for one worker.

    Attributes:
        memory: name of the shared memory that the pixels go to.
        offset: of the first row in it, in bytes.
        first: number of the first row.
        sources: of one image per row.
        crop_uniforms: what random crops are drawn with, see `Transform.box`; None: none.
        transform: from an image to pixels.
    """

    memory: str
    offset: int
    first: int
    sources: Sequence[ImageFile | CachedImage]
    crop_uniforms: np.ndarray | None
    transform: Transform


def render_into(rows: np.ndarray, task: WorkerTask) -> Corrupt:
    """Render the images of `task` into `rows`, uint8 (n, channels, height, width)."""
    bad: Corrupt = {}
    for i, source in enumerate(task.sources):
        announce(str(source))
        uniforms = None if task.crop_uniforms is None else task.crop_uniforms[i]
        try:
            rows[i] = _read(source, task.transform, uniforms)
        except Exception as error:  # decoders raise a wide range of types
            rows[i] = 0
            bad[task.first + i] = reason(error)
    announce("")
    return bad


@cache
def _attach(name: str) -> SharedMemory:
    return SharedMemory(name)


def render_shared(task: WorkerTask) -> Corrupt:
    """Render the images of `task` where it says."""
    shape = (len(task.sources), *task.transform.shape)
    rows = np.ndarray(shape, np.uint8, _attach(task.memory).buf, task.offset)
    return render_into(rows, task)


def announce(file: str) -> None:
    """Note which file this worker is at, for the case that it dies there."""
    if _board is not None:
        _board.value = file.encode(errors="replace")[: _LINE - 1]


def _read(
    source: ImageFile | CachedImage, transform: Transform, uniforms: np.ndarray | None
) -> np.ndarray:
    """What `transform` shows of an image."""
    size: tuple[int, int] | None = None
    box: Box | None = None

    def min_size(height: int, width: int) -> tuple[int, int]:
        nonlocal size, box
        size, box = (height, width), transform.box(height, width, uniforms)
        return transform.min_size(height, width, box)

    if isinstance(source, CachedImage):
        image = source.open()
        min_size(*image.shape[:2])
    else:
        image = decode(source, transform.channels, min_size, transform.max_pixels)
    return transform.render(image, box, size)


class WorkerPool:
    """Processes that render tasks, started when they are first needed.

    Args:
        workers: how many.
        timeout: seconds after which a task that is waited for counts as hanging.
    """

    def __init__(self, workers: int, timeout: float) -> None:
        self.workers = workers
        self.timeout = timeout
        self._pool: ProcessPoolExecutor | None = None
        self._boards: list[Any] = []

    def for_images(self, count: int) -> WorkerPool:
        """What decodes so many images: for few of them none of the workers."""
        return self if count >= POOL_FROM else WorkerPool(0, self.timeout)

    def submit(self, job: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Have `job`, a function of a module, run on `item`.

        Raises:
            DataError: a worker died.
        """
        if self._pool is None:
            if multiprocessing.get_start_method(allow_none=True) == "loky":
                # That of joblib, whose jobs we may be; workers are told it and do not know it.
                multiprocessing.set_start_method("forkserver", force=True)
            # Forks of a process that does nothing else: forking one that runs threads can hang.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            with undisturbed():  # what it starts with, the workers have
                forkserver.ensure_running()
            self._boards = [context.Array(c_char, _LINE, lock=False) for _ in range(self.workers)]
            turn = context.Value("i", 0)
            self._pool = ProcessPoolExecutor(
                self.workers, context, _start_worker, (turn, self._boards, plugins.files())
            )
        try:
            # A worker that has started is known, to be ended.
            with without_main(), uninterrupted(_OF_GROUP):
                if len(self._pool._processes or ()) < self.workers:
                    return self._start(self._pool, job, item)
                return self._pool.submit(job, item)
        except BrokenProcessPool:
            raise self._died() from None

    def _start(
        self, pool: ProcessPoolExecutor, job: Callable[[Item], Result], item: Item
    ) -> Future[Result]:
        """Submit to a pool that may start a worker for it, which has no time limit of its own."""
        submitted: Future[Future[Result]] = Future()

        def start() -> None:
            try:
                submitted.set_result(pool.submit(job, item))
            except BaseException as error:
                submitted.set_exception(error)

        # An executor that a signal interrupts as it starts a thread would wait for it for ever.
        threading.Thread(target=start, daemon=True).start()
        try:
            return submitted.result(_STARTING)
        except TimeoutError:
            # What waits for it goes on, and the next pool starts another.
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
            wait([submitted])
            self.stop()
            raise DataError(
                f"the process that starts data workers said nothing for {_STARTING:g} s; start "
                f"again, or try data.workers=0"
            ) from None

    def map(self, job: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """What `job`, a function of a module, makes of each item, in order.

        Raises:
            DataError: as in `result`.
        """
        if self.workers == 0:
            yield from map(job, items)
            return
        try:
            futures = [self.submit(job, item) for item in items]
            for future in futures:
                yield self.result(future)
        except BaseException:  # a signal, too: workers that are starting miss what goes with us
            self.stop()
            raise

    def result(self, future: Future[Result]) -> Result:
        """What `future` gives.

        Raises:
            DataError: a worker died or hangs; names the files that were being read.
        """
        try:
            return future.result(self.timeout)
        except BrokenProcessPool:
            raise self._died() from None
        except TimeoutError:
            names = self._being_read()
            self.stop()
            raise DataError(
                f"a data worker said nothing for {self.timeout:g} s while reading {names}; is the "
                f"disk reachable? If it is just slow, raise data.timeout"
            ) from None

    def stop(self) -> None:
        """End all workers at once; the next task starts new ones."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _died(self) -> DataError:
        names = self._being_read()
        self.stop()
        return DataError(
            f"a data worker was killed, perhaps for want of memory, while reading {names}; try "
            f"fewer data.workers"
        )

    def _being_read(self) -> str:
        """The files that workers are at, or died at."""
        names = [board.value.decode(errors="replace") for board in self._boards]
        return " or ".join(filter(None, names)) or "no file"


def shared_memory(size: int) -> SharedMemory:
    """Memory that workers share, where there is room for it.

    Raises:
        ConfigError: too little room in /dev/shm, which a write to it would end the process for.
    """
    if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free < size:
        raise ConfigError(
            f"workers need {size / 2**20:.0f} MiB of shared memory, more than /dev/shm has free; "
            f"give it more (docker: --shm-size), or try data.workers=0 or a smaller "
            f"trainer.batch_size"
        )
    with undisturbed():  # Python's tracker of shared memory, which this starts
        return SharedMemory(create=True, size=size)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Processes that are started here outlive signals that go to the whole group, from the first
    moment on: the main process decides what they mean. (SIGTERM, which `Process.terminate` sends,
    stays: other processes of the program are forked from the same one.)
    """
    with uninterrupted(_OF_GROUP):
        resource_tracker.ensure_running()  # whose start, which others cause, lets signals through
    with uninterrupted(_OF_GROUP):
        yield


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Processes that are started here do not run the main script again: it needs no guard
    (`if __name__ == "__main__"`), and they need nothing of it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def worker_count(workers: int | str, processes: int = 1, *, alone: bool = False) -> int:
    """`auto` is one per processor that each of `processes` on this machine may use, at most 16.

    Args:
        alone: one has workers, for whom the others wait: as many as all of them would have
            together, of `auto` one per processor.
    """
    if isinstance(workers, int):
        return workers * processes if alone else workers
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return available if alone else max(1, min(available // processes, 16))


def _start_worker(turn: Any, boards: list[Any], files: Sequence[Path]) -> None:
    global _board
    plugins.load_files(*files)
    retain_freed_memory()
    torch.set_num_threads(1)
    with turn.get_lock():
        _board = boards[turn.value % len(boards)]
        turn.value += 1
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed leaves no worker behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
