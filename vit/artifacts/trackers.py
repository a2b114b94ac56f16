"""Trackers: plug-ins that tell a run's log elsewhere, line by line, beside metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Tracker(Protocol):
    """What a run's log is told to. What it raises is warned of once, and ends no run.

    Attributes:
        lines: how many lines of metrics.jsonl it has, from the first on; zero for a new run. A run
            that goes on starts behind its last checkpoint, writes the lines after it once more, the
            same, and tells those alone that the tracker does not have.
    """

    lines: int

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: `event` (train, eval, test, ...), `step`, `time` and numbers."""

    def image(self, tag: str, picture: np.ndarray, step: int) -> None:
        """A picture, uint8 (height, width, 3)."""

    def close(self) -> None:
        """The run has ended, for now."""


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker | None]] = {
    "none": lambda folder, settings: None,
}
"""Of the run's folder and its settings (nested): a tracker."""
