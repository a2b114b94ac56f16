"""Systems side by side: each in a process of its own, taking turns, so that a busy moment of the
machine hits all alike and none gains or loses by another's settings.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

MISSING = "missing"


@dataclass
class Measured:
    """What was measured of one system on one case.

    Attributes:
        case: what was done.
        system: who did it.
        unit: of the values.
        values: one per repetition.
        notes: facts beside, by name.
    """

    case: str
    system: str
    unit: str
    values: list[float] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Of the values."""
        return median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        notes = "".join(f"  {name} {value:.3g}" for name, value in self.notes.items())
        return (
            f"{self.case:<44} {self.system:<24} {self.median:10.4g} {self.unit} "
            f"({low:.4g} to {high:.4g}){notes}"
        )


def contest(
    case: str, unit: str, commands: dict[str, list[str]], seconds: float, repetitions: int,
    between: Callable[[], None] = lambda: None,
) -> list[Measured]:  # fmt: skip
    """Units per second of each system, taking turns.

    Args:
        case: what is done.
        unit: of what is counted.
        commands: by system, arguments for python; the process answers by `serve`.
        seconds: about how long a turn takes.
        repetitions: turns of each system.
        between: called after each round, while all are idle.
    """
    found: dict[str, Measured] = {}
    started: list[subprocess.Popen[str]] = []
    players: dict[str, subprocess.Popen[str]] = {}
    counts: dict[str, int] = {}
    try:
        for name, command in commands.items():
            player = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            started.append(player)
            if _line(player) == MISSING:
                print(f"{name} is not installed; left out", file=sys.stderr)
                continue
            players[name] = player
            found[name] = Measured(case, name, f"{unit}/s")
            units, took = _turn(player, 1)
            counts[name] = max(1, round(seconds / took))
        for _ in range(repetitions):
            for name, player in players.items():
                units, took = _turn(player, counts[name])
                found[name].values.append(units / took)
            between()
    finally:
        for player in started:
            with player:
                player.kill()
    return list(found.values())


def serve(
    make: Callable[[], Callable[[], object]], units: int, finish: Callable[[], None] = lambda: None
) -> None:
    """Play in a contest: do a job as often as asked for, and say how long it took.

    Args:
        make: builds the job; ImportError: it is not installed.
        units: of one job.
        finish: waits for what was begun.
    """
    try:
        job = make()
    except ImportError:
        print(MISSING, flush=True)
        return
    job()  # compiles, allocates
    finish()
    print("ready", flush=True)
    with suppress(KeyboardInterrupt):
        for line in sys.stdin:
            count = int(line)
            start = time.perf_counter()
            for _ in range(count):
                job()
            finish()
            print(count * units, time.perf_counter() - start, flush=True)


def _turn(player: subprocess.Popen[str], count: int) -> tuple[float, float]:
    assert player.stdin is not None
    player.stdin.write(f"{count}\n")
    player.stdin.flush()
    units, took = map(float, _line(player).split())
    return units, took


def _line(player: subprocess.Popen[str]) -> str:
    """The next answer; what libraries print besides is passed over."""
    assert player.stdout is not None
    for line in player.stdout:
        words = line.split()
        if line.strip() in ("ready", MISSING) or (len(words) == 2 and _numbers(words)):
            return line.strip()
    raise SystemExit(f"{' '.join(map(str, player.args))} ended early")  # type: ignore[arg-type]


def _numbers(words: list[str]) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True
