"""scikit-learn's 1,797 handwritten digits (UCI optical recognition): embedded, no download."""

from __future__ import annotations

import warnings

import numpy as np

from vit.config.schema import DataConfig
from vit.data.types import DataSet, Samples
from vit.errors import ConfigError


def load(config: DataConfig) -> DataSet:
    """8x8 gray images of 0 to 9; the values 0..16 become 0..255.

    Raises:
        ConfigError: `data.image_size` is not 8.
    """
    from sklearn.datasets import load_digits

    if config.size != (8, 8):
        raise ConfigError(
            f"data.image_size={config.image_size}: the digits are 8 px; give data.image_size=8"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    samples = Samples.of_pixels(images, labels.astype(np.int64))
    return DataSet([str(digit) for digit in range(10)], {"train": samples})
