"""Batched augmentation on the device, drawn per image and never once per batch.

Draws are made for the *global* batch from (seed, "augment", step), then sliced by rank, so that
the images a step sees do not depend on how many processes share it.

Legend: B batch, C channels, H height, W width, K classes, N patches; a Size is (height, width) in
pixels. A mask, bool (B, N), says which patches exist; None: all do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vit.config.schema import AugmentConfig
from vit.data import padding as native
from vit.data.types import CROP_TRIES
from vit.runtime.seeding import numpy_generator

Size = Sequence[int]
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 3.3)


@dataclass(frozen=True)
class Draws:
    """What happens to each image of a batch; every field has the batch as its first dimension.

    Attributes:
        shift: rows and columns to crop at, within the padded image, int64 (B, 2).
        flip: mirror left to right, bool (B,).
        erase: box [top, left, bottom, right) in pixels, int64 (B, 4); empty: none.
        cut: box of cutmix, likewise.
        keep: weight of the image itself in mixup, at least half, float32 (B,); 1: not mixed.
    """

    shift: Tensor
    flip: Tensor
    erase: Tensor
    cut: Tensor
    keep: Tensor

    def arrays(self, part: slice) -> dict[str, np.ndarray]:
        """Those of some images by name, of which `Draws(**tensors)` is made on the device."""
        return {name: draws[part].numpy() for name, draws in vars(self).items()}


def padding(config: AugmentConfig, size: Size) -> tuple[int, int]:
    """Rows and columns of black padding on every side before the random crop."""
    if config.crop != "padded":
        return 0, 0
    return round(config.crop_padding * size[0]), round(config.crop_padding * size[1])


def draw_crops(config: AugmentConfig, batch: int, seed: int, step: int) -> np.ndarray | None:
    """What random resized crops are drawn with (`transform.crop_boxes`); None: there are none.

    Uniform numbers, because the box depends on the size of the image, which is not known yet.
    """
    if config.crop != "resized":
        return None
    return numpy_generator(seed, "augment", step, 5).random((batch, CROP_TRIES, 4))


def draw(config: AugmentConfig, batch: int, size: Size, seed: int, step: int) -> Draws:
    """Draw for a global batch of `batch` images of `size` at `step`.

    Every ingredient has a generator of its own, so that switching one on or off leaves the others
    as they were.
    """
    shift_rng, flip_rng, erase_rng, mix_rng, cut_rng = (
        numpy_generator(seed, "augment", step, ingredient) for ingredient in range(5)
    )
    shift = shift_rng.integers(0, 2 * np.array(padding(config, size)) + 1, (batch, 2))
    assert not isinstance(config.flip, str)
    flip = flip_rng.random(batch) < config.flip
    erase = np.zeros((batch, 4), np.int64)
    if config.erasing:
        erase = _boxes(erase_rng, size, _erase_shape(erase_rng, batch, size))
        erase[erase_rng.random(batch) >= config.erasing] = 0

    mixed = mix_rng.random(batch) < config.mix_probability
    use_cut = mix_rng.random(batch) < 0.5
    if not config.mixup or not config.cutmix:
        use_cut[:] = config.cutmix > 0
        mixed &= bool(config.mixup or config.cutmix)
    share = mix_rng.beta(config.mixup or 1.0, config.mixup or 1.0, batch)
    cut_share = cut_rng.beta(config.cutmix or 1.0, config.cutmix or 1.0, batch)
    cut_shape = np.rint(np.sqrt(1 - cut_share)[:, None] * size).astype(np.int64)
    cut = _boxes(cut_rng, size, cut_shape)
    cut[~(mixed & use_cut)] = 0
    keep = np.where(mixed & ~use_cut, np.maximum(share, 1 - share), 1.0).astype(np.float32)
    return Draws(*map(torch.from_numpy, (shift, flip, erase, cut, keep)))


def crop_flip(images: Tensor, draws: Draws, pad: Size, mask: Tensor | None = None) -> Tensor:
    """Pad with black, crop at `draws.shift`, mirror: uint8 (B, C, H, W) -> uint8 (B, C, H, W).

    With a mask: mirror each image within its own width, no more.
    """
    if mask is not None:
        return torch.where(draws.flip[:, None, None, None], native.mirrored(images, mask), images)
    if pad == (0, 0):
        changed = draws.flip.to(torch.uint8).mul_(255)[:, None, None, None]
        mirrored = images.flip(-1)
        return mirrored.bitwise_xor_(images).bitwise_and_(changed).bitwise_xor_(images)
    height, width = images.shape[-2:]
    down, right = (_upto(n, images.device) for n in (height, width))
    rows = draws.shift[:, :1] + down  # B H
    columns = draws.shift[:, 1:] + torch.where(draws.flip[:, None], width - 1 - right, right)
    padded = torch.nn.functional.pad(images, (pad[1], pad[1], pad[0], pad[0]))
    batch = _upto(len(images), images.device)[:, None, None]
    cropped = padded[batch, :, rows[:, :, None], columns[:, None, :]]  # B H W C
    return cropped.permute(0, 3, 1, 2)


def erase_boxes(images: Tensor, draws: Draws) -> Tensor:
    """Random erasing (Zhong et al. 2020): the box becomes the mean colour, 0 after normalising."""
    return images.masked_fill(_inside(draws.erase, images.shape[-2:]), 0.0)


def mix(
    images: Tensor, targets: Tensor, draws: Draws, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) with the neighbour i XOR 1.

    Args:
        images: normalised (B, C, H, W), B even.
        targets: class probabilities (B, K).
        draws: which images, and how.
        mask: of the images as they were.

    Returns:
        Mixed images and targets, of the same shapes.
    """
    partner = _partners(images)
    keep = draws.keep[:, None, None, None]
    other = images[partner]
    inside = _inside(draws.cut, images.shape[-2:])
    mixed = torch.where(inside, other, torch.lerp(other, images, keep))
    # An image gets MixUp (keep < 1) or CutMix (a share is cut) or neither, so one sum serves both.
    share = (draws.keep - _cut_share(draws.cut, images.shape[-2:], mask))[:, None]
    return mixed, torch.lerp(targets[partner], targets, share)


def mix_weighted(
    images: Tensor, targets: Tensor, weights: Tensor, draws: Draws, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`mix` of images with weights in the loss, (B,): the more one weighs, the more part it has in
    the target; the weights are mixed likewise.
    """
    both = torch.cat([targets * weights[:, None], weights[:, None]], dim=1)
    images, both = mix(images, both, draws, mask)
    weights = both[:, -1]
    return images, both[:, :-1] / weights.clamp(min=1e-12)[:, None], weights


def mixed_mask(mask: Tensor, draws: Draws) -> Tensor:
    """The mask of images that were mixed: a patch exists that does in either of the two."""
    mixed = (draws.keep < 1) | (draws.cut[:, :2] < draws.cut[:, 2:]).all(dim=1)
    return mask | (mask[_partners(mask)] & mixed[:, None])


def _partners(batch: Tensor) -> Tensor:
    return _upto(len(batch), batch.device) ^ 1


def _cut_share(cut: Tensor, size: Size, mask: Tensor | None) -> Tensor:
    """The share of an image that cutmix has from the partner, float32 (B,), padding left out."""
    if mask is None:
        top, left, bottom, right = cut.unbind(1)
        return ((bottom - top) * (right - left)).float() / (size[0] * size[1])
    there, inside = native.mask_to_pixels(mask, *size), _inside(cut, size)
    own = (there & ~inside).sum(dim=(1, 2, 3))
    theirs = (there[_partners(there)] & inside).sum(dim=(1, 2, 3))
    return theirs / (own + theirs)


def _inside(boxes: Tensor, size: Size) -> Tensor:
    """Boxes (B, 4) as a mask (B, 1, H, W)."""
    y, x = (_upto(n, boxes.device) for n in size)
    top, left, bottom, right = boxes[:, :, None].unbind(1)  # each B 1
    rows = (y >= top) & (y < bottom)
    columns = (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


@lru_cache(maxsize=16)
def _upto(count: int, device: torch.device) -> Tensor:
    """The whole numbers below `count`, int64 (count,), made once."""
    return torch.arange(count, device=device)


def _erase_shape(rng: np.random.Generator, batch: int, size: Size) -> np.ndarray:
    """Height and width (B, 2) of boxes with uniform area and log-uniform aspect ratio."""
    area = rng.uniform(*ERASE_AREA, batch) * size[0] * size[1]
    aspect = np.exp(rng.uniform(math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1]), batch))
    sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], axis=1)
    shape: np.ndarray = np.rint(sides).clip(1, size).astype(np.int64)
    return shape


def _boxes(rng: np.random.Generator, size: Size, shape: np.ndarray) -> np.ndarray:
    """Boxes [top, left, bottom, right) of `shape` (B, 2), uniformly inside the image: (B, 4)."""
    corner = rng.integers(0, np.asarray(size, np.int64) - shape + 1)
    return np.concatenate([corner, corner + shape], axis=1)
