"""Fingerprints of images: size, and a hash of the content or of the modification time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vit.data.types import ArrayImages, Samples
from vit.runtime import console

_THREADS = 16
_AT_ONCE = 64


def fingerprints(samples: Samples, by_content: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sizes in bytes, int64 (N,), and hashes, uint64 (N,), of the content or the time of change.

    An image that cannot be read has size -1 and hash 0.
    """
    images = samples.images
    if isinstance(images, ArrayImages):
        pixels = (images.pixels[i].tobytes() for i in samples.index)
        found = [(len(data), _number(_hash(data))) for data in pixels]
    else:
        paths = [images.path(int(i)) for i in samples.index]
        parts = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
        look = _contents if by_content else _times
        with (
            ThreadPoolExecutor(_THREADS) as threads,
            console.progress(
                total=len(paths), desc="looking at files", unit="file", delay=2
            ) as bar,
        ):
            found = []
            for part in threads.map(look, parts):
                found += part
                bar.update(len(part))
    sizes, hashes = zip(*found, strict=True) if found else ((), ())
    return np.array(sizes, np.int64), np.array(hashes, np.uint64)


def _contents(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Size and hash of the content of each file."""
    found = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, _hash)
                found.append((file.tell(), _number(digest)))
        except OSError:
            found.append((-1, 0))
    return found


def _times(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Size and time of the last change of each file."""
    found = []
    for path in paths:
        try:
            status = os.stat(path)
            found.append((status.st_size, status.st_mtime_ns % 2**64))
        except OSError:
            found.append((-1, 0))
    return found


def _hash(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=8)


def _number(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "big")
