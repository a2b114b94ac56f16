"""What the model sees of an image: a random crop in training, the centre in evaluation.

Needs no torch, so that a worker starts at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_PIXELS = 100_000_000
"""Larger images are refused, before they are decoded."""
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10


@dataclass(frozen=True)
class View:
    """From an image of any size to pixels of one size, by bilinear antialiased resizing.

    Attributes:
        height, width: of the pixels.
        channels: 3 (RGB) or 1 (gray).
        center_crop: share of the resized image that the centre crop keeps: 0.875 is "resize 256,
            crop 224".
        crop_scale: least and largest share of the area that a random crop has; None: no random
            crop, the centre.
    """

    height: int
    width: int
    channels: int
    center_crop: float = 1.0
    crop_scale: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the pixels: (channels, height, width)."""
        return self.channels, self.height, self.width

    def box(self, height: int, width: int, lots: np.ndarray | None) -> tuple[int, int, int, int]:
        """What is seen of an image: top, left, height and width in pixels.

        Args:
            height, width: of the image.
            lots: what a random crop is drawn with, (CROP_TRIES, 4); see `crop_boxes`.
        """
        if self.crop_scale is None or lots is None:
            return 0, 0, height, width
        top, left, rows, columns = crop_boxes(lots[None], height, width, self.crop_scale)[0]
        return int(top), int(left), int(rows), int(columns)

    def enough(self, height: int, width: int, lots: np.ndarray | None) -> tuple[int, int]:
        """Height and width to which a larger image may be reduced before it is rendered."""
        _, _, rows, columns = self.box(height, width, lots)
        keep = self.center_crop if lots is None or self.crop_scale is None else 1.0
        share = max(self.height / keep / rows, self.width / keep / columns)
        return math.ceil(height * share), math.ceil(width * share)

    def render(
        self, image: Image.Image, lots: np.ndarray | None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Pixels of an upright 8-bit image: uint8 (channels, height, width).

        Args:
            image: of any size, in mode RGB or L as `channels` wants it.
            lots: as in `box`.
            size: height and width before the image was reduced; None: it was not.

        Raises:
            ValueError: the image is too elongated to be resized.
        """
        if self.crop_scale is not None and lots is not None:
            image = self._crop(image, lots, size or (image.height, image.width))
        else:
            image = self._center(image)
        pixels = np.asarray(image)
        return pixels.transpose(2, 0, 1) if self.channels == 3 else pixels[None]

    def _crop(self, image: Image.Image, lots: np.ndarray, size: tuple[int, int]) -> Image.Image:
        top, left, height, width = self.box(*size, lots)
        y, x = image.height / size[0], image.width / size[1]
        part = (left * x, top * y, (left + width) * x, (top + height) * y)
        frame = (self.width, self.height)
        if (x, y) == (1.0, 1.0):  # cut out first, as torchvision does
            return image.crop(part).resize(frame, Image.Resampling.BILINEAR)
        return image.resize(frame, Image.Resampling.BILINEAR, box=part)

    def _center(self, image: Image.Image) -> Image.Image:
        """As torchvision's Resize and CenterCrop: cover the frame, keep the middle."""
        frame_height = round(self.height / self.center_crop)
        frame_width = round(self.width / self.center_crop)
        if image.width * frame_height <= image.height * frame_width:
            size = (frame_width, frame_width * image.height // image.width)
        else:
            size = (frame_height * image.width // image.height, frame_height)
        if size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} px is too elongated")
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        if size == (self.width, self.height):
            return image
        left, top = round((size[0] - self.width) / 2), round((size[1] - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))


def crop_boxes(lots: np.ndarray, height: int, width: int, scale: tuple[float, float]) -> np.ndarray:
    """Random resized crops (Szegedy et al. 2015, section 6), as torchvision draws them.

    Area uniform within `scale`, aspect ratio log-uniform within CROP_ASPECT; the first of the
    tries that fits into the image, else the centre.

    Args:
        lots: uniform numbers in [0, 1) for area, aspect, top and left: (B, CROP_TRIES, 4).
        height, width: of the image, in pixels.
        scale: least and largest share of the area.

    Returns:
        top, left, height and width of each crop in pixels, int64 (B, 4).
    """
    area = height * width * (scale[0] + lots[..., 0] * (scale[1] - scale[0]))  # B tries
    low, high = map(math.log, CROP_ASPECT)
    aspect = np.exp(low + lots[..., 1] * (high - low))
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    tops = np.floor(lots[..., 2] * (height - heights + 1)).astype(np.int64)
    lefts = np.floor(lots[..., 3] * (width - widths + 1)).astype(np.int64)
    tries = np.stack([tops, lefts, heights, widths], axis=-1)  # B tries 4
    chosen: np.ndarray = tries[np.arange(len(lots)), fits.argmax(axis=1)]
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
