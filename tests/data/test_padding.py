"""Images of their own aspect ratio in one batch: rendered, mirrored, mixed, however kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from composing import changed, sized
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import augmentation, data_config, noise, reader, save
from PIL import Image
from shapes import BOX, COLOUR, PATCH, SIZES, batch, planes

from vit.config.resolve import MEMORY_LIMIT, resolve, resolve_memory
from vit.config.validate import to_config
from vit.data.augment import policies
from vit.data.augment.batch import crop_flip, draw, mix, mixed_mask
from vit.data.loader import EvalLoader, TrainLoader
from vit.data.padding import mask_to_pixels, mirrored, split_padding, unpadded, zero_padding
from vit.data.reading.cache import CachedImages, CacheSpec
from vit.data.reading.decode import decode
from vit.data.reading.reader import Reader
from vit.data.reading.transform import Transform, fitted, resize
from vit.data.reading.workers import WorkerPool
from vit.data.sources import folder
from vit.data.types import Batch, Samples
from vit.errors import ConfigError
from vit.runtime.dist import World

# What an image becomes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 150), (16, 24)), ((150, 100), (16, 12)), ((100, 100), (16, 16)),
        ((1, 1), (16, 16)), ((20000, 1), (16, 4)), ((1, 20000), (4, 24)),
        ((100, 130), (16, 20)), ((100, 137), (16, 20)), ((100, 138), (16, 24)),
        ((16, 200), (4, 24)), ((9, 24), (8, 24)), ((10, 24), (12, 24)), ((11, 24), (12, 24)),
    ],
)  # fmt: skip
def test_an_image_just_fits(size, expected):
    assert fitted(size, BOX, PATCH) == expected


@settings(max_examples=300, deadline=None)
@given(*[st.integers(1, 5000)] * 2, *[st.integers(1, 40)] * 2, st.integers(1, 64))
def test_the_shape_is_kept_to_half_a_patch(height, width, rows, columns, patch):
    box = (rows * patch, columns * patch)
    found = fitted((height, width), box, patch)
    scale = min(box[0] / height, box[1] / width)
    for side, whole, most in zip(found, (height, width), box, strict=True):
        assert 0 < side <= most
        assert side % patch == 0
        assert side == patch or abs(side - whole * scale) <= patch / 2 + 1e-6
    assert found[0] == box[0] or found[1] == box[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_stands_at_the_top_left(channels):
    image = np.array(noise(60, 90))[..., :channels]
    transform = Transform(*BOX, channels, center_crop=0.5, patch=PATCH)
    found = transform.render(image)
    assert found.shape == transform.shape == (channels + 1, *BOX)
    expected = resize(image, 16, 12).transpose(2, 0, 1)
    assert np.array_equal(found[:-1, :16, :12], expected)
    assert (found[-1, :16, :12] == 255).all()
    assert not found[:, :, 12:].any()


def test_a_large_jpeg_is_decoded_small(tmp_path):
    """The shape is that of the photo itself, not of the reduced one."""
    transform = Transform(64, 96, 3, patch=16)
    smooth = noise(20, 8).resize((1001, 417), Image.Resampling.BICUBIC)
    path = str(save(tmp_path / "large.jpg", smooth, quality=95))
    size = (417, 1001)  # 39.99 px high, nearer to 2 patches than to 3; the reduced one is not
    small = decode(path, 3, lambda h, w: transform.min_size(h, w, None))
    assert small.shape == (53, 126, 3)  # an eighth, rounded up
    a, b = transform.render(small, None, size), transform.render(decode(path, 3))
    assert np.array_equal(a[-1], b[-1])
    assert (a[-1, :32] == 255).all()
    assert not a[-1, 32:].any()
    assert abs(a.astype(int) - b).mean() < 1.5


def test_padding_has_the_mean_colour_and_a_mask():
    rendered = planes()
    pixels, mask = split_padding(rendered, PATCH, COLOUR)
    assert mask.shape == (6, 24)
    there = mask_to_pixels(mask, *BOX)
    for i, (height, width) in enumerate(SIZES):
        assert torch.equal(pixels[i, :, :height, :width], rendered[i, :3, :height, :width])
        assert there[i, 0, :height, :width].all()
        assert there[i].sum() == height * width
        assert mask[i].sum() == height * width / PATCH**2
        assert (pixels[i] == COLOUR)[:, ~there[i, 0]].all()
    images = reader(BOX).normalise(pixels)
    assert not zero_padding(images, mask)[~there.expand_as(images)].any()
    assert torch.equal(zero_padding(images, mask)[0], images[0])
    assert zero_padding(images, None) is images


def test_what_is_shown_has_no_padding():
    images, mask = batch()
    found = unpadded(images, mask)
    grid = torch.arange(24).view(1, 1, 4, 6).expand(6, 2, 4, 6)
    maps = unpadded(grid, mask)
    for i, (height, width) in enumerate(SIZES):
        assert torch.equal(found[i], images[i, :, :height, :width])
        assert torch.equal(maps[i], grid[i, :, : height // PATCH, : width // PATCH])
    assert all(map(torch.equal, unpadded(images, None), images))


def test_mirror_images_stay_at_the_left():
    images, mask = batch()
    found = mirrored(images, mask)
    for i, (height, width) in enumerate(SIZES):
        assert torch.equal(found[i, :, :height, :width], images[i, :, :height, :width].flip(-1))
    assert not found[~mask_to_pixels(mask, *BOX).expand_as(images)].any()
    assert torch.equal(mirrored(found, mask), images)
    assert torch.equal(mirrored(images, None), images.flip(-1))


# Augmentation

MIXING = augmentation(crop="none", flip=0.5, mixup=0.8, cutmix=1.0, mix_probability=0.8)


def test_an_image_is_mirrored_where_it_was_drawn():
    pixels, mask = split_padding(planes(), PATCH, COLOUR)
    draws = draw(MIXING, 6, BOX, 1, 3)
    found = crop_flip(pixels, draws, (0, 0), mask)
    assert 0 < draws.flip.sum() < 6
    for i, flip in enumerate(draws.flip.tolist()):
        assert torch.equal(found[i], mirrored(pixels, mask)[i] if flip else pixels[i])


def test_a_mixed_image_has_the_patches_of_both_and_the_classes_that_are_seen():
    _, mask = split_padding(planes(10 * SIZES), PATCH, COLOUR)
    there = mask_to_pixels(mask, *BOX)
    draws, classes = draw(MIXING, 60, BOX, 3, 5), torch.eye(60)
    _, targets = mix(torch.zeros(60, 1, *BOX), classes, draws, mask)
    after = mixed_mask(mask, draws)
    kinds = set()
    for i, (top, left, bottom, right) in enumerate(draws.cut.tolist()):
        partner, keep = i ^ 1, draws.keep[i].item()
        cut = torch.zeros(1, *BOX, dtype=torch.bool)
        cut[:, top:bottom, left:right] = True
        theirs, own = int((there[partner] & cut).sum()), int((there[i] & ~cut).sum())
        expected = keep - theirs / (theirs + own)
        assert targets[i, i].item() == pytest.approx(expected, abs=1e-6)
        assert targets[i].sum().item() == pytest.approx(1, abs=1e-6)
        is_mixed = keep < 1 or bool(cut.any())
        assert torch.equal(after[i], mask[i] | mask[partner] if is_mixed else mask[i])
        kinds.add((keep < 1, bool(cut.any())))
    assert kinds == {(False, False), (True, False), (False, True)}


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment", "three_augment"])
def test_padding_stays_padding(policy, photos, pool):
    config = augmentation(
        crop="none", flip=0.5, policy=policy, color_jitter=0.4, erasing=0.9, magnitude=20
    )
    load = TrainLoader(photos, 3, 10, config, "none", 0, read(True, pool), World())
    plain = TrainLoader(photos, 3, 10, augmentation(crop="none", flip=0.5), "none", 0,
                        read(True, pool), World())  # fmt: skip
    differs = False
    for step in range(4):
        made, simple = load.batch_at(step), plain.batch_at(step)
        assert made.mask is not None
        assert torch.equal(made.mask, simple.mask)
        assert not made.images[~mask_to_pixels(made.mask, *BOX).expand_as(made.images)].any()
        differs |= not torch.equal(made.images, simple.images)
    assert differs
    assert 0.3 < made.mask.float().mean() < 0.95
    chain = policies.draw(config, 10, BOX, 0, 0)
    assert (chain.operations.shape[1] > 0) == (policy != "none" or config.color_jitter > 0)


# Loaders: the same however images are kept


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """60 photos of many shapes in three classes."""
    root = tmp_path_factory.mktemp("shapes")
    shapes = [(40, 30), (24, 32), (32, 24), (100, 20), (9, 64), (33, 31), (128, 96)]
    for label in "abc":
        for i in range(20):
            height, width = shapes[i % len(shapes)]
            ending = ("jpg", "png", "bmp", "jpeg")[i % 4]
            image = noise(width, height, "L" if i == 7 else "RGB", seed=100 * ord(label) + i)
            save(root / label / f"{i:02}.{ending}", image)
    listed = folder.load(data_config("folder", root=str(root), image_size=list(BOX)))
    return listed.splits["train"]


@pytest.fixture(scope="module")
def pool() -> WorkerPool:
    return WorkerPool(0, 120)


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerPool]:
    started = WorkerPool(2, 120)
    yield started
    started.stop()


def read(held: bool, pool: WorkerPool) -> Reader:
    whole = Transform(*BOX, 3, center_crop=0.875, patch=PATCH)
    return replace(reader(BOX, held=held), pool=pool, transform=whole)


def loader(samples: Samples, reads: Reader, world: World | None = None) -> TrainLoader:
    config = augmentation(
        crop="none", flip=0.5, policy="randaugment", mixup=0.8, cutmix=1.0, mix_probability=0.8,
        erasing=0.3,
    )  # fmt: skip
    return TrainLoader(samples, 3, 10, config, "none", 0, reads, world or World())


def assert_same(a: Batch, b: Batch) -> None:
    for name in ("images", "labels", "targets", "mask"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("cache", ["none", "jpeg", "uint8"])
def test_held_and_streamed_are_the_same_bits(cache, photos, pool, workers, tmp_path):
    if cache != "none":
        kept = CachedImages(photos.images, tmp_path, CacheSpec(cache, 32, 3), pool)
        photos = replace(photos, images=kept)
    expected = loader(photos, read(True, pool))
    for reads in (read(False, pool), read(False, workers)):
        load = loader(photos, reads)
        for step in range(8):
            assert_same(load.batch_at(step), expected.batch_at(step))
    ways = (read(True, pool), read(False, pool), read(False, workers))
    scored = [EvalLoader(photos, 17, way) for way in ways]
    for k in range(4):
        (images, labels, index, mask), *rest = (load.batch(k) for load in scored)
        for other_images, other_labels, other_index, other_mask in rest:
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)
            assert np.array_equal(index, other_index)
            assert torch.equal(mask, other_mask)


def test_ranks_together_see_what_one_process_sees(photos, workers):
    one = loader(photos, read(False, workers))
    ranks = [loader(photos, read(False, workers), World(rank, 5)) for rank in range(5)]
    for step in range(3):
        whole, shares = one.batch_at(step), [load.batch_at(step) for load in ranks]
        parts = whole.split(5)
        for share, part in zip(shares, parts, strict=True):
            assert_same(share, part)


def test_an_image_that_fills_the_box_is_what_crop_makes_of_it(pool, tmp_path):
    """Nothing else is drawn, and nothing else is done."""
    for i in range(30):
        save(tmp_path / "abc"[i % 3] / f"{i}.png", noise(48, 32, seed=i))
    listed = folder.load(data_config("folder", root=str(tmp_path))).splits["train"]
    whole = loader(listed, read(False, pool))
    crop = loader(listed, replace(read(False, pool), transform=Transform(*BOX, 3)))
    for step in range(6):
        a, b = whole.batch_at(step), crop.batch_at(step)
        assert a.mask is not None
        assert a.mask.all()
        assert b.mask is None
        assert_same(a, replace(b, mask=a.mask))


def test_a_damaged_photo_gives_way_with_its_mask(photos, pool, tmp_path):
    for i in range(12):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", noise(10 + 5 * i, 30))
    (tmp_path / "a" / "4.png").write_bytes(b"no image")
    listed = folder.load(data_config("folder", root=str(tmp_path))).splits["train"]
    skipping = replace(read(False, pool), bad_images=0.5)
    config = augmentation(crop="none")
    load = TrainLoader(listed, 2, 12, config, "none", 0, skipping, World())
    made = load.batch_at(0)
    assert made.mask is not None
    assert made.mask.any(dim=1).all()
    bad = listed.names.index("a/4.png")
    row = load.indices_at(0).tolist().index(bad)
    taken = load.indices_at(0).tolist().index(bad + 1)
    assert torch.equal(made.mask[row], made.mask[taken])
    scored = EvalLoader(listed, 12, skipping)
    images, labels, index, mask = scored.batch(0)
    assert len(images) == len(labels) == len(index) == len(mask) == 11


# Settings


def native(**values: Any) -> dict[str, Any]:
    """Settings of a run on whole photos."""
    photos = {
        "data__name": "folder", "data__root": "photos", "data__aspect": "native",
        "data__image_size": 128, "data__mean": [0.5] * 3, "data__std": [0.5] * 3,
    }  # fmt: skip
    return changed(**{**photos, **values})


def test_whole_images_are_not_cropped():
    config = resolve(sized(native()), precision="fp32")
    assert config.augment.crop == "none"
    assert resolve(sized(native(data__aspect="crop")), precision="fp32").augment.crop == "resized"


def test_the_padding_needs_memory_too():
    config = resolve(sized(native()), precision="fp32")
    most = MEMORY_LIMIT // (4 * 128 * 128)
    for count, memory in ((most, "device"), (most + 1, "stream")):
        assert resolve_memory(config, count, in_files=True).data.memory == memory


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"augment__crop": "padded"}, "augment.crop=padded does not go .*=none"),
        (
            {"augment__crop": "resized"},
            "augment.crop=resized does not go .*=none",
        ),
        ({"distill__teacher": "r"}, "distill.teacher=r does not go .*; try .*aspect=crop"),
        (
            {"data__name": "digits", "data__root": None},
            "data=digits are all of one shape; try data.aspect=crop",
        ),
        ({"data__aspect": "nativ"}, "must be one of crop, native"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(values, words):
    to_config(native())
    with pytest.raises(ConfigError, match=words) as raised:
        to_config(native(**values))
    assert len(raised.value.problems) == 1
