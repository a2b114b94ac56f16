"""Cuts that depend on `split_seed` and each image's name alone, so that all runs share one test set
and an added, removed or renamed image moves no other.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vit.data.types import Samples, strata
from vit.errors import DataError, shortened
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
        if samples.groups is not None:
            groups, members = np.unique(np.array(samples.groups), return_inverse=True)
            numbers = self._hashes(groups.tolist(), part)
            share = int(np.count_nonzero(numbers < int(fraction * 2**64)))
            first = np.argsort(numbers, kind="stable")[: min(max(share, 1), len(groups) - 1)]
            return _parted(samples, np.isin(members, first))
        hashes = self._hashes(samples.names, part) if self.by == "name" else None
        for label, ranked in self._ranked(samples.labels, hashes, part):
            total = len(ranked)
            share = round(fraction * total)
            if hashes is not None:
                share = int(np.count_nonzero(hashes[ranked] < int(fraction * 2**64)))
            count = min(max(share, 1), total - 1)
            chosen[ranked[:count]] = True
            if hashes is not None and count != share:
                self.small.add(label)
        return _parted(samples, chosen)

    def fold(self, samples: Samples, number: int, folds: int) -> tuple[Samples, Samples]:
        """Cut one of `folds` parts off, as good as equal ones, in which every sample is once.

        By hash, as `cut`; where a part would have no sample of a class (or no group), those of the
        class (or the groups) are dealt out in the order of their hashes. Classes with fewer samples
        than there are parts count as one.

        Raises:
            DataError: there are fewer samples, or groups, than parts.
        """
        if len(samples) < folds:
            raise DataError(f"data.folds={folds} is more than the {len(samples)} images; give more")
        if samples.groups is None:
            parts = np.zeros(len(samples), np.int64)
            hashes = self._hashes(samples.names, "fold")
            labels = strata(samples.labels)
            labels = np.where(np.bincount(labels)[labels] < folds, -1, labels)
            for _, ranked in self._ranked(labels, hashes, "fold"):
                parts[ranked] = _dealt(hashes[ranked], folds)
        else:
            groups, members = np.unique(np.array(samples.groups), return_inverse=True)
            if len(groups) < folds:
                raise DataError(
                    f"data.folds={folds} is more than the {len(groups)} groups; "
                    f"try data.folds={max(len(groups), 2)}"
                )
            parts = _dealt(self._hashes(groups.tolist(), "fold"), folds)[members]
        return _parted(samples, parts == number)

    def limit(self, samples: Samples, per_class: int) -> tuple[Samples, Samples]:
        """At most `per_class` samples of each class, and those left over; in the original order.

        Those of a smaller limit are among those of a larger.
        """
        chosen = np.zeros(len(samples), dtype=bool)
        hashes = self._hashes(samples.names, "limit") if self.by == "name" else None
        for _, ranked in self._ranked(samples.labels, hashes, "limit"):
            chosen[ranked[:per_class]] = True
        return _parted(samples, ~chosen)

    def complete(
        self, splits: dict[str, Samples], val_fraction: float, test_fraction: float,
        fold: tuple[int, int] | None = None,
    ) -> dict[str, Samples]:  # fmt: skip
        """Give a data set its `train`, `val` and `test`, as far as fractions allow.

        Named splits stay as they are. With `train` and one of `val` and `test`, that one is the
        test set and validation is cut from train. With `train` alone both are cut, and the test
        set is the `fold`, (number, folds), if there is one. Splits without a sample are left out.

        Raises:
            DataError: a fold of what has a test set, or a group that is in two splits.
        """
        splits = dict(splits)
        whole = train = splits["train"]
        share = val_fraction
        if "test" not in splits and "val" in splits:
            splits["test"] = splits.pop("val")
        if fold is not None and "test" in splits:
            raise DataError(
                "data.folds cuts the test set, and the data has one of its own; give "
                "data.folds=null data.fold=null, or the data without splits"
            )
        if fold is not None:
            train, splits["test"] = self.fold(train, *fold)
            share /= 1 - 1 / fold[1]
        elif "test" not in splits:
            train, splits["test"] = self.cut(train, test_fraction, "test")
            share /= 1 - test_fraction  # of the whole, before test was cut off
        if "val" not in splits:
            if self.by == "position":
                share = val_fraction * len(whole) / max(len(train), 1)
            train, splits["val"] = self.cut(train, min(share, 0.999), "val")
        splits["train"] = train
        _check_groups(splits)
        return {name: splits[name] for name in ("train", "val", "test") if len(splits[name])}

    def _hashes(self, names: Sequence[str], part: str) -> np.ndarray:
        """A number for each name, evenly spread over 64 bits: uint64 (N,)."""
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
        labels = strata(labels)
        order = np.lexsort((labels if hashes is None else hashes, labels))
        for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            label = int(labels[members[0]])
            if hashes is None:
                members = numpy_generator(self.split_seed, part, label).permutation(members)
            yield label, members


def grouped(samples: Samples, pattern: str) -> Samples:
    """The samples, in groups of what `pattern`, a regular expression, finds in their names: what is
    in its parentheses, if it has some.

    Raises:
        DataError: it finds nothing in some of them.
    """
    found = [re.search(pattern, name.replace(os.sep, "/")) for name in samples.names]
    without = [name for name, match in zip(samples.names, found, strict=True) if not match]
    if without:
        raise DataError(
            f"data.group={pattern} finds nothing in {len(without):,} of {len(samples):,} paths "
            f"({shortened(without, 3)}); give one that finds the group in each"
        )
    keys = ["\0".join(map(str, match.groups() or [match[0]])) for match in found if match]
    return replace(samples, groups=keys)


def _parted(samples: Samples, chosen: np.ndarray) -> tuple[Samples, Samples]:
    """The rest and those that are `chosen`, bool (N,), in the original order."""
    return samples.take(np.flatnonzero(~chosen)), samples.take(np.flatnonzero(chosen))


def _dealt(hashes: np.ndarray, folds: int) -> np.ndarray:
    """A part of `folds` for each hash: int64 (n,)."""
    parts = ((hashes >> np.uint64(32)) * np.uint64(folds) >> np.uint64(32)).astype(np.int64)
    if len(np.unique(parts)) < folds:
        parts[np.argsort(hashes, kind="stable")] = np.arange(len(hashes)) % folds
    return parts


def _check_groups(splits: dict[str, Samples]) -> None:
    """Make sure that no group is in two splits."""
    found: dict[str, str] = {}
    for split, samples in splits.items():
        for group in set(samples.groups or ()):
            if found.setdefault(group, split) != split:
                raise DataError(
                    f"group {shortened([group])} is in {found[group]} and in {split}, which the "
                    f"data has as splits; move it into one of them, or give the data without splits"
                )
