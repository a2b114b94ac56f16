"""The log of a training run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit.artifacts.run_dir import RunDir
from vit.artifacts.trackers import Tracker
from vit.errors import printable
from vit.runtime import console
from vit.runtime.files import disk_errors, from_json, to_json, write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

_BOARD = "TensorBoard's curves and pictures"
_TRACKER = "what the tracker is told"
VOLATILE = ("time", "seconds", "images_per_second", "mfu", "data_share")
"""Fields that two runs of the same config may differ in."""


class Logger:
    """Where a run's numbers and pictures go: nowhere, of a process that does not lead."""

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Write one line down."""

    def images(self, tag: str, grid: Tensor, step: int) -> None:
        """Show a picture (C, height, width) with values in [0, 1] in TensorBoard."""
        self._draw(lambda board: board.add_image(tag, grid.expand(3, -1, -1), step))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Draw one point of each curve {tag: value} in TensorBoard, beside metrics.jsonl."""

        def draw(board: SummaryWriter) -> None:
            for tag, value in values.items():
                board.add_scalar(tag, value, step)

        self._draw(draw)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Draw the distribution of `values`, of any shape, in TensorBoard."""
        self._draw(lambda board: board.add_histogram(tag, values, step))

    def hparams(self, step: int, settings: dict[str, Any], scores: dict[str, float]) -> None:
        """Fill TensorBoard's HPARAMS page with a run's settings and its final scores."""
        plain = {
            key: value if isinstance(value, (bool, int, float)) else printable(str(value))
            for key, value in settings.items()
        }
        self._draw(lambda board: board.add_hparams(plain, scores, run_name=".", global_step=step))

    def durable(self) -> tuple[int, str]:
        """Length and digest of metrics.jsonl, all of which has reached the disk."""
        return 0, ""

    def close(self) -> None:
        """Write out what is buffered."""

    def _draw(self, draw: Callable[[SummaryWriter], object]) -> None:
        """Have TensorBoard draw something."""


class RunLogger(Logger):
    """Appends to metrics.jsonl and TensorBoard.

    `step`, `metrics_bytes` and `metrics_digest` are what a resumed run's checkpoint says: what was
    logged after it is cut off and will be logged again. A damaged file is kept under another name,
    and its sound lines are gone on from. `tracker` is told what it lacks of what was logged, and
    what is logged from here on.
    """

    def __init__(
        self, run: RunDir, step: int = 0, metrics_bytes: int = 0, metrics_digest: str | None = None,
        tracker: Tracker | None = None,
    ) -> None:  # fmt: skip
        from torch.utils.tensorboard.writer import SummaryWriter

        self.path = run.metrics
        with disk_errors(self.path):
            kept = _until(run, step, metrics_bytes, metrics_digest)
            self._digest = _hash(kept)
            self._file = open(run.metrics, "ab")  # noqa: SIM115 (closed in close())
            self._file.truncate(len(kept))
            self._file.seek(0, os.SEEK_END)
        self._only_warned = console.OnlyWarned()
        self._tracker, self._lines = tracker, 0
        for line in kept.splitlines():
            self._track(line)
        self._board: SummaryWriter | None = None
        threading.excepthook = _without_writers
        with self._only_warned(_BOARD):
            purge_step = step + 1 if metrics_bytes else None
            self._board = SummaryWriter(str(run.tensorboard), purge_step=purge_step)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, and its numbers to TensorBoard as `event/<key>`."""
        line = {"event": event, "step": step, **values, "time": round(time.time(), 3)}
        text = to_json(line)
        with disk_errors(self.path):
            self._file.write(text)
            self._file.flush()
            self._digest.update(text)
        self._track(text)
        numbers = {f"{event}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
        self.scalars({tag: v for tag, v in numbers.items() if math.isfinite(v)}, step)

    def durable(self) -> tuple[int, str]:
        """Length and digest of metrics.jsonl, after it has reached the disk."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
        self._draw(lambda board: board.flush())
        return self._file.tell(), self._digest.hexdigest()

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
        self._draw(lambda board: board.close())
        self._tell(lambda tracker: tracker.close())

    def images(self, tag: str, grid: Tensor, step: int) -> None:
        """Show a picture (C, height, width) with values in [0, 1] in TensorBoard."""
        super().images(tag, grid, step)
        picture = (grid.expand(3, -1, -1).permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        self._tell(lambda tracker: tracker.image(tag, picture, step))

    def _track(self, line: bytes) -> None:
        """Tell the tracker a line of the log, unless it has that already."""
        number, self._lines = self._lines, self._lines + 1
        self._tell(lambda t: t.log(from_json(line)) if number >= t.lines else None)

    def _tell(self, tell: Callable[[Tracker], object]) -> None:
        if self._tracker is not None:
            with self._only_warned(_TRACKER):
                tell(self._tracker)

    def _draw(self, draw: Callable[[SummaryWriter], object]) -> None:
        """Have TensorBoard draw something, whose failure ends no run."""
        if self._board is not None:
            with self._only_warned(_BOARD):
                draw(self._board)


def _without_writers(failed: threading.ExceptHookArgs) -> None:
    """What TensorBoard's writer dies of is raised where it is next called, and told there."""
    if type(failed.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failed)


def image_grid(images: Tensor, columns: int = 8, min_side: int = 64) -> Tensor:
    """Images (B, C, S, S) as one picture, small ones enlarged without smoothing."""
    from torchvision.utils import make_grid

    scale = max(1, math.ceil(min_side / images.shape[-1]))
    grid: Tensor = make_grid(images, nrow=columns, padding=1, pad_value=1.0)
    return torch.nn.functional.interpolate(grid[None], scale_factor=scale)[0]


def _until(run: RunDir, step: int, length: int, digest: str | None) -> bytes:
    """What metrics.jsonl held when the checkpoint of `step` was written."""
    content = run.metrics.read_bytes() if length and run.metrics.is_file() else b""
    kept = content[:length]
    whole = len(kept) == length and kept.endswith(b"\n" * bool(length))
    if whole and digest in (None, _hash(kept).hexdigest()):
        return kept
    sound = [line for line in content.splitlines(keepends=True) if _is_sound(line, step)]
    aside = run.path / f"metrics-damaged-{step}.jsonl"
    write_atomic(aside, content)
    write_atomic(run.metrics, b"".join(sound))
    console.warn(
        f"{run.metrics} is not as it was at step {step}: {len(content):,} bytes, {length:,} then; "
        f"the run goes on behind its {len(sound):,} sound lines, and {aside.name} is what was there"
    )
    return b"".join(sound)


def _is_sound(line: bytes, step: int) -> bool:
    """Whether this is a whole line of a run up to `step`, before its final scores."""
    try:
        values = from_json(line)
        return line.endswith(b"\n") and values["event"] != "test" and values["step"] <= step
    except (ValueError, LookupError, TypeError):
        return False


def _hash(data: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=16)
