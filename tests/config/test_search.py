"""The section `search` of a sweep: every mistake is named."""

from __future__ import annotations

from typing import Any

import pytest
from sweeping import PLAIN, changed

from vit.config.search import to_search
from vit.errors import ConfigError


def test_a_good_section() -> None:
    search = to_search(PLAIN)
    assert (search.trials, search.sampler, search.reduction) == (8, "random", 3)
    assert search.space == PLAIN["space"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trails": 3}, "search.trails is no known key; did you mean search.trials?"),
        ({"trials": "absent"}, "search.trials is missing"),
        ({"seed": None}, "search.seed=null must be a whole number"),
        ({"trials": 0}, "search.trials=0 must be 1 or more"),
        ({"min_epochs": 1.5}, "search.min_epochs=1.5 must be"),
        ({"reduction": 1}, "search.reduction=1 must be 2 or more"),
        ({"sampler": "grid"}, "search.sampler=grid must be one of random, tpe"),
        (
            {"space": {"optim.Lr": [1]}},
            "space: optim.Lr is no known key; did you mean optim.lr?",
        ),
        ({"space": {"optim.lr": []}}, "optim.lr needs a list of values, or"),
        ({"space": {"optim.lr": 0.1}}, "optim.lr needs"),
        ({"space": {"optim.lr": {"low": 1, "high": 1}}}, "optim.lr needs"),
        ({"space": {"optim.lr": {"low": 0, "high": 1, "log": True}}}, "low > 0 for log"),
        ({"space": {"optim.lr": {"low": 0, "high": 1, "step": 1}}}, "optim.lr needs"),
        ({"space": {"optim.lr": {"low": "a", "high": 1}}}, "optim.lr needs"),
    ],
)
def test_every_problem_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        to_search(changed(**values))
    (problem,) = raised.value.problems
    assert words in problem


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        to_search({"trials": -1, "sampler": "x", "tries": 1, "space": {"a.b": [1], "seed": 3}})
    assert len(raised.value.problems) == 8  # and seed, min_epochs and reduction are missing
