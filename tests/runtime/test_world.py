"""Which process of how many this one is, where they meet, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch

from vit.errors import ConfigError
from vit.runtime.dist import World, process_group, world

SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "123456", "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2)", "SLURM_PROCID": "4", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu-[07-08]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, World()),
        (SRUN, World(4, 6, 1, 3)),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, World()),
        ({key: SRUN[key] for key in SRUN if key != "SLURM_STEP_ID"}, World()),  # sbatch's script
        ({**SRUN, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
         World(1, 2, 1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, World(3, 4, 3, 4)),
    ],
)  # fmt: skip
def test_torchrun_and_srun_say_which_process_this_is(
    said: dict[str, str], expected: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in {*SRUN, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}:
        monkeypatch.delenv(key, raising=False)
    for key, value in said.items():
        monkeypatch.setenv(key, value)
    assert world() == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu-[07-08]", "gpu-07"),
        ("a,b", "a"),
        ("n1", "n1"),
        ("x[3,5-9]", "x3"),
        ("m[01-02]", "m01"),
    ],
)
def test_tasks_of_srun_meet_at_the_first_node(
    nodes: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: dict[str, Any] = {}
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **how: met.update(how)
    )
    for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    for key, value in {**SRUN, "SLURM_STEP_NODELIST": nodes}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with process_group(world(), lambda: False):
        assert (met["rank"], met["world_size"]) == (4, 6)
        assert met["timeout"] >= timedelta(hours=6)  # one makes the image cache while others wait
    assert os.environ["MASTER_ADDR"] == first
    assert os.environ["MASTER_PORT"] == "23456"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ConfigError, match=r"^4 processes .* has 2 GPUs; try .*--nproc-per-node 2"),
        process_group(World(0, 4, 0, 4), lambda: True),
    ):
        pytest.fail("it met nobody")


LEAVING = """
import atexit, sys, threading, time, torch
from vit.runtime.dist import leave

def work():
    numbers = torch.ones(300, 300)
    while True:
        numbers @ numbers

threading.Thread(target=work, daemon=True).start()
atexit.register(print, "tidied up")
print("trained")
time.sleep(0.2)
leave(3)
"""


def test_a_process_whose_threads_still_hold_tensors_ends_with_its_own_status() -> None:
    """As gloo's may: `sys.exit` aborts here, and torchrun called a finished run a failure."""
    env = {**os.environ, "WORLD_SIZE": "2", "RANK": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LEAVING]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (3, "trained\ntidied up\n", "")
