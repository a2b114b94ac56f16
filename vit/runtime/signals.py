"""SIGTERM, SIGINT and SIGUSR1: ask once and the run saves and stops, ask twice and it stops."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from vit.errors import InterruptedRun

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def uninterrupted(signals: Iterable[signal.Signals] = _CAUGHT) -> Iterator[None]:
    """Signals that ask to stop come when this is over; processes started here never have them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def import_torch() -> None:
    """Import torch, in the middle of which an exception of a signal would abort the process."""
    with uninterrupted():
        import torch  # noqa: F401


_GRACE = 30.0


@functools.cache
def stop_with_parent() -> None:
    """When the parent of this process is gone, as a launcher that was killed: stop, and save.

    What cannot stop, because it waits for other processes, ends after 30 s, as under torchrun.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class StopRequest:
    """While entered, catches the signals that ask a run to stop.

    Until `deferred` is set a signal raises InterruptedRun at once: there is nothing to save yet.
    From then on a signal only sets `signum`, and the loop stops at the end of its step. A second
    signal ends the process, but not under torchrun. Outside the main thread, where Python allows
    no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        # torchrun passes on what its processes got already, and ends them itself in the end.
        self._impatient = "TORCHELASTIC_RUN_ID" not in os.environ
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for signum in _CAUGHT:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            if self._impatient:
                os._exit(128 + signum)
            return
        self.signum = signum
        if not self.deferred:
            name = signal.Signals(signum).name
            raise InterruptedRun(signum, f"stopped by {name} before training; nothing was lost")
