"""Images made small once: the same pixels, made anew only where a file changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, lines, run
from pictures import augmentation, data_config, noise, reader, save, write
from PIL import Image

from vit.data import cache
from vit.data.cache import CachedImages, Recipe
from vit.data.decode import decode
from vit.data.folder import load
from vit.data.loader import TrainLoader
from vit.data.pool import WorkerPool
from vit.data.types import DataSet
from vit.data.views import View, resize
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
    return CachedImages(images_of(root), folder, Recipe(kind, size, 3), pool)


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
    images, view = kept(photos, tmp_path / "cache"), View(28, 28, 3, 0.875)
    for i, name in enumerate(images.names):
        if name != "a/1.jpg":
            direct = view.render(decode(images.path(i), 3))
            assert np.array_equal(view.render(images.source(i).open()), direct), name


def test_workers_make_the_same_and_nothing_is_made_twice(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_IMAGES", 5)
    pool = WorkerPool(2, 60)
    for folder, made_by in (("one", ALONE), ("two", pool)):
        kept(photos, tmp_path / folder, pool=made_by)
    pool.stop()
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [f.name for f in one] == [f.name for f in two]
    assert len(one) == 2 * 3  # shards of 5, 5 and 2 images
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))
    times = [f.stat().st_mtime_ns for f in one]
    kept(photos, tmp_path / "one")
    assert [f.stat().st_mtime_ns for f in one] == times


@pytest.mark.parametrize("change", ["content", "time", "name", "recipe"])
def test_only_what_changed_is_made_anew(photos, tmp_path, monkeypatch, change):
    monkeypatch.setattr(cache, "_IMAGES", 6)
    before = kept(photos, tmp_path / "cache")
    shards = {str(before.source(i)) for i in range(12)}
    file = photos / "b" / "5.jpg"
    recipe = {"size": 32}
    if change == "content":
        save(file, noise(70, 50, seed=9))
    elif change == "time":
        os.utime(file, ns=(1, time.time_ns() - 10**12))
    elif change == "name":
        file.rename(file.with_name("6.jpg"))
    else:
        recipe["size"] = 31
    after = kept(photos, tmp_path / "cache", **recipe)
    same = {str(after.source(i)) for i in range(12)} & shards
    assert len(same) == (0 if change == "recipe" else 1)
    expected = shortened(decode(after.path(11), 3), recipe["size"])
    assert np.array_equal(after.source(11).open(), expected)


def test_half_a_shard_is_no_shard(photos, tmp_path, monkeypatch):
    """Killed between its two files, or in the middle of one, a shard is made again."""
    images = kept(photos, tmp_path / "cache")
    good = {f.name: f.read_bytes() for f in (tmp_path / "cache").iterdir()}
    index = next((tmp_path / "cache").glob("*.json"))
    index.unlink()
    index.with_suffix(".bin").write_bytes(b"half")
    again = kept(photos, tmp_path / "cache")
    assert {f.name: f.read_bytes() for f in (tmp_path / "cache").iterdir()} == good
    assert again.source(0) == images.source(0)


def test_a_folder_that_cannot_be_made_is_named(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"data\.cache_dir=.*file/cache cannot be made"):
        kept(photos, tmp_path / "file" / "cache")


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
        listed = load(config)
        data = read.keeping(DataSet(listed.classes, listed.splits), config)
        loader = TrainLoader(
            data.splits["train"], 2, 4, augmentation("light", crop="resized"), "none", 0, read,
            World(),
        )  # fmt: skip
        batches.append([loader.batch_at(step).images for step in range(4)])
        loader.close()
    for a, b in zip(*batches, strict=True):
        assert a.equal(b)


def test_a_run_from_the_cache_and_its_evaluation_agree(photos, tmp_path):
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
    scored = run("eval", "checkpoint=outputs/kept", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert f"loss {tested['loss']:.4f}" in scored.stdout
    assert "data.memory: stream" not in done.stdout
