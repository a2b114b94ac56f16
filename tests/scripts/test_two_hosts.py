"""torchrun on two hosts, one of which loses its process: equal to an unbroken run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "two_hosts.py"
PROBE = f"vit-probe-{os.getpid()}"


def can_make_namespaces() -> bool:
    """Whether this process may have network namespaces of its own."""
    if shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", PROBE], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", PROBE], capture_output=True, check=False)
    return made.returncode == 0


@pytest.mark.skipif(not can_make_namespaces(), reason="no network namespaces (needs root, ip)")
def test_a_host_that_loses_its_process_changes_nothing(tmp_path):
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to the bit" in done.stdout
