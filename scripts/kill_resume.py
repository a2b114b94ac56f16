"""Kill a digits run with SIGKILL again and again, resume it, and compare with an unbroken run.

    python scripts/kill_resume.py --kills 20

Each kill comes after a new checkpoint has appeared; by turns in the middle of an epoch, in an
evaluation and in a save. Exits 0 only when weights, average, optimiser, counters and metrics.jsonl
(but for VOLATILE fields) are equal to the bit and every phase was hit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from vit.artifacts import checkpoint
from vit.artifacts.logger import VOLATILE
from vit.artifacts.run_dir import RunDir
from vit.runtime.files import TEMPORARY

EVAL_EVERY = 30
SETTINGS = [
    "trainer.batch_size=32", f"trainer.eval_every={EVAL_EVERY}", "trainer.save_every=20",
    "trainer.log_every=10", "trainer.eval_batch_size=16", "trainer.ema=1", "model.depth=2",
    "model.dropout=0.1", "augment=strong",
]  # fmt: skip
PHASES = ("epoch", "evaluation", "save")


def main() -> int:
    """Run the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=0, help="length of the run; 0: 80 per kill")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    args, extra = parser.parse_known_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kill-resume-"))
    settings = [*SETTINGS, f"trainer.steps={args.steps or 80 * args.kills + 80}", *extra]

    whole, broken = RunDir(folder / "unbroken"), RunDir(folder / "killed")
    start(whole, settings).wait()
    hit = kill_often(broken, settings, args.kills)
    if start(broken, settings).wait() != 0:
        print("FAILED: the last resume did not end by itself")
        return 1
    print(f"kills by phase: {dict(hit)}")
    different = differences(whole, broken)
    for line in different:
        print(f"DIFFERENT: {line}")
    missed = [phase for phase in PHASES if not hit[phase]] if args.kills >= len(PHASES) else []
    if missed:
        print(f"FAILED: never killed in {', '.join(missed)}")
    if different or missed:
        return 1
    print(f"{args.kills} kills: equal to the unbroken run to the bit ({folder})")
    return 0


def start(run: RunDir, settings: list[str]) -> subprocess.Popen[bytes]:
    """Start the run, or go on with it."""
    command = [sys.executable, "-m", "vit.cli.train", f"name={run.path.name}", "resume=auto"]
    command += [f"outputs={run.path.parent}", *settings]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def kill_often(run: RunDir, settings: list[str], kills: int) -> Counter[str]:
    """Kill the run `kills` times; returns how often in which phase, as verified afterwards."""
    hit: Counter[str] = Counter()
    rng = random.Random(0)
    for number in range(kills):
        wanted = min(PHASES, key=lambda phase: hit[phase])
        before = set(run.step_files())
        process = start(run, settings)
        while not set(run.step_files()) - before:
            if process.poll() is not None:
                raise SystemExit(f"the run ended after {number} kills; raise --steps")
            time.sleep(0.001)
        deadline = time.monotonic() + 20
        if wanted == "epoch":
            time.sleep(rng.uniform(0, 0.3))
        elif wanted == "save":
            while not saving(run) and time.monotonic() < deadline:
                pass
        else:
            while phase_of(run) != wanted and time.monotonic() < deadline:
                pass
        process.kill()
        process.wait()
        phase = phase_of(run)
        hit[phase] += 1
        print(f"kill {number + 1}: wanted {wanted}, was in {phase}, {last_line(run)}", flush=True)
    return hit


def saving(run: RunDir) -> bool:
    """Whether a checkpoint is half written."""
    return any(
        name.startswith("step-") and name.endswith(TEMPORARY)
        for name in os.listdir(run.checkpoints)
    )


def phase_of(run: RunDir) -> str:
    """What the run is doing (or was doing when it died), from what it has left on disk."""
    if saving(run):
        return "save"
    line = last_line(run)
    if line.get("event") == "train" and line["step"] % EVAL_EVERY == 0:
        return "evaluation"  # its train line is written before, its val line after
    return "epoch"


def last_line(run: RunDir) -> dict[str, Any]:
    """Event and step of the last whole line of metrics.jsonl."""
    try:
        with open(run.metrics, "rb") as file:
            file.seek(max(run.metrics.stat().st_size - 4096, 0))
            lines = file.read().split(b"\n")
        line = json.loads(lines[-2])
        return {"event": line["event"], "step": line["step"]}
    except (OSError, ValueError, IndexError):
        return {}


def differences(one: RunDir, other: RunDir) -> list[str]:
    """Where two finished runs differ, in words; empty when they are equal to the bit."""
    found = []
    if metrics(one) != metrics(other):
        found.append("metrics.jsonl")
    for name in ("newest", "best"):
        files = [r.step_files()[0] if name == "newest" else r.best for r in (one, other)]
        a, b = (checkpoint.load(file) for file in files)
        for content in (a, b):
            content["config"] = None  # holds the run's name
            for volatile in ("seconds", "metrics_bytes", "metrics_digest", "images"):
                (content["training"] or {}).pop(volatile, None)
        found += [f"{name} checkpoint: {where}" for where in unequal(a, b)]
    return found


def metrics(run: RunDir) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the fields that may differ."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in VOLATILE} for line in lines]


def unequal(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two nested values of plain types and tensors differ in any bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return (
            []
            if same and torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
            else [where]
        )
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [path for key in a for path in unequal(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [path for i, (x, y) in pairs for path in unequal(x, y, f"{where}/{i}")]
    return [] if type(a) is type(b) and a == b else [where]


if __name__ == "__main__":
    sys.exit(main())
