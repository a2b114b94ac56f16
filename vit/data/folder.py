"""A folder of images with one sub-folder per class, with or without named splits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vit.config.errors import DataError
from vit.config.schema import DataConfig
from vit.data.decode import FileImages
from vit.data.types import DataSet, Samples

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
SPLITS = ("train", "val", "test")


def load(config: DataConfig) -> DataSet:
    """List `data.root`: `<root>/<class>/...` or `<root>/{train,val,test}/<class>/...`.

    Raises:
        DataError: the folder is missing, has no class, an empty class, or splits that disagree.
    """
    assert config.root is not None
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(f"data.root={root} is no folder; check the path")
    found = _sub_folders(root)
    if found and found <= set(SPLITS) and "train" not in found:
        raise DataError(f"data.root={root} has {sorted(found)} but no train folder; add it")
    if "train" in found and _sub_folders(root / "train"):
        present = [split for split in SPLITS if (root / split).is_dir()]
        classes = class_names(root / "train")
        splits = {
            split: list_samples(root / split, classes, config, prefix=split) for split in present
        }
    else:
        classes = class_names(root)
        splits = {"train": list_samples(root, classes, config)}
    return DataSet(classes, splits)


def load_flat(root: Path, classes: list[str], config: DataConfig) -> Samples:
    """Every image below `root`, which has one sub-folder for each of `classes`.

    Raises:
        DataError: see `load`.
    """
    if not root.is_dir():
        raise DataError(f"images={root} is no folder; check the path")
    return list_samples(root, classes, config)


def class_names(root: Path) -> list[str]:
    """The sub-folders of `root` in the order of their names.

    Raises:
        DataError: fewer than two.
    """
    names = sorted(_sub_folders(root))
    if len(names) < 2:
        raise DataError(
            f"{root} has {len(names)} class folders; put the images into one sub-folder per class, "
            f"at least two"
        )
    return names


def list_samples(root: Path, classes: list[str], config: DataConfig, prefix: str = "") -> Samples:
    """All image files below `root/<class>`, by class and then by path.

    Raises:
        DataError: a class folder is missing, unknown or holds no image.
    """
    found = _sub_folders(root)
    if found != set(classes):
        missing, extra = sorted(set(classes) - found), sorted(found - set(classes))
        raise DataError(
            f"{root} does not have the expected class folders: missing {missing}, "
            f"not expected {extra}; expected {classes}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(_image_files(root / name))
        if not files:
            listed = ", ".join(sorted(EXTENSIONS))
            raise DataError(
                f"class folder {root / name} holds no image ({listed}); fill or remove it"
            )
        paths += files
        labels += [label] * len(files)
    names = [os.path.join(prefix, os.path.relpath(path, root)) for path in paths]
    images = FileImages(paths, config.image_size, channels=len(config.mean))
    return Samples(np.asarray(labels, dtype=np.int64), names, images, np.arange(len(paths)))


def _sub_folders(root: Path) -> set[str]:
    return {e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")}


def _image_files(folder: Path) -> list[str]:
    files = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            os.path.join(where, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return files
