"""A survey of a data set as a training would see it: each image is decoded once, small.

Legend: N images of all splits.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from imagehash import phash
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vit.config.schema import DataConfig
from vit.data.manifest import content_hash
from vit.data.reading.decode import content_of, decode, reason
from vit.data.reading.workers import WorkerPool, announce, worker_count
from vit.data.task import Task, numbers, task_of
from vit.data.types import DataSet, ImageFile
from vit.runtime import console

_SIDE = 32
"""Of the gray image that likeness is told by."""
_BITS_APART = 8
_CORRELATED = 0.9
"""Two images look alike if so many of the 64 bits of their hashes differ at most, and their gray
images correlate so much at least, whatever their brightness and contrast."""
_BANDS = (0, 13, 26, 39, 52)
"""Where each of five parts of a hash begins. Hashes that share none are not compared: none of those
that differ in up to four bits, some of the others (of CIFAR-10's 551 such pairs 54)."""
_LEAST = 16
"""Smaller images show too little to be told apart by this."""
_AT_ONCE = 64
_ELONGATED, _SMALL = 4, 4
"""An odd image has one side so many times the other, or a shorter side so many times smaller than
most."""


Look = tuple[int, int, str, int, str, bytes]
"""What is seen of an image, as `Seen` has it, from its height on."""


@dataclass(frozen=True, eq=False)
class Seen:
    """An image.

    Attributes:
        number: among all.
        split, classes, name, source: as listed.
        height, width: upright, in pixels; 0: not known.
        kind: format and mode, by Pillow's names.
        digest: of the content of its file.
        damage: why it cannot be decoded, or nothing.
        small: gray, uint8 (32, 32).
    """

    number: int
    split: str
    classes: tuple[str, ...]
    name: str
    source: ImageFile | np.ndarray
    height: int
    width: int
    kind: str
    digest: int
    damage: str
    small: bytes

    @property
    def title(self) -> str:
        """What its classes are called."""
        return "; ".join(self.classes) or "no label"


Sets = list[list[Seen]]


@dataclass(frozen=True)
class Survey:
    """What there is in a data set."""

    data: DataSet
    images: list[Seen]

    @property
    def task(self) -> Task:
        """Which kind of labels it has."""
        return task_of(self.data.splits["train"].labels)

    @classmethod
    def of(cls, data: DataSet, config: DataConfig) -> Survey:
        """Look at every image, as `config` says images are read.

        Raises:
            DataError: a worker died or hangs.
        """
        listed = [
            (
                split, tuple(data.classes[k] for k in own), name,
                place[i] if isinstance(place, np.ndarray) else place.path(i),
            )
            for split, samples in data.splits.items()
            for place in [samples.images]
            for own, name, i in zip(
                numbers(samples.labels), samples.names, samples.index.tolist(), strict=True
            )
        ]  # fmt: skip
        workers = worker_count(config.workers, alone=True)
        pool = WorkerPool(workers, config.timeout).for_images(len(listed))
        parts = [listed[start : start + _AT_ONCE] for start in range(0, len(listed), _AT_ONCE)]
        tasks = [([source for *_, source in part], config.max_pixels) for part in parts]
        looks: list[Look] = []
        with console.progress(total=len(listed), desc="looking at images") as bar:
            for found in pool.map(look_at, tasks):
                looks += found
                bar.update(len(found))
        pool.stop()
        images = [
            Seen(number, split, classes, name, source, *look)
            for number, ((split, classes, name, source), look) in enumerate(
                zip(listed, looks, strict=True)
            )
        ]
        return cls(data, images)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Height and width where they are known, by their shorter side: int64 (n, 2), n > 0."""
        known = [(seen.height, seen.width) for seen in self.images if seen.height]
        by_side = sorted(known, key=lambda size: (min(size), max(size)))
        return np.array(by_side or [(0, 0)], np.int64)

    def odd(self) -> list[Seen]:
        """Images that are very elongated, or much smaller than most."""
        usual = int(self.sizes[len(self.sizes) // 2].min())
        return [
            seen
            for seen in self.images
            if (short := min(seen.height, seen.width))
            and (max(seen.height, seen.width) > _ELONGATED * short or _SMALL * short < usual)
        ]

    @cached_property
    def same(self) -> Sets:
        """Sets of images whose files have the same content, those first that are in several
        classes, then in several splits.
        """
        return _ranked(self._by_content.values())

    @cached_property
    def alike(self) -> Sets:
        """As `same`, of images that look the same, but are not: one of each content."""
        first = (images[0] for images in self._by_content.values())
        one = [seen for seen in first if min(seen.height, seen.width) >= _LEAST]
        if not one:
            return []
        small = np.frombuffer(b"".join(seen.small for seen in one), np.uint8)
        small = small.reshape(-1, _SIDE, _SIDE)
        pairs = np.concatenate([*_near(perceptual_hashes(small), small)], axis=1)
        links = coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(len(one), len(one)))
        sets: dict[int, list[Seen]] = defaultdict(list)
        for seen, number in zip(one, connected_components(links)[1].tolist(), strict=True):
            sets[number].append(seen)
        return _ranked(sets.values())

    @cached_property
    def _by_content(self) -> dict[int, list[Seen]]:
        found: dict[int, list[Seen]] = defaultdict(list)
        for seen in self.images:
            if not seen.damage:
                found[seen.digest].append(seen)
        return found


def contradict(images: list[Seen]) -> bool:
    """Whether images are of several classes."""
    return len({seen.classes for seen in images}) > 1


def leak(images: list[Seen]) -> bool:
    """Whether images are in several splits."""
    return len({seen.split for seen in images}) > 1


def _ranked(sets: Iterable[list[Seen]]) -> Sets:
    several = [images for images in sets if len(images) > 1]
    return sorted(several, key=lambda s: (not contradict(s), not leak(s), s[0].number))


def look_at(task: tuple[Sequence[ImageFile | np.ndarray], int]) -> list[Look]:
    """What is seen of images, of which none may have more than so many pixels."""
    sources, max_pixels = task
    found = []
    for source in sources:
        if isinstance(source, np.ndarray):
            image, digest = as_image(source), content_hash(source.tobytes())
            small = _small(np.asarray(image.convert("L")))
            found.append((image.height, image.width, f"held {image.mode}", digest, "", small))
        else:
            announce(str(source))
            found.append(_look(source, max_pixels))
    announce("")
    return found


def _look(source: ImageFile, max_pixels: int) -> Look:
    size, kind, digest = (0, 0), "unknown", 0

    def min_size(height: int, width: int) -> tuple[int, int]:
        nonlocal size
        size = height, width
        return _SIDE, _SIDE

    try:
        content = content_of(source)
        digest = content_hash(content)
        with suppress(Exception), Image.open(io.BytesIO(content)) as file:
            kind = f"{file.format} {file.mode}"
        small = _small(decode(content, 1, min_size, max_pixels)[..., 0])
    except Exception as error:  # decoders raise a wide range of types
        return *size, kind, digest, reason(error), b""
    return *size, kind, digest, "", small


def as_image(pixels: np.ndarray) -> Image.Image:
    """An image that is held, uint8 (C, height, width)."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _small(gray: np.ndarray) -> bytes:
    image = Image.fromarray(gray).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return image.tobytes()


def perceptual_hashes(small: np.ndarray) -> np.ndarray:
    """pHash: which of an image's lowest frequencies are above their median: (N, 32, 32) -> uint64
    (N,).
    """
    bits = np.array([phash(Image.fromarray(image)).hash.ravel() for image in small])
    hashes: np.ndarray = np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return hashes


def _near(hashes: np.ndarray, small: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of images that look alike, int64 (2, n), some of them several times."""
    for start in _BANDS:
        part = hashes >> np.uint64(start) & np.uint64(2**13 - 1)
        order = np.argsort(part, kind="stable")
        part, at, step = part[order], np.arange(len(part)), 0
        while len(at):
            step += 1
            at = at[at + step < len(part)]
            at = at[part[at] == part[at + step]]
            a, b = order[at], order[at + step]
            close = np.bitwise_count(hashes[a] ^ hashes[b]) <= _BITS_APART
            a, b = a[close], b[close]
            correlation = np.einsum("nij,nij->n", _standard(small[a]), _standard(small[b]))
            yield np.stack([a, b])[:, correlation >= _CORRELATED]


def _standard(small: np.ndarray) -> np.ndarray:
    """Of mean 0 and norm 1, in float32; of one colour all 0."""
    centred = small - small.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    norm = np.sqrt(np.square(centred).sum(axis=(1, 2), keepdims=True))
    standard: np.ndarray = centred / np.maximum(norm, 1)
    return standard
