"""Decoding: image files to upright 8-bit arrays; damage is an error."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from vit.data.formats import FORMATS, READ
from vit.data.reading.transform import MAX_PIXELS, REDUCTIONS
from vit.data.types import FileImages, ImageFile, Samples
from vit.errors import first_line

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
"""How their files begin."""
LYING = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""
_LOOKED_AT = 50
"""Files whose sizes are read."""
MinSize = Callable[[int, int], tuple[int, int]]
"""From the height and width of an image, which it is told once, to those that would do."""


def whole(height: int, width: int) -> tuple[int, int]:
    """Nothing less will do."""
    return height, width


def decode(
    source: ImageFile | bytes,
    channels: int,
    min_size: MinSize = whole,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """The first frame of an image in a file, or of a file's content, upright, on white: uint8
    (H, W, channels), RGB or gray.

    JPEG is decoded by libjpeg-turbo through simplejpeg, which gives Pillow's pixels faster and,
    other than Pillow, refuses data that is damaged in the middle. It may be decoded at 1/2,
    1/4 or 1/8 of its size, where that is at least `min_size`: much faster for large photos.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: the file is no image that
            we read, damaged, or would be decoded to more than `max_pixels`.
    """
    data = content_of(source)
    if not data:
        raise ValueError("the file is empty")
    size = _size_of_upright_jpeg(data, max_pixels)
    if size is not None:
        rgb = _decode_jpeg(data, *size, *min_size(*size), max_pixels)
        return rgb if channels == 3 else np.array(Image.fromarray(rgb).convert("L"))[..., None]
    try:
        return _with_pillow(data, channels, min_size, max_pixels)
    except ValueError:
        needed = _needed_of_png(data)
        if len(needed) == len(data):
            raise
        # Texts and profiles may be over Pillow's limits; the pixels do without them.
        return _with_pillow(needed, channels, min_size, max_pixels)


def sizes_of(samples: Samples) -> np.ndarray:
    """Height and width of some of the files, whose headers are read, in pixels: int64 (n, 2)."""
    if not isinstance(samples.images, FileImages):
        return np.empty((0, 2), np.int64)
    sizes = []
    for i in samples.index.tolist()[:: -(-len(samples) // _LOOKED_AT)]:
        with contextlib.suppress(Exception), Image.open(opened(samples.images.path(i))) as image:
            sizes.append(image.size[::-1])
    return np.array(sizes, np.int64).reshape(-1, 2)


def opened(source: ImageFile) -> str | io.BytesIO:
    """What Pillow can open."""
    return source if isinstance(source, str) else io.BytesIO(source.read())


def content_of(source: ImageFile | bytes) -> bytes:
    """The content of an image file."""
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str):
        return source.read()
    with open(source, "rb", buffering=0) as file:
        return file.readall()


def _with_pillow(data: bytes, channels: int, min_size: MinSize, max_pixels: int) -> np.ndarray:
    """As `decode`, where a JPEG needs Pillow to know how it lies."""
    is_jpeg = data.startswith(JPEG) and _is_in_one_scan(data)  # which may be decoded smaller
    Image.MAX_IMAGE_PIXELS = None if is_jpeg else max_pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of EXIF that is damaged: pixels are not
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            # Pillow turns TIFF upright itself.
            orientation = 1 if file.format == "TIFF" else file.getexif().get(0x0112, 1)
            lies = orientation in LYING
            rows, columns = min_size(*(file.size if lies else file.size[::-1]))
            if file.format in ("JPEG", "MPO") and file.mode in ("RGB", "L"):
                rows, columns = (columns, rows) if lies else (rows, columns)
                pixels = _decode_jpeg(data, file.height, file.width, rows, columns, max_pixels)
                image = Image.fromarray(pixels)
            else:
                _check_pixels(file.height, file.width, max_pixels)
                image = flatten(file)
            mode = "RGB" if channels == 3 else "L"
            if image.mode != mode or image is file:
                image = image.convert(mode)
    if orientation != 1:
        image.getexif()[0x0112] = orientation
        image = ImageOps.exif_transpose(image)
    return np.array(image).reshape(image.height, image.width, channels)


def _needed_of_png(data: bytes) -> bytes:
    """A PNG without its texts and its colour profile; EXIF, which says how it lies, stays."""
    if not data.startswith(PNG):
        return data
    kept, at = [PNG], len(PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _is_in_one_scan(data: bytes) -> bool:
    """Whether a JPEG can be decoded smaller without taking memory for all of it.

    One in several scans, such as a progressive one, is held whole meanwhile.
    """
    at, components = len(JPEG), 0
    while at + 10 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xC2:
            return False
        if marker in (0xC0, 0xC1):
            components = data[at + 9]
        if marker == 0xDA:
            return data[at + 4] == components
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _size_of_upright_jpeg(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """Height and width of a JPEG in colour or gray without EXIF, which needs no more of Pillow."""
    if not data.startswith(JPEG) or b"Exif" in data:
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None  # Pillow knows better what is wrong
    if space not in ("YCbCr", "Gray", "RGB") or height * width > max_pixels:
        return None
    return height, width


def _decode_jpeg(
    data: bytes, height: int, width: int, rows: int, columns: int, max_pixels: int
) -> np.ndarray:
    """RGB pixels, at 1/2, 1/4 or 1/8 of the size where at least (rows, columns) are left."""
    factor = next((f for f in REDUCTIONS if height >= f * rows and width >= f * columns), 1)
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
    _check_pixels(least["min_height"], least["min_width"], max_pixels)
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", **least)
    return pixels


def _check_pixels(height: int, width: int, most: int) -> None:
    if height * width > most:
        raise Image.DecompressionBombError(
            f"Image size ({height * width} pixels) exceeds limit of {most} pixels, could be "
            f"decompression bomb DOS attack."
        )


def flatten(image: Image.Image) -> Image.Image:
    """8 bits a channel and no transparency: of 16-bit values the high byte is kept, what is
    transparent is laid on white.

    Raises:
        ValueError: 32 bits a value, of which nobody knows the range.
    """
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a value; save it with 8 or 16")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image


def upright(image: Image.Image, channels: int) -> np.ndarray:
    """An image of Pillow's as `decode` gives those of files: uint8 (H, W, channels).

    Raises:
        ValueError: 32 bits a value.
    """
    image = flatten(ImageOps.exif_transpose(image)).convert("RGB" if channels == 3 else "L")
    return np.array(image).reshape(image.height, image.width, channels)


def reason(error: Exception) -> str:
    """Why an image cannot be decoded, in a few words of one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"the content is not {READ}"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"{first_line(error).rstrip('.')}; if it is none, raise data.max_pixels"
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
