"""How long until something happens: the help, and the first steps.

python scripts/bench_start.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

from contest import Measured

COMMANDS = {
    "vit-train --help": ["-m", "vit.cli.train", "--help"],
    "import torch": ["-c", "import torch"],
    "vit-train trainer.steps=1, to its end": [
        "-m", "vit.cli.train", "trainer.epochs=null", "trainer.steps=1", "name=start",
    ],
}  # fmt: skip


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    for measured in measure(parser.parse_args().repetitions):
        print(measured, flush=True)
    return 0


def measure(repetitions: int) -> list[Measured]:
    """Seconds of each command, in turn; the first round fills caches and is left out."""
    found = [Measured("start", name, "s") for name in COMMANDS]
    for repetition in range(repetitions + 1):
        for measured in found:
            with tempfile.TemporaryDirectory(prefix="bench-start-") as scratch:
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, *COMMANDS[measured.system]],
                    cwd=scratch, check=True, capture_output=True,
                )  # fmt: skip
                if repetition:
                    measured.values.append(time.perf_counter() - start)
    return found


if __name__ == "__main__":
    sys.exit(main())
