"""Fingerprints of images: size, and a hash of the content or of the modification time."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vit.data.types import Samples
from vit.runtime import console

_THREADS = 16
_AT_ONCE = 64


def fingerprints(samples: Samples, by_content: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sizes in bytes, int64 (N,), and hashes, uint64 (N,), of the content or the time of change.

    An image that cannot be read has size -1 and hash 0.
    """
    images = samples.images
    if isinstance(images, np.ndarray):
        pixels = (images[i].tobytes() for i in samples.index)
        found = [(len(data), _number(_hash(data))) for data in pixels]
    else:
        paths = [images.path(int(i)) for i in samples.index]
        parts = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
        with (
            ThreadPoolExecutor(_THREADS) as threads,
            console.progress(
                total=len(paths), desc="looking at files", unit="file", delay=2
            ) as bar,
        ):
            found = []
            for part in threads.map(lambda part: [_look(path, by_content) for path in part], parts):
                found += part
                bar.update(len(part))
    sizes, hashes = zip(*found, strict=True) if found else ((), ())
    return np.array(sizes, np.int64), np.array(hashes, np.uint64)


def _look(path: str, by_content: bool) -> tuple[int, int]:
    """Size of a file and hash of its content, or the time of its last change."""
    try:
        if by_content:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, _hash)
                return file.tell(), _number(digest)
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns % 2**64
    except OSError:
        return -1, 0


def _hash(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=8)


def _number(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "big")
