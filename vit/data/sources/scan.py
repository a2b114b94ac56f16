"""Scanning folders for image files: in parallel, with a progress bar, cached.

A listing is remembered by the folders' modification times, which change when a file or folder is
added, removed or renamed. The cache is written whole or not at all, checked when it is read, and
never trusted for a folder that changed within a moment of being listed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit.data.formats import IS_IMAGE, ending_of, is_image, is_regular
from vit.errors import DataError, DiskFullError
from vit.runtime import console
from vit.runtime.files import cache_home, remove_stale, write_atomic

CACHE_FROM = 10_000
"""Listings of fewer files are not worth remembering."""
SPECIAL = "special (a pipe, device or the like)"
_IGNORED = frozenset({
    "__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "network trash folder", "temporary items",
})  # fmt: skip
"""Folders that systems make, in lower case."""
_THREADS = 16
_MOMENT = 2 * 10**9
"""Nanoseconds within which two changes may share a modification time."""
_NEVER = -1
"""The modification time of a folder that is listed anew each time."""
_VERSION = b"2"

Folder = tuple[int, list[str], list[str], dict[str, int]]
"""Modification time in nanoseconds, names of sub-folders, names of image files, how many other
files there are by ending."""


@dataclass(frozen=True)
class Below:
    """What lies in a folder and all that are below it.

    Attributes:
        files: images, as sorted paths below the root.
        left_out: how many other files there are, by ending.
    """

    files: list[str]
    left_out: Counter[str]


def scan(root: Path, tops: list[str]) -> dict[str, Below]:
    """What lies below each folder of `tops`, which are below `root`.

    Hidden files and folders, and those that systems make, are as if they were not there. Links to
    folders are followed, but not up to a folder that they are below.

    Raises:
        OSError: a folder cannot be read.
    """
    known = _read_cache(root)
    now = time.time_ns()
    outside = [*root.resolve().parents, *([root] if "" not in tops else [])]
    above = frozenset((status.st_dev, status.st_ino) for status in map(os.stat, outside))
    found: dict[str, Below] = {}
    folders: dict[str, Folder] = {}
    with (
        ThreadPoolExecutor(_THREADS) as threads,
        console.progress(total=len(tops), desc="scanning", unit="folder") as bar,
    ):
        walks = threads.map(lambda top: _walk(root, top, known, above), tops)
        for top, below in zip(tops, walks, strict=True):
            files = [os.path.join(folder, name) for folder in below for name in below[folder][2]]
            left_out = sum((Counter(folder[3]) for folder in below.values()), Counter[str]())
            found[top] = Below(sorted(files), left_out)
            folders |= below
            bar.update()
    if sum(len(below.files) for below in found.values()) >= CACHE_FROM and folders != known:
        lasting = {name: entry for name, entry in folders.items() if entry[0] < now - _MOMENT}
        _write_cache(root, lasting)
    return found


@contextlib.contextmanager
def read_errors() -> Iterator[None]:
    """Turn what the system says of a file or folder that cannot be read into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})") from None


def sub_folders(root: Path) -> set[str]:
    """The names of the folders in `root` that are not hidden.

    Raises:
        DataError: the link to one leads nowhere.
        OSError: `root` cannot be read.
    """
    found = set()
    with os.scandir(root) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if _is_folder(entry):
                found.add(entry.name)
            elif (
                entry.is_symlink()
                and ending_of(entry.name) not in IS_IMAGE
                and not os.path.exists(entry.path)
            ):
                raise DataError(
                    f"{entry.path} is a link to {os.readlink(entry.path)}, which cannot be "
                    f"reached; repair or remove it"
                )
    return found


def list_folder(path: Path, modified: int = _NEVER) -> Folder:
    """What lies directly in a folder, and `modified`, if that is all as long as it is not again."""
    folders, files, lasting = [], [], True
    left_out: Counter[str] = Counter()
    with os.scandir(path) as entries:
        for entry in entries:
            name, ending = entry.name, ending_of(entry.name)
            if name.startswith("."):
                continue
            plain = entry.is_file(follow_symlinks=False)
            if not plain and _is_folder(entry):
                lasting &= not entry.is_symlink()
                if not is_hidden(name):
                    folders.append(name)
            elif not plain and not is_regular(entry.path):
                lasting &= not entry.is_symlink()
                left_out[SPECIAL] += 1
            elif is_image(entry.path, ending):
                files.append(name)
            else:
                lasting &= ending in IS_IMAGE
                left_out[ending] += 1
    return modified if lasting else _NEVER, folders, files, dict(left_out)


def _walk(
    root: Path, top: str, known: dict[str, Folder], outside: frozenset[tuple[int, int]]
) -> dict[str, Folder]:
    """`top` and the folders below it, by their paths below `root`; none twice on a way down."""
    found: dict[str, Folder] = {}
    waiting = [(top, outside)]
    while waiting:
        name, above = waiting.pop()
        path = root / name
        status = path.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        entry = known.get(name)
        if entry is None or entry[0] != status.st_mtime_ns:
            entry = list_folder(path, status.st_mtime_ns)
        found[name] = entry
        above |= {here}
        waiting += [(os.path.join(name, below), above) for below in entry[1]]
    return found


def is_hidden(folder: str) -> bool:
    """Whether a folder of this name is hidden, or made by a system."""
    return folder.startswith(".") or folder.lower() in _IGNORED


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also of a link that leads to one; other than `entry.is_dir`, False for one in a circle."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _cache_file(root: Path) -> Path:
    name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16).hexdigest()
    return cache_home() / f"scan-{name}.json"


def _read_cache(root: Path) -> dict[str, Folder]:
    """What is remembered of `root`; nothing when there is no cache or it is damaged."""
    try:
        digest, _, text = _cache_file(root).read_bytes().partition(b"\n")
        if _digest(text) != digest:
            return {}
        content: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return {}
    return {name: tuple(entry) for name, entry in content.items()}


def _write_cache(root: Path, folders: dict[str, Folder]) -> None:
    """Remember a listing; without a place to do so, it is not remembered."""
    text = json.dumps(folders).encode()
    file = _cache_file(root)
    with contextlib.suppress(OSError, DiskFullError):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(file.parent, file.name, age=0)  # whoever still writes does without
        write_atomic(file, _digest(text) + b"\n" + text)


def _digest(text: bytes) -> bytes:
    """Of a listing that was made by the rules of this version; others are not read."""
    return hashlib.blake2b(text, person=_VERSION).hexdigest().encode()
