"""A folder of images with one sub-folder per class, with or without named splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vit.config.errors import DataError
from vit.config.schema import DataConfig
from vit.data.images import FileImages
from vit.data.listing import READ
from vit.data.scan import reading_folders, scan, sub_folders
from vit.data.types import DataSet, Samples

SPLITS = ("train", "val", "test")
Naming = Callable[[list[str]], list[str]]
"""From the class folders, sorted, to the names of their classes."""


def as_they_are(folders: list[str]) -> list[str]:
    """Classes are named as their folders."""
    return folders


def load(config: DataConfig, naming: Naming = as_they_are) -> DataSet:
    """List `data.root`: `<root>/<class>/...` or `<root>/{train,val,test}/<class>/...`.

    Raises:
        DataError: the folder is missing, has no class, an empty class, or splits that disagree.
    """
    assert config.root is not None
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(f"data.root={root} is no folder; give data.root=<where it is>")
    found = sub_folders(root)
    if found and found <= set(SPLITS) and "train" not in found:
        raise DataError(f"data.root={root} has {sorted(found)} but no train folder; add it")
    if "train" in found and sub_folders(root / "train"):
        present = [split for split in SPLITS if (root / split).is_dir()]
        classes = class_names(root / "train", naming)
        splits = {split: list_samples(root / split, classes, naming, split) for split in present}
    else:
        classes = class_names(root, naming)
        splits = {"train": list_samples(root, classes, naming)}
    return DataSet(classes, splits)


def load_flat(root: Path, classes: list[str], naming: Naming = as_they_are) -> Samples:
    """Every image below `root`, which has one sub-folder for each of `classes`.

    Raises:
        DataError: see `load`.
    """
    if not root.is_dir():
        raise DataError(f"images={root} is no folder; check the path")
    return list_samples(root, classes, naming)


def class_names(root: Path, naming: Naming) -> list[str]:
    """The names of the sub-folders of `root`, in the order of the folders.

    Raises:
        DataError: fewer than two.
    """
    folders = sorted(sub_folders(root))
    if len(folders) < 2:
        raise DataError(
            f"{root} has {len(folders)} class folders; put the images into one sub-folder per "
            f"class, at least two"
        )
    return naming(folders)


def list_samples(root: Path, classes: list[str], naming: Naming, prefix: str = "") -> Samples:
    """All image files below `root/<class folder>`, by class and then by path.

    Raises:
        DataError: a class folder is missing, unknown, holds no image or cannot be read.
    """
    folders = sorted(sub_folders(root))
    found = naming(folders)
    if set(found) != set(classes):
        missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise DataError(
            f"{root} does not have the expected class folders: missing {missing}, "
            f"not expected {extra}; expected {classes}"
        )
    with reading_folders():
        files = {folder: below.files for folder, below in scan(root, folders).items()}
    for folder in folders:
        if not files[folder]:
            raise DataError(
                f"class folder {root / folder} holds no image ({READ}); fill or remove it"
            )
    names = [os.path.join(prefix, name) for folder in folders for name in files[folder]]
    labels = np.repeat(np.arange(len(folders)), [len(files[folder]) for folder in folders])
    place = str(root).removesuffix(prefix) if prefix else str(root)
    images = FileImages(place.rstrip(os.sep) or os.sep, names)
    return Samples(labels.astype(np.int64), names, images, np.arange(len(names)))
