"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in torchvision's files, downloaded on first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vit.config.schema import DataConfig
from vit.data.types import DataSet, Samples
from vit.errors import ConfigError, DataError, first_line


def load(config: DataConfig) -> DataSet:
    """50,000 training and 10,000 test images of 10 or 100 classes, 32x32 RGB.

    torchvision's files below `data.root` (default `data/`) are read, or downloaded there.

    Raises:
        DataError: no network and no files; says which file to put where.
        ConfigError: `data.image_size` is not 32.
    """
    from torchvision import datasets

    if config.size != (32, 32):
        raise ConfigError(
            f"data.image_size={config.image_size}: {config.name} is 32 px; give data.image_size=32"
        )
    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    root = Path(config.root or "data")
    splits, classes = {}, []
    for split in ("train", "test"):
        try:
            source = kind(root, train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            archive = root / kind.filename
            raise DataError(
                f"{config.name} is not under {root}/ and the download failed "
                f"({first_line(error)}); put {Path(kind.url).name} "
                f"(md5 {kind.tgz_md5}) at {archive}"
            ) from None
        pixels = np.ascontiguousarray(source.data.transpose(0, 3, 1, 2))
        splits[split] = Samples.of_pixels(pixels, np.asarray(source.targets, dtype=np.int64))
        classes = list(source.classes)
    return DataSet(classes, splits)
