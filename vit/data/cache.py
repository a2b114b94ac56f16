"""Images decoded and made small once, kept in a few large files that are mapped into memory.

A shard holds some hundred images and is named by what it was made from (names, sizes and times of
the files, and how they were made small), so a changed file makes its shard anew and no other.
Shards are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg
from tqdm import tqdm

from vit.config.errors import DataError
from vit.data.decode import decode, decode_bytes, reason
from vit.data.formats import FORMATS
from vit.data.images import FileImages
from vit.data.pool import WorkerPool, announce
from vit.data.views import resize
from vit.runtime.files import write_atomic

_IMAGES = 256
_QUALITY = 95
_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """How an image is kept.

    Attributes:
        kind: `jpeg` (quality 95, colours at half the size) or `uint8` (as it is).
        size: the shorter side in pixels; smaller images stay as they are.
        channels: 3 (RGB) or 1 (gray).
    """

    kind: str
    size: int
    channels: int


@dataclass(frozen=True)
class Shard:
    """What a shard is made of, and where it lies.

    Attributes:
        path: without the suffix `.bin` (the images) or `.json` (where each lies in it).
        files: of the images.
        recipe: how they are kept.
    """

    path: str
    files: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Cached:
    """One image in a shard; with a `reason` there is none."""

    shard: str
    kind: str
    channels: int
    start: int
    length: int
    height: int
    width: int
    reason: str | None = None

    def __str__(self) -> str:
        return self.shard

    def open(self) -> np.ndarray:
        """The image: uint8 (H, W, channels).

        Raises:
            ValueError: it was damaged when the shard was made.
        """
        if self.reason is not None:
            raise ValueError(self.reason)
        data = _mapped(self.shard)[self.start : self.start + self.length]
        if self.kind == "jpeg":
            return decode_bytes(data.tobytes(), self.channels)
        return data.reshape(self.height, self.width, self.channels)


class CachedImages(FileImages):
    """Images in files, of which small versions are kept.

    Args:
        images: the files.
        folder: where shards lie; made if missing.
        recipe: how images are kept.
        pool: makes the shards that are missing, with a progress bar.

    Raises:
        DataError: a worker died or hangs, or the folder cannot be written.
        DiskFullError: no space; what was made stays and is used by the next start.
    """

    def __init__(self, images: FileImages, folder: Path, recipe: Recipe, pool: WorkerPool) -> None:
        super().__init__(images.root, images.names)
        shards = _shards(images, folder, recipe)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"data.cache_dir={folder} cannot be made ({error.strerror}); choose another"
            ) from None
        missing = [shard for shard in shards if not Path(f"{shard.path}.json").is_file()]
        with tqdm(
            total=sum(len(s.files) for s in missing), desc="caching", unit="img", disable=None,
            leave=False,
        ) as bar:  # fmt: skip
            for shard, _ in zip(missing, pool.map(make_shard, missing), strict=True):
                bar.update(len(shard.files))
        self._cached: list[Cached] = [image for shard in shards for image in _index(shard)]

    def source(self, index: int) -> Cached:
        """Where image `index` is."""
        return self._cached[index]


def make_shard(shard: Shard) -> None:
    """Decode, make small and write the images of a shard."""
    blobs: list[bytes] = []
    entries: list[tuple[int, int, int, int, str | None]] = []
    start = 0
    for file in shard.files:
        announce(file)
        try:
            blob, height, width = made_small(file, shard.recipe)
            entries.append((start, len(blob), height, width, None))
        except Exception as error:  # decoders raise a wide range of types
            blob = b""
            entries.append((start, 0, 0, 0, reason(error)))
        blobs.append(blob)
        start += len(blob)
    announce(shard.path)
    write_atomic(Path(f"{shard.path}.bin"), b"".join(blobs))
    write_atomic(Path(f"{shard.path}.json"), json.dumps(entries).encode())


def made_small(file: str, recipe: Recipe) -> tuple[bytes, int, int]:
    """An image as it is kept, and its height and width."""

    def enough(height: int, width: int) -> tuple[int, int]:
        share = recipe.size / min(height, width)
        return (height, width) if share >= 1 else (int(height * share), int(width * share))

    image = decode(file, recipe.channels, enough)
    height, width, _ = image.shape
    short = min(height, width)
    if short > recipe.size:
        height, width = recipe.size * height // short, recipe.size * width // short
        image = resize(image, height, width)
    image = np.ascontiguousarray(image)
    if recipe.kind == "uint8":
        return image.tobytes(), height, width
    space = "RGB" if recipe.channels == 3 else "GRAY"
    return simplejpeg.encode_jpeg(image, _QUALITY, space, colorsubsampling="420"), height, width


def _shards(images: FileImages, folder: Path, recipe: Recipe) -> list[Shard]:
    """The shards of all images, named by their content."""
    count = len(images.names)
    parts = [range(i, min(i + _IMAGES, count)) for i in range(0, count, _IMAGES)]
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda part: _shard(images, part, folder, recipe), parts))


def _shard(images: FileImages, part: Sequence[int], folder: Path, recipe: Recipe) -> Shard:
    files = tuple(images.path(i) for i in part)
    content = hashlib.blake2b(repr((_VERSION, FORMATS, recipe)).encode(), digest_size=16)
    for i, file in zip(part, files, strict=True):
        status = os.stat(file, follow_symlinks=os.path.exists(file))  # else of the link itself
        text = f"{images.names[i]}\0{status.st_size}\0{status.st_mtime_ns}\0"
        content.update(text.encode("utf-8", "surrogateescape"))
    return Shard(str(folder / content.hexdigest()), files, recipe)


def _index(shard: Shard) -> list[Cached]:
    recipe = shard.recipe
    entries = json.loads(Path(f"{shard.path}.json").read_bytes())
    return [Cached(shard.path, recipe.kind, recipe.channels, *entry) for entry in entries]


@cache
def _mapped(shard: str) -> np.ndarray:
    return np.memmap(f"{shard}.bin", np.uint8, "c")  # torch wants to be allowed to write
