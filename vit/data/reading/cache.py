"""The image cache: images decoded and resized once, in checksummed shards.

A shard holds some hundred images and is named by what it was made from (names, sizes and times of
the files, and how they were made small), so a changed file makes its shard anew and no other.
Shards are written whole or not at all, by several runs at once if they like, and checked at every
start: a damaged one is made anew. What goes wrong later is read from the photos.

A shard is the CRC-32 of what follows, the images one after the other, the index (JSON: where each
image lies) and its length; both numbers have 4 bytes, little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from vit.config.schema import ReadConfig
from vit.data.formats import FORMATS
from vit.data.manifest import look
from vit.data.reading.decode import decode, reason
from vit.data.reading.transform import MAX_PIXELS, resize
from vit.data.reading.workers import WorkerPool, announce
from vit.data.types import CachedImage, FileImages, ImageFile
from vit.runtime import console
from vit.runtime.files import remove_stale, write_atomic, write_errors

_IMAGES = 256
_QUALITY = 95
_VERSION = 2
_THREADS = 16
_BLOCK = 2**20
_NUMBER = 4
"""Bytes of a checksum or a length."""

Entry = tuple[int, int, int, int, str | None]
"""Of an image: first byte, length, height, width, and what it is damaged by."""

Index = list[Entry | None]
"""Of a shard; nothing is kept of an image whose file could not be read when the shard was made."""


@dataclass(frozen=True)
class CacheSpec:
    """How an image is kept.

    Attributes:
        kind: `jpeg` (quality 95, colours at half the size) or `uint8` (as it is).
        size: the shorter side in pixels; smaller images stay as they are.
        channels: 3 (RGB) or 1 (gray).
        max_pixels: what would be decoded to more is refused.
    """

    kind: str
    size: int
    channels: int
    max_pixels: int = MAX_PIXELS

    @classmethod
    def of(cls, config: ReadConfig) -> CacheSpec | None:
        """What settings ask for; None: images are not kept."""
        if config.cache == "none":
            return None
        return cls(config.cache, config.cache_size, len(config.mean), config.max_pixels)


@dataclass(frozen=True)
class Shard:
    """Where a shard lies, the files of its images, and how they are kept."""

    path: str
    files: tuple[ImageFile, ...]
    spec: CacheSpec


@dataclass(frozen=True)
class ResizedImage(CachedImage):
    """An image as it is kept in a shard; where it is not, or no longer, it is made anew.

    Attributes:
        entry: where it lies in `shard`; None: nothing is kept of it.
    """

    file: ImageFile
    spec: CacheSpec
    shard: str = ""
    entry: Entry | None = None

    def __str__(self) -> str:
        return str(self.file) if self.entry is None else self.shard

    def open(self) -> np.ndarray:
        """The image: uint8 (H, W, channels).

        Raises:
            ValueError: it was damaged when the shard was made.
            OSError, ValueError, SyntaxError: see `decode.decode`.
        """
        if self.entry is not None:
            start, length, height, width, damage = self.entry
            if damage is not None:
                raise ValueError(damage)
            data = bytearray(length)
            # No mapping: reading one that was cut short ends the process.
            with suppress(OSError, ValueError), open(self.shard, "rb", buffering=0) as file:
                file.seek(start)
                if file.readinto(data) == length:
                    return _pixels(data, height, width, self.spec)
        made, height, width = resized_bytes(self.file, self.spec)
        return _pixels(bytearray(made), height, width, self.spec)


class CachedImages(FileImages):
    """Images in files, of which small versions are kept.

    Args:
        folder: where shards lie; made if missing.
        pool: makes the shards that are missing or damaged, with a progress bar.
        check: read the shards to see whether they are; else another process just did.

    Raises:
        DataError: a worker died or hangs.
        ConfigError: the folder cannot be written.
        DiskFullError: no space; what was made stays and is used by the next start.
    """

    def __init__(
        self,
        images: FileImages,
        folder: Path,
        spec: CacheSpec,
        pool: WorkerPool,
        check: bool = True,
    ) -> None:
        super().__init__(images.root, images.names)
        self.images = images
        self.spec = spec
        with write_errors(f"data.cache_dir={folder}", "; choose another"):
            folder.mkdir(parents=True, exist_ok=True)
        remove_stale(folder, f"{'[0-9a-f]' * 32}.shard")
        shards = _shards(images, folder, spec)
        with ThreadPoolExecutor(_THREADS) as threads:
            found = threads.map(lambda shard: _index(shard.path, check), shards)
            looked = console.progress(
                found, total=len(shards), desc="checking the cache", unit="shard"
            )
            indexes = list(looked)
        if damaged := indexes.count([]):
            console.warn(
                f"damaged shards of the image cache in {folder} are made anew "
                f"({damaged} of {len(shards)})"
            )
        missing = [i for i, index in enumerate(indexes) if not index]
        total = sum(len(shards[i].files) for i in missing)
        with console.progress(total=total, desc="caching") as bar:
            made = pool.map(make_shard, [shards[i] for i in missing])
            for i, index in zip(missing, made, strict=True):
                indexes[i] = index
                bar.update(len(index))
        self._entries = [
            (shard.path, entry)
            for shard, index in zip(shards, indexes, strict=True)
            for entry in index or []
        ]

    def path(self, index: int) -> ImageFile:
        """See FileImages."""
        return self.images.path(index)

    def source(self, index: int) -> ResizedImage:
        """Where image `index` is."""
        return ResizedImage(self.path(index), self.spec, *self._entries[index])


def make_shard(shard: Shard) -> Index:
    """Decode, make small and write the images of a shard.

    Raises:
        ConfigError: it cannot be written.
        DiskFullError: no space.
    """
    blobs: list[bytes] = []
    index: Index = []
    start = _NUMBER
    for file in shard.files:
        announce(str(file))
        blob, entry = _kept(file, shard.spec, start)
        blobs.append(blob)
        index.append(entry)
        start += len(blob)
    announce(shard.path)
    text = json.dumps(index).encode()
    content = b"".join([*blobs, text, _bytes(len(text))])
    path = Path(shard.path)
    with write_errors(f"data.cache_dir={path.parent}", "; choose another"):
        write_atomic(path, _bytes(zlib.crc32(content)) + content)
    return index


def _kept(file: ImageFile, spec: CacheSpec, start: int) -> tuple[bytes, Entry | None]:
    """What is kept of an image, from byte `start` on."""
    try:
        blob, height, width = resized_bytes(file, spec)
    except Exception as error:  # decoders raise a wide range of types
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            return b"", None  # not the image's fault, and it may pass
        return b"", (start, 0, 0, 0, reason(error))
    return blob, (start, len(blob), height, width, None)


def resized_bytes(file: ImageFile, spec: CacheSpec) -> tuple[bytes, int, int]:
    """An image as it is kept, and its height and width."""

    def min_size(height: int, width: int) -> tuple[int, int]:
        share = spec.size / min(height, width)
        return (height, width) if share >= 1 else (int(height * share), int(width * share))

    image = decode(file, spec.channels, min_size, spec.max_pixels)
    height, width, _ = image.shape
    short = min(height, width)
    if short > spec.size:
        height, width = spec.size * height // short, spec.size * width // short
        image = resize(image, height, width)
    image = np.ascontiguousarray(image)
    if spec.kind == "uint8":
        return image.tobytes(), height, width
    space = "RGB" if spec.channels == 3 else "GRAY"
    return simplejpeg.encode_jpeg(image, _QUALITY, space, colorsubsampling="420"), height, width


def _pixels(data: bytearray, height: int, width: int, spec: CacheSpec) -> np.ndarray:
    """The image that is kept as `data`, writable as torch wants it: uint8 (H, W, channels)."""
    if spec.kind == "jpeg":
        return decode(bytes(data), spec.channels)
    return np.frombuffer(data, np.uint8).reshape(height, width, spec.channels)


def _shards(images: FileImages, folder: Path, spec: CacheSpec) -> list[Shard]:
    """The shards of all images, named by their content."""
    every = range(len(images.names))
    # What the class was called when the first caches were made.
    made = repr((_VERSION, FORMATS, spec)).replace("CacheSpec(", "Recipe(").encode()

    def shard(first: int) -> Shard:
        part = every[first : first + _IMAGES]
        files = tuple(map(images.path, part))
        content = hashlib.blake2b(made, digest_size=16)
        for i, file in zip(part, files, strict=True):
            size, changed = look(file, by_content=False)
            text = f"{images.names[i]}\0{size}\0{changed}\0"
            content.update(text.encode("utf-8", "surrogateescape"))
        return Shard(str(folder / f"{content.hexdigest()}.shard"), files, spec)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(shard, every[::_IMAGES]))


def _index(path: str, check: bool) -> Index | None:
    """The index of a shard; empty if it is damaged, None if there is no shard."""
    try:
        with open(path, "rb") as file:
            expected, found = file.read(_NUMBER), 0
            while check and (block := file.read(_BLOCK)):
                found = zlib.crc32(block, found)
            if check and _bytes(found) != expected:
                return []
            file.seek(-_NUMBER, os.SEEK_END)
            length = int.from_bytes(file.read(_NUMBER), "little")
            file.seek(-_NUMBER - length, os.SEEK_END)
            index: Index = json.loads(file.read(length))
            return index
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return []


def _bytes(number: int) -> bytes:
    return number.to_bytes(_NUMBER, "little")
