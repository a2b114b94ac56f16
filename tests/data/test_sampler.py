"""Balance, small samples and class names: which image comes when, and what its class is called."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import SMALL, run
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import data_config, noise, save

from vit.data.sampler import Sampler, class_weights
from vit.data.sources.folder import load_flat, synset_names
from vit.data.sources.registry import load_data_set
from vit.data.sources.splits import Cutter
from vit.data.types import Samples
from vit.errors import DataError

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)


def shuffled_labels(counts: list[int], seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(labels)
    return labels


def epochs(order: Sampler, count: int) -> list[np.ndarray]:
    n = len(order.labels)
    return [order.positions(e * n, (e + 1) * n) for e in range(count)]


# Order


@settings(max_examples=100, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 9))
def test_unbalanced_epochs_are_permutations(counts, seed):
    labels = shuffled_labels(counts)
    for epoch in epochs(Sampler(labels, seed, balanced=False), 3):
        assert sorted(epoch) == list(range(len(labels)))


@settings(max_examples=100, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 9))
def test_balanced_epochs_draw_classes_equally_and_images_evenly(counts, seed):
    labels = shuffled_labels(counts)
    present = np.flatnonzero(counts)
    for epoch in epochs(Sampler(labels, seed, balanced=True), 4):
        assert len(epoch) == len(labels)
        drawn = np.bincount(labels[epoch], minlength=len(counts))
        assert drawn[present].max() - drawn[present].min() <= 1
        assert drawn.sum() == drawn[present].sum()
        times = np.bincount(epoch, minlength=len(labels))
        for label in present:  # no image comes twice before all others of its class came once
            own = times[labels == label]
            assert own.max() - own.min() <= 1


def test_all_images_of_a_large_class_are_shown_over_the_epochs():
    labels = shuffled_labels([100, 10, 10])
    seen = np.zeros(120, int)
    for epoch in epochs(Sampler(labels, 0, balanced=True), 20):
        np.add.at(seen, epoch, 1)
    large = seen[labels == 0]  # 40 of 100 in each epoch
    assert large.min() > 0
    assert large.sum() == 20 * 40
    assert large.max() < 18


def test_which_class_gets_what_is_left_over_changes():
    labels = shuffled_labels([5, 5, 5, 5, 1])  # 21 = 4 * 5 + 1
    extra = {
        int(np.bincount(labels[epoch]).argmax())
        for epoch in epochs(Sampler(labels, 0, balanced=True), 40)
    }
    assert extra == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("balanced", [False, True])
def test_order_is_a_function_of_seed_and_epoch(balanced):
    labels = shuffled_labels([40, 20, 5])
    order, again = (Sampler(labels, 3, balanced) for _ in range(2))
    one_by_one = [int(again.positions(i, i + 1)[0]) for i in reversed(range(4 * 65))][::-1]
    assert np.concatenate(epochs(order, 4)).tolist() == one_by_one
    assert order.positions(50, 150).tolist() == one_by_one[50:150]
    first, second = epochs(order, 2)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Sampler(labels, 4, balanced).positions(0, 65))
    together = labels[first]
    assert (together[1:] == together[:-1]).mean() < 0.7  # classes are mixed


@settings(max_examples=100, deadline=None)
@given(counts=COUNTS)
def test_weights_of_classes_are_inverse_to_their_size_with_mean_1(counts):
    labels = shuffled_labels(counts)
    weights = class_weights(labels, len(counts))
    assert weights.dtype == np.float32
    assert weights[labels].mean(dtype=np.float64) == pytest.approx(1, rel=1e-6)
    shares = np.array(counts) * weights  # of the loss: equal
    present = shares[np.array(counts) > 0]
    np.testing.assert_allclose(present, present[0], rtol=1e-6)
    assert np.isfinite(weights).all()


# Small samples


def listed(counts: list[int], seed: int = 0) -> Samples:
    labels = shuffled_labels(counts, seed)
    return Samples.of_pixels(np.zeros((0, 1, 1, 1), np.uint8), labels)


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, per_class=st.integers(1, 20), more=st.integers(0, 20), seed=st.integers(0, 5))
def test_limits_are_nested_and_exact(counts, per_class, more, seed):
    samples = listed(counts)
    small, large = (Cutter(seed).limit(samples, n)[0] for n in (per_class, per_class + more))
    for found, n in ((small, per_class), (large, per_class + more)):
        taken = np.bincount(found.labels, minlength=len(counts))
        assert taken.tolist() == [min(n, count) for count in counts]
        assert found.index.tolist() == sorted(found.index)
        assert np.array_equal(found.labels, samples.labels[found.index])
        assert found.names == [str(i) for i in found.index]
    assert set(small.index) <= set(large.index)


def test_a_limit_changes_the_training_set_alone():
    whole, few, fewer = (
        load_data_set(data_config("digits", limit_per_class=n)).splits for n in (None, 20, 5)
    )
    assert len(few["train"]) == 200
    assert len(fewer["train"]) == 50
    assert set(fewer["train"].index) < set(few["train"].index) < set(whole["train"].index)
    for split in ("val", "test"):
        assert np.array_equal(whole[split].index, few[split].index)
        assert np.array_equal(whole[split].index, fewer[split].index)
    other = load_data_set(data_config("digits", limit_per_class=5, split_seed=1)).splits["train"]
    assert set(other.index) != set(fewer["train"].index)


# Class names

TINY = [arg for arg in SMALL if not arg.startswith("trainer.batch_size")]
TINY += ["trainer.steps=4", "trainer.batch_size=8"]


def predictions(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_names_of_any_language_go_through_training_and_evaluation(tmp_path):
    classes = ["Gänseblümchen", "Tulpe, rot", "薔薇"]
    for label in classes:
        for i in range(10):
            save(tmp_path / "Bilder" / label / f"größe {i}.jpg", noise(16, 16, seed=i))
    args = [*TINY, "data=folder", "data.root=Bilder", "data.image_size=16", "name=blumen"]
    done = run("train", *args, "data.test_fraction=0.4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("eval", "checkpoint=outputs/blumen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = predictions(tmp_path / "outputs" / "blumen" / "eval" / "test")
    assert len(rows) == 19
    assert {row["label"] for row in rows} == set(classes)
    assert {row["prediction"] for row in rows} <= set(classes)
    assert all(row["image"].startswith(f"{row['label']}/größe ") for row in rows)


# ImageNet

TENCH, GOLDFISH, CRANE_BIRD, CRANE_MACHINE = "n01440764", "n01443537", "n02012849", "n03126707"


def photos(root: Path, classes: list[str], count: int = 4) -> Path:
    for label in classes:
        for i in range(count):
            save(root / label / f"{label}_{i}.JPEG", noise(40 + i, 48, seed=i))
    return root


def imagenet_config(root: Path, **changes):
    return data_config("imagenet", root=str(root), image_size=32, **changes)


def test_synsets_have_readable_names():
    assert synset_names([TENCH, GOLDFISH]) == ["tench", "goldfish"]
    cranes = [CRANE_BIRD, CRANE_MACHINE]
    assert synset_names([TENCH, *cranes]) == ["tench", *(f"crane ({s})" for s in cranes)]
    assert synset_names([CRANE_BIRD, TENCH])[1] == "tench"
    assert synset_names(["mine", "n00000000", TENCH]) == ["mine", "n00000000", "tench"]


def test_classes_are_in_the_order_of_their_folders(tmp_path):
    folders = [GOLDFISH, CRANE_MACHINE, TENCH, CRANE_BIRD, "zebra crossing"]
    for split in ("train", "val"):
        photos(tmp_path / split, folders)
    data = load_data_set(imagenet_config(tmp_path))
    assert data.classes == synset_names(sorted(folders))
    assert data.classes[0] == "tench"
    for samples in data.splits.values():
        for name, label in zip(samples.names, samples.labels, strict=True):
            assert sorted(folders)[label] == Path(name).parent.name
    flat = load_flat(tmp_path / "val", data.classes, "imagenet").splits["images"]
    assert flat.labels.tolist() == data.splits["test"].labels.tolist()
    photos(tmp_path / "one", [CRANE_BIRD])  # alone, its name would need no folder behind it
    alone = load_flat(tmp_path / "one", data.classes, "imagenet").splits["images"]
    assert {sorted(folders)[label] for label in alone.labels} == {CRANE_BIRD}


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_as_downloaded_says_what_to_do(tmp_path, split):
    photos(tmp_path / "train", [TENCH, GOLDFISH])
    save(tmp_path / split / "ILSVRC2012_val_00000001.JPEG", noise(40, 40))
    with pytest.raises(DataError, match=rf"{split} has no class folders.*valprep\.sh"):
        load_data_set(imagenet_config(tmp_path))


def test_an_imagenet_run_and_its_evaluation_on_a_folder(tmp_path):
    folders = [TENCH, CRANE_BIRD, CRANE_MACHINE]
    names = ["tench", f"crane ({CRANE_BIRD})", f"crane ({CRANE_MACHINE})"]
    photos(tmp_path / "in" / "train", folders, 8)
    photos(tmp_path / "in" / "val", folders)
    args = [*TINY, "data=imagenet", "data.root=in", "data.image_size=32", "name=in"]
    done = run("train", *args, "augment.crop=resized", "data.val_fraction=0.2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tested = run("eval", "checkpoint=outputs/in", cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    flat = run("eval", "checkpoint=outputs/in", "images=in/val", "output=flat", cwd=tmp_path)
    assert flat.returncode == 0, flat.stderr
    test = tmp_path / "outputs" / "in" / "eval" / "test"
    for folder, prefix in ((test, "val/"), (tmp_path / "flat", "")):
        for row in predictions(folder):
            synset = Path(row["image"]).parent.name
            assert row["image"].startswith(prefix + synset)
            assert row["label"] == names[folders.index(synset)]
            assert row["prediction"] in names
    scores = [json.loads((f / "metrics.json").read_text()) for f in (test, tmp_path / "flat")]
    for key in ("loss", "top1", "top5", "images", "bad_images"):
        assert scores[0][key] == scores[1][key]
