"""The allocator: freed memory is used again instead of handed back to the system."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)


def retain_freed_memory() -> None:
    """Have freed memory used again instead of handed back to the system, where glibc allocates.

    Each training step allocates and frees the same large tensors. Handed back, they come as fresh
    pages that the system must fill with zeros first: some percent of a step on the CPU.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
