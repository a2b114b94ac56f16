"""The errors that a user may see: each is one clear sentence with its remedy and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class VitError(Exception):
    """An error with a message for the user; `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(VitError):
    """A configuration or a file named in it cannot be used; `problems` lists every reason."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class InUseError(ConfigError):
    """Another process is training in the run folder."""


class DataError(ConfigError):
    """The data set is missing, unreadable or does not fit what the checkpoint was trained on."""


class NoCheckpointError(VitError):
    """There is no checkpoint that is complete and undamaged."""

    exit_code = 3


class DivergedError(VitError):
    """Training or a trained model came to numbers that are not finite."""

    exit_code = 4


class DiskFullError(VitError):
    """A file could not be written for lack of space; what was there before is intact."""

    exit_code = 5


class ExportError(VitError):
    """An exported model does not do what its checkpoint does; it was removed."""


class PrunedRun(VitError):
    """A search ended the run for lack of promise; it was saved."""


class InterruptedRun(VitError):
    """A signal asked the run to stop; what could be saved was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(signum, message)
        self.exit_code = 128 + signum

    def __str__(self) -> str:
        return str(self.args[1])


MOST_NAMES = 12
"""Names that a message lists."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` was probably meant to be, compared whole and by its last part."""
    choices = list(choices)
    tail = word.rsplit(".", 1)[-1]
    tails = {choice.rsplit(".", 1)[-1]: choice for choice in choices}
    if tail in tails:  # the right name in the wrong place
        return tails[tail]
    for asked, among in ((word, {c: c for c in choices}), (tail, tails)):
        if close := difflib.get_close_matches(asked, among, n=1):
            return among[close[0]]
    return None


def printable(name: str) -> str:
    """A name in one line: what a terminal would act on, and what is no UTF-8, as codes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """The names with commas between them; of many the first `most`, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more
