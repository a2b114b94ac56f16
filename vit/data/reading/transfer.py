"""From the host to the device: the small arrays of a batch in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import torch
from torch import Tensor

BUFFERS = 2
_ALIGNED = 16  # bytes: every element type starts at a multiple


class Transfer:
    """Sends arrays to a device.

    With CUDA the arrays of a call are packed into a pinned buffer and travel in one asynchronous
    copy, while the device still computes what came before. A buffer is written again only after
    the event of its copy; there are BUFFERS, so the host is that far ahead before it waits.

    Args:
        device: where the arrays go; on the CPU they are used where they lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * BUFFERS
        self._sent: list[torch.Event | None] = [None] * BUFFERS
        self._turn = 0

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The arrays on the device, by the same names."""
        if self.device.type in ("cpu", "mps"):
            return {name: torch.from_numpy(a).to(self.device) for name, a in arrays.items()}
        starts = np.cumsum([0, *(-(-a.nbytes // _ALIGNED) * _ALIGNED for a in arrays.values())])
        buffer = self._free_buffer(int(starts[-1]))
        here = buffer.numpy()
        for start, array in zip(starts, arrays.values(), strict=False):
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            here[start : start + array.nbytes] = flat
        there, self._sent[self._turn] = self._copy(buffer)
        tensors = {}
        for start, (name, array) in zip(starts, arrays.items(), strict=False):
            own = there[start : start + array.nbytes]
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            tensors[name] = own.view(dtype).view(array.shape)
        return tensors

    def _free_buffer(self, size: int) -> Tensor:
        """The first `size` bytes of the next buffer, once its last copy is done."""
        self._turn = (self._turn + 1) % BUFFERS
        sent = self._sent[self._turn]
        if sent is not None:
            sent.synchronize()
        if len(self._buffers[self._turn]) < size:
            self._buffers[self._turn] = self._pinned(size)
        return self._buffers[self._turn][:size]

    def _pinned(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def _copy(self, buffer: Tensor) -> tuple[Tensor, torch.Event]:
        """Start copying; what it becomes, and the event of its end."""
        there = buffer.to(self.device, non_blocking=True)
        return there, torch.cuda.current_stream(self.device).record_event()


def pin(memory: SharedMemory) -> None:
    """Lock shared memory, so that a GPU copies from it by itself.

    Raises:
        RuntimeError: the machine does not allow that much.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(runtime.cudaHostRegister(_address(memory), memory.size, 0))


def unpin(memory: SharedMemory) -> None:
    """Undo `pin`."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    runtime.cudaHostUnregister(_address(memory))


def _address(memory: SharedMemory) -> int:
    assert memory.buf is not None
    return torch.frombuffer(memory.buf, dtype=torch.uint8).data_ptr()
