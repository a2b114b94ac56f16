"""The log of a training run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

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
CURVES = ("loss", "top1", "map", "exact")
"""What TensorBoard shows first: it sorts by name, and `curves/` stands before all else."""
VOLATILE = ("time", "seconds", "images_per_second", "mfu", "data_share")
"""Fields that two runs of the same config may differ in."""


class Logger:
    """Appends to metrics.jsonl and TensorBoard, to which training, validation and final scores are
    runs of their own, so that a chart shows the first two and a table the last alone.

    Without a `run`, as in a process that does not lead, nothing is written. `step`, `metrics_bytes`
    and `metrics_digest` are what a resumed run's checkpoint says: what was logged after it is cut
    off and will be logged again. A damaged file is kept under another name, and its sound lines are
    gone on from. `tracker` is told what it lacks of what was logged, and what is logged from here
    on.
    """

    def __init__(
        self, run: RunDir | None, step: int = 0, metrics_bytes: int = 0,
        metrics_digest: str | None = None, tracker: Tracker | None = None,
    ) -> None:  # fmt: skip
        self.run = run
        self._file: BinaryIO | None = None
        self._only_warned = console.OnlyWarned()
        self._tracker, self._lines = tracker, 0
        self._boards: dict[str, SummaryWriter] = {}
        self._purge_step = step + 1 if metrics_bytes else None
        if run is None:
            return
        with disk_errors(run.metrics):
            kept = _until(run, step, metrics_bytes, metrics_digest)
            self._digest = _hash(kept)
            self._file = open(run.metrics, "ab")  # noqa: SIM115 (closed in close())
            self._file.truncate(len(kept))
            self._file.seek(0, os.SEEK_END)
        for line in kept.splitlines():
            self._track(line)
        threading.excepthook = _without_writers
        shutil.rmtree(run.board("final"), ignore_errors=True)
        with self._only_warned(_BOARD):
            if not run.board("train").is_dir():  # also of a run whose curves lay elsewhere
                for line in kept.splitlines():
                    self._plot(from_json(line))

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, and its numbers to TensorBoard."""
        if self._file is None:
            return
        line = {"event": event, "step": step, **values, "time": round(time.time(), 3)}
        text = to_json(line)
        with disk_errors(Path(self._file.name)):
            self._file.write(text)
            self._file.flush()
            self._digest.update(text)
        self._track(text)
        self._plot(line)

    def images(self, tag: str, grid: Tensor, step: int) -> None:
        """Show a picture (C, height, width) with values in [0, 1] in TensorBoard."""
        of, _, name = tag.partition("/")
        shown = grid.expand(3, -1, -1)
        self._draw(
            lambda board: board.add_image(f"pictures/{name}", shown, step),
            "train" if of == "train" else "val",
        )
        picture = (shown.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        self._tell(lambda tracker: tracker.image(tag, picture, step))

    def scalars(self, values: dict[str, float], step: int, split: str = "val") -> None:
        """Draw one point of each curve {tag: value} in TensorBoard, beside metrics.jsonl."""

        def draw(board: SummaryWriter) -> None:
            for tag, value in values.items():
                board.add_scalar(tag, value, step)

        self._draw(draw, split)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Draw the distribution of `values`, of any shape, in TensorBoard."""
        self._draw(lambda board: board.add_histogram(tag, values, step))

    def hparams(self, step: int, settings: dict[str, Any], scores: dict[str, float]) -> None:
        """Fill TensorBoard's HPARAMS page with a run's settings and its final scores."""
        plain = {
            key: value if isinstance(value, (bool, int, float)) else printable(str(value))
            for key, value in settings.items()
        }

        def draw(board: SummaryWriter) -> None:
            from torch.utils.tensorboard.summary import hparams

            # Without a summary of the experiment, of which the first run's would stand for all,
            # TensorBoard takes the settings of all runs, and first those in which they differ.
            _, *messages = hparams(plain, {})  # type: ignore[no-untyped-call]
            for message in messages:
                board.file_writer.add_summary(message)  # type: ignore[attr-defined]

        self.scalars({f"scores/{key}": value for key, value in scores.items()}, step, "final")
        self._draw(draw, "final")

    def durable(self) -> tuple[int, str]:
        """Length and digest of metrics.jsonl, after it has reached the disk."""
        if self._file is None:
            return 0, ""
        with disk_errors(Path(self._file.name)):
            os.fsync(self._file.fileno())
        for split in self._boards:
            self._draw(lambda board: board.flush(), split)
        return self._file.tell(), self._digest.hexdigest()

    def close(self) -> None:
        """Write out what is buffered."""
        if self._file is not None:
            self._file.close()
        for split in self._boards:
            self._draw(lambda board: board.close(), split)
        self._tell(lambda tracker: tracker.close())

    def _plot(self, line: dict[str, Any]) -> None:
        """Draw a line of training or validation; the test's is for `hparams`."""
        if line["event"] in ("train", "val"):
            numbers = {
                f"{'curves' if key in CURVES else 'details'}/{key}": value
                for key, value in line.items()
                if key not in ("step", "time")
                and isinstance(value, (int, float))
                and math.isfinite(value)
            }
            self.scalars(numbers, line["step"], line["event"])

    def _track(self, line: bytes) -> None:
        """Tell the tracker a line of the log, unless it has that already."""
        number, self._lines = self._lines, self._lines + 1
        self._tell(lambda t: t.log(from_json(line)) if number >= t.lines else None)

    def _tell(self, tell: Callable[[Tracker], object]) -> None:
        if self._tracker is not None:
            with self._only_warned(_TRACKER):
                tell(self._tracker)

    def _draw(self, draw: Callable[[SummaryWriter], object], split: str = "val") -> None:
        """Have TensorBoard draw something of `train`, `val` or `final`; a failure ends no run."""
        if self.run is None:
            return
        from torch.utils.tensorboard.writer import SummaryWriter

        with self._only_warned(_BOARD):
            if split not in self._boards:
                folder = str(self.run.board(split))
                self._boards[split] = SummaryWriter(folder, purge_step=self._purge_step)
            draw(self._boards[split])


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
