"""Images made small once: the same pixels, made anew only where a file changed."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from commands import SMALL, lines, run
from pictures import CPU, augmentation, data_config, noise, reader, save, write
from PIL import Image

from vit.data.loader import TrainLoader
from vit.data.reading import cache
from vit.data.reading import reader as reader_module
from vit.data.reading.cache import CachedImages, CacheSpec
from vit.data.reading.decode import decode, reason
from vit.data.reading.reader import Reader
from vit.data.reading.transform import Transform, resize
from vit.data.reading.workers import WorkerPool
from vit.data.sources.folder import load
from vit.data.types import FileImages
from vit.errors import ConfigError
from vit.runtime import console
from vit.runtime.dist import World

ALONE = WorkerPool(0, 60)


@pytest.fixture
def photos(tmp_path):
    """Twelve photos in two classes, one of them damaged, one turned by EXIF, one small."""
    root = tmp_path / "photos"
    for label in "ab":
        for i in range(6):
            save(root / label / f"{i}.jpg", noise(90 + i, 60, seed=i), quality=95)
    write(root / "a" / "1.jpg", b"no image")
    turned = Image.Exif()
    turned[0x0112] = 6
    save(root / "a" / "2.jpg", noise(100, 60), exif=turned)
    (root / "b" / "3.jpg").unlink()
    save(root / "b" / "3.png", noise(20, 16))
    return root


LUMINANCE = np.array([0.299, 0.587, 0.114])


def shortened(image, side):
    """Resized to a shorter side of `side`, unless it is smaller."""
    short = min(image.shape[:2])
    height, width = (side * length // short for length in image.shape[:2])
    return resize(image, height, width) if short > side else image


def images_of(root):
    return load(data_config("folder", root=str(root))).splits["train"].images


def kept(root, folder, kind="uint8", size=32, pool=ALONE):
    return CachedImages(images_of(root), folder, CacheSpec(kind, size, 3), pool)


@pytest.mark.parametrize("kind", ["uint8", "jpeg"])
def test_an_image_is_kept_as_it_would_be_resized(photos, tmp_path, kind):
    images = kept(photos, tmp_path / "cache", kind)
    for i, name in enumerate(images.names):
        source = images.source(i)
        if name == "a/1.jpg":
            with pytest.raises(ValueError, match="the content is not JPEG"):
                source.open()
            continue
        expected = shortened(decode(images.path(i), 3), 32).astype(int)
        found = source.open().astype(int)
        assert found.shape == expected.shape, name
        if kind == "uint8":
            assert np.array_equal(found, expected), name
        else:  # of colours at half the size, noise keeps its brightness alone
            error = abs(found @ LUMINANCE - expected @ LUMINANCE)
            assert error.max() <= 40, name
            assert error.mean() <= 4, name


def test_evaluation_sees_the_same_pixels_as_without(photos, tmp_path):
    """Resize 32, crop 28: what is kept is already resized."""
    images, transform = kept(photos, tmp_path / "cache"), Transform(28, 28, 3, 0.875)
    for i, name in enumerate(images.names):
        if name != "a/1.jpg":
            direct = transform.render(decode(images.path(i), 3))
            assert np.array_equal(transform.render(images.source(i).open()), direct), name


def test_workers_make_the_same_and_nothing_is_made_twice(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_IMAGES", 5)
    pool = WorkerPool(2, 60)
    for folder, made_by in (("one", ALONE), ("two", pool)):
        kept(photos, tmp_path / folder, pool=made_by)
    pool.stop()
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [f.name for f in one] == [f.name for f in two]
    assert len(one) == 3  # shards of 5, 5 and 2 images
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
    times = [f.stat().st_mtime_ns for f in one]
    kept(photos, tmp_path / "one")
    assert [f.stat().st_mtime_ns for f in one] == times


@pytest.mark.parametrize("change", ["content", "time", "name", "spec"])
def test_only_what_changed_is_made_anew(photos, tmp_path, monkeypatch, change):
    monkeypatch.setattr(cache, "_IMAGES", 6)
    before = kept(photos, tmp_path / "cache")
    shards = {str(before.source(i)) for i in range(12)}
    file = photos / "b" / "5.jpg"
    spec = {"size": 32}
    if change == "content":
        save(file, noise(70, 50, seed=9))
    elif change == "time":
        os.utime(file, ns=(1, time.time_ns() - 10**12))
    elif change == "name":
        file.rename(file.with_name("6.jpg"))
    else:
        spec["size"] = 31
    after = kept(photos, tmp_path / "cache", **spec)
    same = {str(after.source(i)) for i in range(12)} & shards
    assert len(same) == (0 if change == "spec" else 1)
    expected = shortened(decode(after.path(11), 3), spec["size"])
    assert np.array_equal(after.source(11).open(), expected)


def contents(images):
    """Of every image, in what shape it is and its pixels, or why there are none."""
    found = []
    for i in range(len(images.names)):
        try:
            image = images.source(i).open()
            found.append((image.shape, image.tobytes()))
        except Exception as error:
            found.append(reason(error))
    return found


def flip(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def damages(good):
    """A shard's content with single bits flipped, all over and in its checksum and index, cut
    short, zero_padding, and prolonged.
    """
    rng, size = random.Random(0), len(good)
    bits = [*rng.sample(range(8 * size), 12), 0, 31, *range(8 * size - 32, 8 * size, 6)]
    yield from (flip(good, bit) for bit in bits)
    yield from (good[:length] for length in (0, 1, 3, 4, 7, 8, size // 2, size - 4, size - 1))
    yield from (bytes(size), bytes(8), good + b"?", b"[]")


@pytest.mark.parametrize("kind", ["uint8", "jpeg"])
def test_damage_is_found_at_the_start_and_mended(photos, tmp_path, kind, monkeypatch):
    images, told = kept(photos, tmp_path / "cache", kind), []
    monkeypatch.setattr(console, "warn", told.append)
    expected = contents(images)
    (file,) = (tmp_path / "cache").iterdir()
    good, count = file.read_bytes(), 0
    for count, bad in enumerate(damages(good), start=1):
        file.write_bytes(bad)
        again = kept(photos, tmp_path / "cache", kind)
        assert (
            told
            == [f"damaged shards of the image cache in {tmp_path}/cache are made anew (1 of 1)"]
            * count
        )
        assert contents(again) == expected
        assert file.read_bytes() == good
    assert count > 30
    kept(photos, tmp_path / "cache", kind)
    assert len(told) == count


@pytest.mark.parametrize("kind", ["uint8", "jpeg"])
@pytest.mark.parametrize("loss", ["removed", "emptied", "cut short"])
def test_what_is_lost_after_the_start_is_read_from_the_photos(photos, tmp_path, kind, loss):
    images = kept(photos, tmp_path / "cache", kind)
    expected = contents(images)
    (file,) = (tmp_path / "cache").iterdir()
    if loss == "removed":
        file.unlink()
    else:
        os.truncate(file, 0 if loss == "emptied" else file.stat().st_size // 2)
    assert contents(images) == expected


def test_a_photo_that_is_gone_is_a_damaged_image_until_it_is_back(photos, tmp_path):
    """Gone before its shard is named, or after."""
    images, photo = images_of(photos), photos / "b" / "0.jpg"
    spec = CacheSpec("uint8", 32, 3)
    expected = contents(CachedImages(images, tmp_path / "whole", spec, ALONE))
    shards = cache._shards(images, tmp_path / "late", spec)
    photo.rename(tmp_path / "away")
    early = CachedImages(images, tmp_path / "early", spec, ALONE)
    (tmp_path / "late").mkdir()
    cache.make_shard(shards[0])
    (at,) = (i for i, found in enumerate(contents(early)) if found != expected[i])
    assert images.names[at] == "b/0.jpg"
    assert contents(early)[at] == "No such file or directory"
    (tmp_path / "away").rename(photo)
    for folder in ("early", "late"):
        assert contents(CachedImages(images, tmp_path / folder, spec, ALONE)) == expected


def building(root, folder):
    """A process that makes a cache."""
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            kept(root, folder)
            os._exit(0)
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize("killed", [False, True])
def test_two_that_make_one_cache_at_once_do_not_disturb_each_other(
    photos, tmp_path, monkeypatch, killed
):
    monkeypatch.setattr(cache, "_IMAGES", 2)
    start = time.monotonic()
    expected = contents(kept(photos, tmp_path / "alone"))
    lasts, rng = time.monotonic() - start, random.Random(0)
    for pair in range(8):
        folder = tmp_path / f"cache{pair}"
        pids = [building(photos, folder) for _ in range(2)]
        if killed:
            time.sleep(rng.uniform(0, 2 * lasts))
            os.kill(pids[0], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert codes[1] == 0
        assert codes[0] in ((0, -signal.SIGKILL) if killed else (0,))
        assert contents(kept(photos, folder)) == expected
        assert sum(f.suffix == ".shard" for f in folder.iterdir()) == 6


def test_leftovers_of_the_killed_go_after_a_day(photos, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    shard = "0123456789abcdef" * 2
    old, new = (write(folder / f"{shard}.shard.0000000{i}.tmp", b"half") for i in range(2))
    other = write(folder / "mine.tmp", b"")
    for file in (old, other):
        os.utime(file, (0, time.time() - 25 * 3600))
    kept(photos, folder)
    assert not old.exists()
    assert new.exists()
    assert other.exists()


def test_a_folder_that_cannot_be_written_is_named(photos, tmp_path, monkeypatch):
    def refuse(path, data):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(cache, "write_atomic", refuse)
    with pytest.raises(
        ConfigError, match=r"data\.cache_dir=.*/cache cannot be written \(Permission"
    ):
        kept(photos, tmp_path / "cache")


def test_a_folder_that_cannot_be_made_is_named(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"data\.cache_dir=.*file/cache cannot be written"):
        kept(photos, tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("workers", "of_all", "of_each"), [("auto", 40, 10), (3, 12, 3), (0, 0, 0)]
)
def test_one_process_makes_the_cache_with_the_workers_of_all(
    photos, tmp_path, workers, of_all, of_each, monkeypatch
):
    """Then each streams with its share; images that are held are decoded by one, too."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(40)))
    monkeypatch.setattr(World, "barrier", lambda world: None)
    pools = []

    class Made(CachedImages):
        def __init__(self, images, folder, spec, pool, check):
            pools.append((pool.workers, check))
            super().__init__(images, folder, spec, ALONE, check)

    monkeypatch.setattr(reader_module, "CachedImages", Made)
    config = data_config(
        "folder", root=str(photos), image_size=28, memory="stream", cache="jpeg", cache_size=32,
        cache_dir=str(tmp_path / "cache"), workers=workers,
    )  # fmt: skip
    for rank in range(2):
        read = Reader.of(config, 4, CPU, World(rank, 8, rank, 4))
        read.with_cache(load(config).splits, config)
        assert read.pool.workers == of_each
    assert pools == [(of_all, True), (of_all, False)]
    held = dataclasses.replace(config, memory="device")
    assert Reader.of(held, 4, CPU, World(0, 8, 0, 4)).pool.workers == of_all


@pytest.mark.parametrize("kind", ["uint8", "jpeg"])
def test_batches_of_kept_images_are_held_or_streamed_alike(photos, tmp_path, kind):
    (photos / "a" / "1.jpg").unlink()
    batches = []
    for workers in (0, 2):
        config = data_config(
            "folder", root=str(photos), image_size=28, memory="stream", cache=kind, cache_size=32,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        read = reader((28, 28), held=False, workers=workers)
        splits = read.with_cache(load(config).splits, config)
        loader = TrainLoader(
            splits["train"], 2, 4, augmentation("light", crop="resized"), "none", 0, read,
            World(),
        )  # fmt: skip
        batches.append([loader.batch_at(step).images for step in range(4)])
        loader.close()
    for a, b in zip(*batches, strict=True):
        assert a.equal(b)


def test_a_run_from_the_cache_and_its_evaluation_agree(photos, tmp_path):
    """Also where the evaluation finds the cache damaged, which it says."""
    for name in ("a/1.jpg",):
        (photos / name).unlink()
    done = run(
        "train", *SMALL, "data=folder", f"data.root={photos}", "data.image_size=28",
        "data.cache=uint8", "data.cache_size=32", f"data.cache_dir={tmp_path}/cache",
        "trainer.steps=3", "trainer.batch_size=4", "augment.crop=resized", "name=kept",
        "data.test_fraction=0.4", "data.val_fraction=0.2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tested = lines(Path(tmp_path / "outputs/kept/metrics.jsonl"))[-1]
    (shard,) = (tmp_path / "cache").iterdir()
    shard.write_bytes(flip(shard.read_bytes(), 9999))
    scored = run("eval", "checkpoint=outputs/kept", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert scored.stderr == (
        f"warning: damaged shards of the image cache in {tmp_path}/cache are made anew (1 of 1)\n"
    )
    assert f"loss {tested['loss']:.4f}" in scored.stdout
    assert "data.memory: stream" not in done.stdout


def test_caches_of_earlier_versions_are_found_again(tmp_path, monkeypatch):
    """A shard is named by this text: another one would make every cache anew."""
    monkeypatch.setattr(cache, "FORMATS", ("JPEG",))
    (tmp_path / "a.jpg").write_bytes(b"abc")
    os.utime(tmp_path / "a.jpg", ns=(0, 10**18))
    (shard,) = cache._shards(
        FileImages(str(tmp_path), ["a.jpg"]), tmp_path, CacheSpec("jpeg", 256, 3)
    )
    text = (
        "(2, ('JPEG',), Recipe(kind='jpeg', size=256, channels=3, max_pixels=100000000))"
        f"a.jpg\0003\0{10**18}\0"
    )
    name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    assert shard.path == str(tmp_path / f"{name}.shard")
