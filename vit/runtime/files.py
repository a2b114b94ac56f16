"""Atomic files: complete or absent, durable; JSON; where caches live."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import glob
import io
import json
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vit.errors import ConfigError, DiskFullError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TEMPORARY = ".tmp"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_STALE = 24 * 3600
"""Seconds after which nobody is still writing a file."""


def is_full(error: OSError) -> bool:
    """Whether the system has no space left for what was to be written."""
    return error.errno in _FULL


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" into DiskFullError, which names `path`."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise DiskFullError(
            f"no space to write {path} ({os.strerror(error.errno or 0)}); what was there before is "
            f"intact; free some space, then try again"
        ) from None


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `path` so that at every instant it holds its old or its new content, whole.

    Written beside, fsynced, renamed over, folder fsynced: also true across a loss of power, and
    for several processes that write it at once: the last one's is there.

    Raises:
        DiskFullError: no space; nothing has changed.
    """
    start = path.name[:56]  # of at most 4 bytes each: a name has at most 255
    temporary = path.with_name(f"{start}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with disk_errors(path):
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            move_over(temporary, path)
    except OSError as error:
        error.filename = str(path)  # which people know
        raise
    finally:
        temporary.unlink(missing_ok=True)


def to_json(values: Any, indent: int | None = None) -> bytes:
    """Plain values as JSON, in one line or indented; NaN and infinity, which it lacks, are null."""
    return (json.dumps(_finite(values), indent=indent, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty when there is none."""
    try:
        values = from_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def from_json(text: str | bytes) -> Any:
    """What JSON says; numbers that are not finite, or too large for 64 bits, are None.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(
            text,
            parse_constant=lambda _: None,
            parse_int=lambda digits: int(digits) if len(digits) < 20 else None,
            parse_float=lambda digits: _finite(float(digits)),
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_stale(folder: Path, starts: str, age: float = _STALE) -> None:
    """Remove what killed `write_atomic`s of files have left in a folder, whose names' first 56
    characters are as the pattern `starts`; unless younger than `age` seconds: one may be writing.
    """
    for leftover in folder.glob(f"{starts}.{'[0-9a-f]' * 8}{TEMPORARY}"):
        with contextlib.suppress(OSError):
            if leftover.stat().st_mtime < time.time() - age:
                leftover.unlink()


@contextlib.contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A path of the same name in a folder beside `path`, which is gone in the end.

    What a killed process has left there goes first.
    """
    prefix = f".{path.name}-"
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*{TEMPORARY}"):
        with contextlib.suppress(OSError), locked(leftover):
            shutil.rmtree(leftover)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, suffix=TEMPORARY, dir=path.parent) as folder,
        locked(Path(folder)),
    ):
        yield Path(folder) / path.name


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Own a folder, as long as the process lives; BlockingIOError: another one owns it, and this
    one does not `wait`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Turn what the system has against writing `what`, but a full disk, into a ConfigError."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise
        raise ConfigError(f"{what} cannot be written ({error.strerror}){remedy}") from None


@contextlib.contextmanager
def together(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """A folder to write to, whose files are put into `folder` when all are there; others stay.

    All that may be written has one of `names`, relative to it. What is there of these goes first:
    what was written at two times never stands side by side.

    Raises:
        ConfigError: `folder` cannot be made.
    """
    with write_errors(f"output={folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with staging(folder) as staged:
            staged.mkdir()
            yield staged
            folder.mkdir(exist_ok=True)
            for name in names:
                (folder / name).unlink(missing_ok=True)
            move_over(staged, folder)


def move_over(source: Path, path: Path) -> None:
    """Put a complete file, or each file of a folder, at `path`, on the same disk; others stay."""
    if source.is_dir():
        path.mkdir(exist_ok=True)
        for file in source.iterdir():
            move_over(file, path / file.name)
        return
    os.replace(source, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepare_file(key: str, file: Path) -> None:
    """Make sure, before long work, that `file`, which the setting `key` names, can be written.

    Raises:
        ConfigError: it cannot.
    """
    with write_errors(f"{key}={file}", "; choose another file"):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()


def prepare_folder(key: str, folder: Path) -> None:
    """As `prepare_file`, of a folder; nothing is left there."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    with write_errors(f"{key}={folder}", "; choose another folder"):
        tempfile.TemporaryFile(dir=there).close()


def to_csv_line(cells: Iterable[Any]) -> bytes:
    """A line of CSV. Text that a spreadsheet would take for a formula has a `'` before it."""
    text = io.StringIO()
    csv.writer(text).writerow(
        f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
        for cell in cells
    )  # whose own line end makes it quote a lone \r as well as \n
    return text.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


def image_cache(folder: str | None) -> Path:
    """Where copies of images are kept: as `data.cache_dir` says, else in `cache_home`."""
    return Path(folder) if folder else cache_home() / "images"


def cache_home() -> Path:
    """Where this program remembers things: `~/.cache/vit-train`, or below `$XDG_CACHE_HOME`."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "vit-train"
