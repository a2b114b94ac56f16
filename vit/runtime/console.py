"""The console: lines, warnings, a progress bar, names made printable."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vit.errors import VitError, printable

_MUTED = [False]
_NAMED = 10


def mute() -> None:
    """Say nothing from now on, and show no bar: another process speaks."""
    _MUTED[0] = True


def say(text: str) -> None:
    """Print a line without tearing a progress bar."""
    if not _MUTED[0]:
        tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stdout)
        sys.stdout.flush()


def warn(text: str) -> None:
    """Print a warning to standard error."""
    if not _MUTED[0]:
        tqdm.write(f"warning: {printable(text)}", file=sys.stderr)


class OnlyWarned:
    """Lets what is only looked at fail: a warning for the first of each kind, and all goes on."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Around what makes `what`; errors that the user must see are not held up."""
        try:
            yield
        except VitError:
            raise
        except Exception as error:
            if what not in self._told:
                self._told.add(what)
                warn(f"{what} cannot be made ({type(error).__name__}: {error}); all else goes on")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    from importlib.metadata import version

    names = ("vit-train", "torch", "torchvision", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def commit() -> str:
    """The git commit of this code, with `+` when it was changed since; empty outside a checkout of
    it (also where it is installed somewhere in a checkout of another project).
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.strip()


def progress(items: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """A bar of tqdm's, with its options, that goes away in the end: in a terminal or a notebook,
    elsewhere none. It counts the items; without them it is told.
    """
    from tqdm import auto

    # A notebook's standard error is no terminal, and shows bars.
    in_notebook = getattr(auto, "notebook_tqdm", tqdm) is not tqdm
    hidden = _MUTED[0] or (False if in_notebook else None)
    usual = {"leave": False, "unit": "img", "disable": hidden}
    return auto.tqdm(items, **{**usual, **options})


class EpochBar:
    """A bar over the images of an epoch, from `start` to `close`: in between `is_open`."""

    def __init__(self) -> None:
        self.is_open = False
        self._bar = progress(disable=True)

    def start(self, epoch: int, total: int, done: int) -> None:
        """Open the bar of `epoch` (from 1) at `done` of `total` images."""
        self.close()
        self.is_open = True
        self._bar = progress(
            total=total, initial=done, desc=f"epoch {epoch}", file=sys.stderr, dynamic_ncols=True
        )

    def advance(self, images: int) -> None:
        """Count images, as long as the bar is open."""
        self._bar.update(images)

    def show(self, **values: str) -> None:
        """Put values behind the bar."""
        self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """Remove the bar."""
        self.is_open = False
        self._bar.close()


def duration(seconds: float) -> str:
    """`75` as `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def damaged(reasons: Mapping[str, str], total: int) -> list[str]:
    """A line for each damaged image, for ten at most, and one that counts them."""
    if not reasons:
        return []
    named = list(reasons.items())[:_NAMED]
    lines = [f"{printable(name)} cannot be decoded ({why})" for name, why in named]
    return [*lines, f"{len(reasons):,} of {total:,} images are damaged; repair or remove them"]
