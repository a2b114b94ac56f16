"""The attention explorer: one self-contained HTML page with every weight of a few images.

Weights are stored in bytes, as square roots relative to the largest of their row: small ones keep
more of their digits.

Legend: L blocks, H heads, T tokens (prefix + patches), V features of a value that are kept.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit.report.drawing import heat_map, scale_stops
from vit.report.gallery import data_uri
from vit.report.render import rendered

VALUES = 4
"""Features of a value that the page shows."""
LIMIT = 40_000_000
"""Bytes that a page takes at most: what is beyond it is left out."""
LEVELS, SIGNED_LEVELS = 255, 127
"""Of a weight, where none is below 0 and where some are."""
_SIDE = 512
_STOPS = 33


@dataclass(frozen=True)
class Explored:
    """An image and all that its tokens look at.

    Attributes:
        name, picture: of the image, and what the model saw of it, uint8 (height, width, 3).
        answer, probability: the most probable class.
        grid: rows and columns of its patches.
        weights: how much each token takes of each, float32 (L, H, T, T).
        log_sums: of the exponentials of each row's scores, (L, H, T); None: weights are no softmax.
        values, mixed: what is mixed and what comes of it, their first V features (L, H, T, V).
        reading: how much the pooling takes of each token, (T,).
        heats: maps of the whole image by method, in [0, 1], (rows, columns).
    """

    name: str
    picture: np.ndarray
    answer: str
    probability: float
    grid: tuple[int, int]
    weights: np.ndarray
    log_sums: np.ndarray | None
    values: np.ndarray
    mixed: np.ndarray
    reading: np.ndarray
    heats: Mapping[str, np.ndarray]


def quantised(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (..., T) as bytes, and the largest size of each row, float32 (...).

    A byte b stands for (b / LEVELS)^2 of the largest; where some weights are below 0, bytes are
    signed and b stands for sign(b) (b / SIGNED_LEVELS)^2.
    """
    most = np.abs(weights).max(axis=-1).astype(np.float32)
    roots = np.sqrt(np.abs(weights) / np.maximum(most, 1e-30)[..., None])
    if weights.min() < 0:
        return np.rint(np.sign(weights) * SIGNED_LEVELS * roots).astype(np.int8), most
    return np.rint(LEVELS * roots).astype(np.uint8), most


def restored(codes: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The weights (..., T) that `quantised` made bytes of."""
    levels = SIGNED_LEVELS if codes.dtype == np.int8 else LEVELS
    share = codes.astype(np.float64) / levels
    weights: np.ndarray = np.sign(share) * share**2 * most[..., None]
    return weights


def packed(image: Explored) -> str:
    """The numbers of an image, deflated (RFC 1950), in base64: float32 the largest weight of each
    row, log sums and the reading, float16 values and what is mixed, then the bytes of the weights.
    """
    codes, most = quantised(image.weights)
    sums = np.zeros(0) if image.log_sums is None else image.log_sums
    floats = (np.asarray(part, "<f4") for part in (most, sums, image.reading))
    halves = (np.asarray(part, "<f2") for part in (image.values, image.mixed))
    content = b"".join(part.tobytes() for part in (*floats, *halves, codes))
    return base64.b64encode(zlib.compress(content, 6)).decode("ascii")


def explorer_page(
    title: str, facts: Sequence[str], formula: str, prefix: Sequence[str],
    images: Iterable[Explored],
) -> tuple[str, int]:  # fmt: skip
    """The page, and how many of `images` it holds: as many as LIMIT allows, one at least.

    Args:
        title, facts: its heading, and short texts below it.
        formula: how weights are computed.
        prefix: names of the tokens before the patches.
    """
    held: list[dict[str, Any]] = []
    left = LIMIT
    for image in images:
        entry = _entry(image)
        left -= len(entry["numbers"]) + len(entry["picture"])
        if held and left < 0:
            break
        held.append(entry)
    page = rendered(
        "explore.html", title=title, facts=facts, formula=formula, images=held,
        data={"images": held, "prefix": list(prefix), "scale": scale_stops(_STOPS),
              "values": VALUES, "levels": [LEVELS, SIGNED_LEVELS]},
    )  # fmt: skip
    return page, len(held)


def _entry(image: Explored) -> dict[str, Any]:
    """What the page's script reads of an image."""
    blocks, heads, tokens, _ = image.weights.shape
    return {
        "name": image.name,
        "answer": image.answer,
        "percent": round(100 * image.probability, 1),
        "picture": data_uri(image.picture, _SIDE),
        "grid": list(image.grid),
        "shape": [blocks, heads, tokens, image.values.shape[-1]],
        "signed": bool(image.weights.min() < 0),
        "softmax": image.log_sums is not None,
        "heats": {name: data_uri(heat_map(heat)) for name, heat in image.heats.items()},
        "numbers": packed(image),
    }
