"""Image files to upright 8-bit images; whatever is damaged says so.

Needs no torch, so that a worker starts at once.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from vit.data.views import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
LYING = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


Enough = Callable[[int, int], tuple[int, int]]
"""From the height and width of an image to those that would do."""


def decode(
    path: str, channels: int, enough: Enough = lambda height, width: (height, width)
) -> tuple[Image.Image, tuple[int, int]]:
    """The first frame of an image, upright, on white, in mode RGB (3 channels) or L (1).

    JPEG is decoded by libjpeg-turbo through simplejpeg, which gives Pillow's pixels faster and,
    other than Pillow, refuses data that is damaged in the middle. It may be decoded at 1/2,
    1/4 or 1/8 of its size, where that is `enough`: much faster for large photos.

    Returns:
        The image, and the height and width of the whole.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: the file is no image that
            we read, damaged, or larger than MAX_PIXELS.
    """
    return decode_bytes(Path(path).read_bytes(), channels, enough)


class Kept(Protocol):
    """An image that was decoded before."""

    def open(self) -> Image.Image:
        """The image, upright; raises ValueError where it was damaged."""


def open_image(
    source: str | Kept, channels: int, enough: Enough
) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode`, of a file or of an image that was decoded before."""
    if isinstance(source, str):
        return decode(source, channels, enough)
    image = source.open()
    return image, (image.height, image.width)


def decode_bytes(
    data: bytes, channels: int, enough: Enough = lambda height, width: (height, width)
) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode`, of a file's content."""
    if not data:
        raise ValueError("the file is empty")
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of EXIF that is damaged: pixels are not
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            orientation = file.getexif().get(0x0112, 1)
            lies = orientation in LYING
            size = (file.width, file.height) if lies else (file.height, file.width)
            if file.format == "JPEG" and file.mode in ("RGB", "L"):
                rows, columns = reversed(enough(*size)) if lies else enough(*size)
                image = Image.fromarray(_decode_jpeg(data, file.height, file.width, rows, columns))
            else:
                image = flatten(file)
            mode = "RGB" if channels == 3 else "L"
            if image.mode != mode or image is file:
                image = image.convert(mode)
    if orientation != 1:
        image.getexif()[0x0112] = orientation
        image = ImageOps.exif_transpose(image)
    return image, size


def _decode_jpeg(data: bytes, height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """RGB pixels, at 1/2, 1/4 or 1/8 of the size where at least (rows, columns) are left."""
    factor = next((f for f in (8, 4, 2) if height >= f * rows and width >= f * columns), 1)
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", **least)
    return pixels


def flatten(image: Image.Image) -> Image.Image:
    """8 bits a channel and no transparency: of 16-bit values the high byte is kept, what is
    transparent is laid on white.
    """
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image


def reason(error: Exception) -> str:
    """Why an image cannot be decoded, in a few words of one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"the content is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.replace(repr(error.filename), "it") if isinstance(error, OSError) else text
