"""Stratified cuts that depend on `split_seed` alone, so that all runs share one test set."""

from __future__ import annotations

import numpy as np

from vit.data.types import Samples
from vit.runtime.seeding import numpy_generator


def cut(samples: Samples, fraction: float, split_seed: int, part: str) -> tuple[Samples, Samples]:
    """Cut a share of every class off.

    Args:
        samples: what to cut.
        fraction: share of each class that is cut off, in [0, 1).
        split_seed: decides which samples are chosen.
        part: name of the part that is cut off; cuts of different parts are independent.

    Returns:
        (the rest, the part), both in the original order. A class with two or more samples keeps
        at least one in the rest and gives at least one, unless `fraction` is 0.
    """
    chosen = np.zeros(len(samples), dtype=bool)
    if fraction > 0:
        for label in np.unique(samples.labels):
            members = np.flatnonzero(samples.labels == label)
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            shuffled = numpy_generator(split_seed, part, int(label)).permutation(members)
            chosen[shuffled[:count]] = True
    return samples.take(np.flatnonzero(~chosen)), samples.take(np.flatnonzero(chosen))


def limit(samples: Samples, per_class: int, split_seed: int) -> Samples:
    """At most `per_class` samples of each class, in the original order.

    Which ones depends on `split_seed` alone; those of a smaller limit are among those of a larger.
    """
    chosen = np.zeros(len(samples), dtype=bool)
    for label in np.unique(samples.labels):
        members = np.flatnonzero(samples.labels == label)
        shuffled = numpy_generator(split_seed, "limit", int(label)).permutation(members)
        chosen[shuffled[:per_class]] = True
    return samples.take(np.flatnonzero(chosen))


def complete(
    splits: dict[str, Samples], val_fraction: float, test_fraction: float, split_seed: int
) -> dict[str, Samples]:
    """Give a data set its `train`, `val` and `test`, as far as fractions allow.

    Named splits stay as they are. With `train` and one of `val` and `test`, that one is the test
    set and validation is cut from train. With `train` alone both are cut. Splits without a
    sample are left out.
    """
    splits = dict(splits)
    train = splits["train"]
    if "test" not in splits and "val" in splits:
        splits["test"] = splits.pop("val")
    if "test" not in splits:
        train, splits["test"] = cut(train, test_fraction, split_seed, "test")
    if "val" not in splits:
        # The share is of what was there before test was cut off.
        share = val_fraction * len(splits["train"]) / max(len(train), 1)
        train, splits["val"] = cut(train, min(share, 0.999), split_seed, "val")
    splits["train"] = train
    return {name: splits[name] for name in ("train", "val", "test") if len(splits[name])}
