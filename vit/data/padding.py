"""Padding and patch masks: images of their own aspect ratio in one batch.

NaViT (Dehghani et al. 2023, arXiv 2307.06304) without packing several images into a sequence. A
mask says which patches exist; None stands for images without padding.

Legend: B batch, C channels, H height and W width of the box, N patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def split_padding(
    planes: Tensor, patch: int | None, colour: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What a `Transform` with `patch` rendered, as images and their mask.

    Args:
        planes: uint8 (B, C + 1, H, W), the last one telling where the image is.
        patch: side of a patch in pixels; None: the planes are images without padding.
        colour: uint8 (C, 1, 1), which the padding gets.

    Returns:
        uint8 (B, C, H, W), and bool (B, N).
    """
    if patch is None:
        return planes, None
    there = planes[:, -1:].bool()
    return torch.where(there, planes[:, :-1], colour), there[:, 0, ::patch, ::patch].flatten(1)


def mask_to_pixels(mask: Tensor, height: int, width: int) -> Tensor:
    """Where the patches are that exist: bool (B, N) -> (B, 1, height, width).

    Args:
        mask: (B, N).
        height, width: of the box, in pixels or in patches.
    """
    side = math.isqrt(height * width // mask.shape[1])
    grid = mask.view(len(mask), 1, height // side, width // side)
    return grid.repeat_interleave(side, 2).repeat_interleave(side, 3)


def zero_padding(images: Tensor, mask: Tensor | None) -> Tensor:
    """Normalised images (B, C, H, W), their padding set to 0, the mean colour."""
    if mask is None:
        return images
    return images.masked_fill(~mask_to_pixels(mask, *images.shape[-2:]), 0.0)


def mirrored(images: Tensor, mask: Tensor | None) -> Tensor:
    """Images (B, C, H, W) mirrored left to right, each within its own width."""
    if mask is None:
        return images.flip(-1)
    columns = torch.arange(images.shape[-1], device=images.device)
    widths = mask_to_pixels(mask, *images.shape[-2:])[:, :, :1].sum(dim=-1, keepdim=True)  # B 1 1 1
    source = torch.where(columns < widths, widths - 1 - columns, columns)
    return images.gather(-1, source.expand_as(images))


def unpadded(values: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Each image, or each map of its patches, without the padding.

    Args:
        values: (B, ..., height, width) of the box, in pixels or in patches.
        mask: (B, N).

    Returns:
        (..., height, width) of each.
    """
    if mask is None:
        return list(values)
    there = mask_to_pixels(mask, *values.shape[-2:])[:, 0]
    heights, widths = there[:, :, 0].sum(dim=1), there[:, 0].sum(dim=1)
    return [
        value[..., :height, :width]
        for value, height, width in zip(values, heights.tolist(), widths.tolist(), strict=True)
    ]
