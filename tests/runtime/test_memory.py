"""Memory that training frees is used again."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from vit.runtime.memory import retain_freed_memory
if sys.argv[1] == "keep":
    retain_freed_memory()
for _ in range(10):
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system had to give, for twenty tensors of 64 MiB one after another."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_kept_memory_comes_without_page_faults():
    assert faults("keep") < faults("give back") / 100
