"""Splits: stratified, disjoint, complete, and the same for every run."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit.data.images import ArrayImages
from vit.data.splits import complete, cut
from vit.data.types import Samples

NO_PIXELS = ArrayImages(np.zeros((0, 1, 1, 1), np.uint8))


def samples(counts, first=0):
    """`counts[k]` samples of class k, shuffled; each with a number of its own from `first` on."""
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(first).shuffle(labels)
    number = np.arange(first, first + len(labels))
    return Samples(labels, [f"image {i}" for i in number], NO_PIXELS, number)


def numbers(split):
    return split.index.tolist()


def per_class(split, classes):
    return np.bincount(split.labels, minlength=classes)


COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(counts=COUNTS, fraction=st.floats(0, 0.99), seed=st.integers(0, 5))
def test_cut_is_disjoint_complete_and_stratified(counts, fraction, seed):
    whole = samples(counts)
    rest, part = cut(whole, fraction, seed, "test")
    assert sorted(numbers(rest) + numbers(part)) == numbers(whole)
    for split in (rest, part):
        assert numbers(split) == sorted(numbers(split))  # the original order
        assert np.array_equal(split.labels, whole.labels[split.index])
        assert split.names == [f"image {i}" for i in split.index]
    taken = per_class(part, len(counts))
    for total, count in zip(counts, taken, strict=True):
        assert abs(count - fraction * total) <= 1
        assert count <= total - 1  # at least one is kept
        assert count >= (total > 1 and fraction > 0)
    if fraction == 0:
        assert len(part) == 0


def test_cut_takes_the_nearest_number():
    _, part = cut(samples([100, 10, 14, 1]), 0.1, 0, "test")
    assert per_class(part, 4).tolist() == [10, 1, 1, 0]


def test_cut_is_stable():
    whole = samples([40, 40])
    first, again = cut(whole, 0.25, 0, "test"), cut(whole, 0.25, 0, "test")
    assert [numbers(s) for s in first] == [numbers(s) for s in again]
    _, other_seed = cut(whole, 0.25, 1, "test")
    _, other_part = cut(whole, 0.25, 0, "val")
    assert numbers(other_seed) != numbers(first[1]) != numbers(other_part)


def test_cut_of_a_known_set_never_changes():
    """Else runs of different versions would have different test sets."""
    whole = Samples(np.arange(16) % 2, [""] * 16, NO_PIXELS, np.arange(16))
    assert numbers(cut(whole, 0.25, 0, "test")[1]) == [11, 12, 13, 14]


def test_the_chosen_samples_of_a_class_do_not_depend_on_other_classes():
    alone = Samples(np.zeros(20, np.int64), [str(i) for i in range(20)], NO_PIXELS, np.arange(20))
    labels = np.concatenate([alone.labels, np.ones(30, np.int64)])
    both = Samples(labels, [str(i) for i in range(50)], NO_PIXELS, np.arange(50))
    _, part = cut(alone, 0.3, 0, "test")
    _, wider = cut(both, 0.3, 0, "test")
    assert numbers(part) == [i for i in numbers(wider) if i < 20]


def test_a_runs_seed_cannot_reach_the_splits():
    assert list(inspect.signature(complete).parameters) == [
        "splits", "val_fraction", "test_fraction", "split_seed"
    ]  # fmt: skip
    np.random.seed(1)
    first = complete({"train": samples([30, 30])}, 0.1, 0.2, 0)
    np.random.seed(2)
    again = complete({"train": samples([30, 30])}, 0.1, 0.2, 0)
    assert {k: numbers(s) for k, s in first.items()} == {k: numbers(s) for k, s in again.items()}


def named(*names):
    return {name: samples([20, 20], first=100 * i) for i, name in enumerate(names)}


def sizes(splits):
    return {name: len(split) for name, split in splits.items()}


def test_three_named_splits_stay():
    given_splits = named("train", "val", "test")
    assert complete(given_splits, 0.1, 0.2, 0) == given_splits


def test_val_alone_is_the_test_set():
    given_splits = named("train", "val")
    splits = complete(given_splits, 0.1, 0.2, 0)
    assert sizes(splits) == {"train": 36, "val": 4, "test": 40}
    assert splits["test"] is given_splits["val"]
    assert sorted(numbers(splits["train"]) + numbers(splits["val"])) == list(range(40))
    assert list(given_splits) == ["train", "val"]  # untouched


def test_test_alone_stays_and_val_is_cut_from_train():
    given_splits = named("train", "test")
    splits = complete(given_splits, 0.1, 0.2, 0)
    assert sizes(splits) == {"train": 36, "val": 4, "test": 40}
    assert splits["test"] is given_splits["test"]
    assert per_class(splits["val"], 2).tolist() == [2, 2]


def test_flat_is_cut_into_all_three():
    splits = complete(named("train"), 0.1, 0.2, 0)
    assert sizes(splits) == {"train": 28, "val": 4, "test": 8}
    everything = [i for split in splits.values() for i in numbers(split)]
    assert sorted(everything) == list(range(40))
    assert list(splits) == ["train", "val", "test"]


def test_both_fractions_are_of_the_whole():
    splits = complete(named("train"), 0.3, 0.5, 0)
    assert sizes(splits) == {"train": 8, "val": 12, "test": 20}


def test_the_test_set_does_not_depend_on_the_validation_share():
    tests = [complete(named("train"), share, 0.2, 0)["test"] for share in (0, 0.1, 0.5)]
    assert numbers(tests[0]) == numbers(tests[1]) == numbers(tests[2])


@pytest.mark.parametrize(
    ("names", "val", "test", "expected"),
    [
        (("train",), 0, 0, {"train": 40}),
        (("train",), 0, 0.2, {"train": 32, "test": 8}),
        (("train",), 0.1, 0, {"train": 36, "val": 4}),
        (("train", "test"), 0, 0, {"train": 40, "test": 40}),
        (("train", "val"), 0, 0.5, {"train": 40, "test": 40}),
        (("train", "val", "test"), 0, 0, {"train": 40, "val": 40, "test": 40}),
    ],
)
def test_a_share_of_nothing_gives_no_split(names, val, test, expected):
    splits = complete(named(*names), val, test, 0)
    assert sizes(splits) == expected


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, val=st.floats(0, 0.5), test=st.floats(0, 0.49))
def test_flat_cuts_lose_nothing_and_leave_every_class_to_train_on(counts, val, test):
    splits = complete({"train": samples(counts)}, val, test, 0)
    everything = [i for split in splits.values() for i in numbers(split)]
    assert sorted(everything) == list(range(sum(counts)))
    assert (per_class(splits["train"], len(counts)) > 0).all()
