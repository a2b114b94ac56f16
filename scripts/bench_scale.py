"""What speed and memory depend on: tokens, batch, workers, processes, and all that is no training.

python scripts/bench_scale.py --photos ~/photos --cifar ~/cifar10-jpeg
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_epoch
import bench_step
import torch
from contest import Measured, contest

from vit.artifacts.logger import Logger
from vit.runtime.device import best_precision, select_device
from vit.training.trainer import Trainer

D192 = bench_step.SHAPES[0]
S16 = bench_step.SHAPES[1]


def main() -> int:
    """Measure and print, or play a part; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--memory", choices=("plain", "checkpointed"), help="print the peak")
    parser.add_argument("--costs", nargs="*", metavar="SETTING", help="train, print what took time")
    args = parser.parse_args()
    if args.memory:
        print(*peak(args.memory == "checkpointed"))
    elif args.costs is not None:
        costs(args.costs)
    else:
        for measured in measure(args.photos, args.cifar, args.repetitions, args.seconds):
            print(measured, flush=True)
    return 0


def measure(
    photos: Path | None, cifar: Path | None, repetitions: int, seconds: float
) -> list[Measured]:
    """All parts of the folders that are given."""
    precision = best_precision(select_device("auto"))
    found = []
    shapes = {
        f"{(32 // patch) ** 2} patches (patch {patch}), batch 64": replace(
            D192, patch_size=patch, batch=64
        )
        for patch in (16, 8, 4, 2)
    } | {f"64 patches, batch {batch}": replace(D192, batch=batch) for batch in (16, 32, 128, 256)}
    for name, shape in shapes.items():
        command = bench_step.command("ours", shape, precision, "eager")
        found += contest(f"step, d192 L9, {precision}", "images", {name: command},
                         seconds, repetitions)  # fmt: skip
    found += memory()
    if photos is not None:
        found += workers(photos, repetitions)
    if cifar is not None:
        found += processes(cifar, repetitions)
        found += shares("CIFAR-10, one epoch of d192 L9 p4", [
            f"data.root={cifar}", *bench_epoch.SETTINGS
        ])  # fmt: skip
    return found + shares("digits, the default run", [])


def memory() -> list[Measured]:
    """Peak memory of S/16, with and without its activations kept."""
    found = []
    for kind in ("plain", "checkpointed"):
        done = _python(__file__, "--memory", kind)
        mib, rate = map(float, done.stdout.split())
        found.append(Measured("S/16 224 px, batch 32, peak memory", kind, "MiB", [mib],
                              {"images/s": rate}))  # fmt: skip
    return found


def peak(checkpointed: bool) -> tuple[float, float]:
    """Peak resident memory in MiB of a process that trains, and its images per second."""
    device = select_device("cpu")
    shape = replace(S16, batch=32)
    precision = best_precision(device)
    images = torch.randn(shape.batch, 3, shape.image_size, shape.image_size)
    labels = torch.randint(shape.classes, (shape.batch,))
    step = bench_step.ours(
        shape, precision, False, device, images, labels, checkpointed=checkpointed
    )
    step()
    start = time.perf_counter()
    for _ in range(3):
        step()
    rate = 3 * shape.batch / (time.perf_counter() - start)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, rate


def workers(photos: Path, repetitions: int) -> list[Measured]:
    """Training a small model on streamed photos, where the input is the limit."""
    found = []
    for count in (0, 1, 2, 4):
        settings = [
            "data=folder", f"data.root={photos}", "data.image_size=224", "data.memory=stream",
            f"data.workers={count}", "data.val_fraction=0.1", "data.test_fraction=0",
            "model.dim=48", "model.depth=2", "model.heads=3", "model.patch_size=32",
            "model.name=bench", "trainer.batch_size=64", "trainer.epochs=null", "trainer.steps=40",
        ]  # fmt: skip
        speeds = [_last_speed([sys.executable, "-m", "vit.cli.train"], settings, {})
                  for _ in range(repetitions)]  # fmt: skip
        found.append(Measured("photos to 224 px, a small model", f"{count} workers", "images/s",
                              speeds))  # fmt: skip
    return found


def processes(cifar: Path, repetitions: int) -> list[Measured]:
    """One process and two, with as many threads."""
    settings = [
        f"data.root={cifar}", "data.limit_per_class=100", *bench_epoch.SETTINGS,
        "trainer.epochs=null", "trainer.steps=16", "trainer.log_every=8", "data.workers=0",
    ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", "2", "-m", "vit.cli.train"]  # fmt: skip
    alone = [sys.executable, "-m", "vit.cli.train"]
    kinds: dict[str, tuple[list[str], str]] = {
        "1 process, 1 thread": (alone, "1"), "1 process, 2 threads": (alone, "2"),
        "2 processes, 1 thread each": (torchrun, "1"),
    }  # fmt: skip
    found = [Measured("d192 L9 p4, batch 128", name, "images/s") for name in kinds]
    for _ in range(repetitions):
        for measured in found:
            command, threads = kinds[measured.system]
            measured.values.append(_last_speed(command, settings, {"OMP_NUM_THREADS": threads}))
    return found


def shares(case: str, settings: list[str]) -> list[Measured]:
    """Share of the time from the first to the last step that is no training, in percent."""
    done = _python(__file__, "--costs", *settings)
    found = json.loads(done.stdout.splitlines()[-1])
    return [Measured(case, name, "%", [100 * share]) for name, share in found.items()]


def costs(settings: list[str]) -> None:
    """Train in this process and print, as JSON, the share of the loop's time by what it did."""
    took: dict[str, float] = defaultdict(float)

    def timed(owner: Any, name: str, what: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                took[what] += time.perf_counter() - start

        setattr(owner, name, outer)

    timed(Trainer, "_train", "all")
    timed(Trainer, "_evaluate", "evaluating")
    timed(Trainer, "_save", "saving")
    timed(Logger, "log", "writing metrics.jsonl and TensorBoard")
    from vit.cli.train import main as train

    sys.argv[1:] = settings
    with suppress(SystemExit):
        train()
    everything = took.pop("all")
    print(json.dumps({what: seconds / everything for what, seconds in took.items()}))


def _last_speed(command: list[str], settings: list[str], variables: dict[str, str]) -> float:
    """Images per second of the last line that a run logs."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as scratch:
        subprocess.run(
            [*command, *settings, "name=bench"], cwd=scratch, check=True, capture_output=True,
            env={**os.environ, **variables},
        )  # fmt: skip
        lines = (Path(scratch) / "outputs/bench/metrics.jsonl").read_text().splitlines()
        logged = [line for line in map(json.loads, lines) if line["event"] == "train"]
        return float(logged[-1]["images_per_second"])


def _python(*args: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as scratch:
        return subprocess.run(
            [sys.executable, *args], cwd=scratch, check=True, capture_output=True, text=True
        )


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
