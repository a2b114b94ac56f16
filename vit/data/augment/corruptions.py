"""Corruptions that measure robustness: five kinds at three severities.

Kinds and constants are those of Hendrycks & Dietterich 2019 (arXiv 1903.12261): of their CIFAR-10-C
for images whose shorter side is below 64 px, else of ImageNet-C. They act on the pixels that the
model sees, after resizing and cropping, where ImageNet-C is cropped images kept as JPEG files; so
results are like those on the published sets, not the same. Results are rounded, theirs truncated.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vit.runtime.seeding import numpy_generator

SEVERITIES = (1, 3, 5)
"""Of the five of the paper."""
_SMALL = 64

Operation = Callable[[Tensor, np.ndarray, float], Tensor]
"""uint8 images (B, C, H, W), their numbers (B,) and a strength -> uint8 images (B, C, H, W)."""


@dataclass(frozen=True)
class Corruption:
    """A way to make images worse.

    Attributes:
        apply: does it.
        small: strengths at SEVERITIES for images below 64 px.
        large: for others.
    """

    apply: Operation
    small: tuple[float, float, float]
    large: tuple[float, float, float]


def corrupt(images: Tensor, numbers: np.ndarray, name: str, severity: int) -> Tensor:
    """The images as a corruption leaves them, each by itself.

    Args:
        images: uint8 (B, C, H, W).
        numbers: of the images in their split (B,), from which noise is drawn.
        name: a key of CORRUPTIONS.
        severity: one of SEVERITIES.

    Returns:
        uint8 (B, C, H, W).
    """
    kind = CORRUPTIONS[name]
    strengths = kind.small if min(images.shape[-2:]) < _SMALL else kind.large
    return kind.apply(images, numbers, strengths[SEVERITIES.index(severity)])


def gaussian_noise(images: Tensor, numbers: np.ndarray, strength: float) -> Tensor:
    """Add normal noise with a standard deviation of `strength` times the range of values.

    An image gets the same noise at every strength, batch size and device.
    """
    shape = images.shape[1:]
    drawn = [
        numpy_generator(0, "corruption", int(i)).standard_normal(shape, np.float32) for i in numbers
    ]
    noise = torch.from_numpy(np.stack(drawn)).to(images.device)
    return _pixels(images + 255 * strength * noise)


def gaussian_blur(images: Tensor, numbers: np.ndarray, strength: float) -> Tensor:
    """Blur with a standard deviation of `strength` pixels, cut at four of them; edges go on."""
    radius = int(4 * strength + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / strength) ** 2)
    weights = (kernel / kernel.sum()).tolist()
    pixels = F.pad(images.float(), [radius] * 4, mode="replicate")
    for axis, length in zip((2, 3), images.shape[2:], strict=True):
        # Sums of shifted images: a convolution may depend on the batch, and round on a GPU.
        blurred = torch.zeros_like(pixels.narrow(axis, 0, length))
        for shift, weight in enumerate(weights):
            blurred.add_(pixels.narrow(axis, shift, length), alpha=weight)
        pixels = blurred
    return _pixels(pixels)


def jpeg_compression(images: Tensor, numbers: np.ndarray, strength: float) -> Tensor:
    """Save as JPEG of the quality `strength`, of 100, and open again."""
    made = []
    for image in images.permute(0, 2, 3, 1).cpu().numpy():
        gray = image.shape[2] == 1
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if gray else image).save(file, "JPEG", quality=int(strength))
        made.append(np.array(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous().to(images.device)


def contrast(images: Tensor, numbers: np.ndarray, strength: float) -> Tensor:
    """Take each value to `strength` of its distance from the mean of its image and channel."""
    total = images.sum(dim=(-2, -1), keepdim=True, dtype=torch.int64)
    mean = total / images[0, 0].numel()
    return _pixels((images - mean) * strength + mean)


def brightness(images: Tensor, numbers: np.ndarray, strength: float) -> Tensor:
    """Add `strength` times the range of values to the value of HSV, the largest of the channels."""
    pixels = images.float()
    value = pixels.amax(dim=1, keepdim=True)
    brighter = (value + 255 * strength).clamp(max=255)
    scaled = torch.where(value > 0, pixels * (brighter / value.clamp(min=1)), brighter)
    return _pixels(scaled)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.08, 0.10), (0.08, 0.18, 0.38)),
    "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.7, 1.0), (1.0, 3.0, 6.0)),
    "jpeg_compression": Corruption(jpeg_compression, (80, 58, 40), (25, 15, 7)),
    "contrast": Corruption(contrast, (0.75, 0.4, 0.15), (0.4, 0.2, 0.05)),
    "brightness": Corruption(brightness, (0.05, 0.15, 0.3), (0.1, 0.3, 0.5)),
}


def _pixels(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)
