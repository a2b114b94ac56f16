"""Image files to uint8 pixels, in parallel, with every bad file named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from vit.config.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 100_000_000
CHUNK = 128
POOL_FROM = 1024
"""Fewer images than this are decoded in the process itself: a pool would take longer to start."""


def decode(path: str, size: int, channels: int) -> np.ndarray:
    """One image, upright, its centre square resized to `size`: uint8 (channels, size, size).

    Raises:
        OSError, ValueError, SyntaxError: the file is no image that we read, or damaged.
    """
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as file:
            image = flatten(ImageOps.exif_transpose(file)).convert("RGB" if channels == 3 else "L")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def flatten(image: Image.Image) -> Image.Image:
    """8 bits a channel and no transparency: 16-bit values are halved in depth, what is
    transparent is laid on white.
    """
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image


def worker_count(workers: int | str) -> int:
    """`auto` is one per processor that this process may use, at most 16."""
    if isinstance(workers, int):
        return workers
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(available, 16)


class FileImages:
    """Images in files, decoded when they are read.

    Args:
        paths: one file per image.
        size: side of the square they are resized to, in pixels.
        channels: 3 (RGB) or 1 (gray).
    """

    def __init__(self, paths: Sequence[str], size: int, channels: int) -> None:
        self.paths = paths
        self.size = size
        self.channels = channels

    def read(self, index: np.ndarray, workers: int) -> np.ndarray:
        """The images `index` (n,), with a progress bar: uint8 (n, channels, size, size).

        Raises:
            DataError: naming every file that cannot be decoded, up to ten.
        """
        paths = [self.paths[i] for i in index]
        pixels = np.empty((len(paths), self.channels, self.size, self.size), np.uint8)
        chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
        bad: list[str] = []
        done = 0
        with tqdm(total=len(paths), desc="decoding", unit="img", disable=None, leave=False) as bar:
            for decoded in self._decode(chunks, workers if len(paths) >= POOL_FROM else 0):
                for image in decoded:
                    if isinstance(image, str):
                        bad.append(image)
                    else:
                        pixels[done] = image
                    done += 1
                bar.update(len(decoded))
        if bad:
            more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise DataError(
                f"{len(bad)} of {len(paths)} images cannot be decoded; repair or remove "
                f"{'; '.join(bad[:10])}{more}"
            )
        return pixels

    def _decode(self, chunks: list[list[str]], workers: int) -> Iterator[list[np.ndarray | str]]:
        job = partial(_decode_chunk, size=self.size, channels=self.channels)
        if workers == 0:
            yield from map(job, chunks)
            return
        # A fresh interpreter per worker: forking a process that runs torch's threads can hang.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(workers, context, _ignore_interrupt) as pool:
                yield from pool.map(job, chunks)
        except BrokenProcessPool:
            raise DataError(
                "a decoding process was killed, perhaps for memory; try data.workers=0"
            ) from None


def _decode_chunk(paths: Iterable[str], size: int, channels: int) -> list[np.ndarray | str]:
    """Pixels of each file, or `path (reason)` where it cannot be decoded."""
    decoded: list[np.ndarray | str] = []
    for path in paths:
        try:
            decoded.append(decode(path, size, channels))
        except Exception as error:  # Pillow's decoders raise a wide range of types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            decoded.append(f"{path} ({reason.replace(repr(path), 'it')})")
    return decoded


def _ignore_interrupt() -> None:
    """Ctrl-C goes to the whole process group; the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
