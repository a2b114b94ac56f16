"""Odd images are decoded right; damaged ones are named, or skipped, and counted."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import (
    BLUE,
    GREEN,
    RED,
    array_samples,
    augmentation,
    claims_to_be,
    data_config,
    encoded,
    is_colour,
    noise,
    reader,
    save,
    stripes,
    write,
)  # fmt: skip
from PIL import Image

from vit.data.loader import EvalLoader, TrainLoader
from vit.data.reading.decode import decode, reason
from vit.data.reading.reader import CorruptImages, verify
from vit.data.reading.workers import WorkerPool
from vit.data.sources import folder
from vit.data.types import Samples
from vit.errors import DataError
from vit.inference.predict import predict
from vit.model.vit import VisionTransformer
from vit.runtime.dist import World

NO_IMAGE = "the content is not JPEG, PNG, WEBP, BMP, TIFF, GIF or AVIF"
PHOTO = encoded(noise(64, 48), "JPEG", quality=90)
DAMAGED = {
    "truncated.jpg": (PHOTO[: len(PHOTO) // 2], "Premature end of JPEG"),
    "corrupt.jpg": (PHOTO[:1500] + bytes([0x55, 0xAA] * 100) + PHOTO[1700:], "Corrupt JPEG"),
    "truncated.png": (encoded(noise(64, 48), "PNG")[:500], "truncated"),
    "nothing.jpg": (b"", "the file is empty"),
    "page.jpg": (
        b"<!DOCTYPE html><html>404 Not Found</html>",
        NO_IMAGE,
    ),
    "ico.png": (encoded(noise(8, 8, "L"), "ICO"), NO_IMAGE),
    "float.tif": (encoded(Image.new("F", (8, 8)), "TIFF"), "32 bits a value"),
    "bomb.png": (claims_to_be(20_000, 10_000), "decompression bomb"),
}


# Kinds of files


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_damaged_is_refused_in_one_line(name, channels, tmp_path):
    content, words = DAMAGED[name]
    path = write(tmp_path / name, content)
    with pytest.raises(Exception, match=r".") as error:
        decode(str(path), channels)
    assert words in reason(error.value)
    assert "\n" not in reason(error.value)
    assert str(tmp_path) not in reason(error.value)


def test_a_missing_file_and_a_folder_have_reasons_too(tmp_path):
    for path, words in ((tmp_path / "no.png", "No such file"), (tmp_path, "directory")):
        with pytest.raises(OSError, match=words) as error:
            decode(str(path), 3)
        assert words in reason(error.value)


def pixels(path: Path, channels: int = 3) -> np.ndarray:
    """Decoded, as (channels, height, width)."""
    return decode(str(path), channels).transpose(2, 0, 1)


def test_cmyk_jpeg(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert is_colour(pixels(save(tmp_path / "x.jpg", image)), RED, within=6)


def test_sixteen_bit_gray_png(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    path = save(tmp_path / "x.png", Image.fromarray(ramp))
    for channels in (1, 3):
        assert (pixels(path, channels) == ramp // 256).all()


def test_palette_png_with_alpha_lies_on_white(tmp_path):
    image = stripes(RED, BLUE).convert("P", palette=Image.Palette.ADAPTIVE)
    path = save(tmp_path / "x.png", image, transparency=bytes([255, 0]))
    with Image.open(path) as file:
        assert file.mode == "P"
    assert is_colour(pixels(path)[..., :16], RED)
    assert is_colour(pixels(path)[..., 16:], (255, 255, 255))


@pytest.mark.parametrize("form", ["GIF", "TIFF", "AVIF", "MPO", "WEBP"])
def test_the_first_of_several_frames_is_read_whatever_the_name(form, tmp_path):
    first, second = stripes(RED, BLUE), stripes(GREEN, GREEN)
    content = encoded(first, form, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(content)) as file:
        assert (file.format, file.n_frames) == (form, 2)
    found = pixels(write(tmp_path / "x.png", content))
    assert is_colour(found[..., :14], RED, within=8)
    assert is_colour(found[..., 18:], BLUE, within=8)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_images_are_upright(ending, orientation, tmp_path):
    upright = stripes(RED, GREEN, BLUE)
    turns = Image.Transpose
    stored = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE, 6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270,
    }  # fmt: skip
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if ending == "jpg" else {"lossless": True}
    found = pixels(save(tmp_path / f"x.{ending}", image, exif=exif, **options))
    assert found.shape == (3, 16, 48)
    for i, colour in enumerate((RED, GREEN, BLUE)):
        assert is_colour(found[..., 16 * i + 3 : 16 * i + 13], colour, within=12), i


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (GREEN, RED, BLUE)]
    path = save(tmp_path / "x.webp", frames[0], save_all=True, append_images=frames[1:],
                lossless=True)  # fmt: skip
    with Image.open(path) as file:
        assert file.n_frames == 3
    assert is_colour(pixels(path), GREEN)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("ending", ["jpg", "bmp", "png"])
def test_plain_files_are_pillows_pixels(mode, ending, tmp_path):
    path = save(tmp_path / f"x.{ending}", noise(50, 37, mode))
    for channels, wanted in ((1, "L"), (3, "RGB")):
        with Image.open(path) as file:
            expected = np.asarray(file.convert(wanted)).reshape(37, 50, channels)
        np.testing.assert_array_equal(decode(str(path), channels), expected)


# Splits with damaged images

SIZE = (16, 16)
BAD = [3, 8, 9, 10, 23]  # alone, in a row, and the last of all


def split(root: Path, bad: list[int] = BAD, count: int = 24) -> Samples:
    """`count` images in three classes, of which those at `bad` are damaged."""
    kinds = list(DAMAGED)
    for i in range(count):
        path = root / "abc"[3 * i // count] / f"{i:03}.jpg"
        if i in bad:
            write(path, DAMAGED[kinds[i % len(kinds)]][0])
        else:
            save(path, noise(*SIZE, seed=i))
    config = data_config("folder", root=str(root), image_size=16)
    return folder.load(config).splits["train"]


def train_loader(samples, held, allowed=0.5, batch=8, crop="resized", balance="none", pool=None):
    read = reader(SIZE, held=held, bad_images=allowed)
    read = replace(read, pool=pool or read.pool)
    config = augmentation(crop=crop, flip=0.5)
    return TrainLoader(samples, 3, batch, config, balance, 0, read, World())


def test_held_images_are_all_named_at_the_start(tmp_path):
    samples = split(tmp_path)
    for kind in (EvalLoader, lambda s, batch, read: train_loader(s, True, None)):
        with pytest.raises(DataError, match=r"^5 of 24 images.*data\.on_bad_image=skip") as error:
            kind(samples, 8, reader(SIZE))
        assert re.findall(r"[abc]/\d+\.jpg", str(error.value)) == [samples.names[i] for i in BAD]
        for i in BAD:
            assert DAMAGED[list(DAMAGED)[i % len(DAMAGED)]][1] in str(error.value)


def test_streamed_images_are_named_batch_by_batch(tmp_path):
    samples = split(tmp_path)
    load = EvalLoader(samples, 12, reader(SIZE, held=False))
    with pytest.raises(DataError, match=r"^4 of 24 images") as error:
        load.batch(0)
    assert re.findall(r"\d+(?=\.jpg)", str(error.value)) == ["003", "008", "009", "010"]


def test_at_most_ten_are_named():
    bad = CorruptImages([f"image {i}" for i in range(99)], None)
    with pytest.raises(DataError, match=r"^13 of 99.*image 9 \(why\) and 3 more$"):
        bad.note(dict.fromkeys(range(13), "why"))


@pytest.mark.parametrize("crop", ["none", "resized"])
@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_images_are_replaced_by_the_next_good_ones(tmp_path, crop, workers):
    samples, pool = split(tmp_path), WorkerPool(workers, 120)
    held = train_loader(samples, True, crop=crop)
    streamed = train_loader(samples, False, crop=crop, pool=pool)
    whole = replace(samples, index=samples.index.copy())
    for i in reversed(BAD):  # what each position shows: itself or the next good one
        whole.index[i] = whole.index[(i + 1) % 24]
    whole = replace(whole, labels=samples.labels[whole.index])
    assert set(whole.index) == set(range(24)) - set(BAD)
    assert whole.index[[8, 9, 10, 23]].tolist() == [11, 11, 11, 0]
    expected = train_loader(whole, True, None, crop=crop)
    for step in [*range(6), 2]:
        a, b, c = (load.batch_at(step) for load in (held, streamed, expected))
        for name in ("images", "labels", "targets"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
            assert torch.equal(getattr(a, name), getattr(c, name)), name
    pool.stop()
    for load in (held, streamed):  # each is counted once, however often it came
        assert list(load.corrupt.named()) == [samples.names[i] for i in BAD]
        assert list(load.corrupt.news()) == [samples.names[i] for i in BAD]
        assert load.corrupt.news() == {}


def test_more_than_allowed_end_the_run(tmp_path):
    samples = split(tmp_path)
    with pytest.raises(DataError, match=r"^5 of 24.*, 4 allowed by data\.bad_image_limit"):
        train_loader(samples, True, 0.2)
    load = train_loader(samples, False, 0.2)
    with pytest.raises(DataError, match=r"^5 of 24.*, 4 allowed"):
        list(map(load.batch_at, range(3)))
    assert len(train_loader(samples, True, 0.21)) == 24
    everything = split(tmp_path / "all", bad=list(range(24)))
    with pytest.raises(DataError, match=", 23 allowed"):
        train_loader(everything, False, 0.999).batch_at(0)  # and does not look for ever


def test_saved_reasons_count_after_a_resume():
    bad = CorruptImages([str(i) for i in range(10)], 0.2)
    bad.note({3: "empty", 4: "torn"})
    again = CorruptImages(bad.names, 0.2)
    again.note(bad.reasons)
    again.note({4: "torn"})
    assert again.named() == {"3": "empty", "4": "torn"}
    with pytest.raises(DataError, match=r"^3 of 10"):
        again.note({5: "empty"})


@pytest.mark.parametrize("batch_size", [1, 2, 7, 24])
def test_evaluation_leaves_them_out(tmp_path, batch_size):
    samples = split(tmp_path)
    good = np.setdiff1d(np.arange(24), BAD)
    torch.manual_seed(0)
    model = VisionTransformer(16, 4, 3, dim=16, depth=1, heads=2)
    torch.nn.init.normal_(model.head.weight)
    alone = predict(model, EvalLoader(samples.take(good), 24, reader(SIZE)), "fp32")
    for held in (True, False):
        load = EvalLoader(samples, batch_size, reader(SIZE, held=held, bad_images=0.5))
        found = predict(model, load, "fp32")
        assert found.index.tolist() == good.tolist()
        assert found.labels.tolist() == samples.labels[good].tolist()
        np.testing.assert_allclose(found.losses, alone.losses, rtol=1e-4, atol=1e-5)
        assert list(load.corrupt.named()) == [samples.names[i] for i in BAD]


@pytest.mark.parametrize("workers", [0, 1])
def test_verify_finds_all(tmp_path, workers, monkeypatch):
    monkeypatch.setattr("vit.data.reading.workers.POOL_FROM", 1)
    monkeypatch.setattr("vit.data.reading.reader._ROWS", 5)
    samples, read = split(tmp_path), reader(SIZE, held=False, workers=workers, timeout=120)
    assert sorted(verify(samples, read)) == BAD
    assert verify(array_samples(3), read) == {}
    read.pool.stop()
