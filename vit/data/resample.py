"""Random resized crops of a batch on the device, with the very bits that Pillow gives one by one.

Pillow resizes bytes in fixed point: rows, then columns, each a sum of pixels times weights of
22 bits, rounded to a byte. All those integers are exact in float64, so two batched matrix products
do the same, whatever the order of their sums.

Legend: B batch, C channels, H and W of the images.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 22


def resize_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Crop a box of each image and resize it, bilinear and antialiased, to the image's own size.

    Args:
        images: uint8 (B, C, H, W).
        boxes: top, left, height and width in pixels, int64 (B, 4).

    Returns:
        uint8 (B, C, H, W), equal to Pillow's `image.crop(box).resize(size, BILINEAR)`.
    """
    top, left, height, width = boxes.unbind(1)
    rows = _weights(top, height, images.shape[-2])[:, None]  # B 1 H H
    columns = _weights(left, width, images.shape[-1])[:, None]  # B 1 W W
    narrowed = _round(images.double() @ columns.transpose(-2, -1))
    pixels: Tensor = _round(rows @ narrowed).to(torch.uint8)
    return pixels


def _round(sums: Tensor) -> Tensor:
    rounded: Tensor = ((sums + 2 ** (_BITS - 1)) / 2**_BITS).floor().clamp(0, 255)
    return rounded


def _weights(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Weight of each input pixel in each output pixel, in units of 2^-22: (B, size, size).

    As Pillow's Resample.c: a triangle as wide as the scale, or as one pixel when enlarging.
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
    total = triangle.sum(dim=-1, keepdim=True)
    weights: Tensor = (0.5 + triangle / total * 2**_BITS).floor()
    return weights
