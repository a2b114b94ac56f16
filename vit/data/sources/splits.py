"""Cuts that depend on `split_seed` and each image's name alone, so that all runs share one test set
and an added, removed or renamed image moves no other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from vit.data.types import Samples
from vit.runtime.seeding import numpy_generator


@dataclass(frozen=True)
class Cutter:
    """How parts are cut off a split.

    Attributes:
        split_seed: decides which images are chosen.
        by: `name`, or `position` in the list, which is what earlier versions went by.
        small: is told the number of each class that is so small that its one image, or all but one,
            were chosen by rank and not by share.
    """

    split_seed: int
    by: str = "name"
    small: set[int] = field(default_factory=set)

    def cut(self, samples: Samples, fraction: float, part: str) -> tuple[Samples, Samples]:
        """Cut a share of every class off.

        Args:
            fraction: share of each class that is cut off, in [0, 1).
            part: name of the part that is cut off; cuts of different parts are independent.

        Returns:
            (the rest, the part), both in the original order. By name, an image belongs to the part
            if the hash of (split_seed, part, name) is in the lowest `fraction` of all hashes: the
            share is met on average. A class with two or more samples keeps at least one in the
            rest and gives at least one, unless `fraction` is 0.
        """
        if fraction == 0:
            return samples, samples.take(np.arange(0))
        chosen = np.zeros(len(samples), dtype=bool)
        hashes = self._hashes(samples.names, part)
        for label, ranked in self._ranked(samples.labels, hashes, part):
            total = len(ranked)
            share = round(fraction * total)
            if hashes is not None:
                share = int(np.count_nonzero(hashes[ranked] < int(fraction * 2**64)))
            count = min(max(share, 1), total - 1)
            chosen[ranked[:count]] = True
            if hashes is not None and count != share:
                self.small.add(label)
        return samples.take(np.flatnonzero(~chosen)), samples.take(np.flatnonzero(chosen))

    def limit(self, samples: Samples, per_class: int) -> tuple[Samples, Samples]:
        """At most `per_class` samples of each class, and those left over; in the original order.

        Those of a smaller limit are among those of a larger.
        """
        chosen = np.zeros(len(samples), dtype=bool)
        hashes = self._hashes(samples.names, "limit")
        for _, ranked in self._ranked(samples.labels, hashes, "limit"):
            chosen[ranked[:per_class]] = True
        return samples.take(np.flatnonzero(chosen)), samples.take(np.flatnonzero(~chosen))

    def complete(
        self, splits: dict[str, Samples], val_fraction: float, test_fraction: float
    ) -> dict[str, Samples]:
        """Give a data set its `train`, `val` and `test`, as far as fractions allow.

        Named splits stay as they are. With `train` and one of `val` and `test`, that one is the
        test set and validation is cut from train. With `train` alone both are cut. Splits without
        a sample are left out.
        """
        splits = dict(splits)
        whole = train = splits["train"]
        share = val_fraction
        if "test" not in splits and "val" in splits:
            splits["test"] = splits.pop("val")
        if "test" not in splits:
            train, splits["test"] = self.cut(train, test_fraction, "test")
            share /= 1 - test_fraction  # of the whole, before test was cut off
        if "val" not in splits:
            if self.by == "position":
                share = val_fraction * len(whole) / max(len(train), 1)
            train, splits["val"] = self.cut(train, min(share, 0.999), "val")
        splits["train"] = train
        return {name: splits[name] for name in ("train", "val", "test") if len(splits[name])}

    def _hashes(self, names: Sequence[str], part: str) -> np.ndarray | None:
        """A number for each name, evenly spread over 64 bits: uint64 (N,); None: not by name."""
        if self.by != "name":
            return None
        start = hashlib.blake2b(f"{self.split_seed}\0{part}\0".encode(), digest_size=8)
        found = bytearray()
        for name in names:
            one = start.copy()
            one.update(name.replace(os.sep, "/").encode("utf-8", "surrogateescape"))
            found += one.digest()
        return np.frombuffer(bytes(found), ">u8").astype(np.uint64)

    def _ranked(
        self, labels: np.ndarray, hashes: np.ndarray | None, part: str
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Each class and where its images are, int64 (n,), those to be chosen first in front."""
        order = np.lexsort((labels if hashes is None else hashes, labels))
        for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            label = int(labels[members[0]])
            if hashes is None:
                members = numpy_generator(self.split_seed, part, label).permutation(members)
            yield label, members
