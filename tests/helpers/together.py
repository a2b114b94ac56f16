"""What the tests of several processes share: torchrun and its descendants, and gloo without it."""

from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from kill_resume import metrics
from pictures import CPU, array_samples, augmentation, reader
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import vit.training.trainer
from vit.artifacts.run_dir import RunDir
from vit.cli.train import main
from vit.config.schema import TrainerConfig
from vit.config.validate import to_config
from vit.data.loader import EvalLoader, TrainLoader
from vit.data.types import Batch, Samples
from vit.inference.load import load_trained
from vit.inference.predict import Predictions, predict
from vit.runtime.device import product_dtype
from vit.runtime.dist import AsyncMax, World, full_tensor, shard, wrap_ddp
from vit.training.loss import Loss
from vit.training.state import TrainState
from vit.training.step import train_step

_MARK = "VIT_TEST_MARK"


class Job:
    """A command whose descendants are found again by a mark in their environment."""

    def __init__(self, command: Sequence[str], cwd: Path, output: IO[str], **env: str) -> None:
        self.mark = f"{_MARK}={uuid.uuid4().hex}".encode()
        self._output = output
        name, _, value = self.mark.decode().partition("=")
        self.process = subprocess.Popen(
            command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", name: value, **env},
        )  # fmt: skip

    def members(self, *words: str) -> list[int]:
        """Ids of the living processes of this job whose environment or command has all `words`."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit():
                    told = (folder / "environ").read_bytes().split(b"\0")
                    told += (folder / "cmdline").read_bytes().split(b"\0")
                    if {self.mark, *map(str.encode, words)} <= set(told):
                        found.append(int(folder.name))
        return found

    def finish(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for the end; standard error is part of the output."""
        code = self.process.wait(timeout)
        self._output.seek(0)
        return subprocess.CompletedProcess(self.process.args, code, self._output.read(), "")

    def is_over(self) -> bool:
        """Whether the command has ended."""
        return self.process.poll() is not None

    def kill(self) -> None:
        """End the job and everything it has started."""
        for _ in range(100):
            left = self.members()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            if not left:
                break
            time.sleep(0.05)
        self.process.wait(10)


@contextlib.contextmanager
def job(*command: str, cwd: Path, **env: str) -> Iterator[Job]:
    """Run a Python command; nothing of it is left at the end."""
    with tempfile.TemporaryFile("w+") as output:
        started = Job([sys.executable, *command], cwd, output, **env)
        try:
            yield started
        finally:
            started.kill()


@contextlib.contextmanager
def torchrun(processes: int, *args: str, cwd: Path, restarts: int = 0) -> Iterator[Job]:
    """Start `vit-train` in several processes."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [f"--max-restarts={restarts}", "-m", "vit.cli.train", *args]
    # Else the restarted processes look for a store that ended with the first ones.
    with job(*command, cwd=cwd, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") as started:
        yield started


def wait_until(ready: Callable[[], object], is_over: Callable[[], bool] = lambda: False) -> bool:
    """Look every few milliseconds; False when it was over before it was so."""
    deadline = time.monotonic() + 60
    while not ready():
        if is_over():
            return False
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)
    return True


def largest_difference(one: RunDir, other: RunDir) -> float:
    """How far apart two loss curves are, relatively; all else that is logged must be the same."""
    found = 0.0
    for a, b in zip(metrics(one), metrics(other), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if key == "loss":
                found = max(found, abs(a[key] - b[key]) / a[key])
            elif key == "grad_norm":
                assert abs(a[key] - b[key]) < 1e-4 * a[key]  # 6e-6 was seen
            else:
                assert a[key] == b[key], (key, a, b)
    return found


# Without torchrun: processes forked from one that has imported everything, which takes seconds.

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload([
    __name__, "vit.cli.train", "vit.training.setup", "vit.training.trainer", "hydra",
    "torchvision.utils", "torch.utils.tensorboard.writer", "torch.distributed.fsdp",
    "sklearn.datasets",
])  # fmt: skip


@contextlib.contextmanager
def forked(size: int, target: Callable[..., None], *args: Any) -> Iterator[list[Any]]:
    """Processes that call `target(rank, size, port, *args)`; none is left at the end."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        _FORKED.Process(target=target, args=(rank, size, port, *args)) for rank in range(size)
    ]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def run_together(
    processes: int, *args: str, cwd: Path, target: Callable[..., None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `vit-train` in one or more processes; standard error is part of the output.

    Args:
        target: in place of `train`.
    """
    file = cwd / f"said-{uuid.uuid4().hex}.txt"
    with forked(processes, target or train, args, cwd, file) as started:
        for process in started:
            process.join(120)
        codes = [process.exitcode for process in started]
    said = file.read_text()
    assert None not in codes, said
    return subprocess.CompletedProcess(args, max(map(abs, codes)), said, "")


def train(rank: int, size: int, port: int, args: Sequence[str], cwd: Path, said: Path) -> None:
    """`vit-train args` in `cwd` as one of `size` processes; what it says goes to a file."""
    os.chdir(cwd)
    tqdm.set_lock(threading.RLock())  # one between processes would be left behind by a kill
    with open(said, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.argv = ["vit-train", *args]
    main()


def watched(rank: int, size: int, port: int, args: Sequence[str], cwd: Path, said: Path) -> None:
    """As `train`; what a process has exchanged since its steps began goes to `seen-<rank>`, a list
    for each step.
    """
    collectives = Collectives()
    steps: list[list[Exchanged]] = []

    def step(*args: Any, **kwargs: Any) -> None:
        collectives.seen = []
        steps.append(collectives.seen)
        train_step(*args, **kwargs)

    vit.training.trainer.train_step = step
    atexit.register(lambda: (cwd / f"seen-{rank}").write_bytes(pickle.dumps(steps)))
    with collectives:
        train(rank, size, port, args, cwd, said)


def experiments(size: int, folder: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """What small experiments gave in worlds of `size`, ..., 2 and 1, by rank."""
    with forked(size, _take_part, folder, checkpoint) as started:
        for process in started:
            process.join(120)
            assert process.exitcode == 0
    return [pickle.loads((folder / f"rank-{rank}").read_bytes()) for rank in range(size)]


def _take_part(rank: int, size: int, port: int, folder: Path, checkpoint: Path) -> None:
    told: dict[str, Any] = {}
    for now in range(size, 0, -1):
        if rank < now:
            if now > 1:
                dist.init_process_group(
                    "gloo", init_method=f"file://{folder}/store-{now}", rank=rank, world_size=now
                )
            world = World(rank, now, rank, now)
            told[f"predictions {now}"] = _evaluate(world, checkpoint)
            if now == 2:
                told["array"] = _array(world, folder)
                told["no array"] = _no_array(world)
                told["agreement"] = _agree(world)
                told["steps"] = {parts: _steps(world, checkpoint, parts) for parts in (1, 2)}
                told["shards"] = {
                    (precision, shard): _steps(world, checkpoint, 2, precision, shard)
                    for precision in ("fp32", "bf16") for shard in ("none", "fsdp")
                }  # fmt: skip
            if now > 1:
                dist.destroy_process_group()
    (folder / f"rank-{rank}").write_bytes(pickle.dumps(told))


def _evaluate(world: World, checkpoint: Path) -> Predictions:
    trained = load_trained(checkpoint, CPU, print)
    return predict(trained.model, EvalLoader(_gray(179), 28, reader((8, 8), 1), world), "fp32")


def _gray(n: int) -> Samples:
    samples = array_samples(n, classes=10)
    return replace(samples, images=samples.images[:, :1])


def _array(world: World, folder: Path) -> dict[str, Any]:
    def make() -> tuple[Any, str]:
        with open(folder / "calls", "a") as calls:
            calls.write(f"{world.rank}\n")
        return array_samples(30).images, "beside it"

    pixels, value = world.array_once_per_machine(make)
    seen = pixels.copy()
    world.barrier()
    if world.rank == 1:
        pixels[3] = 7  # in common, not copied
    world.barrier()
    empty, _ = world.array_once_per_machine(lambda: (pixels[:0], None))
    return {
        "seen": seen, "value": value, "written": pixels[3].copy(), "empty": empty.shape,
        "file": Path(pixels.filename),
    }  # fmt: skip


def _no_array(world: World) -> str:
    def make() -> Any:
        raise ValueError("no such images")

    try:
        world.array_once_per_machine(make)
    except ValueError as error:
        return str(error)
    return "nothing"


def _agree(world: World) -> list[int]:
    agreement = AsyncMax(world)
    asked = [0] * 3 + [15] * 3 if world.rank == 1 else [0] * 6
    return [agreement.largest(number) for number in asked]


Exchanged = tuple[str, torch.dtype, int]


class Collectives(TorchDispatchMode):
    """What is exchanged while it is entered: the operation, and of what it sends dtype and number.

    Attributes:
        seen: in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Exchanged] = []

    def __torch_dispatch__(  # type: ignore[override]
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it asks for itself is seen next
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            sent = max(tree_leaves(args), key=lambda a: a.numel() if hasattr(a, "numel") else -1)
            self.seen.append((func.__name__.partition(".")[0], sent.dtype, sent.numel()))
        return func(*args, **(kwargs or {}))


def _steps(
    world: World, checkpoint: Path, accumulate: int, precision: str = "fp32", how: str = "none"
) -> dict[str, Any]:
    """Four steps of training: the weights, what was exchanged, what evaluation then says."""
    trained = load_trained(checkpoint, CPU, print)
    config = replace(
        to_config(trained.config).trainer, batch_size=16, accumulate=accumulate, precision=precision
    )
    read = reader((8, 8), 1)
    loader = TrainLoader(_gray(40), 10, 16, augmentation("strong"), "none", 0, read, world)
    model = trained.model
    if how == "fsdp":
        shard(model, model.blocks, world, CPU, product_dtype(precision))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=how == "none")
    state = TrainState(model, None, optimizer, CPU, world=world)
    if how == "none":
        state.forward = wrap_ddp(model, world, CPU)
    exchanged = []
    for step in range(4):
        batch = loader.batch_at(step)
        with Collectives() as collectives:
            train_step(
                state, batch, 0.1, seed=0, world=world, config=config,
                loss=Loss(config), clip_norm=1.0, device=CPU,
            )  # fmt: skip
        exchanged.append(collectives.seen)
    bad_step(state, loader.batch_at(4), world, config)
    said = predict(model, EvalLoader(_gray(19), 7, read, world), precision)
    weights = torch.cat([full_tensor(p).detach().flatten() for p in model.parameters()])
    return {
        "weights": weights.numpy(), "exchanged": exchanged, "losses": said.losses,
        "odometer": state.metric_sums().numpy(), "bad": [*astuple(state.non_finite)],
    }  # fmt: skip


def bad_step(state: TrainState, batch: Batch, world: World, config: TrainerConfig) -> None:
    """A step in which one process has a loss that is not finite, and finite gradients."""

    class Bad(Loss):
        def __call__(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            return super().__call__(logits, batch) + (math.inf if world.rank == 1 else 0.0)

    train_step(
        state, batch, 0.1, seed=0, world=world, config=config, loss=Bad(config),
        clip_norm=1.0, device=CPU,
    )  # fmt: skip
