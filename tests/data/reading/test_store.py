"""Streamed images: the same bits as held ones with any number of workers; workers may fail."""

from __future__ import annotations

import gc
import random
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import augmentation, reader
from streamed import BATCH, ODD_SIZES, SIZE, draw, in_order

from vit.data.loader import EvalLoader, TrainLoader
from vit.data.reading.decode import decode
from vit.data.reading.store import AHEAD
from vit.data.reading.transform import Transform
from vit.data.reading.workers import WorkerPool
from vit.data.types import Batch, Samples
from vit.errors import ConfigError, DataError
from vit.runtime.dist import World


@pytest.fixture(scope="session")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Images that have the model's size."""
    return draw(tmp_path_factory.mktemp("fitting"), [SIZE])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Images of many sizes."""
    return draw(tmp_path_factory.mktemp("photos"), ODD_SIZES)


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, WorkerPool]]:
    """Pools of 0, 1 and 2 workers, started once."""
    pools = {workers: WorkerPool(workers, 120) for workers in (0, 1, 2)}
    yield pools
    for pool in pools.values():
        pool.stop()


def train_loader(
    samples: Samples, pool: WorkerPool, crop: str = "resized", held: bool = False,
    world: World | None = None,
) -> TrainLoader:  # fmt: skip
    config = augmentation(crop=crop, flip=0.5, policy="randaugment", mixup=0.8, erasing=0.3)
    read = replace(reader(SIZE, held=held, center_crop=0.875), pool=pool)
    return TrainLoader(samples, 3, BATCH, config, "none", 0, read, world or World())


def assert_same(a: Batch, b: Batch) -> None:
    for name in ("images", "labels", "targets"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


CROPS = pytest.mark.parametrize("crop", ["none", "padded", "resized"])


@CROPS
def test_held_and_streamed_are_the_same_bits(fitting, pools, crop):
    config = augmentation(crop=crop, flip=0.5, policy="randaugment", mixup=0.8)

    def batches(held, workers):
        read = replace(reader(SIZE, held=held), pool=pools[workers])
        load = TrainLoader(fitting, 3, BATCH, config, "none", 0, read, World())
        return [load.batch_at(step) for step in range(8)]  # into the second epoch

    expected = batches(True, 0)
    for workers in (0, 1, 2):
        for a, b in zip(batches(False, workers), expected, strict=True):
            assert_same(a, b)
    assert len({batch.images.sum().item() for batch in expected}) == 8


@CROPS
def test_workers_change_nothing(photos, pools, crop):
    expected, *others = (train_loader(photos, pools[workers], crop) for workers in (0, 1, 2))
    for step in range(8):
        for load in others:
            assert_same(load.batch_at(step), expected.batch_at(step))


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_pixels_are_the_files(photos, pools, workers):
    read = replace(reader(SIZE, held=False), pool=pools[workers])
    load = TrainLoader(photos, 3, BATCH, augmentation(), "none", 0, read, World())
    for step in range(3):
        batch, transform = load.batch_at(step), Transform(*SIZE, 3)
        for position, image in zip(load.indices_at(step), batch.images, strict=True):
            pixels = transform.render(decode(photos.images.path(position), 3)).copy()
            assert torch.equal(image, load.normalise(torch.from_numpy(pixels)))


def test_steps_may_be_asked_in_any_order(photos, pools):
    expected = [train_loader(photos, pools[0]).batch_at(step) for step in range(12)]
    load = train_loader(photos, pools[2])
    steps = [*range(12), *range(12), 0, 0, 11, 11, 3, 4, 5, 4]
    random.Random(0).shuffle(steps)
    got = [(step, load.batch_at(step)) for step in [*steps, 5, 5, 6, 6, 7, 2]]
    for step, batch in got:  # all kept: none may have been overwritten by later ones
        assert_same(batch, expected[step])


def test_ranks_together_see_what_one_process_sees(photos, pools):
    one = train_loader(photos, pools[2])
    ranks = [train_loader(photos, pools[2], world=World(rank, 5)) for rank in range(5)]
    for step in range(3):
        whole, shares = one.batch_at(step), [load.batch_at(step) for load in ranks]
        for name in ("images", "labels", "targets"):
            together = torch.cat([getattr(share, name) for share in shares])
            assert torch.equal(together, getattr(whole, name)), name


@pytest.mark.parametrize("batch_size", [7, 60, 100])
def test_evaluation_is_the_same_held_and_streamed(photos, pools, batch_size):
    ways = [(True, 0), (False, 0), (False, 1), (False, 2)]
    readers = [
        replace(reader(SIZE, held=held, center_crop=0.875), pool=pools[workers])
        for held, workers in ways
    ]
    loaders = [EvalLoader(photos, batch_size, read) for read in readers]
    count = len(loaders[0])
    assert count == -(-60 // batch_size)
    for k in [*range(count), *range(count), 0, count - 1]:  # twice, as in two validations
        (images, labels, index, _), *others = (load.batch(k) for load in loaders)
        assert index.tolist() == list(range(k * batch_size, min((k + 1) * batch_size, 60)))
        for other_images, other_labels, other_index, _ in others:
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)
            assert np.array_equal(index, other_index)


def test_later_batches_are_rendered_while_one_is_used(pools, tmp_path):
    samples = draw(tmp_path, [SIZE])
    load = in_order(samples, pools[2])
    first, *_ = load.batch(0)
    kept = first.clone()
    for futures in load.store._under_way:
        for future in futures:
            future.result(120)
    for i in range(3 * BATCH):  # of the batches 0, 1 and 2
        Path(samples.images.path(i)).unlink()
    for k in (1, 2):
        assert len(load.batch(k)[2]) == BATCH
    with pytest.raises(DataError, match=r"^10 of 60 images cannot be decoded"):
        load.batch(0)
    assert torch.equal(first, kept)  # what was handed out is not written to


def test_the_time_that_images_were_waited_for_is_counted(photos, pools, monkeypatch):
    load = train_loader(photos, pools[0])
    collect = load.store.collect

    def late(*args):
        time.sleep(0.05)
        return collect(*args)

    load.batch_at(0)
    quick = load.waited
    monkeypatch.setattr(load.store, "collect", late)
    load.batch_at(1)
    assert load.waited >= quick + 0.05


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_each_batch_is_planned_once(photos, pools, workers, monkeypatch):
    """Whatever is used in order; what is left out or asked for again is planned when it is."""
    load, planned = train_loader(photos, pools[workers]), []
    request_at = load.request_at
    monkeypatch.setattr(load, "request_at", lambda k: planned.append(k) or request_at(k))
    ahead = AHEAD if workers else 0
    for step in range(5):
        load.batch_at(step)
        assert planned == list(range(step + ahead + 1))
    planned.clear()
    expected = train_loader(photos, pools[0])
    for step in (20, 3, 4, 20):
        assert_same(load.batch_at(step), expected.batch_at(step))
    assert planned == [n for s in ((20,), (3, 4), (20,)) for n in range(s[0], s[-1] + ahead + 1)]


# Shared memory


def test_shared_memory_is_given_back(photos, pools):
    load = train_loader(photos, pools[1])
    load.batch_at(0)
    memory = load.store._memory
    file = Path("/dev/shm") / memory.name
    assert memory.size >= (AHEAD + 1) * BATCH * 3 * SIZE[0] * SIZE[1]
    assert file.exists()
    del load, memory
    gc.collect()
    assert not file.exists()


def test_too_little_shared_memory_is_said_at_once(photos, pools, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**20, 2**20 - 999, 999))
    with pytest.raises(ConfigError, match=r"shared memory.*--shm-size.*data\.workers=0"):
        train_loader(photos, pools[1]).batch_at(0)
    train_loader(photos, pools[0]).batch_at(0)  # needs none
