"""Drawing: heat-map overlays, labelled grids of images, confusion and similarity matrices.

Legend: H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vit.errors import printable

LABELLED = 30
"""Up to so many classes a confusion matrix has names and numbers."""
COLOURS = "inferno"
"""A map of matplotlib: even steps for every kind of colour vision, from black over red to yellow,
none of which a gray photo has."""
_DIM = 0.65
"""How bright a photo is below a heat map."""
_LEAST, _MOST = 0.1, 0.85
"""How far a heat map covers the photo where it is coldest and hottest."""
_TILE = 112
_GAP = 4
_TEXT = 13
_LINE = 17
_BAR = 12
_CELL = 44
_LONGEST = 14


def heat_map(heat: np.ndarray) -> np.ndarray:
    """Heat in [0, 1], (rows, columns), as colours over a dimmed photo: uint8 (rows, columns, 4),
    RGB and how far it covers the photo.
    """
    from matplotlib import colormaps

    warm = np.asarray(heat, np.float64).clip(0, 1)
    rgba: np.ndarray = colormaps[COLOURS](warm, bytes=True)
    rgba[..., 3] = np.rint(255 * (_LEAST + (_MOST - _LEAST) * np.sqrt(warm)))
    return rgba


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image, uint8 (H, W, 3), gray and dimmed under `heat_map` of `heat` (rows, columns), which
    is stretched bilinearly over it.
    """
    height, width, _ = image.shape
    cells = Image.fromarray(np.ascontiguousarray(heat, dtype=np.float32))
    smooth = np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR))
    colours = heat_map(smooth)
    share = colours[..., 3:] / 255
    gray = _DIM * np.asarray(Image.fromarray(image).convert("L"), np.float64)[..., None]
    blend = np.asarray((1 - share) * gray + share * colours[..., :3])
    return blend.round().astype(np.uint8)


def scale_stops(count: int = 9) -> list[str]:
    """The colours of heat maps from the least to the most, as CSS has them."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[COLOURS](x)) for x in np.linspace(0, 1, count)]


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    labels_top: Sequence[str] = (),
    labels_left: Sequence[str] = (),
    scales: Sequence[tuple[str, str]] = (),
) -> np.ndarray:
    """A sheet of images, each in the middle of a tile, with a label per column and per row.

    All are uint8 (H, W, 3); there is at least one. A tile is as large as the largest image, and at
    least 112 px at its longer side: small images are enlarged by a whole number, each pixel a
    square. Labels that are longer than a tile are cut; those on the left may have several lines.

    Args:
        scales: of each row what the least and the most of its heat maps are: a colour bar shows
            them on the right.
    """
    high, wide = (max(image.shape[axis] for row in rows for image in row) for axis in (0, 1))
    factor = max(1, -(-_TILE // max(high, wide)))
    high, wide = factor * high, factor * wide
    font = typeface(_TEXT)
    above = [_cut(label, wide, font) for label in labels_top]
    beside = [[_cut(line, 2 * _TILE, font) for line in label.split("\n")] for label in labels_left]
    top = _TEXT + 2 * _GAP if above else _GAP
    left = (
        int(max((font.getlength(x) for lines in beside for x in lines), default=-_GAP)) + 2 * _GAP
    )
    columns = max(len(row) for row in rows)
    right = left + columns * (wide + _GAP)
    words = max(
        (font.getlength(text) for pair in scales for text in pair), default=-_BAR - 3 * _GAP
    )
    size = (right + int(words) + _BAR + 3 * _GAP, top + len(rows) * (high + _GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            width, height = factor * image.shape[1], factor * image.shape[0]
            tile = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            across, down = (wide - width) // 2, (high - height) // 2
            sheet.paste(tile, (left + j * (wide + _GAP) + across, top + i * (high + _GAP) + down))
    for j, label in enumerate(above):
        centre = left + j * (wide + _GAP) + wide / 2
        draw.text((centre, top / 2), label, "black", font, anchor="mm")
    for i, lines in enumerate(beside):
        middle = top + i * (high + _GAP) + high / 2 - (len(lines) - 1) * _LINE / 2
        for n, line in enumerate(lines):
            draw.text((left - _GAP, middle + n * _LINE), line, "black", font, anchor="rm")
    for i, (least, most) in enumerate(scales):
        first = top + i * (high + _GAP)
        bar = heat_map(np.linspace(1, 0, high)[:, None])[..., :3].repeat(_BAR, axis=1)
        sheet.paste(Image.fromarray(bar), (right + _GAP, first))
        draw.text((right + _BAR + 2 * _GAP, first), most, "black", font, anchor="lt")
        draw.text((right + _BAR + 2 * _GAP, first + high), least, "black", font, anchor="lb")
    return np.array(sheet)


def card(image: np.ndarray, width: int, lines: Sequence[str], tone: str) -> np.ndarray:
    """An image, uint8 (H, W, 3), at most `width` wide, over lines of text on a ground of a colour:
    uint8 (height, `width`, 3). Lines that are longer are cut; the first is smaller than the others.
    """
    sheet = Image.new("RGB", (width, image.shape[0] + _LINE * len(lines) + _GAP), tone)
    sheet.paste(Image.fromarray(image), ((width - image.shape[1]) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for n, line in enumerate(lines):
        font = typeface(_TEXT - 2 * (n == 0))
        place = (_GAP, image.shape[0] + _LINE * n + _LINE // 2 + 2)
        text = _cut(line, width - 2 * _GAP, font)
        pen.text(place, text, "#586475" if n == 0 else "#1c2430", font, anchor="lm")
    return np.array(sheet)


def typeface(size: int) -> ImageFont.FreeTypeFont:
    """The font of labels, `size` px high: it knows the letters of most alphabets."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def png(image: np.ndarray) -> bytes:
    """The content of a PNG file of an image, uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _cut(label: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """The label in one line of at most `width` px."""
    line = printable(" ".join(label.split()))
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


def colours(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours from dark to light, of any shape: uint8 (..., 3)."""
    from matplotlib import colormaps

    rgb: np.ndarray = colormaps["viridis"](np.asarray(values, float), bytes=True)[..., :3]
    return rgb


def confusion_picture(counts: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A confusion matrix (K, K) as uint8 (height, width, 3): rows are the true classes, columns
    what the model said.

    A cell's colour is its share of the row. Up to LABELLED classes it shows the count.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rgb = colours(shares)
    if len(classes) > LABELLED:
        side = max(1, 800 // len(classes))
        return rgb.repeat(side, axis=0).repeat(side, axis=1)
    font = typeface(12)
    names = [printable(name) for name in classes]
    names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    margin = 12 + max(int(font.getlength(name)) for name in names)
    side = margin + _CELL * len(classes)
    sheet = Image.new("RGB", (side, side), "white")
    sheet.paste(Image.fromarray(rgb.repeat(_CELL, axis=0).repeat(_CELL, axis=1)), (margin, margin))
    pen = ImageDraw.Draw(sheet)
    middles = margin + _CELL * np.arange(len(classes)) + _CELL // 2
    for name, middle in zip(names, middles.tolist(), strict=True):
        pen.text((margin - 6, middle), name, "black", font, anchor="rm")
        across = Image.new("RGB", (margin, _CELL), "white")
        ImageDraw.Draw(across).text((6, _CELL // 2), name, "black", font, anchor="lm")
        sheet.paste(across.rotate(90, expand=True), (middle - _CELL // 2, 0))
    for row, column in np.argwhere(counts):
        ink = "white" if shares[row, column] < 0.6 else "black"
        place = (int(middles[column]), int(middles[row]))
        pen.text(place, f"{counts[row, column]}", ink, font, anchor="mm")
    return np.asarray(sheet)


def similarity_picture(similarity: np.ndarray, side: int = 640) -> np.ndarray:
    """One tile for each patch: how similar its position is to all others, (rows, columns, rows,
    columns), in colours from the least of all pairs to 1: uint8 (height, about `side`, 3).
    """
    columns = similarity.shape[1]
    scale = max(1, (side // columns - _GAP) // columns)
    least = similarity.min()
    spread = (similarity - least) / max(1 - least, 1e-12)
    tiles = colours(spread).repeat(scale, axis=2).repeat(scale, axis=3)
    tiles = np.pad(tiles, ((0, 0),) * 2 + ((0, _GAP),) * 2 + ((0, 0),), constant_values=255)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, columns * tiles.shape[3], 3)
