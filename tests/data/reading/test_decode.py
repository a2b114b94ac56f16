"""Image files: every kind is upright and 8 bits deep, every damaged one is named."""

import zlib

import numpy as np
import pytest
import torch
from pictures import (
    BLUE,
    CPU,
    GREEN,
    RED,
    claims_to_be,
    data_config,
    is_colour,
    noise,
    save,
    stripes,
    write,
)  # fmt: skip
from PIL import Image

from vit.data.loader import EvalLoader
from vit.data.reading.decode import decode
from vit.data.reading.reader import Reader, decode_all
from vit.data.reading.transform import Transform
from vit.data.reading.workers import WorkerPool
from vit.data.sources import folder
from vit.data.sources.registry import load_data_set
from vit.errors import DataError


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
    return Transform(size, size, channels).render(decode(str(path), channels))


def opened(config, split="train"):
    """A split's loader, which decodes what it holds."""
    return EvalLoader(load_data_set(config).splits[split], 4, Reader.of(config, 4, CPU))


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


def chunk(kind, content):
    checked = kind + content
    return len(content).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")


LONG = zlib.compress(bytes(2_000_000))
ODD_CHUNKS = {
    "a compressed text": [chunk(b"zTXt", b"Comment\0\0" + LONG)],
    "a compressed international text": [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)],
    "megabytes of texts": [chunk(b"iTXt", b"XMP\0\0\0\0\0" + b"x" * 12_000_000)] * 6,
    "a compressed colour profile": [chunk(b"iCCP", b"Printer\0\0" + LONG)],
}


@pytest.mark.parametrize("place", ["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("kind", ODD_CHUNKS)
def test_what_stands_beside_the_pixels_of_a_png_does_not_count(tmp_path, kind, place):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = half_red_half_blue(16)
    path = save(tmp_path / "x.png", upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    content = path.read_bytes()
    at = content.index(b"IDAT" if place == "before the pixels" else b"IEND") - 4
    path.write_bytes(content[:at] + b"".join(ODD_CHUNKS[kind]) + content[at:])
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(path) as file:
        file.load()  # Pillow's own limits are in force
    np.testing.assert_array_equal(decode(str(path), 3), np.asarray(upright))


def test_the_limit_is_of_what_is_decoded(tmp_path):
    photo = noise(64, 64)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    paths = [
        save(tmp_path / "x.jpg", photo),
        save(tmp_path / "rotated.jpg", photo, exif=rotated),
        save(tmp_path / "gray.jpg", noise(64, 64, "L")),
    ]
    for path in map(str, paths):
        seen = decode(path, 3, lambda height, width: (16, 16), max_pixels=300)
        assert seen.shape == (16, 16, 3)
        assert decode(path, 3, max_pixels=64 * 64).shape == (64, 64, 3)
        with pytest.raises(Image.DecompressionBombError):
            decode(path, 3, max_pixels=64 * 64 - 1)
    whole = [
        save(tmp_path / "progressive.jpg", photo, progressive=True),
        save(tmp_path / "x.png", photo),
        save(tmp_path / "x.webp", photo),
        save(tmp_path / "cmyk.jpg", noise(64, 64, "CMYK")),
    ]
    for path in map(str, whole):
        assert decode(path, 3, max_pixels=64 * 64).shape == (64, 64, 3)
        for most in (64 * 64 - 1, 300):
            with pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning)):
                decode(path, 3, lambda height, width: (16, 16), max_pixels=most)


@pytest.mark.parametrize("changes", [{}, {"memory": "stream"}, {"cache": "jpeg", "cache_size": 16}])
def test_the_limit_is_a_setting(tmp_path, changes):
    for name in ("a", "b"):
        for i in range(2):
            save(tmp_path / "photos" / name / f"{i}.png", noise(40, 40, seed=i))
    limits = {}
    for most in (1599, 1600):
        config = uncut(
            tmp_path / "photos", max_pixels=most, cache_dir=str(tmp_path / "kept"), **changes
        )
        reader = Reader.of(config, 4, CPU)
        splits = reader.with_cache(load_data_set(config).splits, config)
        try:
            loader = EvalLoader(splits["train"], 4, reader)
            limits[most] = len(loader.batch(0)[2])
        except DataError as error:
            limits[most] = str(error)
    assert "4 of 4 images cannot be decoded" in limits[1599]
    assert "data.max_pixels" in limits[1599]
    assert limits[1600] == 4


# Corrupt files


def bad_files(root):
    whole = save(root / "whole.jpg", noise(64, 64)).read_bytes()
    (root / "whole.jpg").unlink()
    renamed = save(root / "renamed.ico")
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
    monkeypatch.setattr("vit.data.reading.workers.POOL_FROM", 1)
    monkeypatch.setattr("vit.data.reading.reader._ROWS", 4)  # three batches
    for i in range(5):
        for name, red in (("a", 0), ("b", 200)):
            save(tmp_path / name / f"{i}.jpg", stripes((red, 0, i * 50), (0, i * 50, red)))
    pools = {workers: WorkerPool(workers, 60) for workers in (0, 2)}
    try:
        results = {}
        for workers, pool in pools.items():
            listed = folder.load(folder_config(tmp_path)).splits["train"]
            results[workers], damaged = decode_all(listed, Transform(16, 16, 3), pool)
            assert damaged == {}
        assert pools[2]._pool is not None
        assert pools[0]._pool is None
        assert len(np.unique(results[0], axis=0)) == 10
        np.testing.assert_array_equal(results[2], results[0])
        bad = bad_files(tmp_path / "b")
        listed = folder.load(folder_config(tmp_path)).splits["train"]
        _, damaged = decode_all(listed, Transform(16, 16, 3), pools[2])
        assert {listed.names[i] for i in damaged} == {str(p.relative_to(tmp_path)) for p in bad}
    finally:
        pools[2].stop()


def nearest(box, factor):
    """The box with its edges at whole pixels of an image that is reduced by `factor`."""
    if box is None:
        return None
    top, left, height, width = box
    bottom, right = round((top + height) / factor), round((left + width) / factor)
    top, left = round(top / factor), round(left / factor)
    return tuple(factor * side for side in (top, left, bottom - top, right - left))


def test_a_large_jpeg_is_decoded_small(tmp_path):
    """At 1/2, 1/4 or 1/8 where that is min_size: nearly the same pixels; smaller ones exactly."""
    transform = Transform(32, 32, 3, 1.0, (0.3, 1.0))
    smooth = noise(40, 30).resize((1000, 750), Image.Resampling.BICUBIC)
    path = str(save(tmp_path / "large.jpg", smooth, quality=95))
    crop_uniforms = np.random.default_rng(0).random((10, 10, 4))
    size, whole = (750, 1000), decode(path, 3)
    assert whole.shape == (*size, 3)
    for lot in [None, *crop_uniforms]:
        box = transform.box(*size, lot)
        small = decode(path, 3, lambda h, w, box=box: transform.min_size(h, w, box))
        assert small.shape[0] < 750
        _, _, rows, columns = box or (0, 0, *size)
        factor = round(750 / small.shape[0])
        assert rows / factor >= 32 - 1
        assert columns / factor >= 32 - 1
        a, b = transform.render(small, box, size), transform.render(whole, nearest(box, factor))
        assert abs(a.astype(int) - b).mean() < 1.5
    exact = str(save(tmp_path / "exact.jpg", noise(60, 60), quality=95))
    small = decode(exact, 3, lambda h, w: transform.min_size(h, w, None))
    assert np.array_equal(small, decode(exact, 3))


def test_a_turned_jpeg_is_decoded_small_too(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth = noise(40, 20).resize((800, 400), Image.Resampling.BICUBIC)
    path = str(save(tmp_path / "turned.jpg", smooth, exif=turned, quality=95))
    told = []

    def quarter(height, width):
        told.append((height, width))
        return height // 4, width // 4

    assert decode(path, 3, quarter).shape == (200, 100, 3)
    assert told == [(800, 400)]  # upright: height, width


# For people to look at


@pytest.mark.parametrize("crop", [1.0, 0.8])
def test_a_larger_view_shows_the_same_part_in_more_detail(tmp_path, crop):
    for label in ("a", "b"):
        small = noise(9, 6, seed=ord(label))
        save(tmp_path / label / "1.png", small.resize((90, 60), Image.Resampling.BICUBIC))
    loader = opened(folder_config(tmp_path, 16, center_crop=crop))
    seen = loader.normalise.undo(loader.take(np.array([1, 0]))[0])
    for side, expected in ((40, 40), (400, 60)):  # no larger than the files
        large = loader.enlarged(side)
        images, labels, index, _ = large.take(np.array([1, 0]))
        assert images.shape == (2, 3, expected, expected)
        assert index.tolist() == [1, 0]
        assert labels.tolist() == [1, 0]
        pixels = large.normalise.undo(images)
        shrunk = torch.nn.functional.interpolate(pixels, (16, 16), mode="bilinear", antialias=True)
        assert (shrunk - seen).abs().mean() < 0.02
    assert loader.enlarged(18) is loader


def test_a_larger_view_of_images_of_their_own_shape_has_whole_patches(tmp_path):
    save(tmp_path / "a" / "1.png", noise(120, 60))
    save(tmp_path / "b" / "2.png", noise(60, 120))
    loader = opened(folder_config(tmp_path, 16, aspect="native"))
    images, _, _, mask = loader.enlarged(50).take(np.array([0, 1]))
    assert images.shape == (2, 3, 48, 48)
    assert torch.equal(mask, loader.take(np.array([0, 1]))[3])


def test_images_that_are_no_files_stay_as_they_are():
    loader = opened(data_config("digits"))
    assert loader.enlarged(400) is loader
