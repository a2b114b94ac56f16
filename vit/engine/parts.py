"""What a trainer works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vit.artifacts.logger import Logger
from vit.artifacts.run_dir import RunDir
from vit.config.resolve import Plan
from vit.config.schema import RunConfig
from vit.data.loader import EvalLoader, TrainLoader
from vit.engine.loss import Loss
from vit.engine.state import TrainState
from vit.optim.schedule import lr_at
from vit.runtime.dist import World
from vit.runtime.signals import StopRequest


@dataclass(frozen=True)
class Parts:
    """What a trainer works with; built by the command line.

    `val` and `test` may be None; `classes` are the names of the logits; `watch` is told (epoch,
    validation top-1) after each evaluation and ends the run by answering True; `environment` is
    what the bits of the result depend on besides the settings; `images` is the digest of the list
    of the run's images.
    """

    config: RunConfig
    plan: Plan
    state: TrainState
    loss: Loss
    train: TrainLoader
    val: EvalLoader | None
    test: EvalLoader | None
    classes: list[str]
    images: str
    run: RunDir
    logger: Logger
    stop: StopRequest
    device: torch.device
    world: World
    watch: Callable[[float, float], bool]
    environment: dict[str, str | int]


def schedule_lr(config: RunConfig, plan: Plan, step: int) -> float:
    """The learning rate of step number `step` under `config`."""
    schedule, lr = config.schedule, config.optim.lr
    assert not isinstance(lr, str)
    return lr_at(
        step, name=schedule.name, lr=lr, steps=plan.steps, warmup=plan.warmup,
        final=schedule.final,
    )  # fmt: skip
