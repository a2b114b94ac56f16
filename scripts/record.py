"""Run an entry of the speedrun (docs/speedrun.md) as its rules say, and print its row.

    python scripts/record.py cifar10_cpu5min data=folder data.root=~/cifar10-jpeg data.image_size=32

The recipe is trained with seeds 0, 1 and 2, each in a process of its own that is timed from outside
and from start to end. Then what it may not be is looked for in the settings that it wrote, the test
images are scored once more from the checkpoint, and both scores must agree. Exits 0 only if every
rule was kept. The logs stay in the runs' folders.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vit.artifacts.checkpoint import load
from vit.artifacts.run_dir import RunDir
from vit.runtime.console import commit

UNIT = 0.79
"""TFLOP/s of bf16 matrix products of the two cores that minutes of the CPU categories are of."""
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PLACE = ("data=", "data.root=", "data.image_size=", "data.mean=", "data.std=", "trainer.device=")
"""What a command may say besides the recipe and the seed: where CIFAR-10 is, and in which form."""


@dataclass(frozen=True)
class Run:
    """One seed: scores in percent, seconds from outside, the matrix rate that it measured."""

    folder: Path
    test: float
    val: float | None
    steps: int
    seconds: float
    tflops: float

    def __str__(self) -> str:
        val = "" if self.val is None else f", {self.val:.2f} % on the slice of train"
        return (
            f"{self.folder.name}: {self.test:.2f} %{val}; {self.steps:,} steps, "
            f"{self.seconds:.0f} s at {self.tflops:.2f} TFLOP/s, which are "
            f"{self.seconds * self.tflops / UNIT:.0f} s at {UNIT}"
        )


def main() -> int:
    """Run the seeds and print the row; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", help="a file of configs/experiment, without .yaml")
    parser.add_argument("place", nargs="*", help="where CIFAR-10 is: data=folder data.root=...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("outputs"), help="of the runs")
    args = parser.parse_args()
    if others := [arg for arg in args.place if not arg.startswith(PLACE)]:
        parser.error(f"{' '.join(others)}: an entry is a recipe as it is shipped")
    runs, broken = [], []
    for seed in args.seeds:
        run, folder = None, args.folder / f"{args.recipe}-{seed}"
        seconds = train(args.recipe, args.place, seed, folder)
        broken += broken_rules(folder)
        run = read(folder, seconds)
        print(run, flush=True)
        runs.append(run)
        again = score_again(folder)
        if again != run.test:
            broken.append(f"{folder}: {again} % when scored again, not {run.test}")
    print(row(args.recipe, runs))
    for rule in broken:
        print(f"BROKEN: {rule}")
    return 1 if broken else 0


def train(recipe: str, place: list[str], seed: int, folder: Path) -> float:
    """Train to the end; returns the seconds that the process took."""
    settings = [f"experiment={recipe}", *place, f"seed={seed}"]
    here = [f"outputs={folder.parent}", f"name={folder.name}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vit.cli.train", *settings, *here], check=True)
    return time.perf_counter() - start


def broken_rules(folder: Path) -> list[str]:
    """What a finished run did that no entry may."""
    run = RunDir(folder)
    config = run.read_config()
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    content = load(run.best if run.best.is_file() else run.step_files()[-1])
    is_cifar = sorted(content["classes"]) == CLASSES and config["data"]["image_size"] == 32
    rules = {
        "it starts from weights": config["model"]["weights"] is not None,
        "it has a teacher": config["distill"]["teacher"] is not None,
        "it has parts from a plug-in": "plugins" in content,
        "it is not CIFAR-10 of 32 px": not is_cifar,
        "it scored the test images more than once": sum(x["event"] == "test" for x in lines) != 1,
        "it is not finished": run.read_summary()["state"] != "finished",
        "it was resumed": len(run.read_summary()["lengths"]) != 1,
    }
    return [f"{folder}: {rule}" for rule, is_broken in rules.items() if is_broken]


def read(folder: Path, seconds: float) -> Run:
    """A finished run that took so long."""
    summary: dict[str, Any] = RunDir(folder).read_summary()
    return Run(
        folder, round(summary["test_top1"], 2), summary["val_top1"], summary["step"], seconds,
        summary["matrix_tflops"],
    )  # fmt: skip


def score_again(folder: Path) -> float:
    """Top-1 of the checkpoint on the test images in percent, by a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "vit.cli.eval", f"checkpoint={folder}", "report=false"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    scores = json.loads((folder / "eval" / "test" / "metrics.json").read_text())
    return round(float(scores["top1"]), 2)


def row(recipe: str, runs: list[Run]) -> str:
    """The entry's row in the table of docs/speedrun.md."""
    tests = [run.test for run in runs]
    spread = f" ± {stdev(tests):.2f}" if len(tests) > 1 else ""
    told = ", ".join(f"{test:.2f}" for test in tests)
    slices = [run.val for run in runs if run.val is not None]
    seconds, rates = [run.seconds for run in runs], [run.tflops for run in runs]
    return (
        f"| {mean(tests):.2f}{spread} ({told}) | {f'{mean(slices):.2f}' if slices else 'none'} | "
        f"`{recipe}` | {runs[0].steps:,} | {mean(seconds):.0f} s | {mean(rates):.2f} | {commit()} |"
    )


if __name__ == "__main__":
    sys.exit(main())
