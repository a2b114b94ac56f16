"""The manifest of a run: its images by split, with fingerprints, to notice what has changed.

Legend: N images of a split.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vit.data.task import numbers
from vit.data.types import DataSet, FileImages, ImageFile, Samples, strata
from vit.errors import DataError
from vit.runtime import console

CONTENT_UP_TO = 10_000
"""So many files are known by their content, more by the time of their last change."""
_UNUSED = ", unused"
_THREADS = 16
_AT_ONCE = 64


@dataclass(frozen=True)
class Entries:
    """The images of a split, N of them.

    Attributes:
        names: paths below the root, or numbers.
        labels: as in `Samples`, int64 (N,) or uint8 (N, K).
        sizes: in bytes, int64 (N,); -1: cannot be read.
        hashes: uint64 (N,), of the content or of the time.
        weights: in the loss, float32 (N,); None: all the same.
    """

    names: Sequence[str]
    labels: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    weights: np.ndarray | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, a list for each attribute."""
        plain = {
            "names": list(self.names), "labels": _plain(self.labels),
            "sizes": self.sizes.tolist(), "hashes": [f"{h:016x}" for h in self.hashes.tolist()],
        }  # fmt: skip
        return plain if self.weights is None else {**plain, "weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, plain: dict[str, Any], classes: int) -> Entries:
        """Back from `as_json`."""
        hashes = np.array([int(text, 16) for text in plain["hashes"]], np.uint64)
        return cls(
            plain["names"], _from_plain(plain["labels"], classes),
            np.array(plain["sizes"], np.int64), hashes,
            np.array(plain["weights"], np.float32) if "weights" in plain else None,
        )  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """The images of a run.

    Attributes:
        classes: their names.
        by_content: hashes are of the content; else of the times of the files' last change.
        splits: by name; what was kept out of a split is called `<split>, unused`.
        groups: names of splits that were listed together.
        before: training images of the runs whose weights this one started from.
    """

    classes: list[str]
    by_content: bool
    splits: dict[str, Entries]
    groups: list[list[str]]
    before: list[Manifest] = field(default_factory=list)

    @classmethod
    def of(cls, data: DataSet, before: Sequence[Manifest] = ()) -> Manifest:
        """Of a data set as it is now, in a run that starts from the weights of others."""
        splits = _all_splits(data)
        groups: dict[int, list[str]] = {}
        for name, samples in splits.items():
            groups.setdefault(id(samples.images), []).append(name)
        in_files = isinstance(data.splits["train"].images, FileImages)
        by_content = not in_files or sum(map(len, splits.values())) <= CONTENT_UP_TO
        entries = {
            name: Entries(
                samples.names, samples.labels, *fingerprints(samples, by_content), samples.weights
            )
            for name, samples in splits.items()
        }
        return cls(data.classes, by_content, entries, list(groups.values()), list(before))

    def trained(self) -> list[Manifest]:
        """What weights of the run were trained on, by this run and by those before."""
        own = replace(self, splits={"train": self.splits["train"]}, groups=[["train"]], before=[])
        return [own, *self.before]

    def digest(self) -> str:
        """Of all that it says: 32 hexadecimal digits."""
        return hashlib.blake2b(self._text(), digest_size=16).hexdigest()

    def to_bytes(self) -> bytes:
        """A gzipped JSON file."""
        return gzip.compress(self._text(), 6, mtime=0)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Back from `to_bytes`.

        Raises:
            ValueError, OSError, EOFError, LookupError, TypeError, zlib.error: it is damaged.
        """
        return cls._from_json(json.loads(gzip.decompress(data)))

    def _text(self) -> bytes:
        return json.dumps(self._as_json(), separators=(",", ":")).encode()

    def _as_json(self) -> dict[str, Any]:
        return {
            "classes": self.classes, "by_content": self.by_content, "groups": self.groups,
            "splits": {name: entries.as_json() for name, entries in self.splits.items()},
            "before": [other._as_json() for other in self.before],
        }  # fmt: skip

    @classmethod
    def _from_json(cls, plain: dict[str, Any]) -> Manifest:
        splits = {
            name: Entries.from_json(entries, len(plain["classes"]))
            for name, entries in plain["splits"].items()
        }
        before = [cls._from_json(other) for other in plain["before"]]
        return cls(plain["classes"], plain["by_content"], splits, plain["groups"], before)


@dataclass(frozen=True)
class Restored:
    """The images of a run, in a data set that may have changed since.

    Attributes:
        data: the run's own splits; images that are gone are still among them.
        added: names of images that came since.
        gone: positions of images that are gone, by split.
        relabelled: names of images whose label or weight is another now; those of the run stay.
    """

    data: DataSet
    added: list[str]
    gone: dict[str, np.ndarray]
    relabelled: list[str]


def restore(manifest: Manifest, now: DataSet) -> Restored:
    """The run's own images, compared with the data set as it is listed now.

    Raises:
        DataError: a data set that is no files is another than the run's.
    """
    listed = _all_splits(now)
    there = {name for samples in listed.values() for name in samples.names}
    own = {name for entries in manifest.splits.values() for name in entries.names}
    splits = _rebuilt(manifest, listed)
    used = {name: samples for name, samples in splits.items() if not name.endswith(_UNUSED)}
    unused = {name.removesuffix(_UNUSED): splits[name] for name in splits.keys() - used.keys()}
    gone = {
        split: np.array([i for i, name in enumerate(samples.names) if name not in there], np.int64)
        for split, samples in used.items()
    }
    same = {name for name in splits.keys() & listed if _is_same(splits[name], listed[name])}
    before, after = (_labels(found[name] for name in found.keys() - same)
                     for found in (splits, listed))  # fmt: skip
    other = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    return Restored(DataSet(now.classes, used, unused), sorted(there - own), gone, other)


def _plain(labels: np.ndarray) -> list[Any]:
    """Labels as plain values; of several the numbers of those that an image has."""
    if labels.ndim == 1:
        plain: list[Any] = labels.tolist()
        return plain
    return numbers(labels)


def _from_plain(plain: list[Any], classes: int) -> np.ndarray:
    """Back from `_plain`."""
    if not plain or not isinstance(plain[0], list):
        return np.array(plain, np.int64)
    labels = np.zeros((len(plain), classes), np.uint8)
    for row, own in zip(labels, plain, strict=True):
        row[own] = 1
    return labels


def _is_same(one: Samples, other: Samples) -> bool:
    """Whether two lists have the same names, labels and weights, in the same order."""
    same_labels = np.array_equal(one.labels, other.labels)
    same_weights = np.array_equal(one.weights, other.weights)  # type: ignore[arg-type]  # or None
    return same_labels and same_weights and list(one.names) == list(other.names)


def _labels(splits: Iterable[Samples]) -> dict[str, tuple[int, float]]:
    """Label and weight of each image, by its name."""
    found: dict[str, tuple[int, float]] = {}
    for samples in splits:
        weights = np.ones(len(samples)) if samples.weights is None else samples.weights
        known = zip(_plain(samples.labels), weights.tolist(), strict=True)
        found |= zip(samples.names, known, strict=True)
    return found


def changed(manifest: Manifest, restored: Restored, split: str) -> list[str]:
    """Names of images of a split, as far as they are there, whose size or hash is another now."""
    entries, samples = manifest.splits[split], restored.data.splits[split]
    there = np.setdiff1d(np.arange(len(samples)), restored.gone[split])
    sizes, hashes = fingerprints(samples.take(there), manifest.by_content)
    other = there[(sizes != entries.sizes[there]) | (hashes != entries.hashes[there])]
    return [entries.names[i] for i in other.tolist()]


def known_among(samples: Samples, known: Sequence[Manifest]) -> np.ndarray:
    """Which images of a split are among those that `known` lists: bool (N,).

    Those known by content are found under any name, the others by name and size.
    """
    found = np.zeros(len(samples), dtype=bool)
    sizes, _ = fingerprints(samples, by_content=False)
    for manifest in known:
        for entries in manifest.splits.values():
            likely = np.flatnonzero(np.isin(sizes, entries.sizes) & (sizes >= 0) & ~found)
            if manifest.by_content:
                _, hashes = fingerprints(samples.take(likely), by_content=True)
                theirs, ours = entries.hashes.tolist(), hashes.tolist()
            else:
                theirs, ours = entries.names, [samples.names[i] for i in likely.tolist()]
            listed = set(zip(entries.sizes.tolist(), theirs, strict=True))
            asked = zip(sizes[likely].tolist(), ours, strict=True)
            found[likely] = [pair in listed for pair in asked]
    return found


def without(data: DataSet, known: Sequence[Manifest]) -> DataSet:
    """The data set, less the images of `val` and `test` that are among those that `known` lists."""
    splits, unused, notes = dict(data.splits), dict(data.unused), list(data.notes)
    for split in [name for name in ("val", "test") if name in splits and known]:
        seen = known_among(splits[split], known)
        if seen.any():
            notes.append(
                f"left out of {split}: {seen.sum():,} of {len(seen):,} images, which the weights "
                f"were trained on"
            )
            unused[split] = splits[split].take(np.flatnonzero(seen))
            splits[split] = splits[split].take(np.flatnonzero(~seen))
            if not len(splits[split]):
                del splits[split]
    return replace(data, splits=splits, unused=unused, notes=notes)


def _all_splits(data: DataSet) -> dict[str, Samples]:
    return {**data.splits, **{f"{name}{_UNUSED}": rest for name, rest in data.unused.items()}}


def _rebuilt(manifest: Manifest, listed: dict[str, Samples]) -> dict[str, Samples]:
    """The splits that `manifest` lists, of the images that are `listed` now."""
    found: dict[str, Samples] = {}
    for group in manifest.groups:
        images = listed.get(group[0].removesuffix(_UNUSED), listed["train"]).images
        together = [manifest.splits[split] for split in group]
        names = [name for entries in together for name in entries.names]
        if isinstance(images, np.ndarray):  # names are numbers
            place = np.array([int(name) for name in names])
            if place.max() >= len(images):
                raise DataError(
                    f"the data set has {len(images):,} images, fewer than when the run "
                    f"started; give the data it was trained on"
                )
        else:  # by class and then by name, as they were listed before they were cut
            labels = np.concatenate([strata(entries.labels) for entries in together])
            order = sorted(range(len(names)), key=lambda i: (labels[i], names[i]))
            place = np.argsort(order)
            images = images.of([names[i] for i in order])
        ends = np.cumsum([len(entries.names) for entries in together])[:-1]
        for split, entries, index in zip(group, together, np.split(place, ends), strict=True):
            found[split] = Samples(entries.labels, entries.names, images, index, entries.weights)
    return {split: found[split] for split in manifest.splits}


def fingerprints(samples: Samples, by_content: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sizes in bytes, int64 (N,), and hashes, uint64 (N,), of the content or the time of change.

    An image that cannot be read has size -1 and hash 0.
    """
    images = samples.images
    if isinstance(images, np.ndarray):
        pixels = (images[i].tobytes() for i in samples.index)
        found = [(len(data), content_hash(data)) for data in pixels]
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
            for part in threads.map(lambda part: [look(path, by_content) for path in part], parts):
                found += part
                bar.update(len(part))
    sizes, hashes = zip(*found, strict=True) if found else ((), ())
    return np.array(sizes, np.int64), np.array(hashes, np.uint64)


def look(path: ImageFile, by_content: bool) -> tuple[int, int]:
    """Size of a file, and the hash of its content or the time of its last change; -1 and 0: it
    cannot be read.
    """
    if not isinstance(path, str):
        return path.size, path.hash
    try:
        if by_content:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, _hash)
                return file.tell(), _number(digest)
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns % 2**64
    except OSError:
        return -1, 0


def content_hash(data: bytes) -> int:
    """Of the content of a file, 64 bits."""
    return _number(_hash(data))


def _hash(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=8)


def _number(digest: Any) -> int:
    return int.from_bytes(digest.digest(), "big")
