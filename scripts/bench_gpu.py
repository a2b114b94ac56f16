"""What holds on a GPU: bits, waits, kernels, speed, a run; part by part, each written when it ends.

    python scripts/bench_gpu.py --cifar ~/cifar10-jpeg      # goes on with what docs/gpu.json lacks
    python scripts/bench_gpu.py --parts waits parity        # these again

The parts come in the order of their value, and each takes less than eight minutes. `--cifar` is a
folder with train/ and val/ of CIFAR-10 as image files, for the parts that train on it.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel

from vit.config.schema import AugmentConfig, OptimConfig, TrainerConfig
from vit.config.validate import config_dir
from vit.data.augment import policies
from vit.data.types import Batch
from vit.model.attention import SCORES
from vit.model.pooling import POOLINGS
from vit.model.positions import POSITIONS
from vit.model.vit import VisionTransformer
from vit.optim.build import OPTIMIZERS, build_optimizer
from vit.runtime.console import commit, versions
from vit.runtime.device import best_precision, describe, matrix_rate, select_device
from vit.runtime.dist import ALONE
from vit.training.loss import Loss
from vit.training.state import TrainState
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
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(
        best_precision(device), torch.float32
    )
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


def steps(device: torch.device, cifar: str | None) -> Found:
    """Images per second of S/16 and B/16, eager and compiled, ours and the peers'."""
    done = command([str(HERE / "bench_step.py"), "--shapes", "S/16", "B/16", "--repetitions", "2"])
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
    "cifar10_1min": one_minute, "resume": resume, "steps": steps,
}  # fmt: skip


def main() -> int:
    """Run the parts that are wanted; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="these, done or not")
    parser.add_argument("--cifar", help="folder with train/ and val/ of CIFAR-10's files")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
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
