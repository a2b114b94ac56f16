"""Image operations of the automatic augmentations, batched, each image with its own magnitude.

They give what torchvision's `transforms.v2.functional` gives for one image (nearest neighbour,
black where nothing was), on whatever device the batch is. A new one is a function and a line in
OPERATIONS.

Legend: B batch, C channels (3 or 1), H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_BLUR_RADIUS = 6
Operation = Callable[[Tensor, Tensor], Tensor]
"""uint8 images (B, C, H, W) and float32 magnitudes (B,) -> uint8 images (B, C, H, W)."""


def identity(images: Tensor, magnitude: Tensor) -> Tensor:
    """The images as they are."""
    return images


def shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift row y to the left by `magnitude` times y; the top stays."""
    return _affine(images, x_of_y=magnitude, corner=True)


def shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift column x up by `magnitude` times x; the left edge stays."""
    return _affine(images, y_of_x=magnitude, corner=True)


def translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift to the right by `magnitude` whole pixels."""
    return _affine(images, x=-magnitude.trunc())


def translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift down by `magnitude` whole pixels."""
    return _affine(images, y=-magnitude.trunc())


def rotate(images: Tensor, magnitude: Tensor) -> Tensor:
    """Rotate around the centre by `magnitude` degrees, counter-clockwise."""
    radians = torch.deg2rad(magnitude)
    cos, sin = radians.cos(), radians.sin()
    return _affine(images, x_of_x=cos, x_of_y=-sin, y_of_x=sin, y_of_y=cos)


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with black: factor 1 + magnitude of the image."""
    return _blend(images, torch.zeros((), device=images.device), magnitude)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with its gray version: factor 1 + magnitude of the image; gray ones stay."""
    if images.shape[1] == 1:
        return images
    return _blend(images, _gray(images), magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with its mean gray: factor 1 + magnitude of the image."""
    return _blend(images, _gray(images).mean(dim=(1, 2, 3), keepdim=True), magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with its smoothed version: factor 1 + magnitude of the image."""
    height, width = images.shape[-2:]
    if height <= 2 or width <= 2:
        return images
    smooth = images.float()
    rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    sums.add_(smooth[:, :, 1:-1, 1:-1], alpha=4)
    smooth[:, :, 1:-1, 1:-1] = sums.div_(13).round_()
    return _blend(images, smooth, magnitude)


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the `magnitude` highest bits of each value."""
    low_bits = (2 ** (8 - magnitude) - 1).to(torch.uint8)
    return images & ~low_bits[:, None, None, None]


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert values of `magnitude` and more."""
    least = magnitude.ceil().to(torch.uint8)[:, None, None, None]
    return images ^ (images >= least).to(torch.uint8).mul_(255)


def autocontrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch each channel to the full range."""
    from torchvision.transforms.v2.functional import autocontrast_image  # takes a second to load

    stretched: Tensor = autocontrast_image(images)
    return stretched


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Flatten each channel's histogram."""
    from torchvision.transforms.v2.functional import equalize_image

    flat: Tensor = equalize_image(images)
    return flat


def invert(images: Tensor, magnitude: Tensor) -> Tensor:
    """The negative."""
    return 255 - images


def grayscale(images: Tensor, magnitude: Tensor) -> Tensor:
    """Luminance in every channel."""
    return _gray(images).to(torch.uint8).expand_as(images)


def blur(images: Tensor, magnitude: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation of `magnitude` pixels, at most 2."""
    batch, channels, height, width = images.shape
    if min(height, width) <= _BLUR_RADIUS:
        return images
    x = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device)
    kernel = (-0.5 * (x / magnitude[:, None]) ** 2).exp()  # B taps
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = images.reshape(1, batch * channels, height, width).float()
    planes = F.pad(planes, [_BLUR_RADIUS] * 4, mode="reflect")
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=batch * channels)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=batch * channels)
    return planes.round_().to(torch.uint8).view_as(images)


OPERATIONS: dict[str, Operation] = {
    "identity": identity,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": invert,
    "grayscale": grayscale,
    "blur": blur,
}


def _blend(images: Tensor, other: Tensor, magnitude: Tensor) -> Tensor:
    factor = (1 + magnitude)[:, None, None, None]
    return (images * factor).add_(other * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Luminance in whole numbers, float32 (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()[:, None]


def _affine(
    images: Tensor,
    x_of_x: Tensor | float = 1.0,
    x_of_y: Tensor | float = 0.0,
    y_of_x: Tensor | float = 0.0,
    y_of_y: Tensor | float = 1.0,
    x: Tensor | float = 0.0,
    y: Tensor | float = 0.0,
    corner: bool = False,
) -> Tensor:
    """Take the pixel at (y_of_x * u + y_of_y * v + y, x_of_x * u + x_of_y * v + x) for (v, u).

    Coordinates are pixels from the centre, or from the top left corner if `corner`.
    """
    height, width = images.shape[-2:]

    def each(value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, device=images.device).expand(len(images))[:, None, None]

    origin_x, origin_y = (0.0, 0.0) if corner else (width / 2, height / 2)
    u = torch.arange(width, device=images.device) + 0.5 - origin_x  # W
    v = (torch.arange(height, device=images.device) + 0.5 - origin_y)[:, None]  # H 1
    from_x = each(x_of_x) * u + each(x_of_y) * v + each(x) + origin_x  # B H W
    from_y = each(y_of_x) * u + each(y_of_y) * v + each(y) + origin_y
    row, column = ((at - 0.5).round_() for at in (from_y, from_x))
    is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = (row.clamp_(0, height - 1) * width + column.clamp_(0, width - 1)).long()
    source = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # B C H*W
    moved = images.flatten(2).gather(2, source).view_as(images)
    return moved.mul_(is_inside[:, None])
