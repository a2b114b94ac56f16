"""Loaders: training batches are a function of the step, evaluation sees every sample once."""

import random

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vit.config.compose import config_dir
from vit.config.schema import AugmentConfig
from vit.data.images import ArrayImages
from vit.data.loader import EvalLoader, Normalise, TrainLoader
from vit.data.types import Batch, Samples
from vit.runtime.dist import World

CPU = torch.device("cpu")


def augmentation(name, **changes):
    """The settings of configs/augment/<name>.yaml."""
    plain = {}
    for file in ("_base", name):
        plain |= yaml.safe_load((config_dir() / "augment" / f"{file}.yaml").read_text())
    del plain["defaults"]
    return AugmentConfig(**{**plain, "flip": 0.5, **changes})


STRONG = augmentation("strong", erasing=0.5, mix_probability=0.8)
NONE = augmentation("none", flip=0.0)


def samples(n, size=8, classes=3):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    labels = np.arange(n) % classes
    return Samples(labels, [str(i) for i in range(n)], ArrayImages(pixels), np.arange(n))


def loader(n=20, batch_size=8, config=STRONG, seed=0, world=None, size=8):
    normalise = Normalise([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], CPU)
    return TrainLoader(
        samples(n, size), 3, batch_size, config, normalise, seed, CPU, world or World(), 0
    )


def assert_same(a, b):
    for name in ("images", "labels", "targets"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def joined(batches):
    columns = zip(*((b.images, b.labels, b.targets) for b in batches), strict=True)
    return Batch(*(torch.cat(column) for column in columns))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 100), seed=st.integers(0, 3))
def test_the_stream_is_the_epochs_permutations(n, batch_size, seed):
    load = loader(n, batch_size, seed=seed, size=1)
    steps = -(-4 * n // batch_size)
    batches = [load.indices_at(step) for step in range(steps)]
    assert all(batch.shape == (batch_size,) for batch in batches)
    stream = np.concatenate(batches)
    epochs = [stream[e * n : (e + 1) * n] for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    if n >= 20:
        assert len({tuple(epoch) for epoch in epochs}) == 4  # every epoch has its own order


def test_batches_are_a_function_of_the_step():
    in_order, load = loader(), loader()
    expected = [in_order.batch_at(step) for step in range(12)]
    steps = list(range(12)) * 2
    random.Random(0).shuffle(steps)
    for step in steps:
        assert_same(load.batch_at(step), expected[step])
    assert not torch.equal(expected[0].images, expected[1].images)


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
@pytest.mark.parametrize("config", [STRONG, NONE], ids=["strong", "none"])
def test_ranks_together_see_what_one_process_sees(size, config):
    one = loader(config=config)
    ranks = [loader(config=config, world=World(rank, size)) for rank in range(size)]
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
    for step in range(6):
        batch, index = load.batch_at(step), torch.from_numpy(load.indices_at(step))
        assert torch.equal(batch.images, load.normalise(load.pixels[index]))
        assert torch.equal(batch.labels, index % 3)
        assert torch.equal(batch.targets, torch.eye(3)[index % 3])


def test_every_ingredient_reaches_the_batch():
    plain = loader(config=NONE).batch_at(0)
    for change in ({"crop_padding": 0.25}, {"flip": 1.0}, {"erasing": 1.0},
                   {"mixup": 1.0, "mix_probability": 1.0},
                   {"cutmix": 1.0, "mix_probability": 1.0}):  # fmt: skip
        batch = loader(config=augmentation("none", **{"flip": 0.0, **change})).batch_at(0)
        assert not torch.equal(batch.images, plain.images), change
        assert torch.equal(batch.targets, plain.targets) == ("mix_probability" not in change)


def test_normalise_and_undo():
    normalise = Normalise([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], CPU)
    pixels = torch.from_numpy(samples(4).read(0))
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
    normalise = Normalise([0.5] * 3, [0.5] * 3, CPU)
    listed = samples(n, size=2)
    load = EvalLoader(listed, batch_size, normalise, CPU, workers=0)
    batches = [load.batch(k) for k in range(len(load))]
    assert all(len(labels) == batch_size for _, labels in batches[:-1])
    assert 0 < len(batches[-1][1]) <= batch_size
    assert torch.cat([labels for _, labels in batches]).tolist() == listed.labels.tolist()
    images = torch.cat([images for images, _ in batches])
    assert torch.equal(images, normalise(torch.from_numpy(listed.read(0))))
