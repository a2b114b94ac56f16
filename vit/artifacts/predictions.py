"""What an evaluation leaves: metrics.json, predictions.csv, a report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vit.config.errors import ConfigError
from vit.runtime.files import to_json, write_atomic

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), 127)}
"""Characters that HTML may not hold, as codes."""


class Scored(Protocol):
    """Predictions for N samples; see `engine.evaluate.Predictions`."""

    @property
    def top(self) -> np.ndarray:
        """Classes, the most probable first (N, up to 5)."""

    @property
    def probability(self) -> np.ndarray:
        """Of the first class (N,)."""

    @property
    def labels(self) -> np.ndarray:
        """The truth (N,)."""


def write_evaluation(
    folder: Path,
    metrics: dict[str, Any],
    names: Sequence[str],
    classes: Sequence[str],
    predictions: Scored,
) -> None:
    """Write `metrics.json` and `predictions.csv` (image, label, prediction, probability).

    Raises:
        ConfigError: `folder` cannot be written.
        DiskFullError: no space.
    """
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["image", "label", "prediction", "probability"])
    for name, label, top, probability in zip(
        names, predictions.labels, predictions.top[:, 0], predictions.probability, strict=True
    ):
        writer.writerow([name, classes[label], classes[top], f"{probability:.6f}"])
    _make(folder)
    write_json(folder / "metrics.json", metrics)
    write_atomic(folder / "predictions.csv", table.getvalue().encode("utf-8", "surrogateescape"))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as indented JSON.

    Raises:
        DiskFullError: no space.
    """
    write_atomic(path, to_json(values, 2))


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of metrics.json; empty when there is none."""
    try:
        values = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_page(folder: Path, html: str) -> Path:
    """Write `report/index.html`, and give its path.

    Raises:
        ConfigError: the folder cannot be made.
        DiskFullError: no space.
    """
    path = folder / "report" / "index.html"
    _make(path.parent)
    write_atomic(path, html.translate(_CONTROL).encode("utf-8", "backslashreplace"))
    return path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={folder} cannot be made ({error.strerror})") from None
