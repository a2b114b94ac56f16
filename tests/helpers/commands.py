"""Running the commands, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from warm import Warm

SMALL = [
    "model.dim=16", "model.depth=2", "model.heads=2", "trainer.batch_size=64",
    "trainer.log_every=5", "data.workers=0", "trainer.precision=fp32",
]  # fmt: skip
"""A model that trains in a second."""

WARM = Warm()
Command = Callable[..., subprocess.CompletedProcess[str]]


def start(module: str, *args: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a command of ours without waiting for it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"vit.cli.{module}", *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(module: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end, as a child of a process that has imported it before."""
    return WARM.run(module, *args, cwd=cwd)


def lines(metrics: Path) -> list[dict[str, Any]]:
    """metrics.jsonl as a list."""
    return [json.loads(line) for line in metrics.read_text().splitlines()]
