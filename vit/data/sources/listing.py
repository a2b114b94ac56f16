"""Images as a user names them: a file, a folder, a pattern, or several of these. Needs no torch."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vit.data.formats import READ, ending_of, is_image, is_regular
from vit.data.sources.scan import SPECIAL, Below, is_hidden, read_errors, scan
from vit.errors import DataError, printable

_NAMED = 12


def list_images(
    images: str | Sequence[str], say: Callable[[str], None] = lambda text: None
) -> list[str]:
    """Paths of image files, sorted, each once.

    Args:
        images: a file, whatever its name; a folder, searched with all below it; a pattern such as
            `photos/**/*.jpg`; or several of these. Hidden files are found by their names alone.
        say: is told what was left out, if anything was.

    Raises:
        DataError: one of them does not exist, cannot be read, or holds no image.
    """
    found: set[str] = set()
    left_out: Counter[str] = Counter()
    for given in [images] if isinstance(images, str) else images:
        below = _named_by(os.path.expanduser(given))
        found.update(below.files)
        left_out.update(below.left_out)
    if not found:
        raise DataError("images=[] names nothing; give files, folders or patterns")
    if left_out:
        say(counted(left_out))
    return sorted(found)


def _named_by(given: str) -> Below:
    """The image files that a path or pattern stands for, at least one."""
    if os.path.isdir(given):
        with read_errors():
            below = scan(Path(given), [""])[""]
        if not below.files:
            raise DataError(f"{no_image(f'images={given}', below.left_out)}: give another folder")
        return Below([os.path.join(given, name) for name in below.files], below.left_out)
    if os.path.isfile(given):
        return Below([given], Counter())
    if os.path.exists(given):
        raise DataError(f"images={given} is a pipe, a device or the like; give a file or a folder")
    if not glob.has_magic(given):
        raise DataError(
            f"images={given} does not exist; give a file, a folder, or a pattern such as "
            f"'photos/**/*.jpg'"
        )
    matching = glob.glob(given, recursive=True)
    below, named = Below([], Counter()), Path(given).parts
    for path in matching:
        # In a folder that is hidden and not named by the pattern nothing is found.
        ending, folders = ending_of(path), Path(path).parent.parts
        if os.path.isdir(path) or any(is_hidden(f) and f not in named for f in folders):
            continue
        if not is_regular(path):
            below.left_out[SPECIAL] += 1
        elif is_image(path, ending):
            below.files.append(path)
        else:
            below.left_out[ending] += 1
    if not below.files:
        what = f"{len(matching)} files and folders, no image" if matching else "nothing"
        raise DataError(
            f"images={given} matches {what}; images are {READ}, and ** stands for any folders: "
            f"'photos/**/*.jpg'"
        )
    return below


def no_image(folder: Path | str, left_out: Mapping[str, int]) -> str:
    """That a folder and those below it hold none, what they hold, and what would count."""
    why = counted(left_out) if left_out else "it is empty"
    return f"{folder} holds no image ({why}); images are {READ}"


def counted(left_out: Mapping[str, int]) -> str:
    """How many files are no images, in one line: `left out: 90 .heic, 3 .txt`."""
    kinds: Counter[str] = Counter()
    for kind, count in left_out.items():
        usual = not kind.startswith(".") or (len(kind) < 12 and kind[1:].isalnum())
        kinds[printable(kind) if kind and usual else "without ending"] += count
    ranked = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    told = ", ".join(f"{kinds[kind]:,} {kind}" for kind in ranked[:_NAMED])
    more = sum(kinds[kind] for kind in ranked[_NAMED:])
    return f"left out: {told}" + (f" and {more:,} more" if more else "")
