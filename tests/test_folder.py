"""Data sources: folders of images good and bad, the digits, and CIFAR without a network."""

import os
from pathlib import Path
from typing import ClassVar
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from pictures import (
    BLUE,
    CPU,
    GREEN,
    RED,
    WHITE,
    claims_to_be,
    data_config,
    is_colour,
    noise,
    pixels_of,
    save,
    stripes,
    write,
)  # fmt: skip
from PIL import Image

from vit.config.errors import ConfigError, DataError
from vit.data import folder
from vit.data.decode import decode
from vit.data.loader import EvalLoader
from vit.data.pool import WorkerPool
from vit.data.reader import Reader, decode_all
from vit.data.sources import load_data_set
from vit.data.views import View


def folder_config(root, size=16, **changes):
    return data_config("folder", root=str(root), image_size=size, **changes)


def half_red_half_blue(size):
    return stripes(RED, BLUE, size=size).resize((size, size), Image.Resampling.NEAREST)


def two_classes(root):
    save(root / "a" / "1.png", RED)
    save(root / "b" / "2.png", BLUE)
    return root


def decoded(path, size, channels=3):
    """An image as evaluation sees it: (channels, size, size)."""
    return View(size, size, channels).render(decode(str(path), channels)[0], None)


def opened(config, split="train"):
    """A split's loader, which decodes what it holds."""
    return EvalLoader(load_data_set(config).splits[split], 4, Reader.of(config, CPU))


# Listing


def test_classes_are_sorted_and_names_are_relative(tmp_path):
    for name in ("薔薇", "Tulpe", "Gänseblümchen", "ab"):
        save(tmp_path / name / "z.png")
        save(tmp_path / name / "deep" / "er" / "a.JPG")
    data = folder.load(folder_config(tmp_path))
    assert data.classes == ["Gänseblümchen", "Tulpe", "ab", "薔薇"]
    train = data.splits["train"]
    pairs = [(c, f) for c in data.classes for f in (os.path.join("deep", "er", "a.JPG"), "z.png")]
    assert list(train.names) == [os.path.join(*pair) for pair in pairs]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(data.splits) == ["train"]
    assert pixels_of(train).shape == (8, 3, 16, 16)


def test_only_visible_image_files_are_listed(tmp_path):
    two_classes(tmp_path)
    for name in (".DS_Store", "._1.png", "Thumbs.db", "notes.txt", "1.png.part", "movie.gif"):
        write(tmp_path / "a" / name, b"no image")
    save(tmp_path / ".git" / "x.png")
    write(tmp_path / "README.md", b"hello")
    data = folder.load(folder_config(tmp_path))
    assert data.classes == ["a", "b"]
    assert list(data.splits["train"].names) == [os.path.join("a", "1.png"), "b/2.png"]


def test_hidden_folders_are_not_listed(tmp_path):
    two_classes(tmp_path)
    save(tmp_path / "a" / ".thumbnails" / "1.png")
    assert len(folder.load(folder_config(tmp_path)).splits["train"]) == 2


def test_every_format_and_its_pixels(tmp_path):
    for i, (ending, colour) in enumerate([("jpg", RED), ("jpeg", GREEN), ("png", BLUE),
                                          ("webp", WHITE), ("bmp", (10, 20, 30))]):  # fmt: skip
        save(tmp_path / f"class{i}" / f"x.{ending}", colour)
    data = folder.load(folder_config(tmp_path))
    pixels = pixels_of(data.splits["train"])
    assert pixels.dtype == np.uint8
    for i, colour in enumerate([RED, GREEN, BLUE, WHITE, (10, 20, 30)]):
        assert is_colour(pixels[i], colour, within=0 if i in (2, 4) else 6), i


def test_named_splits(tmp_path):
    for split, count in (("train", 10), ("val", 2), ("test", 3)):
        for name in "ab":
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png")
    listed = folder.load(folder_config(tmp_path))
    assert listed.classes == ["a", "b"]
    assert listed.splits["val"].names[0] == os.path.join("val", "a", "0.png")
    splits = load_data_set(folder_config(tmp_path)).splits
    assert {k: len(s) for k, s in splits.items()} == {"train": 20, "val": 4, "test": 6}


def test_a_cut_split_reads_its_own_pixels(tmp_path):
    for label, name in enumerate("ab"):
        for i in range(10):
            save(tmp_path / name / f"{i}.png", (label * 100, i * 10, 7))
    splits = load_data_set(folder_config(tmp_path, val_fraction=0.2, test_fraction=0.3)).splits
    assert {k: len(s) for k, s in splits.items()} == {"train": 10, "val": 4, "test": 6}
    for split in splits.values():
        for pixels, label, name in zip(pixels_of(split), split.labels, split.names, strict=True):
            assert "ab"[label] == Path(name).parent.name
            assert is_colour(pixels, (label * 100, int(Path(name).stem) * 10, 7))


def test_load_flat_wants_the_same_classes(tmp_path):
    two_classes(tmp_path)
    assert folder.load_flat(tmp_path, ["a", "b"]).labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"missing \['c'\], not expected \['b'\]"):
        folder.load_flat(tmp_path, ["a", "c"])
    with pytest.raises(DataError, match="nowhere is no folder"):
        folder.load_flat(tmp_path / "nowhere", ["a"])


# Unusable folders


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere is no folder"):
        folder.load(folder_config(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"1\.png is no folder"):
        folder.load(folder_config(save(tmp_path / "1.png")))


def test_an_empty_class(tmp_path):
    two_classes(tmp_path)
    write(tmp_path / "empty" / "notes.txt", b"no image")
    with pytest.raises(DataError) as error:
        folder.load(folder_config(tmp_path))
    assert f"class folder {tmp_path / 'empty'} holds no image" in str(error.value)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_classes(tmp_path, count):
    for i in range(count):
        save(tmp_path / f"class{i}" / "1.png")
    with pytest.raises(DataError, match=f"{tmp_path} has {count} class folders"):
        folder.load(folder_config(tmp_path))


@pytest.mark.parametrize("split", ["val", "test"])
def test_splits_that_disagree(tmp_path, split):
    two_classes(tmp_path / "train")
    save(tmp_path / split / "a" / "1.png")
    save(tmp_path / split / "c" / "1.png")
    with pytest.raises(DataError) as error:
        folder.load(folder_config(tmp_path))
    assert str(tmp_path / split) in str(error.value)
    assert "missing ['b'], not expected ['c']" in str(error.value)


# Decoding


def test_grayscale_and_colour_become_what_is_asked(tmp_path):
    gray = save(tmp_path / "gray.png", Image.new("L", (16, 16), 90))
    colour = save(tmp_path / "colour.png", RED)
    assert is_colour(decoded(gray, 16), (90, 90, 90))
    assert decoded(colour, 16, 1).shape == (1, 16, 16)
    assert (decoded(gray, 16, 1) == 90).all()
    assert (decoded(colour, 16, 1) == round(0.299 * 255)).all()


def test_sixteen_bit_grayscale_keeps_its_range(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 16)[None], 16, axis=0).astype(np.uint16)
    path = save(tmp_path / "16bit.png", Image.fromarray(ramp))
    pixels = decoded(path, 16, 1)[0]
    assert np.abs(pixels.astype(int) - ramp // 256).max() <= 1


def test_cmyk_jpeg(tmp_path):
    path = save(tmp_path / "cmyk.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
    with Image.open(path) as file:
        assert file.mode == "CMYK"
    assert is_colour(decoded(path, 16), RED, within=6)


def test_palette_with_alpha(tmp_path):
    image = stripes(RED, BLUE).convert("P", palette=Image.Palette.ADAPTIVE)
    path = save(tmp_path / "palette.png", image, transparency=bytes([255, 128]))
    with Image.open(path) as file:
        assert file.mode == "P"
        assert isinstance(file.info["transparency"], bytes)
    pixels = decoded(path, 16)
    assert is_colour(pixels[:, :, :7], RED)
    assert is_colour(pixels[:, :, 9:], (127, 127, 255))  # half transparent, on white


def test_rgba_drops_its_alpha(tmp_path):
    path = save(tmp_path / "rgba.png", Image.new("RGBA", (16, 16), (*GREEN, 255)))
    assert is_colour(decoded(path, 16), GREEN)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90),
     (8, Image.Transpose.ROTATE_270)],
)  # fmt: skip
def test_rotated_jpeg_is_upright(tmp_path, orientation, stored):
    upright = half_red_half_blue(32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    path = save(tmp_path / "x.jpg", image, exif=exif, quality=95)
    pixels = decoded(path, 32)
    assert is_colour(pixels[:, :, :14], RED, within=10)
    assert is_colour(pixels[:, :, 18:], BLUE, within=10)


def test_the_centre_square_is_taken(tmp_path):
    wide = stripes(RED, GREEN, BLUE)
    tall = save(tmp_path / "tall.png", wide.transpose(Image.Transpose.ROTATE_90))
    wide = save(tmp_path / "wide.png", wide)
    for path in (tall, wide):
        assert is_colour(decoded(path, 16), GREEN)
        assert is_colour(decoded(path, 8)[:, 1:7, 1:7], GREEN)


@pytest.mark.parametrize("size", [4, 8, 16, 40])
def test_images_are_resized(tmp_path, size):
    path = save(tmp_path / "x.png", half_red_half_blue(16))
    pixels = decoded(path, size)
    assert pixels.shape == (3, size, size)
    left, right = size // 4, size - size // 4
    assert is_colour(pixels[:, :, :left], RED, within=60)
    assert is_colour(pixels[:, :, right:], BLUE, within=60)
    if size == 16:
        assert is_colour(pixels[:, :, :8], RED)
        assert is_colour(pixels[:, :, 8:], BLUE)


# Bad files


def bad_files(root):
    whole = save(root / "whole.jpg", noise(64, 64)).read_bytes()
    (root / "whole.jpg").unlink()
    renamed = save(root / "renamed.gif")
    return [
        write(root / "truncated.jpg", whole[: len(whole) // 2]),
        write(root / "nothing.png", b""),
        write(root / "page.jpg", b"<!DOCTYPE html><html>404</html>"),
        write(root / "huge.png", claims_to_be(20_000, 10_000)),
        renamed.rename(root / "renamed.png"),
    ]


def uncut(root, **changes):
    return folder_config(root, val_fraction=0.0, test_fraction=0.0, **changes)


def test_every_bad_file_is_named_and_no_good_one(tmp_path):
    two_classes(tmp_path)
    bad = bad_files(tmp_path / "a")
    with pytest.raises(DataError) as error:
        opened(uncut(tmp_path))
    message = str(error.value)
    assert message.startswith("5 of 7 images cannot be decoded")
    assert all(str(path.relative_to(tmp_path)) in message for path in bad)
    assert "decompression bomb" in message  # refused by its header, before memory is taken
    assert "1.png" not in message
    assert "2.png" not in message
    assert "\n" not in message


def test_many_bad_files_are_counted(tmp_path):
    two_classes(tmp_path)
    for i in range(13):
        write(tmp_path / "a" / f"bad{i:02}.png", b"")
    with pytest.raises(DataError, match=r"13 of 15 images.*bad09\.png.* and 3 more$") as error:
        opened(uncut(tmp_path))
    assert "bad10" not in str(error.value)


def test_a_pool_gives_the_same_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr("vit.data.reader.POOL_FROM", 1)
    monkeypatch.setattr("vit.data.reader._ROWS", 4)  # three batches
    for i in range(5):
        for name, red in (("a", 0), ("b", 200)):
            save(tmp_path / name / f"{i}.jpg", stripes((red, 0, i * 50), (0, i * 50, red)))
    pools = {workers: WorkerPool(workers, 60) for workers in (0, 2)}
    try:
        results = {}
        for workers, pool in pools.items():
            listed = folder.load(folder_config(tmp_path)).splits["train"]
            results[workers], damaged = decode_all(listed, View(16, 16, 3), pool)
            assert damaged == {}
        assert pools[2]._pool is not None
        assert pools[0]._pool is None
        assert len(np.unique(results[0], axis=0)) == 10
        np.testing.assert_array_equal(results[2], results[0])
        bad = bad_files(tmp_path / "b")
        listed = folder.load(folder_config(tmp_path)).splits["train"]
        _, damaged = decode_all(listed, View(16, 16, 3), pools[2])
        assert {listed.names[i] for i in damaged} == {str(p.relative_to(tmp_path)) for p in bad}
    finally:
        pools[2].stop()


# The digits


def test_digits():
    data = load_data_set(data_config("digits"))
    assert data.classes == list("0123456789")
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 1259, "val": 179, "test": 359}
    everything = np.concatenate([pixels_of(split) for split in data.splits.values()])
    assert everything.shape == (1797, 1, 8, 8)
    assert everything.dtype == np.uint8
    assert (everything.min(), everything.max()) == (0, 255)
    assert len(np.unique(everything)) == 17
    numbers = sorted(i for split in data.splits.values() for i in split.index.tolist())
    assert numbers == list(range(1797))
    for split in data.splits.values():
        counts = np.bincount(split.labels, minlength=10) / len(split)
        assert ((counts > 0.09) & (counts < 0.11)).all()


def test_digits_have_the_mean_and_deviation_of_their_config():
    config = data_config("digits")
    pixels = pixels_of(load_data_set(config).splits["train"]) / 255
    assert pixels.mean() == pytest.approx(config.mean[0], abs=0.005)
    assert pixels.std() == pytest.approx(config.std[0], abs=0.005)


@pytest.mark.parametrize(("source", "size"), [("digits", 8), ("cifar10", 32), ("cifar100", 32)])
def test_fixed_sizes_are_checked(source, size):
    with pytest.raises(ConfigError, match=f"use data.image_size={size}"):
        load_data_set(data_config(source, image_size=24))


# CIFAR


class FakeCifar:
    """torchvision's CIFAR10 with 40 + 20 images and no files."""

    filename = "cifar-10-python.tar.gz"
    url = "https://example.org/files/cifar-10-python.tar.gz"
    tgz_md5 = "c58f30108f718f92721af3b95e74349a"
    error: Exception | None = None
    roots: ClassVar[list[str]] = []

    def __init__(self, root, train, download):
        if self.error is not None:
            raise self.error
        self.roots.append(str(root))
        count = 40 if train else 20
        shape = (count, 32, 32, 3)
        self.data = np.random.default_rng(train).integers(0, 256, shape, dtype=np.uint8)
        self.targets = [i % 2 for i in range(count)]
        self.classes = ["plane", "car"]


@pytest.fixture
def fake_cifar(monkeypatch):
    monkeypatch.setattr(FakeCifar, "roots", [])
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    return FakeCifar


def test_cifar(fake_cifar, tmp_path):
    data = load_data_set(data_config("cifar10", root=str(tmp_path)))
    assert fake_cifar.roots == [str(tmp_path)] * 2
    assert data.classes == ["plane", "car"]
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 36, "val": 4, "test": 20}
    for name, split in data.splits.items():
        source = FakeCifar(tmp_path, name != "test", download=True)
        expected = source.data[split.index].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(pixels_of(split), expected)
        assert split.labels.tolist() == [source.targets[i] for i in split.index]
        assert list(split.names) == [str(i) for i in split.index]


@pytest.mark.parametrize(
    "reason", [URLError("no route to host"), RuntimeError("Dataset not found or corrupted.\n...")]
)
def test_cifar_without_files_says_what_to_put_where(fake_cifar, monkeypatch, tmp_path, reason):
    monkeypatch.setattr(fake_cifar, "error", reason)
    with pytest.raises(DataError) as error:
        load_data_set(data_config("cifar10", root=str(tmp_path)))
    message = str(error.value)
    assert str(reason).splitlines()[0] in message
    archive = tmp_path / "cifar-10-python.tar.gz"
    assert f"put cifar-10-python.tar.gz (md5 {FakeCifar.tgz_md5}) at {archive}" in message
    assert "\n" not in message
    assert error.value.__cause__ is None
