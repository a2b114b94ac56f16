"""Memory of the host: how much is free, and that what is freed is used again."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)
_OF_CGROUPS = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
"""Files with limit and use, of the second version of Linux's control groups and of the first."""
_DROPPED = ("active_file", "inactive_file")


def retain_freed_memory() -> None:
    """Have freed memory used again instead of handed back to the system, where glibc allocates.

    Each training step allocates and frees the same large tensors. Handed back, they come as fresh
    pages that the system must fill with zeros first: some percent of a step on the CPU.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def available(root: Path = Path("/")) -> int | None:
    """Bytes that the system can still give to this process and its limits (a container's, a job's)
    still allow; None: not known.

    What can be dropped, such as copies of files, counts as free.
    """
    found = []
    with contextlib.suppress(OSError):
        text = (root / "proc/meminfo").read_text()
        found += [1024 * int(size) for size in re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.M)]
    for group in _cgroups(root):
        for limit, used in _OF_CGROUPS.items():
            with contextlib.suppress(OSError, ValueError):  # there is none: "max", or no file
                left = int((group / limit).read_text()) - int((group / used).read_text())
                text = (group / "memory.stat").read_text()
                stat: dict[str, str] = dict(re.findall(r"(\w+) (\d+)", text))
                files = (int(stat.get(f"total_{k}", stat.get(k, "0"))) for k in _DROPPED)
                found.append(left + sum(files))
    return min(found, default=None)


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of the control groups of this process: its own, and all that these are in."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds in ("", "memory"):
                top, inner = root / "sys/fs/cgroup" / kinds, Path(place[1:])
                yield from (top / group for group in (inner, *inner.parents))
