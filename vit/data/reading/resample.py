"""Batched random resized crops on the device, equal to the bit to `transform.resize` of each.

torch resizes bytes on the CPU in fixed point: rows, then columns, each a sum of pixels times
weights of 16 bits, rounded to a byte. All those integers are exact in float64, so two batched
matrix products do the same, whatever the order of their sums.

Legend: B batch, C channels, H and W of the images.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_BITS = 22  # of a weight's fraction; its whole must fit into 15 bits


def resize_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Crop a box of each image and resize it, bilinear and antialiased, to the image's own size.

    Args:
        images: uint8 (B, C, H, W).
        boxes: top, left, height and width in pixels, int64 (B, 4).

    Returns:
        uint8 (B, C, H, W).
    """
    top, left, height, width = boxes.unbind(1)
    across, x_unit = _weights(left, width, images.shape[-1])
    down, y_unit = _weights(top, height, images.shape[-2])
    narrowed = _rounded(images.double() @ across.transpose(-2, -1), x_unit)
    pixels: Tensor = _rounded(down @ narrowed, y_unit).to(torch.uint8)
    return pixels


def _rounded(sums: Tensor, unit: Tensor) -> Tensor:
    rounded: Tensor = ((sums + unit / 2) / unit).floor().clamp(0, 255)
    return rounded


def _weights(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Weight of each input pixel in each output pixel, and what counts as 1.

    As torch's UpSampleKernel.cpp: a triangle as wide as the scale, or as one pixel when enlarging.

    Returns:
        Whole numbers (B, 1, size, size), and powers of two (B, 1, 1, 1).
    """
    scale = (length.double() / size)[:, None, None]
    support = scale.clamp(min=1.0)
    at = torch.arange(size, device=start.device)
    center = (at.double() + 0.5)[:, None] * scale  # B out 1
    x = at - start[:, None, None]  # B 1 in, counted from the box
    first = (center - support + 0.5).floor().clamp(min=0)
    last = (center + support + 0.5).floor().minimum(length[:, None, None])
    triangle = (1 - ((x - center + 0.5) * (1 / support)).abs()).clamp(min=0)
    triangle = torch.where((x >= first) & (x < last), triangle, 0.0)
    shares = triangle / triangle.sum(dim=-1, keepdim=True)
    largest = shares.amax(dim=(1, 2))  # B
    bits = torch.arange(1, _MOST_BITS + 1, device=start.device)
    fits = (0.5 + largest[:, None] * 2.0**bits).floor() < 2**15  # B bits
    unit = (2.0 ** fits.sum(dim=1).double())[:, None, None]
    return (0.5 + shares * unit).floor()[:, None], unit[:, None]
