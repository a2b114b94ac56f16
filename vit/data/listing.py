"""Images as a user names them: a file, a folder, a pattern, or several of these. Needs no torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from vit.config.errors import DataError
from vit.data.scan import EXTENSIONS, scan


def list_images(images: str | Sequence[str]) -> list[str]:
    """Paths of image files, sorted, each once.

    Args:
        images: a file, whatever its name; a folder, searched with all below it; a pattern such as
            `photos/**/*.jpg`; or several of these. Hidden files are found by their names alone.

    Raises:
        DataError: one of them does not exist, cannot be read, or holds no image.
    """
    found: set[str] = set()
    for given in [images] if isinstance(images, str) else images:
        found.update(_named_by(os.path.expanduser(given)))
    if not found:
        raise DataError("images=[] names nothing; give files, folders or patterns")
    return sorted(found)


def _named_by(given: str) -> list[str]:
    """The image files that a path or pattern stands for, at least one."""
    endings = ", ".join(sorted(EXTENSIONS))
    if os.path.isdir(given):
        return _below(given, endings)
    if os.path.isfile(given):
        return [given]
    if not glob.has_magic(given):
        raise DataError(
            f"images={given} does not exist; give a file, a folder, or a pattern such as "
            f"'photos/**/*.jpg'"
        )
    matching = glob.glob(given, recursive=True)
    files = [file for file in matching if os.path.isfile(file) and _is_image(file)]
    if not files:
        what = f"{len(matching)} files and folders, no image" if matching else "nothing"
        raise DataError(
            f"images={given} matches {what}; images end in {endings}, and ** stands for any "
            f"folders: 'photos/**/*.jpg'"
        )
    return files


def _below(folder: str, endings: str) -> list[str]:
    """The image files of a folder and of all that are below it."""
    try:
        names = scan(Path(folder), [""])[""]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})") from None
    if not names:
        raise DataError(
            f"images={folder} holds no image ({endings}), nor do its sub-folders; give another "
            f"folder"
        )
    return [os.path.join(folder, name) for name in names]


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in EXTENSIONS


def printable(name: str) -> str:
    """A name in one line: what a terminal would act on, and what is no UTF-8, as codes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name
    )
