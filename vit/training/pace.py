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
from vit.training.curriculum import Curriculum, Seen, kinds, segments
from vit.training.loss import Loss
from vit.training.state import TrainState
from vit.training.step import train_step

WARM_UP, MEASURED = 3, 3.0
"""Steps of each kind that are not counted, and seconds that are."""


class Pace(NamedTuple):
    """Seconds: of a step, by how images are seen; of scoring the validation images; of a
    checkpoint, which the best validation writes, too; and of all before the first step and after
    the last.
    """

    step: Mapping[Seen, float]
    validation: float
    save: float
    rest: float

    def seconds(self, config: RunConfig, length: Plan) -> float:
        """What a run of these settings takes."""
        return (
            sum(count * self.step[seen] for seen, count in segments(config, length))
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
    trial: TrainState, config: RunConfig, length: Plan, train: TrainLoader,
    val: EvalLoader | None, test: EvalLoader | None, loss: Loss, folder: Path, world: World,
    began: float,
) -> Pace:  # fmt: skip
    """Try out what a run does; asked for by all processes together, which get the same answer.

    Args:
        trial: a state of its own, as the run starts with; it is no good afterwards.
        config, length: of the run, whose steps are not known.
        train: of the run: it gives the batches from the first on, and may do so again.
        val, test: likewise.
        loss: of the run.
        folder: where its checkpoints will be.
        world: its processes.
        began: when it started, on `time.monotonic`'s clock.
    """
    device = train.device
    curriculum = Curriculum(config, length, trial.model)

    def steps(seen: Seen, count: int) -> None:
        for _ in range(count):
            train_step(
                trial, curriculum.show(train.batch_at(trial.step), seen), 0.0, seed=config.seed,
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
    for seen in kinds(config):
        steps(seen, WARM_UP)  # which compiles; the run takes the same code
        count = max(1, round(MEASURED / seconds_of(steps, seen, 1)))
        per_step[seen] = seconds_of(steps, seen, count) / count
    scoring = [
        0.0 if loader is None else len(loader) * seconds_of(score, loader) for loader in (val, test)
    ]
    saving = seconds_of(save)
    # The validation images are scored once more at the end, for the calibration.
    past = max(world.all_gather_object(time.monotonic() - began))
    return Pace(per_step, scoring[0], saving, past + sum(scoring))
