"""The learning rate as a pure function of the step. A new schedule is a line in SCHEDULES."""

from __future__ import annotations

import math
from collections.abc import Callable

from vit.config.plugins import part
from vit.config.resolve import Plan
from vit.config.schema import RunConfig


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


def lr_at(config: RunConfig, plan: Plan, step: int) -> float:
    """The learning rate of the optimiser's step number `step`, from 0 to `plan.steps`.

    It rises from 0 in a straight line, reaches the peak `config.optim.lr` at `step == plan.warmup`,
    and follows the shape of the schedule down to `config.schedule.final` of the peak.
    """
    schedule, peak = config.schedule, config.optim.lr
    assert not isinstance(peak, str)
    if step < plan.warmup:
        return peak * step / plan.warmup
    progress = (step - plan.warmup) / max(plan.steps - plan.warmup, 1e-9)
    shape = part(SCHEDULES, "schedule", schedule.name, schedule.options)
    return peak * (schedule.final + (1 - schedule.final) * shape(min(progress, 1.0)))
