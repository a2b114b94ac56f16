"""What the tests of images of their own aspect ratio share: such images, in one batch."""

from __future__ import annotations

import numpy as np
import torch
from pictures import reader
from torch import Tensor

from vit.data.padding import split_padding, zero_padding
from vit.data.reading.transform import Transform

PATCH = 4
BOX = (16, 24)
SIZES = [(16, 24), (16, 8), (8, 24), (16, 12), (4, 24), (16, 4)]
"""Of images in the box."""
COLOUR = torch.tensor([7, 8, 9], dtype=torch.uint8)[:, None, None]


def planes(sizes: list[tuple[int, int]] = SIZES) -> Tensor:
    """Noise of these sizes, as a transform renders it."""
    rng = np.random.default_rng(0)
    transform, shape = Transform(*BOX, 3, patch=PATCH), (len(sizes), 4, *BOX)
    rendered = np.zeros(shape, np.uint8)
    for row, size in zip(rendered, sizes, strict=True):
        row[:] = transform.render(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return torch.from_numpy(rendered)


def batch() -> tuple[Tensor, Tensor]:
    """Normalised images of SIZES, and their mask."""
    pixels, mask = split_padding(planes(), PATCH, COLOUR)
    return zero_padding(reader(BOX).normalise(pixels), mask), mask
