"""Every `auto` becomes a value and every duration a number of steps, once, by pure functions."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, Literal

from vit.config.checks import PHOTO_SIZE, auto_patch_size
from vit.config.durations import duration_in_steps, epochs_in_steps
from vit.config.model import ViTConfig
from vit.config.schema import RunConfig
from vit.errors import ConfigError

MICRO, MINI, TINY = (64, 4, 4), (128, 6, 4), (192, 12, 3)
"""Width, depth and heads of models that are chosen for the images."""
MANY = 5000
"""From so many images in files on, a CPU trains MINI."""
MEMORY_LIMIT = 4 * 2**30
"""Data sets up to this many bytes of decoded pixels are held on the device."""


UNKNOWN = 10**9
"""Steps of a run whose `trainer.minutes` have not been counted in steps yet."""


@dataclass(frozen=True)
class Plan:
    """The run in optimiser steps. An epoch (`steps_per_epoch`) need not be a whole number."""

    steps: int
    steps_per_epoch: Fraction
    warmup: float
    patch_dropout_end: float
    mix_end: float
    half_patches_end: float
    eval_every: Fraction
    log_every: Fraction
    save_every: Fraction
    ema_decay: float | None

    def epoch_at(self, step: int) -> Fraction:
        """How many passes over the training images `step` steps are."""
        return step / self.steps_per_epoch


def auto_lr(dim: int, batch_size: int) -> float:
    """A peak learning rate for Adam-like optimisers: 0.1 / dim * sqrt(batch / 64).

    1 / width as in Yang et al. 2022 (muP), the square root of the batch as in Malladi et al. 2022.
    It passes through what the literature found: 1e-3 for ViT-S at batch 1024 and for ViT-B at 4096.
    """
    return float(f"{0.1 / dim * math.sqrt(batch_size / 64):.3g}")


def fit_to_data(
    config: RunConfig, images: int, side: int | None, shape: tuple[int, int] = (16, 16), *,
    gpu: bool,
) -> RunConfig:  # fmt: skip
    """Replace `auto` in image size, shape of the model and length by what suits the images.

    Args:
        config: settings in which these may be `auto`; others stay.
        images: number of training images.
        side: typical shorter side of the files in pixels; None: they are no files.
        shape: height and width of the pixels then, which are taken as they are.
        gpu: there is one; a CPU gets a size, a model and a length that it can train in minutes.
    """
    data, model, trainer = config.data, config.model, config.trainer
    size: int | list[int]
    if side is None:
        size = shape[0] if shape[0] == shape[1] else [*shape]
        (dim, depth, heads), epochs = MICRO, 160.0
    elif gpu:
        size = max(16, min(224, side) // 16 * 16)
        (dim, depth, heads), epochs = TINY, min(300, max(30, 3e7 // images))
    else:
        size = max(16, min(64, side) // 16 * 16)
        dim, depth, heads = MICRO if images < MANY else MINI
        epochs = min(160, max(10, 5e5 // images))
    if model.heads != "auto":  # a width that they divide
        dim = max(1, round(dim / model.heads / 4)) * 4 * model.heads
    if model.dim != "auto":
        heads = next((h for h in range(heads, 1, -1) if model.dim % h == 0), 4)

    return replace(
        config,
        data=_without_auto(data, image_size=size),
        model=_without_auto(model, dim=dim, depth=depth, heads=heads),
        trainer=_without_auto(trainer, epochs=None if trainer.steps else epochs),
    )


def _without_auto(section: Any, **values: Any) -> Any:
    """A section of the settings with these values where it says `auto`."""
    waiting = {key: new for key, new in values.items() if getattr(section, key) == "auto"}
    return replace(section, **waiting)


def resolve(config: RunConfig, *, precision: Literal["bf16", "fp16", "fp32"]) -> RunConfig:
    """Replace `auto` in patch size, crop, flip, lr and precision; the device stays `auto`.

    `data.memory` waits for the data set's size (`resolve_memory`).

    Args:
        config: checked settings.
        precision: what the device multiplies matrices in by itself: bf16, fp16 or fp32.
    """
    data, optim = config.data, config.optim
    if data.aspect == "native":
        crop = "none"
    else:
        crop = "resized" if min(data.size) >= PHOTO_SIZE else "padded"
    assert isinstance(config.model.dim, int)
    adams = auto_lr(config.model.dim, config.trainer.batch_size)
    lr = {"muon": 0.02, "lion": float(f"{adams / 10:.3g}")}.get(optim.name, adams)
    return replace(
        config,
        model=_without_auto(config.model, patch_size=auto_patch_size(*data.size)),
        augment=_without_auto(config.augment, crop=crop, flip=0.5 if data.mirror else 0.0),
        optim=_without_auto(optim, lr=lr, other_lr=adams),
        trainer=_without_auto(config.trainer, precision=precision),
    )


def resolve_memory(config: RunConfig, images: int, *, in_files: bool) -> RunConfig:
    """Replace `auto` in `data.memory`: the same on every machine.

    Held on the device are data sets that are no files, and those that need at most MEMORY_LIMIT
    decoded at the model's size, unless random resized crops want the photos' own pixels.

    Args:
        config: resolved settings.
        images: number of images of all splits.
        in_files: the data set is files.

    Raises:
        ConfigError: the images are to be held and are too many.
    """
    height, width = config.data.size
    channels = len(config.data.mean) + (config.data.aspect == "native")  # one for the padding
    needed = images * channels * height * width
    memory = config.data.memory
    if memory == "auto":
        wants_files = needed > MEMORY_LIMIT or config.augment.crop == "resized"
        memory = "stream" if in_files and wants_files else "device"
    if memory == "device" and needed > MEMORY_LIMIT:
        raise ConfigError(
            f"the decoded images need {needed / 2**30:.1f} GiB, over the limit of "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB; try data.memory=stream or a smaller data.image_size"
        )
    return replace(config, data=replace(config.data, memory=memory))


def vit_config(config: RunConfig, num_classes: int) -> ViTConfig:
    """The architecture that resolved settings say."""
    settings = vars(config.model)
    return ViTConfig(
        **{f.name: settings[f.name] for f in fields(ViTConfig) if f.name in settings},
        image_size=config.data.size,
        num_classes=num_classes,
        channels=len(config.data.mean),
        mlp_dim=int(settings["dim"] * config.model.mlp_ratio),
    )


def plan(config: RunConfig, train_samples: int) -> Plan:
    """All durations of `config` in optimiser steps, for `train_samples` training images.

    Raises:
        ConfigError: the warm-up is longer than the run, which would never reach its learning rate.
            Whatever else does not end within the run holds, or falls due, until its end.
    """
    trainer = config.trainer
    per_epoch = Fraction(train_samples, trainer.batch_size)
    if trainer.steps is not None:
        steps = trainer.steps
    elif trainer.minutes is not None:
        steps = UNKNOWN
    else:
        assert isinstance(trainer.epochs, float)
        steps = epochs_in_steps(trainer.epochs, train_samples, trainer.batch_size)

    def in_steps(text: int | str) -> Fraction:
        return duration_in_steps(text, per_epoch, steps)

    warmup = in_steps(config.schedule.warmup)
    if warmup > steps:
        raise ConfigError(
            f"schedule.warmup={config.schedule.warmup} is {float(warmup):,g} steps, longer than "
            f"the run of {steps:,}; try schedule.warmup=5%"
        )
    return Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        warmup=float(warmup),
        patch_dropout_end=float(in_steps(config.schedule.patch_dropout_end)),
        mix_end=float(in_steps(config.schedule.mix_end)),
        half_patches_end=float(in_steps(config.schedule.half_patches_end)),
        eval_every=in_steps(trainer.eval_every),
        log_every=in_steps(trainer.log_every),
        save_every=in_steps(trainer.save_every),
        ema_decay=None if trainer.ema is None else math.exp(-1 / (trainer.ema * float(per_epoch))),
    )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Paths that hold in every working folder, where they are paths of this one."""

    def there(place: str | None) -> str | None:
        """A place that may also be the name of something to download."""
        return os.path.abspath(place) if place and os.path.exists(place) else place

    distill = config.distill
    places = {key: getattr(config.data, key) for key in ("root", "images", "cache_dir")}
    return replace(
        config,
        data=replace(config.data, **{k: p and os.path.abspath(p) for k, p in places.items()}),
        model=replace(config.model, weights=there(config.model.weights)),
        distill=replace(distill, teacher=there(distill.teacher), weights=there(distill.weights)),
    )
