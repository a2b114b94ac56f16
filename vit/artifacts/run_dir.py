"""The run folder: its file names, its lock, its summary."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vit.config.yaml_files import load_yaml
from vit.errors import ConfigError, InUseError
from vit.runtime.files import TEMPORARY, disk_errors, read_json, to_json, write_atomic

_STEP = re.compile(r"step-[0-9]{9}\.pt")


class RunDir:
    """One run's folder.

    Layout: `config.yaml`, `images.json.gz`, `metrics.jsonl`, `train.log`, `summary.json`,
    `checkpoints/`, `train/`, `val/` and `final/` (TensorBoard's), `eval/`, `explain/`, `export/`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.images = path / "images.json.gz"
        self.metrics = path / "metrics.jsonl"
        self.said = path / "train.log"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.pt"
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, outputs: Path, name: str, *, unique: bool) -> RunDir:
        """Make a new folder `outputs/name`, and `outputs` where it is missing.

        Args:
            unique: the name was chosen by the user and must be free; else a suffix is added.

        Raises:
            ConfigError: the name is taken, or the folder cannot be written.
        """
        for attempt in range(1000):
            run = cls(outputs / (name if attempt == 0 else f"{name}-{attempt + 1}"))
            try:
                outputs.mkdir(parents=True, exist_ok=True)
                with disk_errors(run.path):
                    run.path.mkdir()
            except FileExistsError:
                if not outputs.is_dir():
                    raise ConfigError(f"outputs={outputs} is no folder; choose another") from None
                if unique:
                    way = f"go on in it with `vit-train resume={run.path}`"
                    raise ConfigError(
                        f"{run.path} exists already; {way + ' or ' if run.step_files() else ''}"
                        f"choose another name"
                    ) from None
                continue
            except OSError as error:
                raise ConfigError(
                    f"{run.path} cannot be made ({error.strerror}); choose outputs=<folder>"
                ) from None
            return run
        raise ConfigError(f"{outputs} holds a thousand runs called {name}; choose another name")

    @classmethod
    def of(cls, checkpoint: Path) -> RunDir | None:
        """The run folder that a checkpoint file lies in, if it does."""
        run = cls(checkpoint.resolve().parent.parent)
        return run if run.config.is_file() else None

    def lock(self) -> None:
        """Own the folder until the process ends; leftovers of a killed save are removed.

        Raises:
            ConfigError: another process owns it, or it cannot be written.
        """
        try:
            self.checkpoints.mkdir(exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 (held by the flock)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"another process is training in {self.path}; wait for it or choose another name"
            ) from None
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error.strerror})") from None
        for folder in (self.path, self.checkpoints):
            for leftover in folder.glob(f"*{TEMPORARY}"):
                leftover.unlink()

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder inside; see `lock`."""
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    def is_locked(self) -> bool:
        """Whether some process owns the folder."""
        try:
            with open(self.path / ".lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def unlock(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def has_progress(self) -> bool:
        """Whether anything was trained here."""
        logged = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return logged or bool(self.step_files()) or self.best.is_file()

    def discard(self) -> None:
        """Remove a folder in which nothing was trained, so that its name is free again."""
        shutil.rmtree(self.path, ignore_errors=True)

    def step_file(self, step: int) -> Path:
        """The checkpoint of `step`."""
        return self.checkpoints / f"step-{step:09d}.pt"

    def step_files(self) -> list[Path]:
        """All checkpoints that training can go on from, the newest first."""
        if not self.checkpoints.is_dir():
            return []
        found = (path for path in self.checkpoints.iterdir() if _STEP.fullmatch(path.name))
        return sorted(found, reverse=True)

    def prune(self, keep: int) -> None:
        """Remove all but the `keep` newest checkpoints."""
        for path in self.step_files()[keep:]:
            if not path.is_dir():
                path.unlink()

    def board(self, split: str) -> Path:
        """What TensorBoard calls `<run>/train`, `<run>/val` or `<run>/final`."""
        return self.path / split

    def eval_dir(self, what: str) -> Path:
        """Where the evaluation of `what` (a split) is written."""
        return self.path / "eval" / what

    def read_config(self) -> dict[str, Any]:
        """The content of `config.yaml`, as nested plain values.

        Raises:
            ConfigError: it cannot be read, or holds no settings.
        """
        try:
            text = self.config.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.config} cannot be read ({error.strerror})") from None
        return load_yaml(text, str(self.config))

    def write_config(self, text: str) -> None:
        """Write `config.yaml`."""
        write_atomic(self.config, text.encode())

    def write_summary(self, values: dict[str, Any]) -> None:
        """Write `summary.json`."""
        write_atomic(self.summary, to_json(values, 2))

    def read_summary(self) -> dict[str, Any]:
        """The content of `summary.json`; empty when there is none."""
        return read_json(self.summary)


def results_of(checkpoint: Path) -> Path:
    """Where what comes of a checkpoint goes: its run folder, else a folder beside the file."""
    run = RunDir.of(checkpoint)
    return run.path if run else checkpoint.with_suffix("")


def is_run(path: Path) -> bool:
    """Whether `path` is a run folder."""
    return (path / "config.yaml").is_file() and os.access(path, os.R_OK)
