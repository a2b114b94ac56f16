"""Splits: disjoint, complete, the same for every run, and moved by no image that comes or goes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import array_samples

from vit.data.sources import splits as splits_module
from vit.data.sources.splits import Cutter, grouped
from vit.data.types import Samples
from vit.errors import DataError

NO_PIXELS = np.zeros((0, 1, 1, 1), np.uint8)


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
BY = st.sampled_from(["name", "position"])


def cut(whole, fraction, seed, part, by="name"):
    return Cutter(seed, by).cut(whole, fraction, part)


def complete(splits, val_fraction, test_fraction, seed, by="name"):
    return Cutter(seed, by).complete(splits, val_fraction, test_fraction)


@settings(max_examples=80, deadline=None)
@given(counts=COUNTS, fraction=st.floats(0, 0.99), seed=st.integers(0, 5), by=BY)
def test_cut_is_disjoint_complete_and_leaves_no_class_out(counts, fraction, seed, by):
    whole = samples(counts)
    rest, part = cut(whole, fraction, seed, "test", by)
    assert sorted(numbers(rest) + numbers(part)) == numbers(whole)
    for split in (rest, part):
        assert numbers(split) == sorted(numbers(split))  # the original order
        assert np.array_equal(split.labels, whole.labels[split.index])
        assert split.names == [f"image {i}" for i in split.index]
    taken = per_class(part, len(counts))
    for total, count in zip(counts, taken, strict=True):
        assert by == "name" or abs(count - fraction * total) <= 1
        assert count <= total - 1  # at least one is kept
        assert count >= (total > 1 and fraction > 0)
    if fraction == 0:
        assert len(part) == 0


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_the_share_is_met_on_average(fraction):
    whole = samples([5000, 5000])
    for seed in range(3):
        taken = per_class(cut(whole, fraction, seed, "val")[1], 2)
        spread = (5000 * fraction * (1 - fraction)) ** 0.5
        assert (abs(taken - 5000 * fraction) < 4 * spread).all()


def test_earlier_versions_took_the_nearest_number():
    _, part = cut(samples([100, 10, 14, 1]), 0.1, 0, "test", "position")
    assert per_class(part, 4).tolist() == [10, 1, 1, 0]


def photos(*classes):
    """Class k has the images named by `classes[k]`."""
    names = [f"{k}/{name}" for k, members in enumerate(classes) for name in members]
    labels = np.repeat(np.arange(len(classes)), [len(members) for members in classes])
    return Samples(labels, names, NO_PIXELS, np.arange(len(names)))


def parts_of(whole, seed=0, by="name"):
    """Where each image is, and the classes too small for their share."""
    cutter = Cutter(seed, by)
    splits = cutter.complete({"train": whole}, 0.15, 0.2)
    return {name: part for part, split in splits.items() for name in split.names}, cutter.small


NAMES = st.lists(
    st.text("abcdefghij", min_size=1, max_size=3), min_size=1, max_size=40, unique=True
)


@settings(max_examples=150, deadline=None)
@given(first=NAMES, second=NAMES, come=NAMES, gone=NAMES, seed=st.integers(0, 9))
def test_images_that_come_or_go_move_no_other(first, second, come, gone, seed):
    """But for the lone pick of a class that is too small for its share, which is told."""
    before, small = parts_of(photos(first, second), seed)
    changed = sorted({*first, *come} - {*gone}) or ["left"]
    after, small_after = parts_of(photos(changed, second), seed)
    moved = {name for name in before if name in after and before[name] != after[name]}
    assert {int(name[0]) for name in moved} <= small | small_after
    assert not any(name.startswith("1/") for name in moved)  # nor does any other class


def test_in_earlier_versions_one_image_moved_many():
    names = [f"{i:03}" for i in range(200)]
    before, _ = parts_of(photos(names), by="position")
    after, _ = parts_of(photos(["000a", *names]), by="position")
    assert sum(after[name] != before[name] for name in before) > 20


def test_a_name_is_the_same_on_every_system(monkeypatch):
    names = ["a/1.jpg", "b/1.jpg", "c/\udcff.jpg"]
    posix = Cutter(0)._hashes(names, "test")
    monkeypatch.setattr(splits_module.os, "sep", "\\")
    windows = Cutter(0)._hashes([name.replace("/", "\\") for name in names], "test")
    assert np.array_equal(posix, windows)


def test_a_class_too_small_lends_its_lowest_hash_and_keeps_its_highest():
    few = photos("ab", "a", [str(i) for i in range(200)])
    cutter = Cutter(0)
    rest, part = cutter.cut(few, 0.001, "test")
    assert per_class(part, 3)[:2].tolist() == [1, 0]
    ranks = {name: cutter._hashes([name], "test")[0] for name in few.names}
    assert min(["0/a", "0/b"], key=ranks.__getitem__) in part.names
    assert 0 in cutter.small
    rest, part = Cutter(0).cut(few, 0.999, "test")
    assert max(["0/a", "0/b"], key=ranks.__getitem__) in rest.names


def test_cut_is_stable():
    whole = samples([40, 40])
    first, again = cut(whole, 0.25, 0, "test"), cut(whole, 0.25, 0, "test")
    assert [numbers(s) for s in first] == [numbers(s) for s in again]
    _, other_seed = cut(whole, 0.25, 1, "test")
    _, other_part = cut(whole, 0.25, 0, "val")
    assert numbers(other_seed) != numbers(first[1]) != numbers(other_part)


@pytest.mark.parametrize(("by", "expected"), [
    ("position", [11, 12, 13, 14]), ("name", [2, 3, 4, 7, 11]),
])  # fmt: skip
def test_cut_of_a_known_set_never_changes(by, expected):
    """Else runs of different versions would have different test sets."""
    whole = Samples(np.arange(16) % 2, [f"{i}.jpg" for i in range(16)], NO_PIXELS, np.arange(16))
    assert numbers(cut(whole, 0.25, 0, "test", by)[1]) == expected


def test_a_smaller_limit_is_part_of_a_larger_one():
    whole = photos([str(i) for i in range(50)], [str(i) for i in range(9)])
    for by in ("name", "position"):
        kept = [Cutter(0, by).limit(whole, count)[0].names for count in (5, 20, 50)]
        assert [len(names) for names in kept] == [10, 29, 59]
        assert set(kept[0]) < set(kept[1]) < set(kept[2])
    fewer = photos([str(i) for i in range(49)], [str(i) for i in range(9)])
    gone = set(Cutter(0).limit(whole, 20)[0].names) - set(Cutter(0).limit(fewer, 20)[0].names)
    assert gone <= {"0/49"}


def test_a_runs_seed_cannot_reach_the_splits():
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
    splits = complete(given_splits, 0.1, 0.2, 0, "position")
    assert sizes(splits) == {"train": 36, "val": 4, "test": 40}
    assert splits["test"] is given_splits["val"]
    assert sorted(numbers(splits["train"]) + numbers(splits["val"])) == list(range(40))
    assert list(given_splits) == ["train", "val"]  # untouched


def test_test_alone_stays_and_val_is_cut_from_train():
    given_splits = named("train", "test")
    splits = complete(given_splits, 0.1, 0.2, 0, "position")
    assert sizes(splits) == {"train": 36, "val": 4, "test": 40}
    assert splits["test"] is given_splits["test"]
    assert per_class(splits["val"], 2).tolist() == [2, 2]


def test_flat_is_cut_into_all_three():
    splits = complete(named("train"), 0.1, 0.2, 0, "position")
    assert sizes(splits) == {"train": 28, "val": 4, "test": 8}
    everything = [i for split in splits.values() for i in numbers(split)]
    assert sorted(everything) == list(range(40))
    assert list(splits) == ["train", "val", "test"]


def test_both_fractions_are_of_the_whole():
    splits = complete(named("train"), 0.3, 0.5, 0, "position")
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
    assert sizes(complete(named(*names), val, test, 0, "position")) == expected
    assert list(complete(named(*names), val, test, 0)) == list(expected)


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, val=st.floats(0, 0.5), test=st.floats(0, 0.49), by=BY)
def test_flat_cuts_lose_nothing_and_leave_every_class_to_train_on(counts, val, test, by):
    splits = complete({"train": samples(counts)}, val, test, 0, by)
    everything = [i for split in splits.values() for i in numbers(split)]
    assert sorted(everything) == list(range(sum(counts)))
    assert (per_class(splits["train"], len(counts)) > 0).all()


def grouped_samples(groups):
    samples = array_samples(len(groups))
    return replace(samples, groups=[str(g) for g in groups])


def groups_of(splits):
    return {name: set(samples.groups) for name, samples in splits.items()}


def test_a_group_never_crosses_splits_and_its_hash_decides():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 600)
    splits = Cutter(0).complete({"train": grouped_samples(groups)}, 0.2, 0.2)
    found = groups_of(splits)
    assert set.union(*found.values()) == set(map(str, groups.tolist()))
    assert sum(map(len, found.values())) == len(set(groups.tolist()))
    assert all(6 <= len(found[name]) <= 20 for name in ("val", "test"))
    assert sum(map(len, splits.values())) == 600
    fewer = Cutter(0).complete({"train": grouped_samples(groups[groups != groups[0]])}, 0.2, 0.2)
    for name, own in groups_of(fewer).items():
        assert own == found[name] - {str(groups[0])}
    assert groups_of(Cutter(1).complete({"train": grouped_samples(groups)}, 0.2, 0.2)) != found


@pytest.mark.parametrize("count", [2, 3])
def test_few_groups_leave_one_on_either_side(count):
    for seed in range(20):
        rest, part = Cutter(seed).cut(grouped_samples(np.arange(30) % count), 0.1, "test")
        assert len(set(part.groups)) == 1
        assert set(rest.groups).isdisjoint(part.groups)
        assert len(rest) + len(part) == 30


def test_groups_that_are_in_two_given_splits_are_an_error():
    splits = {"train": grouped_samples([1, 2, 3]), "test": grouped_samples([3, 4])}
    with pytest.raises(DataError, match="group 3 is in train and in test"):
        Cutter(0).complete(splits, 0, 0.2)


@pytest.mark.parametrize("size", [12, 500])
@pytest.mark.parametrize("by_group", [False, True])
def test_each_image_is_tested_in_one_fold(size, by_group):
    samples = array_samples(size)
    if by_group:
        samples = replace(samples, groups=[str(i // 2) for i in range(size)])
    tested = []
    for fold in range(4):
        splits = Cutter(7).complete({"train": samples}, 0.1, 0.2, (fold, 4))
        assert sum(map(len, splits.values())) == size
        assert set(splits) == {"train", "val", "test"}
        tested += splits["test"].index.tolist()
        if by_group:
            assert sum(map(len, groups_of(splits).values())) == size // 2
        elif size == 12:  # four of each of three classes
            assert np.bincount(splits["test"].labels).tolist() == [1, 1, 1]
    assert sorted(tested) == list(range(size))


def test_classes_smaller_than_the_folds_leave_no_fold_empty():
    samples = array_samples(8)
    samples = replace(samples, labels=np.arange(8) // 2)
    tested = [Cutter(3).fold(samples, fold, 3)[1] for fold in range(3)]
    assert all(map(len, tested))
    assert sorted(i for part in tested for i in part.index.tolist()) == list(range(8))
    with pytest.raises(DataError, match="is more than the 8 images"):
        Cutter(3).fold(samples, 0, 9)


def test_an_image_that_comes_moves_no_other_to_another_fold():
    samples = array_samples(500)
    before = Cutter(0).fold(samples, 1, 5)[1].names
    after = Cutter(0).fold(samples.take(np.arange(400)), 1, 5)[1].names
    assert set(after) == {name for name in before if int(name) < 400}


def test_more_folds_than_groups_are_an_error():
    with pytest.raises(DataError, match=r"is more than the 3 groups; try data.folds=3"):
        Cutter(0).complete({"train": grouped_samples([1, 2, 3] * 4)}, 0.1, 0.2, (0, 5))


def test_folds_of_data_with_a_test_set_are_an_error():
    splits = {"train": array_samples(9), "val": array_samples(3)}
    with pytest.raises(DataError, match="has one of its own"):
        Cutter(0).complete(splits, 0.1, 0.2, (0, 5))


def test_groups_are_found_in_paths():
    samples = replace(array_samples(3), names=["a/p_1/x.png", "b/p_12/y.png", "b/p_1/z.png"])
    assert grouped(samples, r"p_(\d+)").groups == ["1", "12", "1"]
    assert grouped(samples, r"^[ab]").groups == ["a", "b", "b"]
    assert len(set(grouped(samples, r"^(.)/p_(\d)").groups)) == 2
    with pytest.raises(DataError, match=r"nothing in 2 of 3 paths \(a/p_1/x.png, b/p_1/"):
        grouped(samples, r"p_(\d\d)")
