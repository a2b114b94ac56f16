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
_KEPT: list[Kept] = []
_NAMED = 10


def mute() -> None:
    """Say nothing from now on, and show no bar: another process speaks."""
    _MUTED[0] = True


def say(text: str) -> None:
    """Print a line without tearing a progress bar, and keep it."""
    show(text)
    keep(text)


def show(text: str) -> None:
    """Print a line that is kept already."""
    if not _MUTED[0]:
        tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stdout)
        sys.stdout.flush()


def warn(text: str) -> None:
    """Print a warning to standard error."""
    if not _MUTED[0]:
        tqdm.write(f"warning: {printable(text)}", file=sys.stderr)
        keep(f"warning: {text}")


class Kept:
    """What is said, also in a file, as far as that can be written; it waits in memory until
    `start`, so that what comes to nothing leaves nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] | None = []

    def add(self, text: str) -> None:
        """Add a line."""
        if self._waiting is not None:
            self._waiting.append(text)
            return
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write("\n".join(map(printable, text.split("\n"))) + "\n")

    def start(self) -> None:
        """Write down what waits, and from here on at once."""
        waiting, self._waiting = self._waiting or [], None
        for text in waiting:
            self.add(text)


def keep(text: str) -> None:
    """Write a line to the file of `kept_in` alone."""
    for kept in () if _MUTED[0] else _KEPT:
        kept.add(text)


@contextlib.contextmanager
def kept_in(path: Path) -> Iterator[Kept]:
    """What is said in here is kept in a file, too."""
    _KEPT.append(Kept(path))
    try:
        yield _KEPT[-1]
    finally:
        _KEPT.pop()


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


def duration(seconds: float) -> str:
    """`75` as `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def roughly(seconds: float) -> str:
    """`202` as `3 min 20 s`."""
    units = (("d", 86400, "h", 3600, 1), ("h", 3600, "min", 60, 5), ("min", 60, "s", 1, 10))
    for unit, size, part, fraction, step in units:
        whole, rest = divmod(round(seconds / fraction / step) * step * fraction, size)
        if whole:
            return f"{whole} {unit}" + (f" {rest // fraction} {part}" if rest else "")
    return f"{seconds:.0f} s"


def damaged(reasons: Mapping[str, str], total: int) -> list[str]:
    """A line for each damaged image, for ten at most, and one that counts them."""
    if not reasons:
        return []
    named = list(reasons.items())[:_NAMED]
    lines = [f"{printable(name)} cannot be decoded ({why})" for name, why in named]
    return [*lines, f"{len(reasons):,} of {total:,} images are damaged; repair or remove them"]
