"""Run folders as `vit-runs` reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vit.artifacts.run_dir import RunDir
from vit.artifacts.runs import read_runs

Make = Callable[..., RunDir]
"""The fixture `make` of tests/artifacts."""


def runs_of(folder: RunDir) -> list[Any]:
    """The run and those beside it."""
    return read_runs(folder.path.parent)
