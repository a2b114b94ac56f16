"""The settings of a hyper-parameter search: trials, ranges, pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from vit.config.checks import Check, Complaint
from vit.config.rules import Count, Range, Whole
from vit.config.validate import checked, legal_keys, unknown


@dataclass(frozen=True)
class Search:
    """A random search, or one that learns (TPE), with successive halving.

    Attributes:
        trials: how many runs are started.
        sampler: `random` or `tpe` (Bergstra et al. 2011).
        seed: decides what is drawn.
        min_epochs, reduction: runs are compared after `min_epochs` epochs, then at each `reduction`
            times as many; only the best 1 / `reduction` at each go on (ASHA, Li et al. 2020).
        space: for each dotted setting a list of values, or `low` and `high`, between which numbers
            are drawn evenly or, with `log`, evenly by ratio.
    """

    trials: Count
    sampler: Literal["random", "tpe"]
    seed: Whole
    min_epochs: Count
    reduction: Annotated[int, Range(2)]
    space: dict[str, Any]


@dataclass(frozen=True)
class _Sweep:
    search: Search


def to_search(plain: Mapping[str, Any]) -> Search:
    """Check the section `search` of a sweep.

    Raises:
        ConfigError: listing everything that is wrong.
    """
    return checked(_Sweep, {"search": plain}, [Check(("search.space",), _drawable)]).search


def _drawable(space: dict[str, Any]) -> Complaint:
    for key, value in space.items():
        if key not in legal_keys():
            yield f"search.space: {unknown(key)}"
        elif not (_is_range(value) if isinstance(value, dict) else value and type(value) is list):
            yield (
                f"search.space: {key} needs a list of values, or {{low: .., high: .., log: true}} "
                f"with low < high (and low > 0 for log)"
            )


def _is_range(value: dict[str, Any]) -> bool:
    low, high, log = (value.get(key) for key in ("low", "high", "log"))
    if set(value) - {"low", "high", "log"} or not {type(low), type(high)} <= {int, float}:
        return False
    return low < high and (not log or low > 0)  # type: ignore[operator]
