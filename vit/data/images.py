"""Where pixels come from: an array, or files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit.data.decode import Kept


class ArrayImages:
    """Pixels as one array, uint8 (N, C, height, width)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels


class FileImages:
    """Images in files.

    Args:
        root: the folder that the names start from.
        names: path of each image below it.
    """

    def __init__(self, root: str, names: Sequence[str]) -> None:
        self.root = root
        self.names = names

    def path(self, index: int) -> str:
        """The file of image `index`."""
        return f"{self.root}/{self.names[index]}"

    def source(self, index: int) -> str | Kept:
        """Where image `index` is read from."""
        return self.path(index)


Images = ArrayImages | FileImages
