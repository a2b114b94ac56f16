"""How many steps fit into `trainer.minutes`: measured before step 0 on a state that is thrown away.

From then on the step is the only clock, so a run is as exact, and as repeatable, as one whose
steps were given.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vit.config.resolve import Plan, plan
from vit.config.schema import RunConfig
from vit.data.loader import EvalLoader, TrainLoader
from vit.errors import ConfigError
from vit.inference.predict import features
from vit.runtime.device import synchronize
from vit.runtime.dist import World
from vit.training.clock import times_due
from vit.training.curriculum import rates, segments
from vit.training.loss import Loss
from vit.training.state import TrainState
from vit.training.step import train_step

WARM_UP, MEASURED = 3, 3.0
"""Steps of each kind that are not counted, and seconds that are."""


class Pace(NamedTuple):
    """Seconds: of a step, by the share of patches that it drops; of scoring the validation images;
    of a checkpoint, which the best validation writes, too; and of all before the first step and
    after the last.
    """

    step: Mapping[float, float]
    validation: float
    save: float
    rest: float

    def seconds(self, config: RunConfig, length: Plan) -> float:
        """What a run of these settings takes."""
        return (
            sum(count * self.step[rate] for rate, count in segments(config, length))
            + (self.validation + self.save) * times_due(0, length.steps, length.eval_every)
            + self.save * times_due(0, length.steps, length.save_every)
            + self.rest
        )


def steps_within(config: RunConfig, pace: Pace, images: int) -> int:
    """The most steps that take at most `config.trainer.minutes`, for `images` training images.

    Raises:
        ConfigError: there is no time for one.
    """
    minutes = config.trainer.minutes
    assert minutes is not None
    any_length = replace(config, schedule=replace(config.schedule, warmup=0))

    def fits(steps: int) -> bool:
        trainer = replace(config.trainer, steps=steps)
        length = plan(replace(any_length, trainer=trainer), images)
        return pace.seconds(config, length) <= 60 * minutes

    if not fits(1):
        raise ConfigError(
            f"trainer.minutes={minutes:g} is too short for a step: starting, scoring and saving "
            f"take {(pace.rest + pace.validation + pace.save) / 60:.2g}; give more"
        )
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def measure(
    trial: TrainState, config: RunConfig, train: TrainLoader,
    val: EvalLoader | None, test: EvalLoader | None, loss: Loss, folder: Path, world: World,
    began: float,
) -> Pace:  # fmt: skip
    """Try out what a run does; asked for by all processes together, which get the same answer.

    Args:
        trial: a state of its own, as the run starts with; it is no good afterwards.
        config: of the run.
        train: of the run: it gives the batches from the first on, and may do so again.
        val, test: likewise.
        loss: of the run.
        folder: where its checkpoints will be.
        world: its processes.
        began: when it started, on `time.monotonic`'s clock.
    """
    device = train.device

    def steps(rate: float, count: int) -> None:
        trial.model.patch_dropout.rate = rate
        for _ in range(count):
            train_step(
                trial, train.batch_at(trial.step), 0.0, seed=config.seed,
                world=world, config=config.trainer, loss=loss, clip_norm=config.optim.clip_norm,
                device=device,
            )  # fmt: skip

    def score(loader: EvalLoader) -> None:
        blank = loader.dummy_batch(), None, None, None  # a process may have no batch at all
        images, _, _, mask = loader.batch(0) if loader.batches else blank
        with torch.no_grad():
            features(trial.model, images, mask, config.trainer.precision)

    def save() -> None:
        content = trial.state_dict()
        if world.is_main:
            with tempfile.TemporaryFile(dir=folder) as file:
                torch.save(content, file)
                os.fsync(file.fileno())

    def seconds_of(job: Callable[..., None], *args: Any) -> float:
        synchronize(device)
        start = time.monotonic()
        job(*args)
        synchronize(device)
        return max(world.all_gather_object(time.monotonic() - start))

    per_step = {}
    for rate in rates(config):
        steps(rate, WARM_UP)  # which compiles; the run takes the same code
        count = max(1, round(MEASURED / seconds_of(steps, rate, 1)))
        per_step[rate] = seconds_of(steps, rate, count) / count
    scoring = [
        0.0 if loader is None else len(loader) * seconds_of(score, loader) for loader in (val, test)
    ]
    saving = seconds_of(save)
    # The validation images are scored once more at the end, for the calibration.
    past = max(world.all_gather_object(time.monotonic() - began))
    return Pace(per_step, scoring[0], saving, past + sum(scoring))
