"""Listing the image files of many folders: in parallel, with a bar, and remembered.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vit.config.errors import DiskFullError
from vit.runtime.files import write_atomic

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
CACHE_FROM = 10_000
"""Listings of fewer files are not worth remembering."""
_THREADS = 16
_MOMENT = 2 * 10**9
"""Nanoseconds within which two changes may share a modification time."""

Folder = tuple[int, list[str], list[str]]
"""Modification time in nanoseconds, names of sub-folders, names of image files."""


def scan(root: Path, tops: list[str]) -> dict[str, list[str]]:
    """Image files below each folder of `tops`, as sorted paths below `root`.

    Hidden files and folders are left out; links to folders are followed at the top alone.

    Raises:
        OSError: a folder cannot be read.
    """
    known = _read_cache(root)
    now = time.time_ns()
    found: dict[str, list[str]] = {}
    folders: dict[str, Folder] = {}
    with (
        ThreadPoolExecutor(_THREADS) as threads,
        tqdm(total=len(tops), desc="scanning", unit="folder", disable=None, leave=False) as bar,
    ):
        walks = threads.map(lambda top: _walk(root, top, known), tops)
        for top, below in zip(tops, walks, strict=True):
            found[top] = sorted(
                os.path.join(folder, name) for folder in below for name in below[folder][2]
            )
            folders |= below
            bar.update()
    if sum(map(len, found.values())) >= CACHE_FROM and folders != known:
        lasting = {name: entry for name, entry in folders.items() if entry[0] < now - _MOMENT}
        _write_cache(root, lasting)
    return found


def sub_folders(root: Path) -> set[str]:
    """The names of the folders in `root` that are not hidden."""
    return {e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")}


def _walk(root: Path, top: str, known: dict[str, Folder]) -> dict[str, Folder]:
    """`top` and the folders below it, by their paths below `root`."""
    found: dict[str, Folder] = {}
    waiting = [top]
    while waiting:
        name = waiting.pop()
        path = root / name
        changed = path.stat().st_mtime_ns
        entry = known.get(name)
        if entry is None or entry[0] != changed:
            entry = (changed, *_list(path))
        found[name] = entry
        waiting += [os.path.join(name, below) for below in entry[1]]
    return found


def _list(path: Path) -> tuple[list[str], list[str]]:
    """The names of sub-folders and of image files."""
    folders, files = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not entry.is_dir():
                files.append(entry.name)
    return folders, files


def cache_home() -> Path:
    """Where this program remembers things: `~/.cache/vit-train`, or below `$XDG_CACHE_HOME`."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "vit-train"


def _cache_file(root: Path) -> Path:
    name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16).hexdigest()
    return cache_home() / f"scan-{name}.json"


def _read_cache(root: Path) -> dict[str, Folder]:
    """What is remembered of `root`; nothing when there is no cache or it is damaged."""
    try:
        digest, _, text = _cache_file(root).read_bytes().partition(b"\n")
        if hashlib.blake2b(text).hexdigest().encode() != digest:
            return {}
        content: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return {}
    return {name: (changed, folders, files) for name, (changed, folders, files) in content.items()}


def _write_cache(root: Path, folders: dict[str, Folder]) -> None:
    """Remember a listing; without a place to do so, it is not remembered."""
    text = json.dumps(folders).encode()
    file = _cache_file(root)
    with contextlib.suppress(OSError, DiskFullError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, hashlib.blake2b(text).hexdigest().encode() + b"\n" + text)
