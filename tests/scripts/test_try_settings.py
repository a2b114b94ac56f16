"""Settings drawn at random, as a user types them: each is planned, or answered in lines."""

from pathlib import Path

import pytest
from try_settings import commands, compose_one, faults


def test_any_settings_are_planned_or_answered(tmp_path: Path) -> None:
    outcomes = [
        compose_one(argv, tmp_path / "none") for argv in commands("compose", 20, 7, tmp_path)
    ]
    assert [fault for _, found in outcomes for fault in found] == []
    assert {code for code, _ in outcomes} == {0, 2}


@pytest.mark.parametrize(
    ("code", "err"),
    [
        (1, "vit-train: unexpected KeyError"),
        (2, "Traceback (most recent call last):\nvit-train: try seed=1"),
        (3, "vit-train: seed=x must be a whole number"),
        (2, "vit-train: something is wrong; try another"),
        (2, "vit-train: seed=x is wrong"),
        (2, ""),
        (None, ""),
        (0, ""),  # and no run
    ],
)
def test_what_counts_as_a_fault(code: int | None, err: str, tmp_path: Path) -> None:
    assert faults(["data=digits"], code, err, tmp_path)
    assert not faults(["seed=x"], 2, "vit-train: seed=x must be a whole number\n", tmp_path)
