"""Pictures of numbers, for TensorBoard. K classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vit.artifacts.overlay import typeface
from vit.config.suggest import printable

LABELLED = 30
"""Up to so many classes a confusion matrix has names and numbers."""
_CELL = 44
_LONGEST = 14
_GAP = 4


def colours(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours from dark to light, of any shape: uint8 (..., 3)."""
    from matplotlib import colormaps

    rgb: np.ndarray = colormaps["viridis"](np.asarray(values, float), bytes=True)[..., :3]
    return rgb


def confusion_picture(counts: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A confusion matrix: rows are the true classes, columns what the model said.

    A cell's colour is its share of the row. Up to LABELLED classes it shows the count.

    Args:
        counts: (K, K).
        classes: K names.

    Returns:
        uint8 (height, width, 3).
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
    """One tile for each patch: how similar its position is to all others.

    Colours go from the least similar of all pairs to 1.

    Args:
        similarity: (rows, columns, rows, columns).
        side: about how wide the picture is, in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    rows, columns = similarity.shape[:2]
    scale = max(1, (side // columns - _GAP) // columns)
    least = similarity.min()
    spread = (similarity - least) / max(1 - least, 1e-12)
    tiles = colours(spread).repeat(scale, axis=2).repeat(scale, axis=3)
    tiles = np.pad(tiles, ((0, 0),) * 2 + ((0, _GAP),) * 2 + ((0, 0),), constant_values=255)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(
        rows * tiles.shape[2], columns * tiles.shape[3], 3
    )
