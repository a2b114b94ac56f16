"""What several test modules share: running the commands, and small runs that already happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# One thread, before torch is imported: two busy processes on two cores slow each other down a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SMALL = [
    "model.dim=16", "model.depth=2", "model.heads=2", "trainer.batch_size=64",
    "trainer.log_every=5", "data.workers=0", "trainer.precision=fp32",
]  # fmt: skip
"""A model that trains in a second."""

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
    """Run a command of ours to its end."""
    process = start(module, *args, cwd=cwd)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lines(metrics: Path) -> list[dict[str, Any]]:
    """metrics.jsonl as a list."""
    return [json.loads(line) for line in metrics.read_text().splitlines()]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that ended by itself: `<folder>/outputs/done`."""
    folder = tmp_path_factory.mktemp("finished")
    done = run("train", *SMALL, "trainer.epochs=3", "name=done", "trainer.ema=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "done"


@pytest.fixture(scope="session")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of `finished`."""
    folder = tmp_path_factory.mktemp("report")
    done = run("eval", f"checkpoint={finished}", f"output={folder}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert str(folder / "report" / "index.html") in done.stdout
    return folder
