"""SIGTERM, SIGINT and SIGUSR1 at any moment: saved, and the end is the same to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import SMALL, run, start
from kill_resume import differences

from vit.artifacts.run_dir import RunDir

LONG = [*SMALL, "trainer.epochs=8", "trainer.eval_batch_size=8", "trainer.ema=1"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("unbroken")
    assert run("train", *LONG, "name=whole", cwd=folder).returncode == 0
    return RunDir(folder / "outputs" / "whole")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_goes_on_exactly(
    unbroken: RunDir, tmp_path: Path, signum: signal.Signals
) -> None:
    broken = RunDir(tmp_path / "outputs" / "broken")
    rng = random.Random(int(signum))
    for _ in range(3):
        process = start("train", *LONG, "name=broken", "resume=auto", cwd=tmp_path)
        size = broken.metrics.stat().st_size if broken.metrics.exists() else 0
        while process.poll() is None and not (
            broken.metrics.exists() and broken.metrics.stat().st_size > size
        ):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        if process.returncode == 0:
            break  # it was faster than the signal
        assert process.returncode == 128 + signum, err
        assert "Traceback" not in err
        assert "interrupted and saved" in err
        assert broken.read_summary()["state"] == "interrupted"
    assert run("train", *LONG, "name=broken", "resume=auto", cwd=tmp_path).returncode == 0
    assert differences(unbroken, broken) == []


TERMINATED_IN_STEP_3 = """
import os, signal
from vit.cli import train
from vit.training import trainer

step = trainer.train_step

def interrupted(state, *arguments, **options):
    step(state, *arguments, **options)
    if state.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)

trainer.train_step = interrupted
train.main()
"""


def test_a_run_that_has_logged_nothing_is_kept(tmp_path: Path) -> None:
    """Its checkpoint was announced: the folder is no empty one, whatever metrics.jsonl holds."""
    args = [*SMALL, "trainer.epochs=2", *(f"trainer.{k}_every=100%" for k in ("log", "eval"))]
    assert run("train", *args, "name=whole", cwd=tmp_path).returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED_IN_STEP_3, *args, "name=broken"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "saved at step 3; go on with `vit-train resume=outputs/broken`" in done.stderr
    broken = RunDir(tmp_path / "outputs" / "broken")
    assert broken.metrics.read_bytes() == b""
    assert run("train", "resume=outputs/broken", cwd=tmp_path).returncode == 0
    assert differences(RunDir(tmp_path / "outputs" / "whole"), broken) == []


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    from vit.errors import InterruptedRun
    from vit.runtime.signals import StopRequest

    with StopRequest() as stop:
        stop.deferred = True
        signal.raise_signal(signal.SIGUSR1)
        assert stop.signum == signal.SIGUSR1
    with pytest.raises(InterruptedRun), StopRequest():
        signal.raise_signal(signal.SIGUSR1)

    process = start(
        "train", *LONG, "trainer.eval_batch_size=1", "trainer.eval_every=1", "name=x", cwd=tmp_path
    )
    metrics = RunDir(tmp_path / "outputs" / "x").metrics
    while not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
