"""How folders are laid out as a data set, and what was meant by those that are not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from pathlib import Path

from vit.data.formats import READ, ending_of
from vit.data.sources.listing import counted
from vit.data.sources.scan import list_folder, sub_folders
from vit.data.sources.table_file import ENDINGS
from vit.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What the folder of a split may be called, in any case."""
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
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
        archive = root.suffix.lower() in _ARCHIVES
        what = "unpack it and give the folder" if archive else "give the folder it lies in"
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
    if path.is_dir():
        tables = tables_in(path)
        which = f"{key}={path / tables[0]}" if tables else "the table in it, or data=folder"
        raise DataError(f"{key}={path} is a folder, no table; give {which}")
    if not path.is_file():
        raise DataError(f"{key}={path} does not exist; give the table, a CSV, TSV or JSONL file")


def too_few(root: Path, folders: list[str]) -> str:
    """What to do about a root with fewer than two class folders."""
    root = root if root.name else root.absolute()
    if below := _below(root):
        return f"try data.root={below}, or {_SORT}"
    _, images, left_out, _ = list_folder(root)
    places = [root, *([root.parent] if split_of(root.name) else [])]
    tables = [place / name for place in places for name in tables_in(place)]
    if tables and (images or folders):
        return (
            f"if the labels are in {tables[0].name}, try data=table data.root={tables[0]}; "
            f"else {_SORT}"
        )
    if images and _has_siblings(root):
        return f"if {root.name} is itself a class, try data.root={root.parent}; else {_SORT}"
    if not images and not folders:
        empty = f"it holds no image ({counted(left_out)})" if left_out else "it is empty"
        return f"{empty}: check the path, and {_SORT}; images are {READ}"
    return _SORT


def tables_in(folder: Path) -> list[str]:
    """The names of the tables in a folder, those first that can be read."""
    found = [name for name in sorted(os.listdir(folder)) if ending_of(name) in _TABLES]
    return sorted(found, key=lambda name: ending_of(name) not in ENDINGS)


def unlabelled(root: Path) -> str:
    """What to do about images that are to be scored, but lie in no class folder."""
    _, images, left_out, _ = list_folder(root)
    if not images:
        why = counted(left_out) if left_out else "it is empty"
        return f"{root} holds no image ({why}); images are {READ}: fill or remove it"
    return (
        f"{root} has no class folders, so its images cannot be scored; sort them into one folder "
        f"per class (the well-known valprep.sh does, for ImageNet's), or move them away and label "
        f"them with vit-predict checkpoint=... images={root}"
    )


def with_classes(
    root: Path, classes: Collection[str], naming: Callable[[list[str]], list[str]]
) -> str:
    """Which folder in `root` has folders of these classes, if one has."""
    for folder in sorted(sub_folders(root)):
        if set(classes) & set(naming(sorted(sub_folders(root / folder)))):
            return f"; try images={root / folder}"
    return ""


def the_one(root: Path, filled: list[str]) -> str:
    """The only folder of `root` that holds images, if it has folders of its own."""
    if len(filled) == 1 and len(sub_folders(root / filled[0])) > 1:
        return f", or try data.root={root / filled[0]}"
    return ""


def _below(root: Path) -> Path | None:
    """The first folder below `root` that has several, where each above it has but one."""
    place = root
    for _ in range(_DEEPEST):
        folders = sorted(sub_folders(place))
        if len(folders) != 1:
            return place if len(folders) > 1 else None
        place /= folders[0]
    return None


def _has_siblings(root: Path) -> bool:
    """Whether folders beside `root` hold images as it does, and are called as no splits."""
    with contextlib.suppress(DataError, OSError):
        beside = sub_folders(root.parent) - {root.name}
        names = [name for name in sorted(beside) if not split_of(name)]
        return not split_of(root.name) and any(list_folder(root.parent / f)[1] for f in names)
    return False
