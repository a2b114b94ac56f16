"""Everything that is said about speed: measures it, and writes docs/benchmarks.json and .md.

    python scripts/bench.py --photos ~/photos --cifar ~/cifar10-jpeg
    python scripts/bench.py --parts step            # one part again; the others stay
    python scripts/bench.py --parts                 # only write the page again

Run it on a machine that does nothing else: it takes an hour on two cores. `--photos` is a folder of
classes of photos, `--cifar` one with train/ and val/ of CIFAR-10 as image files; a part that needs
one that is not given stays as it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import bench_epoch
import bench_input
import bench_scale
import bench_start
import bench_step
import torch
from contest import Measured

from vit.runtime.console import commit, versions
from vit.runtime.device import describe, select_device

DOCS = Path(__file__).resolve().parent.parent / "docs"
PARTS = {
    "step": (
        "One training step",
        "Forward, backward, clipping and AdamW on the same images, model, batch and precision; "
        "each system in its own process with its own defaults, taking turns. Ours is the trainer's "
        "whole step, with its counters and its guard against bad gradients. The share of the "
        "matrix rate counts the operations of the whole model against its own matrix products, "
        "measured in the same run; ours computes the class token alone in the last block, hence "
        "the second share.",
    ),
    "input": (
        "From image files to batches",
        "One core, no workers: decode, random resized crop (of 32-px images: pad and crop, timm "
        "takes the whole), flip, normalise. Ours augments whole batches; the peers image by image. "
        "The caches hold the images at a shorter side of 256 px: what later epochs read.",
    ),
    "epoch": (
        "CIFAR-10 from the start of the process to the saved checkpoint",
        "d192 L9 h3 mlp2 p4 in bf16, 50,000 JPEG files for training with pad-crop and flip, then "
        "5,000 for evaluation. Ours is `vit-train`; the peer is timm's model and loader (two "
        "workers) in a plain loop.",
    ),
    "scale": (
        "What speed and memory depend on",
        "Ours alone. The last rows are the share of a run's time that is no training; an epoch of "
        "the digits lasts a quarter of a second and ends with a checkpoint each time.",
    ),
    "start": ("Until something happens", "Whole processes, files in the system's cache."),
}
NEEDS = {"input": ("photos", "cifar"), "epoch": ("cifar",), "scale": ("photos", "cifar")}
Machine = dict[str, Any]


def main() -> int:
    """Measure what was asked for, write both files; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=lambda text: Path(text).resolve())
    parser.add_argument("--cifar", type=lambda text: Path(text).resolve())
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    args = parser.parse_args()
    file = DOCS / "benchmarks.json"
    machines: dict[str, Machine] = json.loads(file.read_text()) if file.is_file() else {}
    device = select_device("auto")
    name = describe(device)
    if device.type == "cpu":
        name += f", {torch.get_num_threads()} threads"
    n, s = args.repetitions, args.seconds
    runs: dict[str, Callable[[], list[Measured]]] = {
        "step": lambda: bench_step.measure(n, s),
        "input": lambda: bench_input.measure(args.photos, args.cifar / "train", n, s / 2),
        "epoch": lambda: bench_epoch.measure(args.cifar, 2),
        "scale": lambda: bench_scale.measure(args.photos, args.cifar, 3, s),
        "start": lambda: bench_start.measure(n),
    }
    for part in args.parts:
        missing = [f"--{name}" for name in NEEDS.get(part, ()) if getattr(args, name) is None]
        if missing:
            print(f"{part} is left out: give {' and '.join(missing)}", file=sys.stderr)
            continue
        found = runs[part]()
        print(*found, sep="\n", flush=True)
        machines.setdefault(name, {})[part] = {
            "date": date.today().isoformat(), "commit": commit(),
            "versions": versions() | peers(), "measured": [asdict(one) for one in found],
        }  # fmt: skip
        file.write_text(json.dumps(machines, indent=1) + "\n")
    (DOCS / "benchmarks.md").write_text(page(machines))
    return 0


def peers() -> dict[str, str]:
    """Versions of the peers that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("timm", "transformers", "vit-pytorch", "torchvision"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def page(machines: dict[str, Machine]) -> str:
    """The page, from what was measured."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`scripts/bench.py`) from `benchmarks.json`, which has every "
        "repetition. Medians, with the lowest and the highest repetition in brackets. Compare "
        "ratios: seconds depend on the machine and on what else it does.",
    ]
    if not any("NVIDIA" in name for name in machines):
        lines += [
            "",
            "No GPU was at hand: nothing here was measured on one. `make bench-gpu` does.",
        ]
    for name, machine in machines.items():
        lines += ["", f"## {name}"]
        for part, (title, about) in PARTS.items():
            if part in machine:
                lines += ["", f"### {title}", "", about, "", *tables(machine[part])]
    return "\n".join(lines) + "\n"


def tables(content: dict[str, Any]) -> list[str]:
    """What was measured in one part: a table, and where it comes from."""
    measured = [Measured(**one) for one in content["measured"]]
    lines = ["| | | | ours is | |", "|---|---|---|---|---|"]
    before = ""
    for one in measured:
        low, high = min(one.values), max(one.values)
        spread = f" ({number(low)} to {number(high)})" if len(one.values) > 1 else ""
        notes = ", ".join(
            f"{100 * value:.0f} % {name[6:]}" if name.startswith("share of ")
            else f"{name}: {number(value)}"
            for name, value in one.notes.items()
        )  # fmt: skip
        cells = (
            "" if one.case == before else one.case,
            one.system,
            f"{number(one.median)} {one.unit}{spread}",
            "" if one.system.startswith("ours") else against(measured, one),
            notes,
        )
        before = one.case
        lines.append(f"| {' | '.join(cells)} |")
    names = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return [*lines, "", f"{content['date']}, commit {content['commit']}: {names}."]


def against(measured: list[Measured], peer: Measured) -> str:
    """How many times as fast ours is on the peer's case, for each of ours in their order."""
    ours = [m.median for m in measured if m.case == peer.case and m.system.startswith("ours")]
    is_rate = peer.unit.endswith("/s")
    times = [value / peer.median if is_rate else peer.median / value for value in ours]
    return f"{' / '.join(f'{ratio:.2f}' for ratio in times)} x" if times else ""


def number(value: float) -> str:
    """Three digits, and whole numbers above a thousand."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
