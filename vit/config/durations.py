"""Durations in a config: steps (`500`), epochs (`2ep`) or a share of the run (`5%`)."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(ep|%)?")


def parse_duration(text: int | str) -> tuple[Fraction, str]:
    """Split a duration into its value and its unit: `""` (steps), `"ep"` (epochs) or `"%"`.

    Raises:
        ValueError: `text` is not a duration, or a number of steps that is not whole.
    """
    match = None if isinstance(text, bool) else _PATTERN.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration")
    value, unit = Fraction(match[1]), match[2] or ""
    if unit == "" and value.denominator != 1:
        raise ValueError(f"{text!r}: a number of steps is whole")
    return value, unit


def duration_in_steps(text: int | str, steps_per_epoch: Fraction, total_steps: int) -> Fraction:
    """A duration in optimiser steps, exact; an epoch need not be a whole number of steps."""
    value, unit = parse_duration(text)
    scale = {"": Fraction(1), "ep": steps_per_epoch, "%": Fraction(total_steps, 100)}
    return value * scale[unit]


def epochs_in_steps(epochs: float, samples: int, batch_size: int) -> int:
    """Number of full batches that hold `epochs` passes over `samples` images, rounded up."""
    return math.ceil(Fraction(str(epochs)) * samples / batch_size)
