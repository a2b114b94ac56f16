"""The types of the data layer: data sets as listed, batches as trained on.

Legend: N images, B batch, C channels, K classes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

CROP_TRIES = 10
"""Random crops drawn for an image, of which the first that fits into it is taken."""


class CachedImage(ABC):  # no Protocol: asking whether an image is one would take too long
    """An image that was decoded before."""

    @abstractmethod
    def open(self) -> np.ndarray:
        """The image as from `decode`; raises ValueError where it was damaged."""


class PackedImage(Protocol):
    """An image file that lies in another file, with its size in bytes and a hash of its content."""

    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def hash(self) -> int: ...  # noqa: D102
    def read(self) -> bytes:
        """Its content; raises OSError or ValueError where that is gone."""


ImageFile = str | PackedImage
"""Where an image file is: its path, or where it lies in another."""


class FileImages:
    """Images in files.

    Args:
        root: the folder that the names start from.
        names: path of each image below it; one that is absolute stands for itself.
    """

    def __init__(self, root: str, names: Sequence[str]) -> None:
        self.root = root
        self.names = names

    def of(self, names: Sequence[str]) -> FileImages:
        """Other images of the same place."""
        return FileImages(self.root, names)

    def path(self, index: int) -> ImageFile:
        """The file of image `index`."""
        return os.path.join(self.root, self.names[index])

    def source(self, index: int) -> ImageFile | CachedImage:
        """Where image `index` is read from."""
        return self.path(index)


@dataclass(frozen=True)
class Samples:
    """One split as listed, not yet decoded.

    Attributes:
        labels: class numbers, int64 (N,); of several labels per image 0 or 1, uint8 (N, K).
        names: what a person calls each image: a path below the root, or its index.
        images: where the pixels are: uint8 (N, C, height, width), or files.
        index: which images of `images` these are, int64 (N,).
        weights: how much each counts in the loss, float32 (N,); None: all the same.
        groups: what each belongs to (a patient, a video), which no cut parts; None: they are alone.
    """

    labels: np.ndarray
    names: Sequence[str]
    images: np.ndarray | FileImages
    index: np.ndarray
    weights: np.ndarray | None = None
    groups: Sequence[str] | None = None

    @classmethod
    def of_pixels(cls, pixels: np.ndarray, labels: np.ndarray) -> Samples:
        """All images of an array, named by their numbers."""
        index = np.arange(len(labels))
        return cls(labels, [str(i) for i in index], pixels, index)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray) -> Samples:
        """The samples at `positions` (n,), in that order."""
        names = [self.names[i] for i in positions]
        weights = None if self.weights is None else self.weights[positions]
        groups = None if self.groups is None else [self.groups[i] for i in positions]
        labels, index = self.labels[positions], self.index[positions]
        return Samples(labels, names, self.images, index, weights, groups)


def strata(labels: np.ndarray) -> np.ndarray:
    """Class numbers by which images are sorted, and cut evenly, int64 (N,): those of one label; of
    several labels (N, K) there are none, and all images are of one stratum.
    """
    return labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)


@dataclass(frozen=True)
class DataSet:
    """A data set as listed.

    Attributes:
        classes: names of the classes.
        splits: `train`, and `val` and `test` where there are any.
        unused: what was listed and kept out of the split of that name.
        notes: what a person should know of how it was listed, a line each.
        small: classes that are too small for an exact share of a part.
        settings: of group `data`, as what was `auto` was found to be.
    """

    classes: list[str]
    splits: dict[str, Samples]
    unused: dict[str, Samples] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    small: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """What the model is trained on.

    Attributes:
        images: normalised float32 (B, C, height, width), on the device; or features (B, D) of them.
        labels: as in `Samples`, (B,) or (B, K).
        targets: class probabilities float32 (B, K); mixed images have two classes.
        mask: bool (B, patches), True for patches that exist; None: all do.
        weights: how much each counts in the loss, float32 (B,); None: all the same.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    mask: Tensor | None = None
    weights: Tensor | None = None

    def split(self, parts: int) -> list[Batch]:
        """Equal consecutive parts, for gradient accumulation."""
        chunks = (tensor.chunk(parts) for tensor in (self.images, self.labels, self.targets))
        others = (
            [None] * parts if tensor is None else tensor.chunk(parts)
            for tensor in (self.mask, self.weights)
        )
        return [Batch(*tensors) for tensors in zip(*chunks, *others, strict=True)]
