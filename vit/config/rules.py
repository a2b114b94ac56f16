"""Validators of single values, as annotations of the schema: functions of a value, whose type is
right, that return the words to follow `key=value` when the rule is broken, else None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from vit.config import plugins
from vit.config.durations import parse_duration
from vit.config.words import VALUES
from vit.errors import nearest

_PACKAGE = Path(__file__).resolve().parent.parent

FROZEN = ("none", "all-but-head", "norm+bias")


def none_of(value: Any, choices: Sequence[Any]) -> str:
    """The words that follow a value that is none of `choices`."""
    listed = ", ".join(map(str, choices))
    if len(choices) == 1:
        return f"must be {listed}"
    close = VALUES.get(str(value))
    if close not in choices and value is not None:
        close = nearest(str(value), map(str, choices))
    return f"must be one of {listed}" + (f" (did you mean {close}?)" if close else "")


@dataclass(frozen=True)
class Range:
    """A number (or each number of a list) lies in [low, high], or below `high` if `open_high`."""

    low: float = -math.inf
    high: float = math.inf
    open_high: bool = False

    def __call__(self, value: Any) -> str | None:
        """The complaint, or None."""
        numbers = value if isinstance(value, list) else [value]
        if all(self.low <= x < self.high or (x == self.high and not self.open_high)
               for x in numbers):  # fmt: skip
            return None
        if self.high == math.inf:
            return f"must be {self.low:g} or more"
        return f"must lie in [{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


@dataclass(frozen=True)
class Length:
    """A list has exactly `count` entries."""

    count: int

    def __call__(self, value: Any) -> str | None:
        """The complaint, or None."""
        return None if len(value) == self.count else f"must have {self.count} entries"


def names_folder(value: Any) -> str | None:
    """A name is safe as a folder name everywhere."""
    legal = value and not value.startswith(".") and all(
        c.isascii() and (c.isalnum() or c in "._-") for c in value
    )  # fmt: skip
    return None if legal else "must hold only letters, digits, '.', '_' and '-'"


def not_empty(value: Any) -> str | None:
    """A text or a list holds something."""
    return None if value else "must not be empty"


def ending(*endings: str) -> Callable[[str], str | None]:
    """A path ends in one of `endings`."""
    complaint = f"must end in {' or '.join(endings)}"
    return lambda path: None if path.lower().endswith(endings) else complaint


@dataclass(frozen=True)
class DurationRule:
    """Steps (`500`), epochs (`2ep`) or a share of the run (`5%`); at least `low`."""

    low: int = 0

    def __call__(self, value: Any) -> str | None:
        """The complaint, or None."""
        try:
            length, unit = parse_duration(value)
        except ValueError:
            return "must be steps (500), epochs (2ep) or a share of the run (5%)"
        if unit == "%" and length > 100:
            return "must be at most 100%"
        return None if length > 0 or self.low == 0 else "must be more than 0"


@dataclass(frozen=True)
class Percent:
    """A share in whole percent, `95%`, from `low` to `high`."""

    low: int
    high: int

    def __call__(self, value: Any) -> str | None:
        """The complaint, or None."""
        number = re.fullmatch(r"([1-9]\d?)%", str(value), re.ASCII)
        if number and self.low <= int(number[1]) <= self.high:
            return None
        return f"must be a share in whole percent from {self.low}% to {self.high}%"


def freezes(value: Any) -> str | None:
    """Which weights are not trained: one of FROZEN, `blocks:<count>` or `lora:<rank>`."""
    if value in FROZEN or re.fullmatch(r"blocks:\d+|lora:0*[1-9]\d*", value, re.ASCII):
        return None
    return f"must be {', '.join(FROZEN)}, blocks:<how many> or lora:<rank>"


def is_pattern(value: Any) -> str | None:
    """A regular expression that can be used."""
    try:
        re.compile(value)
    except re.error as error:
        return f"is no regular expression ({error}); e.g. 'patient_(\\d+)'"
    return None


@cache
def registry_names(file: str, table: str) -> tuple[str, ...]:
    """The keys of the dictionary `table` in `vit/<file>`, read from its source.

    Read, not imported: the modules that register models and data sets import torch, and a typo
    should be answered at once. So a new entry is one dictionary line, known here by itself.
    """
    return tuple(name for name, _ in plugins.dictionary(_PACKAGE / file, table))


@dataclass(frozen=True)
class Registered:
    """A name that is a key of a builder dictionary, or of a plug-in of this kind."""

    file: str
    table: str
    kind: str | None = None

    def __call__(self, value: Any) -> str | None:
        """The complaint, or None."""
        names = registry_names(self.file, self.table)
        if self.kind is None or value in names:
            return None if value in names else none_of(value, names)
        others = plugins.names(self.kind)
        if value in others:
            return None
        complaint = none_of(value, (*names, *others))
        return complaint if "did you mean" in complaint else f"{complaint}, or {plugins.ELSEWHERE}"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Positive = Annotated[float, Range(1e-12, 1e12)]
NonNegative = Annotated[float, Range(0, 1e12)]
Fraction = Annotated[float, Range(0, 1, open_high=True)]
Probability = Annotated[float, Range(0, 1)]
