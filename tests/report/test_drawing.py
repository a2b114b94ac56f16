"""Heat on images: what is cold stays, what is hot is coloured; sheets of tiles with labels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vit.report.drawing import grid, heat_map, overlay, png


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def warmth(coloured: np.ndarray) -> np.ndarray:
    """How much of the red end of the scale each pixel has, (H, W): none of a gray one."""
    return coloured[..., 0].astype(float) - coloured[..., 2]


@pytest.mark.parametrize("size", [(8, 8), (20, 30), (57, 41)])
def test_the_photo_is_gray_and_dim_and_hot_places_are_coloured(size):
    image = noise(*size)
    cold = overlay(image, np.zeros((2, 3)))
    assert (cold.dtype, cold.shape) == (np.uint8, image.shape)
    assert np.ptp(cold.astype(int), axis=-1).max() <= 2  # gray
    gray = np.asarray(Image.fromarray(image).convert("L"), float)
    assert np.corrcoef(cold[..., 0].ravel(), gray.ravel())[0, 1] > 0.999  # and still the photo
    assert (cold[..., 0] < 0.7 * gray + 1).all()
    hot = overlay(image, np.ones((2, 3), np.float32))
    assert hot.mean() > 1.5 * cold.mean()
    assert (warmth(hot) > 50).all()


def test_heat_lies_on_its_patch_and_fades():
    """The third of four columns, in a picture twice as wide as high."""
    image, heats = np.full((40, 80, 3), 128, np.uint8), np.zeros((2, 4))
    heats[1, 2] = 1
    moved = warmth(overlay(image, heats))
    assert moved[30, 50] > 50
    assert moved[30, 40:61].mean() > 2 * moved[30, 31:40].mean()
    assert not moved[:10].any()
    assert not moved[:, :30].any()
    assert not moved[:, 71:].any()


def test_a_hotter_place_is_brighter():
    """The scale rises evenly in lightness, as people with any colour vision see it."""
    for gray in (0, 128, 255):
        image = np.full((4, 100, 3), gray, np.uint8)
        hot = overlay(image, np.linspace(0, 1, 100)[None]).astype(float) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(hot[0].reshape(10, 10).mean(axis=1))[4:] > 0).all()
    light = heat_map(np.linspace(0, 1, 64)[None])[0, :, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all()


SHORT = ((0, 2), (1, 2), (2, 1))
"""Rows of a sheet and their columns: the last row lacks one."""


def ink(part: np.ndarray) -> int:
    """How many pixels are not white."""
    return int((part < 255).any(axis=-1).sum())


def test_a_sheet_shows_every_tile_enlarged():
    """Tiles of 8x16 px become 7 times as large, with 4 px of white around each."""
    tiles = [[noise(8, 16) // (1 + i + 3 * j) for j in range(columns)] for i, columns in SHORT]
    sheet = grid(tiles)
    assert (sheet.dtype, sheet.shape) == (np.uint8, (4 + 3 * (56 + 4), 4 + 2 * (112 + 4), 3))
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            top, left = 4 + 60 * i, 4 + 116 * j
            shown = sheet[top : top + 56, left : left + 112]
            assert np.array_equal(shown, tile.repeat(7, axis=0).repeat(7, axis=1))
            sheet[top : top + 56, left : left + 112] = 255
    assert ink(sheet) == 0


def test_images_of_several_shapes_keep_them():
    """Each in the middle of a tile as high and as wide as the highest and the widest."""
    tall, wide = noise(28, 7), noise(14, 56)
    sheet = grid([[tall, wide]])  # twice as large
    assert sheet.shape == (4 + 56 + 4, 4 + 2 * (112 + 4), 3)
    for image, top, left in ((tall, 4, 4 + (112 - 14) // 2), (wide, 4 + (56 - 28) // 2, 4 + 116)):
        height, width = 2 * image.shape[0], 2 * image.shape[1]
        shown = sheet[top : top + height, left : left + width]
        assert np.array_equal(shown, image.repeat(2, axis=0).repeat(2, axis=1))
        sheet[top : top + height, left : left + width] = 255
    assert ink(sheet) == 0


@pytest.mark.parametrize(("side", "shown"), [(8, 112), (28, 112), (32, 128), (64, 128), (112, 112)])
def test_small_tiles_are_enlarged_to_a_readable_size(side, shown):
    assert grid([[noise(side, side)]]).shape == (shown + 8, shown + 8, 3)


def test_labels_stand_above_and_beside():
    tiles, blank = [[noise(8, 8)] * 2] * 2, grid([[noise(8, 8)] * 2] * 2)
    labelled = grid(tiles, ["first", ""], ["", "a long word"])
    top, left = (a - b for a, b in zip(labelled.shape[:2], blank.shape[:2], strict=True))
    assert np.array_equal(labelled[top + 4 :, left + 4 :], blank[4:, 4:])
    head, side = labelled[: top + 4], labelled[top + 4 :, :left]
    assert ink(head[:, left : left + 116]) == ink(head) > 0
    assert ink(side[116:]) == ink(side) > 0


def test_long_labels_are_cut_and_those_beside_may_have_lines():
    tiles = [[noise(8, 8)] * 2]
    long = "a class of a very long name, " * 9
    labelled = grid(tiles, ["", long], [long])
    assert labelled.shape[1] < 250 + 8 + 2 * 116
    head = labelled[:20, -2 * 116 :]
    assert ink(head[:, 116:]) > 100
    assert ink(head[:, :112]) == 0
    assert np.array_equal(labelled, grid(tiles, ["", long.replace(" ", "\n")], [long]))
    one, two = (grid(tiles, [], [text])[:, : -2 * 116] for text in ("name", "name\nname"))
    assert one.shape == two.shape
    assert ink(two) == 2 * ink(one)


def test_a_scale_runs_from_the_most_down_to_the_least():
    tiles, blank = [[noise(8, 8)]] * 2, grid([[noise(8, 8)]] * 2)
    sheet = grid(tiles, scales=[("0", "most"), ("0", "1")])
    assert np.array_equal(sheet[:, : blank.shape[1]], blank)
    beside = sheet[4:116, blank.shape[1] :]
    bar = beside[:, 4:10].astype(int)
    assert (np.diff(bar.sum(axis=(1, 2))) <= 0).all()
    assert (bar[0] == heat_map(np.ones((1, 1)))[0, 0, :3]).all()
    assert (bar[-1] == heat_map(np.zeros((1, 1)))[0, 0, :3]).all()
    assert ink(beside[:20, 20:]) > 20
    assert ink(beside[40:80, 20:]) == 0


def test_png_holds_the_pixels():
    image = noise(5, 7)
    content = png(image)
    assert content.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(content)) as read:
        assert np.array_equal(np.asarray(read), image)
