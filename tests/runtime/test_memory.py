"""Memory that training frees is used again; how much is free."""

import subprocess
import sys
from pathlib import Path

import pytest

from vit.runtime.memory import available

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


MB = 2**20


def host(root: Path, groups: str, **limited: tuple[str, int, str]) -> Path:
    """The files in which Linux tells of memory: 64 MB free, and groups with limit, use, stat."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 131072 kB\nMemAvailable:   65536 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for place, (limit, used, stat) in limited.items():
        folder = root / "sys/fs/cgroup" / place.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        old = place.startswith("memory")
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{limit}\n")
        (folder / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(stat)
    return root


CACHED = f"anon 1\ninactive_file {3 * MB}\nactive_file {2 * MB}\n"
BOTH = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {3 * MB}\ntotal_active_file {2 * MB}\n"


@pytest.mark.parametrize(
    ("groups", "limited", "free"),
    [
        ("", {}, 64),
        ("0::/\n", {}, 64),
        ("0::/job/step\n", {"job__step": ("max", 0, "")}, 64),
        ("0::/job/step\n", {"job__step": ("max", 0, ""), "job": (str(30 * MB), 20 * MB, "")}, 10),
        ("0::/job\n", {"job": (str(30 * MB), 20 * MB, CACHED)}, 15),
        ("9:cpu:/x\n4:memory:/x\n", {"memory__x": (str(30 * MB), 20 * MB, BOTH)}, 15),
        ("4:memory:/x\n0::/\n", {"memory__x": (str(2**63 - 4096), 20 * MB, "")}, 64),
        ("4:memory:/of/the/host\n", {"memory": (str(30 * MB), 20 * MB, "")}, 10),  # in a container
    ],
)
def test_what_is_free_is_what_host_and_groups_allow(groups, limited, free, tmp_path):
    assert available(host(tmp_path, groups, **limited)) == free * MB


def test_a_system_that_does_not_tell_is_not_known(tmp_path):
    assert available(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_of_this_host_it_is_known():
    free = available()
    assert free is not None
    assert free > MB
