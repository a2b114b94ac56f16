"""The transform of an image: random resized crop in training, centre crop in evaluation.

Legend: B batch, C channels, H and W of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit.runtime.device import widest_float

MAX_PIXELS = 100_000_000
"""What would be decoded to more is refused before, unless a setting says otherwise."""
REDUCTIONS = (8, 4, 2, 1)
"""By which of these an image may be reduced before it is rendered."""
CROP_ASPECT = (3 / 4, 4 / 3)
_MOST_BITS = 22  # of a weight's fraction when resizing; its whole must fit into 15 bits
Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


@dataclass(frozen=True)
class Transform:
    """From an image of any size to pixels of one size, by bilinear antialiased resizing.

    Attributes:
        height, width: of the pixels.
        channels: 3 (RGB) or 1 (gray).
        center_crop: share of the resized image that the centre crop keeps: 0.875 is "resize 256,
            crop 224".
        crop_scale: least and largest share of the area that a random crop has; None: no random
            crop, the centre.
        patch: images keep their own aspect ratio, fit into `height` and `width` and stand at the
            top left, each side whole patches of so many pixels; None: they fill the frame.
        max_pixels: what would be decoded to more is refused.
    """

    height: int
    width: int
    channels: int
    center_crop: float = 1.0
    crop_scale: tuple[float, float] | None = None
    patch: int | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is rendered: (channels, height, width), with `patch` a channel more."""
        return self.channels + (self.patch is not None), self.height, self.width

    def box(self, height: int, width: int, uniforms: np.ndarray | None) -> Box | None:
        """What a random crop shows of an image; None: there is none, the centre is seen.

        Args:
            height, width: of the image.
            uniforms: what a random crop is drawn with, (CROP_TRIES, 4); see `crop_boxes`.
        """
        if self.crop_scale is None or uniforms is None:
            return None
        top, left, rows, columns = crop_boxes(uniforms[None], height, width, self.crop_scale)[0]
        return int(top), int(left), int(rows), int(columns)

    def min_size(self, height: int, width: int, box: Box | None) -> tuple[int, int]:
        """Height and width to which a larger image may be reduced before `box` is rendered."""
        if self.patch is not None:
            return fitted((height, width), (self.height, self.width), self.patch)
        _, _, rows, columns = box or (0, 0, height, width)
        keep = 1.0 if box else self.center_crop
        share = max(self.height / keep / rows, self.width / keep / columns)
        return math.ceil(height * share), math.ceil(width * share)

    def render(
        self, image: np.ndarray, box: Box | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Pixels of an upright image.

        Args:
            image: uint8 (H, W, channels), of any size.
            box: what is seen of it, as from `box`.
            size: height and width before the image was reduced; None: it was not.

        Returns:
            uint8 of `shape`; with `patch` the last channel is 255 where the image is, and all are 0
            beside it.

        Raises:
            ValueError: the image is too elongated to be resized.
        """
        if self.patch is not None:
            rows, columns = size or image.shape[:2]
            height, width = fitted((rows, columns), (self.height, self.width), self.patch)
            planes = np.zeros(self.shape, np.uint8)
            planes[:-1, :height, :width] = resize(image, height, width).transpose(2, 0, 1)
            planes[-1, :height, :width] = 255
            return planes
        if box is None:
            seen = self._center(image)
        else:
            seen = resize(_cut(image, box, size or image.shape[:2]), self.height, self.width)
        return seen.transpose(2, 0, 1)

    def _center(self, image: np.ndarray) -> np.ndarray:
        """As torchvision's Resize and CenterCrop: cover the frame, keep the middle."""
        frame_height = round(self.height / self.center_crop)
        frame_width = round(self.width / self.center_crop)
        rows, columns = image.shape[:2]
        if columns * frame_height <= rows * frame_width:
            height, width = frame_width * rows // columns, frame_width
        else:
            height, width = frame_height, frame_height * columns // rows
        if height * width > MAX_PIXELS:
            raise ValueError(f"{columns}x{rows} px is too elongated")
        image = resize(image, height, width)
        top, left = round((height - self.height) / 2), round((width - self.width) / 2)
        return image[top : top + self.height, left : left + self.width]


def fitted(size: tuple[int, int], box: tuple[int, int], patch: int) -> tuple[int, int]:
    """Height and width at which an image of `size` just fits into `box`, which is whole patches.

    The side that does not fill the box is rounded to whole patches, at least one.
    """
    (height, width), (most_high, most_wide) = size, box
    if height * most_wide >= width * most_high:
        across = (2 * width * most_high + height * patch) // (2 * height * patch)
        return most_high, max(1, across) * patch
    down = (2 * height * most_wide + width * patch) // (2 * width * patch)
    return max(1, down) * patch, most_wide


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, antialiased: uint8 (H, W, C) -> (height, width, C), as torchvision resizes tensors.

    At most one level away from Pillow.
    """
    if image.shape[:2] == (height, width):
        return image
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    pixels: np.ndarray = resized[0].permute(1, 2, 0).numpy()
    return pixels


def _cut(image: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The part that `box` shows of an image, which was of `size` before it was reduced.

    Its edges are the nearest pixel of the reduced image.
    """
    sizes = {f: (-(-size[0] // f), -(-size[1] // f)) for f in REDUCTIONS}
    factor = min(f for f in REDUCTIONS if sizes[f] == image.shape[:2])
    top, left, height, width = box
    rows = slice(round(top / factor), round((top + height) / factor))
    columns = slice(round(left / factor), round((left + width) / factor))
    return image[rows, columns]


def crop_boxes(
    uniforms: np.ndarray, height: int, width: int, scale: tuple[float, float]
) -> np.ndarray:
    """Random resized crops (Szegedy et al. 2015, section 6), as torchvision draws them.

    Area uniform within `scale`, aspect ratio log-uniform within CROP_ASPECT; the first of the
    tries that fits into the image, else the centre.

    Args:
        uniforms: uniform numbers in [0, 1) for area, aspect, top and left: (B, CROP_TRIES, 4).
        height, width: of the image, in pixels.
        scale: least and largest share of the area.

    Returns:
        top, left, height and width of each crop in pixels, int64 (B, 4).
    """
    area = height * width * (scale[0] + uniforms[..., 0] * (scale[1] - scale[0]))  # B tries
    low, high = map(math.log, CROP_ASPECT)
    aspect = np.exp(low + uniforms[..., 1] * (high - low))
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    tops = np.floor(uniforms[..., 2] * (height - heights + 1)).astype(np.int64)
    lefts = np.floor(uniforms[..., 3] * (width - widths + 1)).astype(np.int64)
    tries = np.stack([tops, lefts, heights, widths], axis=-1)  # B tries 4
    chosen: np.ndarray = tries[np.arange(len(uniforms)), fits.argmax(axis=1)]
    chosen[~fits.any(axis=1)] = _central_box(height, width)
    return chosen


def _central_box(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest central crop of a legal aspect ratio."""
    low, high = CROP_ASPECT
    crop_height, crop_width = height, width
    if width < low * height:
        crop_height = max(1, round(width / low))
    elif width > high * height:
        crop_width = max(1, round(height * high))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resize_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Crop a box of each image and resize it to the image's own size, on the device of the images:
    equal to the bit to `resize` of each box.

    torch resizes bytes on the CPU in fixed point: rows, then columns, each a sum of pixels times
    weights of 16 bits, rounded to a byte. All those integers are exact in float64, so two batched
    matrix products do the same, whatever the order of their sums; in float32, where there is no
    float64, some bytes of large images are off by one.

    Args:
        images: uint8 (B, C, H, W).
        boxes: top, left, height and width in pixels, int64 (B, 4).

    Returns:
        uint8 (B, C, H, W).
    """
    size = images.shape[-2:]
    corners, lengths = boxes.T.reshape(2, 2, -1).unbind()  # (y, x) B
    if size[0] == size[1]:  # both axes together
        weights, unit = _weights(corners.flatten(), lengths.flatten(), size[0])
        (down, across), (y_unit, x_unit) = weights.chunk(2), unit.chunk(2)
    else:
        (down, y_unit), (across, x_unit) = map(_weights, corners, lengths, size)
    narrowed = _rounded(images.to(across.dtype) @ across.transpose(-2, -1), x_unit)
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
    exact = widest_float(start.device)
    scale = (length.to(exact) / size)[:, None, None]
    support = scale.clamp(min=1.0)
    at = torch.arange(size, device=start.device)
    center = (at.to(exact) + 0.5)[:, None] * scale  # B out 1
    x = at - start[:, None, None]  # B 1 in, counted from the box
    first = (center - support + 0.5).floor().clamp(min=0)
    last = (center + support + 0.5).floor().minimum(length[:, None, None])
    triangle = (1 - ((x - center + 0.5) * (1 / support)).abs()).clamp(min=0)
    triangle = torch.where((x >= first) & (x < last), triangle, 0.0)
    shares = triangle / triangle.sum(dim=-1, keepdim=True)
    largest = shares.amax(dim=(1, 2))  # B
    bits = torch.arange(1, _MOST_BITS + 1, device=start.device)
    fits = (0.5 + largest[:, None] * 2.0**bits).floor() < 2**15  # B bits
    unit = (2.0 ** fits.sum(dim=1).to(exact))[:, None, None]
    return (0.5 + shares * unit).floor()[:, None], unit[:, None]
