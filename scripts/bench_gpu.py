"""What holds on a GPU: bits, waits, kernels, speed, NCCL, a run; each part written when it ends.

    python scripts/bench_gpu.py --cifar ~/cifar10-jpeg      # goes on with what docs/gpu.json lacks
    python scripts/bench_gpu.py --parts waits parity        # these again

The parts come in the order of their value, and each takes less than eight minutes. `--cifar` is a
folder with train/ and val/ of CIFAR-10 as image files, for the parts that train on it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from bench_step import SHAPES, Shape, our_model, ours
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from vit.config.schema import AugmentConfig, OptimConfig, TrainerConfig
from vit.config.yaml_files import config_dir
from vit.data.augment import policies
from vit.data.types import Batch
from vit.model.attention import SCORES
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.model.vit import VisionTransformer
from vit.optim.build import OPTIMIZERS, build_optimizer
from vit.runtime.console import commit, versions
from vit.runtime.device import (
    best_precision,
    describe,
    matrix_rate,
    product_dtype,
    select_device,
)
from vit.runtime.dist import ALONE, World, leave, shard
from vit.training.loss import Loss
from vit.training.state import TrainState, flops_per_image
from vit.training.step import train_step

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "gpu.json"
LIMIT = 480
"""Seconds for a part."""
CPU = torch.device("cpu")
Found = dict[str, Any]


def settings(group: str, name: str, **changes: Any) -> dict[str, Any]:
    """The settings of a group's file, with `changes`."""
    folder = config_dir() / group
    base = folder / "_base.yaml"
    files = [base] if base.is_file() else []
    plain: dict[str, Any] = {}
    for file in [*files, folder / f"{name}.yaml"]:
        plain |= yaml.safe_load(file.read_text())
    plain.pop("defaults", None)
    return {**plain, **changes}


def trained(
    device: torch.device, optimizer: str, steps: int = 4, precision: str = "fp32", **shape: Any
) -> tuple[TrainState, Callable[[], None]]:
    """A state after some steps on `device`, and what takes one more: the same on every device."""
    torch.manual_seed(0)
    model = VisionTransformer(32, 4, 10, **{"dim": 64, "depth": 4, "heads": 4, **shape}).to(device)
    optim = OptimConfig(**settings("optim", optimizer, lr=1e-3, other_lr=1e-3))
    state = TrainState(model, None, build_optimizer(model, optim), device, precision)
    config = TrainerConfig(**settings("trainer", "default", precision=precision, batch_size=64))
    loss = Loss(config)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(64, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(10, (64,), generator=generator).to(device)
    batch = Batch(images, labels, torch.nn.functional.one_hot(labels, 10).float())

    def step() -> None:
        train_step(state, batch, 1e-3, seed=0, world=ALONE, config=config, loss=loss,
                   clip_norm=1.0, device=device)  # fmt: skip

    for _ in range(steps):
        step()
    return state, step


def waits(device: torch.device, cifar: str | None) -> Found:
    """Steps and policies that wait for the device raise; so `ok` says that none did."""
    found: Found = {}
    for name in OPTIMIZERS:
        _, step = trained(device, name)
        found[f"step, {name}"] = unwaited(device, step)
    for option, table in (("positions", POSITIONS), ("pool", POOLINGS), ("attention", SCORES)):
        for name in table:
            shape: dict[str, Any] = {option: name}
            _, step = trained(device, "adamw", **shape)
            found[f"step, {option}={name}"] = unwaited(device, step)
    for policy in policies.POLICIES:
        config = AugmentConfig(**settings("augment", "light", policy=policy, color_jitter=0.3))
        images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, device=device)
        plan = policies.plan(policies.draw(config, 256, (32, 32), 0, 0), 3, (32, 32))
        rows, told = (torch.from_numpy(a).to(device) for a in (plan.rows, plan.numbers))
        policies.apply(images, plan.counts, rows, told)
        again = partial(policies.apply, images, plan.counts, rows, told)
        found[f"policy, {policy}"] = unwaited(device, again)
    return found


def unwaited(device: torch.device, what: Callable[[], object]) -> str:
    """`ok`, or where `what` waited."""
    if device.type != "cuda":
        what()
        return "ok"
    torch.cuda.set_sync_debug_mode("error")
    try:
        what()
        return "ok"
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def parity(device: torch.device, cifar: str | None) -> Found:
    """Relative difference of weights after four steps in fp32, and share of pixels that differ."""
    found: Found = {}
    for name in OPTIMIZERS:
        states = [trained(where, name)[0] for where in (CPU, device)]
        here, there = (
            torch.cat([p.detach().cpu().flatten() for p in state.model.parameters()])
            for state in states
        )
        found[f"step, {name}"] = float((here - there).norm() / here.norm())
    for policy in policies.POLICIES:
        config = AugmentConfig(**settings("augment", "light", policy=policy, color_jitter=0.3))
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, generator=generator)
        plan = policies.plan(policies.draw(config, 256, (32, 32), 0, 0), 3, (32, 32))
        made = [
            policies.apply(
                images.to(where), plan.counts,
                *(torch.from_numpy(a).to(where) for a in (plan.rows, plan.numbers)),
            ).cpu()
            for where in (CPU, device)
        ]  # fmt: skip
        found[f"policy, {policy}"] = float((made[0] != made[1]).float().mean())
    return found


def attention(device: torch.device, cifar: str | None) -> Found:
    """Milliseconds forward and backward of (64, 6, 197, 64), and whether gradients are finite."""
    found: Found = {}
    dtype = product_dtype(best_precision(device))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                    SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH):  # fmt: skip
        qkv = [torch.randn(64, 6, 197, 64, device=device, dtype=dtype, requires_grad=True)
               for _ in range(3)]  # fmt: skip

        def both(parts: list[torch.Tensor] = qkv) -> None:
            query, key, value = parts
            mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            mixed.sum().backward()  # type: ignore[no-untyped-call]

        try:
            with sdpa_kernel(backend):
                seconds = timed(device, both)
            finite = all(bool(part.grad.isfinite().all()) for part in qkv if part.grad is not None)
            found[backend.name] = {"ms": round(1e3 * seconds, 3), "finite": finite}
        except RuntimeError as error:
            found[backend.name] = str(error).splitlines()[0]
    return found


def timed(device: torch.device, what: Callable[[], object], repetitions: int = 20) -> float:
    """Seconds of a call, the mean of some after three."""
    for _ in range(3):
        what()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repetitions):
        what()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repetitions


def resume(device: torch.device, cifar: str | None) -> Found:
    """A run that is killed three times and resumed, against one that is not, to the bit."""
    done = command(
        [str(HERE / "kill_resume.py"), "--kills", "3", f"trainer.device={device.type}",
         "trainer.deterministic=true"]
    )  # fmt: skip
    return {"exit code": done.returncode, "said": done.stdout.splitlines()[-3:]}


def checkpoints(device: torch.device, cifar: str | None) -> Found:
    """Scores of a run's checkpoint, by the run itself and by `vit-eval` on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        run = [f"outputs={folder}", "name=r", "trainer.epochs=5", f"trainer.device={device.type}"]
        done = command(["-m", "vit.cli.train", *run])
        if done.returncode:
            return {"failed": done.stderr[-500:]}
        done = command(["-m", "vit.cli.eval", f"checkpoint={folder}/r", "device=cpu"])
        own = json.loads((Path(folder) / "r/summary.json").read_text())
        if done.returncode:
            return {"failed": done.stderr[-500:]}
        again = json.loads((Path(folder) / "r/eval/test/metrics.json").read_text())
        return {"test_top1": own["test_top1"], "on the CPU": again["top1"]}


def shape_of(name: str) -> Shape:
    """The shape whose name begins so."""
    return next(shape for shape in SHAPES if shape.name.startswith(name))


def speed(name: str, device: torch.device, cifar: str | None) -> Found:
    """Our step at a shape, eager and compiled: images per second, memory, and MFU: the share that
    the model's operations are of the measured rate of large products.
    """
    shape, precision = shape_of(name), best_precision(device)
    images, labels = noise(shape, device)
    flops = 3 * flops_per_image(our_model(shape))
    rate = matrix_rate(device, precision)
    found: Found = {"precision": precision, "batch": len(images)}
    for mode in ("eager", "compiled"):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            step = ours(shape, precision, mode == "compiled", device, images, labels)
            per_second = len(images) / timed(device, step, repetitions(device))
        except RuntimeError as error:  # no room, or no compiler: the other mode goes on
            found[mode] = str(error).splitlines()[0]
            continue
        found[mode] = {"images/s": round(per_second, 1), "MFU": round(flops * per_second / rate, 4)}
        if device.type == "cuda":
            found[mode]["GB"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
        del step
    return found


def noise(shape: Shape, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of a shape that is timed: images and labels."""
    batch = shape.gpu_batch if device.type == "cuda" else shape.batch
    images = torch.randn(batch, 3, shape.image_size, shape.image_size, device=device)
    return images, torch.randint(shape.classes, (batch,), device=device)


def repetitions(device: torch.device) -> int:
    """How often a large step is timed."""
    return 20 if device.type == "cuda" else 2


def processes(device: torch.device, cifar: str | None) -> Found:
    """Images per second of S/16 under torchrun, one process per GPU, gradients averaged (DDP) or
    weights spread (FSDP) by NCCL; one GPU alone still goes through both. Without a GPU: two
    processes, by gloo.
    """
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    told = json.dumps(asdict(shape_of("S/16")))
    done = command(
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", __file__,
         "--device", device.type, "--play", told]
    )  # fmt: skip
    if done.returncode:  # said by a process before torchrun sums it up
        said = [line for line in done.stderr.splitlines() if line.startswith("[rank")]
        return {"failed": "\n".join(said)[-500:] or done.stderr[-500:]}
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def play(kind: str, shape: Shape) -> None:
    """One process of torchrun's; the first prints what was found."""
    rank, size, place = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    world, device = World(rank, size, place, size), select_device(kind, place)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend)
    precision = best_precision(device)
    images, labels = noise(shape, device)
    batch = Batch(images, labels, F.one_hot(labels, shape.classes).float())
    whole = size * len(images)
    config = TrainerConfig(**settings("trainer", "default", precision=precision, batch_size=whole))
    optim = OptimConfig(**settings("optim", "adamw", lr=1e-3, other_lr=1e-3))
    found: Found = {"processes": size, "backend": backend, "precision": precision, "batch": whole}
    for how in ("ddp", "fsdp"):
        model = our_model(shape).to(device)
        if how == "fsdp":
            shard(model, model.blocks, world, device, product_dtype(precision))
        state = TrainState(model, None, build_optimizer(model, optim), device, world=world)
        if how == "ddp":  # also in a world of one, where a run does without
            state.forward = DistributedDataParallel(model)
        step = partial(
            train_step, state, batch, 1e-3, seed=0, world=world, config=config, loss=Loss(config),
            clip_norm=1.0, device=device,
        )  # fmt: skip
        found[f"{how}, images/s"] = round(whole / timed(device, step, repetitions(device)), 1)
    dist.destroy_process_group()
    if world.is_main:
        print(json.dumps(found), flush=True)
    leave(0)


def peers(name: str, device: torch.device, cifar: str | None) -> Found:
    """Images per second of a shape, eager and compiled, ours and the peers'."""
    done = command([str(HERE / "bench_step.py"), "--shapes", name, "--repetitions", "1"])
    return {"exit code": done.returncode, "measured": done.stdout.splitlines()}


def one_minute(device: torch.device, cifar: str | None) -> Found:
    """`cifar10_1min` as it is: score and seconds from start to end."""
    return recipe("cifar10_1min", cifar)


def recipe(name: str, cifar: str | None) -> Found:
    """The scores of an experiment on CIFAR-10's files, and its seconds."""
    if cifar is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = command(
            ["-m", "vit.cli.train", f"experiment={name}", "data=folder", f"data.root={cifar}",
             "data.image_size=32", f"outputs={folder}", "name=r"]
        )  # fmt: skip
        seconds = time.perf_counter() - start
        if done.returncode:
            return {"failed": done.stderr[-500:]}
        summary = json.loads((Path(folder) / "r/summary.json").read_text())
        keys = ("val_top1", "test_top1", "images_per_second", "seconds", "step")
        return {**{key: summary[key] for key in keys}, "start to end": round(seconds, 1)}


def command(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run our Python with `arguments`."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=LIMIT
    )


PARTS: dict[str, Callable[[torch.device, str | None], Found]] = {
    "waits": waits, "parity": parity, "attention": attention, "checkpoints": checkpoints,
    "S/16": partial(speed, "S/16"), "B/16": partial(speed, "B/16"), "torchrun": processes,
    "cifar10_1min": one_minute, "resume": resume, "peers, S/16": partial(peers, "S/16"),
    "peers, B/16": partial(peers, "B/16"),
}  # fmt: skip


def main() -> int:
    """Run the parts that are wanted; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="these, done or not")
    parser.add_argument("--cifar", help="folder with train/ and val/ of CIFAR-10's files")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--play", metavar="SHAPE", help="be a process of the part `torchrun`")
    args = parser.parse_args()
    if args.play:
        play(args.device, Shape(**json.loads(args.play)))
        return 0
    device = select_device(args.device)
    known = json.loads(args.out.read_text()) if args.out.is_file() else {}
    about = {
        "device": describe(device), "commit": commit(), **versions(), "cuda": torch.version.cuda,
        "matrix rate": matrix_rate(device, best_precision(device)),
    }  # fmt: skip
    for name in args.parts or [part for part in PARTS if part not in known]:
        start = time.perf_counter()
        try:
            found = PARTS[name](device, args.cifar)
        except Exception as error:  # the other parts go on
            found = {"failed": repr(error)[:500]}
        if found:
            seconds = round(time.perf_counter() - start, 1)
            known[name] = {"found": found, "took": seconds, **copy.deepcopy(about)}
            args.out.write_text(json.dumps(known, indent=1) + "\n")
        print(name, json.dumps(found, indent=1), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
