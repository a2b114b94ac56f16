"""What the tests of `vit-export` share: small models, which need no training to be exported."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit.export.formats import FORMATS
from vit.export.source import Answer
from vit.inference.load import Trained
from vit.model.vit import VisionTransformer

CLASSES = ["cat", 'do"g', "größe", "\n", "e"]
SIZE = (8, 12)


def trained(path: Path = Path("x.pt"), spread: float = 0.3, **changes: Any) -> Trained:
    """A model of random weights for 8 x 12 px, as it is restored from a checkpoint."""
    torch.manual_seed(0)
    shape = {"patch_size": 4, "num_classes": len(CLASSES), "dim": 32, "depth": 2, "heads": 4}
    model = VisionTransformer(**{"image_size": SIZE, **shape, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    channels = model.config.channels
    preprocessing = {
        "image_size": list(SIZE), "channels": channels, "mean": [0.5, 0.4, 0.3][:channels],
        "std": [0.2, 0.3, 0.25][:channels], "center_crop": 0.8, "interpolation": "bilinear",
        "exif_rotation": "applied", "transparency": "on white",
    }  # fmt: skip
    evaluation = {"batch_size": 4, "precision": "bf16"}
    return Trained(model, CLASSES, preprocessing, evaluation, {}, 7, path, None)


def pixels(count: int, channels: int = 3) -> np.ndarray:
    """Noise: uint8 (count, height, width, channels)."""
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE, channels), dtype=np.uint8)


def expected(source: Trained, images: np.ndarray) -> np.ndarray:
    """The logits of the model itself, on images that are normalised by the book."""
    mean, std = (torch.tensor(source.preprocessing[key]) for key in ("mean", "std"))
    normalised = (torch.from_numpy(images) / 255 - mean) / std
    with torch.no_grad():
        logits: np.ndarray = source.model(normalised.permute(0, 3, 1, 2)).numpy()
    return logits


def written(
    source: Trained, form: str, precision: str, folder: Path, merge: int = 0
) -> tuple[Answer, Path]:
    """An export in `folder`, as a function, and its path."""
    path = folder / f"{form}-{precision}{FORMATS[form].suffix}"
    module = import_module(FORMATS[form].module)
    content = module.write(source, merge, precision)
    for name, part in {"": content}.items() if isinstance(content, bytes) else content.items():
        file = path / name if name else path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(part)
    return module.run(path), path
