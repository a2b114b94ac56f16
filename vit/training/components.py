"""The objects that a training run is made of; its summary and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vit.artifacts.logger import Logger
from vit.artifacts.run_dir import RunDir
from vit.config.resolve import Plan
from vit.config.schema import RunConfig
from vit.config.validate import to_plain
from vit.data.loader import EvalLoader, TrainLoader
from vit.optim.lora import merged
from vit.runtime.console import versions
from vit.runtime.dist import World
from vit.runtime.signals import StopRequest
from vit.training.loss import Loss
from vit.training.state import TrainState, parameter_count, weights_of

ShouldPrune = Callable[[float, float], bool]
"""Told (epoch, validation score) after each evaluation; True ends the run."""


@dataclass(frozen=True)
class Components:
    """All that `Trainer` works with; `setup.set_up` builds them.

    Attributes:
        config: final settings.
        plan: their durations.
        state: model, optimiser and counters, where the run goes on from.
        train, val, test: loaders; of val and test there may be none.
        classes: names of the logits.
        images: digest of the list of the run's images.
        run: its folder.
        stop: whether a signal came.
        world: of its processes.
        should_prune: asked after each evaluation.
        rate: operations per second of large matrix products here, when the run started.
        fingerprint: what the bits of the result depend on besides the settings.
        user_keys: settings that the user gave.
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
    should_prune: ShouldPrune
    rate: float
    fingerprint: dict[str, Any]
    user_keys: frozenset[str]

    @property
    def epoch(self) -> float:
        """Passes over the training images so far."""
        return float(self.plan.epoch_at(self.state.step))

    def epochs_text(self, step: int) -> str:
        """How many passes `step` steps are, to read: whole ones, and tenths."""
        return f"{int(10 * self.plan.epoch_at(step)) / 10:g}"

    def summary(self, state: str, scores: dict[str, float]) -> dict[str, Any]:
        """For summary.json: what became of the run.

        Args:
            state: `running`, `finished`, `failed`, `interrupted` or `pruned`.
            scores: `val_*` and `test_*`, in percent, loss in nats; of a run that has not ended the
                best validation so far stands in.
        """
        trained, key = self.state, self.loss.task.score
        best = trained.best
        speed = trained.images / trained.seconds if trained.seconds else 0.0
        return {
            "state": state,
            f"val_{key}": scores.get(f"val_{key}", best.score if best is not None else None),
            f"test_{key}": scores.get(f"test_{key}"),
            **{name: value for name, value in scores.items() if not name.endswith(f"_{key}")},
            **{
                f"images_{split}": len(loader.labels) - len(loader.corrupt.reasons)
                for split, loader in (("val", self.val), ("test", self.test))
                if loader is not None
            },
            "best_epoch": best.epoch if best is not None else None,
            "step": trained.step,
            "epoch": self.epoch,
            "params": parameter_count(trained.model),
            "images_per_second": round(speed, 1),
            "matrix_tflops": float(f"{self.rate / 1e12:.3g}"),
            "seconds": round(trained.seconds, 3),
            "versions": versions(),
        }

    def to_checkpoint(self, training: dict[str, Any] | None) -> dict[str, Any]:
        """The content of a checkpoint; with `training` it is one that a run can go on from.

        Asked for by all processes together.
        """
        config, model = self.config, self.state.eval_model
        return {
            "spec": model.config.plain(),
            "preprocessing": {
                "image_size": list(model.config.image_size),
                "channels": model.config.channels,
                "mean": config.data.mean,
                "std": config.data.std,
                "aspect": config.data.aspect,
                "center_crop": config.data.center_crop,
                "interpolation": "bilinear",
                "exif_rotation": "applied",
                "transparency": "on white",
            },
            "classes": self.classes,
            "evaluation": {
                "batch_size": config.trainer.eval_batch_size,
                "precision": config.trainer.precision,
            },
            "config": to_plain(config),
            "step": self.state.step,
            "weights": merged(model, weights_of(model)),
            "images": self.images,
            "training": training,
            "thresholds": self.state.thresholds,
            **({"plugins": found} if (found := self.fingerprint.get("plugins")) else {}),
        }
