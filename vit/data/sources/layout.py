"""How folders are laid out as a data set, and what was meant by those that are not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vit.data.formats import ending_of
from vit.data.sources.listing import no_image
from vit.data.sources.scan import list_folder, sub_folders
from vit.data.sources.table_file import ENDINGS, shards_of
from vit.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What the folder of a split may be called, in any case."""
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx")
_SORT = "put the images into one sub-folder per class, at least two"
_DEEPEST = 8


def split_of(folder: str) -> str | None:
    """The split that a folder of this name holds, if it is called as one."""
    return next((split for split, names in SPLITS.items() if folder.lower() in names), None)


def check_folder(key: str, root: Path) -> None:
    """Make sure that the setting `key` is a folder.

    Raises:
        DataError: it is none.
    """
    if root.is_file():
        what = "give the folder it lies in; unpack it before, if it is an archive"
        if ending_of(root.name) in ENDINGS:
            what = f"labels in a table are trained on by data=table {key}={root}"
        raise DataError(f"{key}={root} is no folder but a file; {what}")
    if not root.is_dir():
        raise DataError(
            f"{key}={root} is no folder; check the path, or give {key}=<where it is now>"
        )


def check_table(key: str, path: Path) -> None:
    """Make sure that the setting `key` is a file.

    Raises:
        DataError: it is none.
    """
    if not path.is_file() and not shards_of(path):
        what = "is a folder, no table" if path.is_dir() else "does not exist"
        tables = tables_in(path) if path.is_dir() else []
        others = "a CSV, TSV, JSON lines or Parquet file, or data=folder"
        which = f"{key}={path / tables[0]}" if tables else others
        raise DataError(f"{key}={path} {what}; give {which}")


def too_few(root: Path, folders: list[str]) -> str:
    """What to do about a root with fewer than two class folders."""
    root = root if root.name else root.absolute()
    _, _, images, left_out = list_folder(root)
    if not images and not folders:
        return f"{no_image('it', left_out)}: check the path, and {_SORT}"
    places = [root, *([root.parent] if split_of(root.name) else [])]
    tables = [place / name for place in places for name in tables_in(place)]
    advice = deeper("data.root", root, folders)
    if not advice and len(shards_of(root)) > 1:
        advice = f"to train on the Parquet files in it, try data=table data.root={root}"
    elif not advice and tables:
        advice = f"if the labels are in {tables[0].name}, try data=table data.root={tables[0]}"
    elif not advice and images and not split_of(root.name):
        advice = f"if {root.name} is itself a class, try data.root={root.parent}"
    return f"{advice}; else {_SORT}" if advice else _SORT


def deeper(key: str, root: Path, folders: Iterable[str]) -> str:
    """Where the classes may be that are not in `root`: the first of its `folders` that has some."""
    for folder in folders:
        place, below = root / folder, sub_folders(root / folder)
        for _ in range(_DEEPEST):  # folders that have but one
            if len(below) == 1 and (further := sub_folders(place / min(below))):
                place, below = place / min(below), further
        if below:
            return f"if the classes are in {place}, try {key}={place}"
    return ""


def tables_in(folder: Path) -> list[str]:
    """The names of the tables in a folder, those first that can be read."""
    found = [name for name in sorted(os.listdir(folder)) if ending_of(name) in _TABLES]
    return sorted(found, key=lambda name: ending_of(name) not in ENDINGS)


def unlabelled(root: Path) -> str:
    """What to do about images that are to be scored, but lie in no class folder."""
    _, _, images, left_out = list_folder(root)
    if not images:
        return f"{no_image(root, left_out)}: fill or remove it"
    return (
        f"{root} has no class folders, so its images cannot be scored; sort them into one folder "
        f"per class (the well-known valprep.sh does, for ImageNet's), or move them away and label "
        f"them with vit-predict <run> {root}"
    )
