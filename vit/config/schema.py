"""The types of every setting. No defaults live here: every value stands in `configs/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vit.config.model import ModelOptions, Options
from vit.config.rules import (
    Count,
    DurationRule,
    Fraction,
    Length,
    NonNegative,
    Positive,
    Probability,
    Range,
    Registered,
    Whole,
    freezes,
    is_pattern,
    names_folder,
    not_empty,
)

Side = Annotated[int, Range(4, 4096)]
RGB = Annotated[list[float], Range(-1e6, 1e6)]
Name = Annotated[str, names_folder]
Place = Annotated[str, not_empty]
Device = Literal["auto", "cpu", "cuda", "mps", "gpu"]
Places = Place | list[Place]
Every = Annotated[int | str, DurationRule(low=1)]
Span = Annotated[int | str, DurationRule()]


def height_width(image_size: int | list[int]) -> tuple[int, int]:
    """An image size, one number or [height, width], as (height, width)."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """Of group `data`: how images are read, whichever they are; `Reader` needs no more."""

    image_size: Side | Annotated[list[Side], Length(2)] | Literal["auto"]
    aspect: Literal["crop", "native"]
    center_crop: Annotated[float, Range(0.1, 1)]
    mean: RGB
    std: Annotated[list[float], Range(1e-6, 1e6)]
    memory: Literal["auto", "device", "stream"]
    cache: Literal["none", "jpeg", "uint8"]
    cache_size: Annotated[int, Range(8, 4096)]
    cache_dir: Place | None
    workers: Whole | Literal["auto"]
    timeout: Positive
    on_bad_image: Literal["error", "skip"]
    bad_image_limit: Fraction
    max_pixels: Count

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, once they are known."""
        assert self.image_size != "auto"
        return height_width(self.image_size)


@dataclass(frozen=True, kw_only=True)
class DataConfig(ReadConfig):
    """Group `data`: which images, and how they are split; the others are those of `ReadConfig`."""

    name: Annotated[str, Registered("data/sources/registry.py", "SOURCES", "data")]
    root: Place | None
    images: Place | None
    image_column: Place | None
    label_column: Places | None
    label_separator: Place | None
    split_column: Place | None
    weight_column: Place | None
    group_column: Place | None
    group: Annotated[str, is_pattern] | None
    folds: Annotated[int, Range(2, 1000)] | None
    fold: Whole | None
    mirror: bool
    val_fraction: Fraction
    test_fraction: Fraction
    split_seed: Whole
    split_by: Literal["name", "position"]
    limit_per_class: Count | None
    balance: Literal["none", "sampler", "loss"]
    verify: bool | Literal["auto"]
    options: Options


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelOptions):
    """Group `model`: the Vision Transformer's shape; the other settings are its options."""

    name: Name
    dim: Count | Literal["auto"]
    depth: Count | Literal["auto"]
    heads: Count | Literal["auto"]
    patch_size: Count | Literal["auto"]
    mlp_ratio: Positive
    weights: Place | None


@dataclass(frozen=True)
class AugmentConfig:
    """Group `augment`: what happens to the training images, drawn per image."""

    name: Name
    crop: Literal["auto", "none", "padded", "resized"]
    crop_padding: Fraction
    crop_scale: Annotated[list[float], Length(2), Range(0.001, 1)]
    flip: Probability | Literal["auto"]
    policy: Annotated[str, Registered("data/augment/policies.py", "POLICIES", "augment")]
    operations: Annotated[int, Range(1, 14)]
    magnitude: Annotated[int, Range(0, 30)]
    color_jitter: Probability
    erasing: Probability
    mixup: NonNegative
    cutmix: NonNegative
    mix_probability: Probability
    repeats: Count
    options: Options


@dataclass(frozen=True)
class OptimConfig:
    """Group `optim`: the optimiser."""

    name: Annotated[str, Registered("optim/build.py", "OPTIMIZERS", "optim")]
    lr: NonNegative | Literal["auto"]
    other_lr: NonNegative | Literal["auto"]
    weight_decay: NonNegative
    layer_decay: Annotated[float, Range(0.01, 1)]
    betas: Annotated[list[float], Length(2), Range(0, 1, open_high=True)]
    momentum: Fraction
    clip_norm: Positive | None
    options: Options


@dataclass(frozen=True)
class ScheduleConfig:
    """Group `schedule`: the learning rate as a function of the step."""

    name: Annotated[str, Registered("optim/schedule.py", "SCHEDULES", "schedule")]
    warmup: Span
    final: Probability
    patch_dropout_end: Span
    mix_end: Span
    half_patches_end: Span
    options: Options


@dataclass(frozen=True)
class TrainerConfig:
    """Group `trainer`: how long, how big, how often."""

    epochs: Positive | Literal["auto"] | None
    steps: Count | None
    minutes: Positive | None
    batch_size: Count
    eval_batch_size: Count
    accumulate: Count | Literal["auto"]
    precision: Literal["auto", "bf16", "fp16", "fp32", "tf32"]
    device: Device
    compile: bool
    shard: Literal["none", "fsdp"]
    freeze: Annotated[str, freezes]
    recipe: Literal["none", "weights"]
    cache_features: bool
    checkpoint_activations: bool
    ema: Positive | None
    loss: Literal["cross_entropy", "bce"]
    label_smoothing: Fraction
    eval_every: Every
    log_every: Every
    histograms: bool
    save_every: Every
    keep: Annotated[int, Range(2)]
    early_stop: Count | None
    max_bad_steps: Count
    deterministic: bool


@dataclass(frozen=True)
class DistillConfig:
    """Group `distill`: a trained model to learn from."""

    teacher: Place | None
    weights: Place | None
    kind: Literal["soft", "hard"]
    share: Probability
    temperature: Positive


@dataclass(frozen=True)
class TrackerConfig:
    """Group `tracker`: what the run's log is told to, besides metrics.jsonl and TensorBoard."""

    name: Annotated[str, Registered("artifacts/trackers.py", "TRACKERS", "tracker")]
    options: Options


@dataclass(frozen=True)
class RunConfig:
    """All settings of one training run; immutable."""

    data: DataConfig
    model: ModelConfig
    augment: AugmentConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    distill: DistillConfig
    tracker: TrackerConfig
    seed: Whole
    name: Name | None
    outputs: Place
    resume: Place | None
