"""Processes that train one model together. The only place that uses torch.distributed.

Started by torchrun or srun, which tell each process its rank; without them there is a world of one,
in which nothing here does anything. Needs torch only where there are several processes.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from vit.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

Value = TypeVar("Value")
PATIENCE = 6
"""Hours that processes wait for each other: one makes the cache of a large data set alone."""


@dataclass(frozen=True)
class World:
    """One process among `size`; `rank` counts from 0.

    Attributes:
        rank, size: among all processes.
        local_rank, local_size: among those on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def all_gather_object(self, value: Value) -> list[Value]:
        """What every process gives, by rank; plain picklable values."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, make: Callable[[], Value], rank: int = 0) -> Value:
        """What `make` gives or raises in one process, in those that name its rank."""
        if self.size == 1:
            return make()
        made: tuple[Value] | Exception | None = None
        if self.rank == rank:
            try:
                made = (make(),)
            except Exception as error:
                made = error
        outcome = self.all_gather_object(made)[rank]
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        return outcome[0]

    def array_once_per_machine(
        self, make: Callable[[], tuple[np.ndarray, Value]]
    ) -> tuple[np.ndarray, Value]:
        """An array that one process of each machine makes and the others see, not copy.

        Args:
            make: gives a uint8 array and a picklable value beside it.
        """
        if self.local_size == 1:
            return make()
        import numpy as np

        def write() -> tuple[str, tuple[int, ...], Value]:
            array, value = make()
            folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                array.tofile(file)
            return file.name, array.shape, value

        name, shape, value = self.broadcast(write, self.rank - self.local_rank)
        shared = np.memmap(name, np.uint8, "r+", shape=shape) if np.prod(shape) else None
        self.barrier()
        if self.local_rank == 0:
            os.unlink(name)  # the memory lives as long as somebody looks at it
        return np.empty(shape, np.uint8) if shared is None else shared, value

    def barrier(self) -> None:
        """Until all processes are here."""
        self.all_gather_object(None)


ALONE = World()


class AsyncMax:
    """Whether some process asks for something, told to all of them at the same call.

    The answer is that to the call before, so that nobody waits for it.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: tuple[Tensor, Any] | None = None

    def largest(self, number: int) -> int:
        """The largest number that any process gave at the call before (at first: 0).

        Called equally often by every process. In a world of one, the number itself.
        """
        if self._world.size == 1:
            return number
        import torch
        import torch.distributed as dist

        before, asked = self._asked, torch.tensor([number])
        self._asked = asked, dist.all_reduce(asked, dist.ReduceOp.MAX, async_op=True)
        if before is None:
            return 0
        answer, work = before
        work.wait()
        return int(answer.item())


def world() -> World:
    """The world that this process belongs to, as torchrun says, or SLURM's `srun`."""
    said = os.environ
    if "WORLD_SIZE" not in said and "SLURM_STEP_ID" in said:  # a task of srun
        size, rank = said.get("SLURM_STEP_NUM_TASKS", "1"), said.get("SLURM_PROCID", "0")
        local = re.match(r"\d+", said.get("SLURM_STEP_TASKS_PER_NODE", size))
        local_rank, local_size = said.get("SLURM_LOCALID", rank), local[0] if local else size
    else:
        size, rank = said.get("WORLD_SIZE", "1"), said.get("RANK", "0")
        local_rank, local_size = said.get("LOCAL_RANK", rank), said.get("LOCAL_WORLD_SIZE", size)
    several = World(int(rank), int(size), int(local_rank), int(local_size))
    return ALONE if several.size == 1 else several


@contextlib.contextmanager
def process_group(world: World, uses_cuda: Callable[[], bool]) -> Iterator[None]:
    """Meet the other processes, where torchrun says or at the first node of a SLURM job, and leave
    them at the end.

    Raises:
        ConfigError: this machine has fewer GPUs than processes.
    """
    if world.size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if uses_cuda():
        devices = torch.cuda.device_count()
        if world.local_size > devices:
            raise ConfigError(
                f"{world.local_size} processes on this machine, which has {devices} GPU"
                f"{'s' * (devices > 1)}; try torchrun --nproc-per-node {devices}, or "
                f"trainer.device=cpu"
            )
        torch.cuda.set_device(world.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    if "MASTER_ADDR" not in os.environ and "SLURM_STEP_ID" in os.environ:
        first = re.sub(r"\[(\d+).*", r"\1", os.environ["SLURM_STEP_NODELIST"]).split(",")[0]
        port = 20_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000
        os.environ |= {"MASTER_ADDR": first, "MASTER_PORT": str(port)}
    dist.init_process_group(
        backend, rank=world.rank, world_size=world.size, timeout=timedelta(hours=PATIENCE)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process; one of several without taking its interpreter apart.

    DDP keeps the group alive after `destroy_process_group`. A thread of it that still holds a
    tensor of the last exchange gives it back to a living interpreter only: to one that is ending
    the process would abort (https://github.com/pytorch/pytorch/pull/179291).
    """
    if world().size > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def wrap_ddp(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """`model`, whose gradients are averaged over all processes in the backward pass (DDP)."""
    if world.size == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    where = [device.index] if device.type == "cuda" else None
    # Our buffers never change. The option's name does, from torch 2.15 on.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    unsynced: dict[str, Any] = {name: False}
    return DistributedDataParallel(
        model, device_ids=where, gradient_as_bucket_view=True, **unsynced
    )


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], world: World, device: torch.device,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Spread weights, gradients and optimiser state over all processes (FSDP2), in place.

    The factors of a block's products are gathered when it runs, in `dtype`, that of the products:
    what autocast would round here is rounded before it is sent. All else is gathered once and
    stays float32 (with it the sum that the blocks add to), and so do gradients. To be called before
    the optimiser is made.
    """
    from torch import float32, nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # A product's result is a view; nothing here is added to one in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(dtype, reduce_dtype=float32, cast_forward_inputs=False)
    for block in blocks:
        products: list[nn.Module] = [m for m in block.modules() if isinstance(m, nn.Linear)]
        fully_shard(products, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on `model`: all processes must then call it equally often."""
    return hasattr(model, "set_requires_gradient_sync")


@contextlib.contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Backward passes inside keep their gradients to themselves, to be averaged by the next one."""
    if is_sharded(model):
        model.set_requires_gradient_sync(False)  # type: ignore[operator]
        yield
        model.set_requires_gradient_sync(True)  # type: ignore[operator]
    else:
        with getattr(model, "no_sync", contextlib.nullcontext)():
            yield


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that is spread over the processes; others as they are."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def to_leader(tensor: Tensor) -> Tensor:
    """All of a tensor in the memory of the leading process, whatever device it is on.

    Of one that is spread over processes, which all must ask for it, the others keep nothing.
    """
    whole = full_tensor(tensor)
    is_kept = world().is_main or not hasattr(tensor, "full_tensor")
    return whole.cpu() if is_kept else whole.new_empty(0, device="cpu")


def shard_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor, spread over the processes as `reference` is."""
    if not hasattr(reference, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    here = tensor.to(reference.device)
    return distribute_tensor(here, reference.device_mesh, reference.placements)  # type: ignore[attr-defined]
