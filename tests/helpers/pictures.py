"""What the data layer's tests share: settings, readers, and images that they draw themselves."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from vit.config.schema import AugmentConfig, DataConfig
from vit.config.yaml_files import config_dir
from vit.data.reading.reader import Normalise, Reader, decode_all
from vit.data.reading.transform import Transform
from vit.data.reading.workers import WorkerPool
from vit.data.types import Samples

CPU = torch.device("cpu")
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def settings_of(group: str, name: str) -> dict[str, Any]:
    """The settings of configs/<group>/<name>.yaml."""
    plain: dict[str, Any] = {}
    for file in ("_base", name):
        plain |= yaml.safe_load((config_dir() / group / f"{file}.yaml").read_text())
    del plain["defaults"]
    return plain


def augmentation(name: str = "none", **changes: Any) -> AugmentConfig:
    """An augmentation as it is after `auto` was resolved for small images."""
    plain = settings_of("augment", name)
    resolved = {"crop": "padded", "flip": 0.5}
    plain |= {key: value for key, value in resolved.items() if plain[key] == "auto"}
    return AugmentConfig(**{**plain, **changes})


def data_config(source: str, **changes: Any) -> DataConfig:
    """A data source, read by this process and held."""
    here = {"workers": 0, "memory": "device"}
    return DataConfig(**{**settings_of("data", source), **here, **changes})


def reader(
    size: tuple[int, int], channels: int = 3, *, held: bool = True, workers: int = 0,
    timeout: float = 60, bad_images: float | None = None, center_crop: float = 1.0,
) -> Reader:  # fmt: skip
    """A reader of images as `size` (height, width)."""
    normalise = Normalise([0.5, 0.4, 0.3][:channels], [0.2, 0.3, 0.4][:channels], CPU)
    transform = Transform(*size, channels, center_crop)
    return Reader(transform, normalise, CPU, held, WorkerPool(workers, timeout), bad_images)


def array_samples(n: int, size: tuple[int, int] = (8, 8), classes: int = 3) -> Samples:
    """`n` images of noise of size (height, width), of the classes 0, 1, 2, 0, 1, ..."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, *size), dtype=np.uint8)
    return Samples.of_pixels(pixels, np.arange(n) % classes)


def pixels_of(samples: Samples, size: tuple[int, int] = (16, 16), channels: int = 3) -> np.ndarray:
    """All pixels of a split, uint8 (N, channels, height, width); its files are all good."""
    if isinstance(samples.images, np.ndarray):
        return np.asarray(samples.images[samples.index])
    pixels, bad = decode_all(samples, Transform(*size, channels), WorkerPool(0, 60))
    assert bad == {}
    return pixels


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth enough for JPEG, and nowhere constant."""
    rng = np.random.default_rng([width, height, seed])
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), channels), dtype=np.uint8)
    pixels = coarse.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode=mode)


def save(
    path: Path, image: Image.Image | tuple[int, int, int] = RED, size: tuple[int, int] = (16, 16),
    **options: Any,
) -> Path:  # fmt: skip
    """Write an image (or one of a single colour), in the format of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, image) if isinstance(image, tuple) else image
    image.save(path, **options)
    return path


def write(path: Path, content: bytes) -> Path:
    """Write a file that need not be an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The content of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def claims_to_be(width: int, height: int) -> bytes:
    """A small PNG whose header says it is large."""
    content = bytearray(encoded(Image.new("RGB", (16, 16)), "PNG"))
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
    content[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    return bytes(content)


def stripes(*colours: tuple[int, int, int], size: int = 16) -> Image.Image:
    """Equal vertical stripes, each `size` wide and high."""
    image = Image.new("RGB", (size * len(colours), size))
    for i, colour in enumerate(colours):
        image.paste(colour, (i * size, 0, (i + 1) * size, size))
    return image


def is_colour(pixels: np.ndarray, colour: tuple[int, int, int], within: int = 0) -> bool:
    """Whether all of (3, height, width) is `colour`, up to what JPEG loses."""
    return bool((abs(pixels.astype(int) - np.array(colour)[:, None, None]) <= within).all())
