"""Loaders: training batches are a function of the step, evaluation sees every sample once."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import array_samples, augmentation, pixels_of, reader

from vit.data.loader import EvalLoader, TrainLoader
from vit.data.types import Batch
from vit.runtime.dist import World

STRONG = augmentation("strong", erasing=0.5, mix_probability=0.8)
EVERYTHING = augmentation(
    "strong", crop="resized", erasing=0.5, mix_probability=0.8, policy="randaugment",
    color_jitter=0.3,
)  # fmt: skip
NONE = augmentation("none")


def loader(
    n=20, batch_size=8, config=STRONG, seed=0, world=None, size=(8, 8), balance="none", classes=3
):
    return TrainLoader(
        array_samples(n, size), classes, batch_size, config, balance, seed, reader(size),
        world or World(),
    )  # fmt: skip


def assert_same(a, b):
    for name in ("images", "labels", "targets"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def joined(batches):
    columns = zip(*((b.images, b.labels, b.targets) for b in batches), strict=True)
    return Batch(*(torch.cat(column) for column in columns))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 100), seed=st.integers(0, 3))
def test_the_stream_is_the_epochs_permutations(n, batch_size, seed):
    load = loader(n, batch_size, seed=seed, size=(1, 1))
    steps = -(-4 * n // batch_size)
    batches = [load.indices_at(step) for step in range(steps)]
    assert all(batch.shape == (batch_size,) for batch in batches)
    stream = np.concatenate(batches)
    epochs = [stream[e * n : (e + 1) * n] for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    if n >= 20:
        assert len({tuple(epoch) for epoch in epochs}) == 4  # every epoch has its own order


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), share=st.integers(1, 20), repeats=st.integers(1, 4))
def test_repeated_images_are_all_shown_each_batch_round_by_round(n, share, repeats):
    load = loader(n, share * repeats, replace(NONE, repeats=repeats), size=(1, 1))
    plain = loader(n, share, NONE, size=(1, 1))
    for step in range(6):
        assert load.indices_at(step).tolist() == plain.indices_at(step).tolist() * repeats


def test_repeats_that_do_not_divide_the_batch_lose_nothing():
    load = loader(20, 7, replace(NONE, repeats=3), size=(1, 1))
    shown = np.concatenate([load.indices_at(step) for step in range(60)])  # 420 = 7 epochs of 60
    assert (np.bincount(shown) == 21).all()


def test_nothing_is_mixed_from_the_end_of_mixing_on():
    always, until = loader(), loader()
    until.mix_end = 2.5
    plain = loader(config=replace(STRONG, mixup=0.0, cutmix=0.0))
    for step in range(6):
        expected = always if step < 2.5 else plain
        assert_same(until.batch_at(step), expected.batch_at(step))


@pytest.mark.parametrize("config", [STRONG, EVERYTHING], ids=["strong", "everything"])
def test_batches_are_a_function_of_the_step(config):
    in_order, load = loader(config=config), loader(config=config)
    expected = [in_order.batch_at(step) for step in range(12)]
    steps = list(range(12)) * 2
    random.Random(0).shuffle(steps)
    for step in steps:
        assert_same(load.batch_at(step), expected[step])
    assert not torch.equal(expected[0].images, expected[1].images)


def test_what_is_drawn_ahead_is_what_is_drawn_at_the_step():
    ahead = loader(40, 8, augmentation(policy="randaugment", mixup=0.3, erasing=0.5))
    here = loader(40, 8, augmentation(policy="randaugment", mixup=0.3, erasing=0.5))
    ahead.device = torch.device("meta")  # as on a GPU: a thread draws for the step after
    for step in (0, 1, 2, 7, 8, 3, 3):
        (arrays, plan), (expected, planned) = ahead._drawn(step), here._drawn(step)
        assert list(ahead._next) == [step + 1]
        assert here._next == {}
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
        assert all(
            np.array_equal(a, b)
            for a, b in zip(vars(plan).values(), vars(planned).values(), strict=True)
        )
    ahead.close()


def test_seeds_differ_in_order_and_augmentation():
    a, b = loader(100, 100), loader(100, 100, seed=1)
    assert sorted(a.indices_at(0)) == sorted(b.indices_at(0)) == list(range(100))
    assert (a.indices_at(0) != b.indices_at(0)).mean() > 0.9
    assert not torch.equal(a.batch_at(0).targets, b.batch_at(0).targets)


def test_augmentation_leaves_the_order():
    strong, none = loader(), loader(config=NONE)
    for step in range(5):
        assert torch.equal(strong.batch_at(step).labels, none.batch_at(step).labels)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("balance", ["none", "sampler", "loss"])
@pytest.mark.parametrize("config", [STRONG, NONE, EVERYTHING], ids=["strong", "none", "everything"])
def test_ranks_together_see_what_one_process_sees(size, config, balance):
    options = {"config": config, "balance": balance, "size": (8, 12)}
    one = loader(**options)
    ranks = [loader(**options, world=World(rank, size)) for rank in range(size)]
    for step in range(6):
        whole = one.batch_at(step)
        shares = [rank.batch_at(step) for rank in ranks]
        assert all(len(share.labels) == 8 // size for share in shares)
        assert_same(joined(shares), whole)


def test_mixed_targets_hold_the_own_class_and_the_partners():
    mixed = 0
    for step in range(6):
        batch = loader().batch_at(step)
        torch.testing.assert_close(batch.targets.sum(dim=1), torch.ones(8))
        for i in range(8):
            allowed = {batch.labels[i].item(), batch.labels[i ^ 1].item()}
            found = set(batch.targets[i].nonzero().flatten().tolist())
            assert found <= allowed
            mixed += len(found) == 2
    assert mixed > 5


def test_without_augmentation_images_are_only_normalised():
    load = loader(config=NONE)
    held = torch.from_numpy(pixels_of(array_samples(20)))
    for step in range(6):
        batch, index = load.batch_at(step), torch.from_numpy(load.indices_at(step))
        assert torch.equal(batch.images, load.normalise(held[index]))
        assert torch.equal(batch.labels, index % 3)
        assert torch.equal(batch.targets, torch.eye(3)[index % 3])


def test_every_ingredient_reaches_the_batch():
    plain = loader(config=NONE).batch_at(0)
    for change in (
        {"crop": "padded"}, {"crop": "resized"}, {"flip": 1.0}, {"erasing": 1.0},
        {"policy": "randaugment"}, {"policy": "trivialaugment"}, {"color_jitter": 0.5},
        {"mixup": 1.0}, {"cutmix": 1.0},
    ):  # fmt: skip
        batch = loader(config=augmentation("none", **change)).batch_at(0)
        assert torch.equal(batch.labels, plain.labels)
        assert not torch.equal(batch.images, plain.images), change
        mixes = not change.keys().isdisjoint({"mixup", "cutmix"})
        assert torch.equal(batch.targets, plain.targets) == (not mixes)


def test_normalise_and_undo():
    normalise = reader((8, 8)).normalise
    pixels = torch.from_numpy(pixels_of(array_samples(4)))
    expected = (pixels.double() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1).double()) / (
        torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1).double()
    )
    images = normalise(pixels)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(normalise.undo(images), pixels / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_split_cuts_a_batch_into_equal_parts(parts):
    batch = loader().batch_at(0)
    pieces = batch.split(parts)
    assert [len(piece.labels) for piece in pieces] == [8 // parts] * parts
    assert_same(joined(pieces), batch)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_evaluation_covers_every_sample_once_in_order(n, batch_size):
    listed = array_samples(n, (2, 3))
    load = EvalLoader(listed, batch_size, reader((2, 3)))
    batches = [load.batch(k) for k in range(len(load))]
    assert all(len(labels) == batch_size for _, labels, _, _ in batches[:-1])
    assert 0 < len(batches[-1][1]) <= batch_size
    images, labels = (torch.cat(column) for column in list(zip(*batches, strict=True))[:2])
    assert labels.tolist() == listed.labels.tolist()
    assert np.concatenate([index for _, _, index, _ in batches]).tolist() == list(range(n))
    assert torch.equal(images, load.normalise(torch.from_numpy(pixels_of(listed))))


def test_balanced_losses_weigh_the_images_and_leave_them():
    plain, weighed = loader(20), loader(20, balance="loss")  # of 7, 7 and 6 images
    weights = torch.tensor([20 / 21, 20 / 21, 20 / 18])
    for step in range(4):
        a, b = plain.batch_at(step), weighed.batch_at(step)
        assert torch.equal(a.images, b.images)
        assert a.weights is None
        summed = b.targets * b.weights[:, None]  # mixed images have two classes
        torch.testing.assert_close(a.targets * weights, summed, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(b.targets.sum(dim=1), torch.ones(len(b.labels)))
