"""Names in messages: what was probably meant by a misspelt one, and the first of many."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

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
        close = difflib.get_close_matches(asked, list(among), n=1, cutoff=0.6)
        if close:
            return among[close[0]]
    return None


def printable(name: str) -> str:
    """A name in one line: what a terminal would act on, and what is no UTF-8, as codes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name
    )


def shortened(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """The names with commas between them; of many the first `most`, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more
