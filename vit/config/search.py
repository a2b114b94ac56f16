"""The settings of a hyper-parameter search: trials, ranges, pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit.config.validate import legal_keys
from vit.errors import ConfigError, nearest

_KEYS = ("trials", "sampler", "seed", "min_epochs", "reduction", "space")


@dataclass(frozen=True)
class Range:
    """A setting drawn between two numbers, evenly or (`log`) evenly by ratio."""

    low: float
    high: float
    log: bool


@dataclass(frozen=True)
class Search:
    """A random search, or one that learns (TPE), with successive halving.

    Attributes:
        trials: how many runs are started.
        sampler: `random` or `tpe` (Bergstra et al. 2011).
        seed: decides what is drawn.
        min_epochs, reduction: runs are compared after `min_epochs` epochs, then at each `reduction`
            times as many; only the best 1 / `reduction` at each go on (ASHA, Li et al. 2020).
        space: for each dotted setting a Range, or a list of values.
    """

    trials: int
    sampler: str
    seed: int
    min_epochs: int
    reduction: int
    space: dict[str, Range | list[Any]]


def to_search(plain: Mapping[str, Any]) -> Search:
    """Check the section `search` of a sweep.

    Raises:
        ConfigError: listing everything that is wrong.
    """
    problems = [
        f"search.{key} is no known key"
        + (f"; did you mean search.{close}?" if (close := nearest(key, _KEYS)) else "")
        for key in plain
        if key not in _KEYS
    ]
    problems += [f"search.{key} is missing" for key in _KEYS if plain.get(key) is None]
    for key, low in (("trials", 1), ("seed", 0), ("min_epochs", 1), ("reduction", 2)):
        value = plain.get(key)
        if value is not None and (not isinstance(value, int) or value < low):
            problems.append(f"search.{key}={value} must be a whole number, {low} or more")
    if plain.get("sampler") not in (None, "random", "tpe"):
        problems.append(f"search.sampler={plain['sampler']} must be random or tpe")
    space: dict[str, Range | list[Any]] = {}
    for key, value in (plain.get("space") or {}).items():
        if key not in legal_keys():
            hint = f"; did you mean {close}?" if (close := nearest(key, legal_keys())) else ""
            problems.append(f"search.space: {key} is no known setting{hint}")
        elif isinstance(value, list) and value:
            space[key] = value
        elif isinstance(value, Mapping) and _is_range(value):
            log = bool(value.get("log", False))
            space[key] = Range(float(value["low"]), float(value["high"]), log)
        else:
            problems.append(
                f"search.space: {key} needs a list of values, or {{low: .., high: .., log: true}} "
                f"with low < high (and low > 0 for log)"
            )
    if problems:
        raise ConfigError(problems)
    return Search(**{**{key: plain[key] for key in _KEYS}, "space": space})


def _is_range(value: Mapping[str, Any]) -> bool:
    numbers = [value.get("low"), value.get("high")]
    if set(value) - {"low", "high", "log"} or not all(
        isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers
    ):
        return False
    return value["low"] < value["high"] and (not value.get("log") or value["low"] > 0)
