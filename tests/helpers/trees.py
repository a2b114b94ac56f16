"""Folders of files to be listed, and what has to be found in them."""

from __future__ import annotations

import os
from pathlib import Path

from pictures import encoded, noise, write

from vit.data.formats import FORMATS, IS_IMAGE
from vit.data.sources.scan import scan, sub_folders

OLD = 10**18
"""A modification time long ago, in nanoseconds."""
FIRST_BYTES = {form: encoded(noise(20, 20), form) for form in (*FORMATS, "MPO")}


def walked(root: Path, tops: list[str]) -> dict[str, list[str]]:
    """What `scan` has to find."""
    found = {}
    for top in tops:
        names = []
        for folder, below, files in os.walk(root / top):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in files:
                path = Path(folder) / name
                if not name.startswith(".") and IS_IMAGE.get(path.suffix.lower()):
                    names.append(os.path.relpath(path, root))
        found[top] = sorted(names)
    return found


def tree(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name, b"x")
    return root


def settle(root: Path) -> None:
    """Make all changes old, each folder's with a time of its own."""
    for number, (folder, _, _) in enumerate(sorted(os.walk(root))):
        os.utime(folder, ns=(OLD + number, OLD + number))


def files_of(root: Path, tops: list[str]) -> dict[str, list[str]]:
    return {top: below.files for top, below in scan(root, tops).items()}


def assert_right(root: Path) -> dict[str, list[str]]:
    tops = sorted(sub_folders(root))
    found = files_of(root, tops)
    assert found == walked(root, tops)
    return found


NAMES = ["a/1.jpg", "a/2.PNG", "a/deep/er/3.webp", "b/4.bmp", "b/x/5.jpeg", "b/y/6.jpg"]
