"""The learning rate as a pure function of the step. A new schedule is a line in SCHEDULES."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vit.config.plugins import part


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017, eq. 5, one cycle)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """A straight line from 1 to 0."""
    return 1 - progress


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def wsd(progress: float) -> float:
    """Stable, then a straight line to 0 over the last fifth (WSD, Hägele et al. 2024)."""
    return min(1.0, (1 - progress) / 0.2)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "wsd": wsd,
}


def lr_at(
    step: int, *, name: str, lr: float, steps: int, warmup: float, final: float,
    options: Mapping[str, Any] | None = None,
) -> float:  # fmt: skip
    """The learning rate of the optimiser's step number `step`, in [0, steps].

    Args:
        step: counts from 0.
        name: a key of SCHEDULES, or a plug-in: the shape after the warm-up, from 1 down to 0.
        lr: the peak.
        steps: length of the run.
        warmup: steps of a linear rise from 0; the peak is reached at `step == warmup`.
        final: share of the peak that is left at the end.
        options: of a plug-in.
    """
    if step < warmup:
        return lr * step / warmup
    progress = (step - warmup) / max(steps - warmup, 1e-9)
    shape = part(SCHEDULES, "schedule", name, options)
    return lr * (final + (1 - final) * shape(min(progress, 1.0)))
