"""The campaign of tables finds none that is wrong, and notices what is."""

import random
import sys
from pathlib import Path

import pytest
import try_tables

from vit.data.sources import splits


def test_a_few_tables_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["try_tables", "--count", "60", "--broken", "40", "--rows", "2000"]
    monkeypatch.setattr(sys, "argv", given)
    assert try_tables.main() == 0


def test_a_group_in_two_splits_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = try_tables.images(tmp_path)
    monkeypatch.setattr(splits, "_check_groups", lambda splits: None)
    monkeypatch.setattr(
        splits.Cutter, "cut", lambda self, samples, share, part: splits._parted(
            samples, splits.np.arange(len(samples)) % 2 == 0
        ),
    )  # fmt: skip
    found = []
    rng = random.Random(0)
    while not found:
        table = try_tables.made(rng, names)
        if "group_column" in table.changes and not table.changes.get("folds"):
            found = try_tables.wrong(tmp_path, table)
    assert "is in {" in found[0]
