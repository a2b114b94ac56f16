"""Image operations of the automatic augmentations, batched, each image with its own magnitude.

They give what torchvision's `transforms.v2.functional` gives for one image (nearest neighbour,
black where nothing was), on whatever device the batch is. Operations that share their arithmetic
are a family: their images lie side by side in the batch and are computed together, from numbers
that the host works out of the magnitudes. A new operation is a row of a family.

Legend: n images of a family, C channels (3 or 1), H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 8
"""How many float32 the host says of an image to its family."""
_BLUR_RADIUS = 6
Size = tuple[int, int]
Row = Callable[[np.ndarray, Size], Sequence[np.ndarray | float]]
"""Magnitudes float32 (n,) and (height, width) -> up to NUMBERS columns, each (n,) or one value."""


@dataclass(frozen=True)
class Family:
    """Operations that are computed together.

    Attributes:
        apply: uint8 images (n, C, H, W), their numbers, float32 (n, NUMBERS), and how many of them
            each operation has, in the order of `rows` -> uint8 images (n, C, H, W).
        rows: the numbers of each operation.
    """

    apply: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    rows: dict[str, Row]


def keep(images: Tensor, numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """The images as they are."""
    return images


def move(images: Tensor, numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """Take each pixel from the nearest to across * u + down * v + target, where u and v are the
    pixel's distances from the origin; black where that lies outside.

    The numbers are across, down, target and origin, each as (x, y).
    """
    height, width = images.shape[-2:]
    x, y, first, last = _grid(height, width, images.device)
    across, down, target, origin = numbers.view(-1, 4, 2, 1, 1).unbind(1)  # n 2 1 1
    at = across * (x - origin[:, :1]) + down * (y - origin[:, 1:])  # n 2 H W
    at.add_(target).sub_(0.5).round_()
    nearest = at.clamp(first, last)
    is_inside = (nearest == at).all(dim=1, keepdim=True)  # n 1 H W
    source = nearest[:, 0].add(nearest[:, 1], alpha=width).long()
    source = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # n C H*W
    return images.flatten(2).gather(2, source).view_as(images).mul_(is_inside)


def change_bits(images: Tensor, numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """Flip bits of the values that are large enough, then keep some bits.

    The numbers are the least such value, the bits to flip and those to keep.
    """
    least, flipped, kept = numbers[:, :3].to(torch.uint8).view(-1, 3, 1, 1, 1).unbind(1)
    return ((images >= least) * flipped).bitwise_xor_(images).bitwise_and_(kept)


def blend(images: Tensor, numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """Blend with black, the gray image, its mean, or the smoothed image.

    The numbers are the shares of the image and of the other.
    """
    share, rest = numbers[:, :2].view(-1, 2, 1, 1, 1).unbind(1)  # n 1 1 1
    blended = images * share
    _, gray, mean, smooth = torch.split(blended, list(counts))
    _, of_gray, of_mean, of_smooth = torch.split(rest, list(counts))
    start, end = counts[0], counts[0] + counts[1] + counts[2]
    if start < end:
        grays = _gray(images[start:end])
        gray += grays[: counts[1]] * of_gray  # not addcmul, which rounds once on some machines
        mean += grays[counts[1] :].mean(dim=(1, 2, 3), keepdim=True) * of_mean
    if counts[3]:
        smooth += _smooth(images[end:]).mul_(of_smooth)
    return blended.clamp_(0, 255).to(torch.uint8)


def autocontrast(images: Tensor, numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """Stretch each channel to the full range."""
    from torchvision.transforms.v2.functional import autocontrast_image  # takes a second to load

    stretched: Tensor = autocontrast_image(images)
    return stretched


def equalize(images: Tensor, numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """Flatten each channel's histogram."""
    from torchvision.transforms.v2.functional import equalize_image

    flat: Tensor = equalize_image(images)
    return flat


def grayscale(images: Tensor, numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """Luminance in every channel."""
    return _gray(images).to(torch.uint8).expand_as(images)


def blur(images: Tensor, numbers: Tensor, counts: Sequence[int]) -> Tensor:
    """Gaussian blur; the number is its standard deviation in pixels, at most 2."""
    batch, channels, height, width = images.shape
    if min(height, width) <= _BLUR_RADIUS:
        return images
    x = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device)
    kernel = (-0.5 * (x / numbers[:, :1]) ** 2).exp()  # n taps
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = images.reshape(1, batch * channels, height, width).float()
    planes = F.pad(planes, [_BLUR_RADIUS] * 4, mode="reflect")
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=batch * channels)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=batch * channels)
    return planes.round_().to(torch.uint8).view_as(images)


def _rotation(degrees: np.ndarray, size: Size) -> Sequence[np.ndarray | float]:
    """Around the centre, counter-clockwise."""
    radians = torch.deg2rad(torch.from_numpy(degrees))
    cos, sin = radians.cos().numpy(), radians.sin().numpy()
    return cos, sin, -sin, cos, size[1] / 2, size[0] / 2, size[1] / 2, size[0] / 2


FAMILIES = (
    Family(keep, {"identity": lambda m, size: ()}),
    Family(
        move,
        {
            "shear_x": lambda m, size: (1, 0, m, 1),  # row y to the left by m y; the top stays
            "shear_y": lambda m, size: (1, m, 0, 1),
            "translate_x": lambda m, size: (
                1, 0, 0, 1, size[1] / 2 - np.trunc(m), size[0] / 2, size[1] / 2, size[0] / 2
            ),
            "translate_y": lambda m, size: (
                1, 0, 0, 1, size[1] / 2, size[0] / 2 - np.trunc(m), size[1] / 2, size[0] / 2
            ),
            "rotate": _rotation,
        },
    ),
    Family(
        change_bits,
        {
            "posterize": lambda m, size: (0, 0, 256 - 2.0 ** (8 - m)),  # the m highest bits
            "solarize": lambda m, size: (np.ceil(m), 255, 255),
            "invert": lambda m, size: (0, 255, 255),
        },
    ),
    Family(
        blend,
        {
            name: lambda m, size: (1 + m, 1 - (1 + m))
            for name in ("brightness", "color", "contrast", "sharpness")
        },
    ),
    Family(autocontrast, {"autocontrast": lambda m, size: ()}),
    Family(equalize, {"equalize": lambda m, size: ()}),
    Family(grayscale, {"grayscale": lambda m, size: ()}),
    Family(blur, {"blur": lambda m, size: (m,)}),
)  # fmt: skip


def numbers(name: str, magnitudes: np.ndarray, size: Size) -> np.ndarray:
    """What the host says of images that go through the operation `name`: float32 (n, NUMBERS).

    Args:
        name: a row of FAMILIES.
        magnitudes: float32 (n,).
        size: height and width of the images.
    """
    said = np.zeros((len(magnitudes), NUMBERS), np.float32)
    row = next(family.rows[name] for family in FAMILIES if name in family.rows)
    for column, values in enumerate(row(magnitudes, size)):
        said[:, column] = values
    return said


@lru_cache(maxsize=8)
def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres of columns (W,) and rows (H, 1); first and last pixel, as (x, y), each (2, 1, 1)."""
    x, y = (torch.arange(n, device=device) + 0.5 for n in (width, height))
    last = torch.tensor([[[width - 1.0]], [[height - 1.0]]]).to(device)
    return x, y[:, None], torch.zeros_like(last), last


@lru_cache(maxsize=8)
def _luminance(device: torch.device) -> Tensor:
    """What a channel counts (ITU-R BT.601), float32 (3, 1, 1)."""
    return torch.tensor([0.2989, 0.587, 0.114], device=device)[:, None, None]


def _gray(images: Tensor) -> Tensor:
    """Luminance in whole numbers, float32 (n, 1, H, W)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = (images * _luminance(images.device)).unbind(1)
    return (red + green).add_(blue).floor_()[:, None]


def _smooth(images: Tensor) -> Tensor:
    """Each pixel the mean of its neighbours and five times itself, but at the edges: float32."""
    smooth = images.float()
    sums = F.avg_pool2d(smooth, 3, stride=1, divisor_override=1)  # whole numbers, so exact
    inner = smooth[:, :, 1:-1, 1:-1]
    torch.round(sums.add_(inner, alpha=4).div_(13), out=inner)
    return smooth
