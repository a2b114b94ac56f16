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
from vit.data.task import numbers
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


@dataclass(frozen=True)
class Seen:
    """What was seen of an image.

    Attributes:
        height, width: upright, in pixels; 0: not known.
        kind: format and mode, by Pillow's names.
        digest: of the content of its file.
        damage: why it cannot be decoded, or nothing.
        small: gray, uint8 (32, 32).
    """

    height: int
    width: int
    kind: str
    digest: int
    damage: str
    small: bytes = b""


@dataclass(frozen=True)
class Survey:
    """What there is in a data set.

    Attributes:
        data: its splits.
        splits, names, labels, sources: of each of the N images; its labels are class numbers.
        seen: what was seen of each.
    """

    data: DataSet
    splits: list[str]
    names: list[str]
    labels: list[frozenset[int]]
    sources: Sequence[ImageFile | np.ndarray]
    seen: list[Seen]

    @classmethod
    def of(cls, data: DataSet, config: DataConfig) -> Survey:
        """Look at every image, as `config` says images are read.

        Raises:
            DataError: a worker died or hangs.
        """
        parts = list(data.splits.items())
        names = [name for _, samples in parts for name in samples.names]
        sources = [
            images[i] if isinstance(images := samples.images, np.ndarray) else images.path(i)
            for _, samples in parts
            for i in samples.index.tolist()
        ]
        pool = WorkerPool(worker_count(config.workers, alone=True), config.timeout)
        pool = pool.for_images(len(names))
        seen: list[Seen] = []
        tasks = [
            (sources[start : start + _AT_ONCE], config.max_pixels)
            for start in range(0, len(names), _AT_ONCE)
        ]
        with console.progress(total=len(names), desc="looking at images") as bar:
            for found in pool.map(look_at, tasks):
                seen += found
                bar.update(len(found))
        pool.stop()
        splits = [split for split, samples in parts for _ in samples.names]
        labels = [frozenset(own) for _, samples in parts for own in numbers(samples.labels)]
        return cls(data, splits, names, labels, sources, seen)

    def damaged(self) -> dict[str, dict[int, str]]:
        """Of each split the images that cannot be decoded, by position, with the reasons."""
        found: dict[str, dict[int, str]] = {}
        start = 0
        for split, samples in self.data.splits.items():
            own = enumerate(self.seen[start : start + len(samples)])
            found[split] = {i: seen.damage for i, seen in own if seen.damage}
            start += len(samples)
        return found

    @cached_property
    def sizes(self) -> np.ndarray:
        """Height and width where they are known, by their shorter side: int64 (n, 2), n > 0."""
        known = [(seen.height, seen.width) for seen in self.seen if seen.height]
        by_side = sorted(known, key=lambda size: (min(size), max(size)))
        return np.array(by_side or [(0, 0)], np.int64)

    def odd(self) -> list[int]:
        """Images that are very elongated, or much smaller than most."""
        usual = int(self.sizes[len(self.sizes) // 2].min())
        sides = (sorted((seen.height, seen.width)) for seen in self.seen)
        return [
            i
            for i, (short, long) in enumerate(sides)
            if short and (long > _ELONGATED * short or _SMALL * short < usual)
        ]

    @cached_property
    def same(self) -> list[list[int]]:
        """Sets of images whose files have the same content, those first that are in several
        classes, then in several splits.
        """
        return self._ranked(self._by_content.values())

    @cached_property
    def alike(self) -> list[list[int]]:
        """As `same`, of images that look the same, but are not: one of each content."""
        first = (images[0] for images in self._by_content.values())
        one = np.array(
            [i for i in first if min(self.seen[i].height, self.seen[i].width) >= _LEAST], np.int64
        )
        if not len(one):
            return []
        small = np.frombuffer(b"".join(self.seen[i].small for i in one.tolist()), np.uint8)
        small = small.reshape(-1, _SIDE, _SIDE)
        pairs = np.concatenate([*_near(perceptual_hashes(small), small)], axis=1)
        links = coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(len(one), len(one)))
        sets: dict[int, list[int]] = defaultdict(list)
        for image, number in zip(
            one.tolist(), connected_components(links)[1].tolist(), strict=True
        ):
            sets[number].append(image)
        return self._ranked(sets.values())

    @cached_property
    def _by_content(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for i, seen in enumerate(self.seen):
            if not seen.damage:
                found[seen.digest].append(i)
        return found

    def classes_of(self, image: int) -> str:
        """The names of its classes."""
        return "; ".join(self.data.classes[k] for k in sorted(self.labels[image])) or "no label"

    def contradicts(self, images: list[int]) -> bool:
        """Whether images are of several classes."""
        return len({self.labels[i] for i in images}) > 1

    def leaks(self, images: list[int]) -> bool:
        """Whether images are in several splits."""
        return len({self.splits[i] for i in images}) > 1

    def _ranked(self, sets: Iterable[list[int]]) -> list[list[int]]:
        several = [images for images in sets if len(images) > 1]
        return sorted(several, key=lambda s: (not self.contradicts(s), not self.leaks(s), s[0]))


def look_at(task: tuple[Sequence[ImageFile | np.ndarray], int]) -> list[Seen]:
    """What is seen of images, of which none may have more than so many pixels."""
    sources, max_pixels = task
    found = []
    for source in sources:
        if isinstance(source, np.ndarray):
            image, digest = as_image(source), content_hash(source.tobytes())
            small, kind = _small(np.asarray(image.convert("L"))), f"held {image.mode}"
            found.append(Seen(image.height, image.width, kind, digest, "", small))
        else:
            announce(str(source))
            found.append(_look(source, max_pixels))
    announce("")
    return found


def _look(source: ImageFile, max_pixels: int) -> Seen:
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
        return Seen(*size, kind, digest, reason(error))
    return Seen(*size, kind, digest, "", small)


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
