"""The types of every setting. No defaults live here: every value stands in `configs/`."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from vit.config.durations import parse_duration
from vit.config.suggest import nearest

_PACKAGE = Path(__file__).resolve().parent.parent


class Rule(Protocol):
    """A condition on one value, beyond its type."""

    def broken_by(self, value: Any) -> str | None:
        """The words that follow `key=value` when the rule is broken, else None."""


@dataclass(frozen=True)
class Range:
    """A number (or each number of a list) lies in [low, high], or below `high` if `open_high`."""

    low: float = -math.inf
    high: float = math.inf
    open_high: bool = False

    def broken_by(self, value: Any) -> str | None:
        """See Rule."""
        numbers = value if isinstance(value, list) else [value]
        if all(self.low <= x < self.high or (x == self.high and not self.open_high)
               for x in numbers):  # fmt: skip
            return None
        if self.high == math.inf:
            return f"must be {self.low:g} or more"
        return f"must lie in [{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


@dataclass(frozen=True)
class Length:
    """A list has exactly `count` entries."""

    count: int

    def broken_by(self, value: Any) -> str | None:
        """See Rule."""
        return None if len(value) == self.count else f"must have {self.count} entries"


@dataclass(frozen=True)
class Pattern:
    """A name that is safe as a folder name everywhere."""

    def broken_by(self, value: Any) -> str | None:
        """See Rule."""
        legal = value and not value.startswith(".") and all(
            c.isascii() and (c.isalnum() or c in "._-") for c in value
        )  # fmt: skip
        return None if legal else "must hold only letters, digits, '.', '_' and '-'"


@dataclass(frozen=True)
class NotEmpty:
    """A text has at least one character."""

    def broken_by(self, value: Any) -> str | None:
        """See Rule."""
        return None if value else "must not be empty"


@dataclass(frozen=True)
class Ending:
    """A path ends in one of `endings`."""

    endings: tuple[str, ...]

    def broken_by(self, value: Any) -> str | None:
        """See Rule."""
        if value.lower().endswith(self.endings):
            return None
        return f"must end in {' or '.join(self.endings)}"


@dataclass(frozen=True)
class DurationRule:
    """Steps (`500`), epochs (`2ep`) or a share of the run (`5%`); at least `low`."""

    low: int = 0

    def broken_by(self, value: Any) -> str | None:
        """See Rule."""
        try:
            length, unit = parse_duration(value)
        except ValueError:
            return "must be steps (500), epochs (2ep) or a share of the run (5%)"
        if unit == "%" and length > 100:
            return "must be at most 100%"
        return None if length > 0 or self.low == 0 else "must be more than 0"


@cache
def registry_names(file: str, table: str) -> tuple[str, ...]:
    """The keys of the dictionary `table` in `vit/<file>`, read from its source.

    Read, not imported: the modules that register models and data sets import torch, and a typo
    should be answered at once. So a new entry is one dictionary line, known here by itself.
    """
    for node in ast.parse((_PACKAGE / file).read_text(encoding="utf-8")).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == table and isinstance(node, ast.AnnAssign):
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return tuple(str(key.value) for key in keys if isinstance(key, ast.Constant))
    raise LookupError(f"vit/{file} has no annotated dictionary {table}")


@dataclass(frozen=True)
class Registered:
    """A name that is a key of a builder dictionary."""

    file: str
    table: str

    def broken_by(self, value: Any) -> str | None:
        """See Rule."""
        names = registry_names(self.file, self.table)
        if value in names:
            return None
        close = nearest(str(value), names)
        listed = ", ".join(names)
        return f"must be one of {listed}" + (f" (did you mean {close}?)" if close else "")


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Positive = Annotated[float, Range(1e-12, 1e12)]
NonNegative = Annotated[float, Range(0, 1e12)]
Fraction = Annotated[float, Range(0, 1, open_high=True)]
Probability = Annotated[float, Range(0, 1)]
Side = Annotated[int, Range(4, 4096)]
RGB = Annotated[list[float], Range(-1e6, 1e6)]
Name = Annotated[str, Pattern()]
Place = Annotated[str, NotEmpty()]
Places = Place | list[Place]
Method = Annotated[str, Registered("engine/pictures.py", "METHODS")]
Every = Annotated[int | str, DurationRule(low=1)]
Span = Annotated[int | str, DurationRule()]


def height_width(image_size: int | list[int]) -> tuple[int, int]:
    """An image size, one number or [height, width], as (height, width)."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


@dataclass(frozen=True)
class DataConfig:
    """Group `data`: which images, how they are split, where they are held."""

    name: Annotated[str, Registered("data/sources.py", "SOURCES")]
    root: Place | None
    image_size: Side | Annotated[list[Side], Length(2)]
    center_crop: Annotated[float, Range(0.1, 1)]
    mean: RGB
    std: Annotated[list[float], Range(1e-6, 1e6)]
    mirror: bool
    val_fraction: Fraction
    test_fraction: Fraction
    split_seed: Whole
    limit_per_class: Count | None
    balance: Literal["none", "sampler", "loss"]
    memory: Literal["auto", "device", "stream"]
    cache: Literal["none", "jpeg", "uint8"]
    cache_size: Annotated[int, Range(8, 4096)]
    cache_dir: Place | None
    workers: Whole | Literal["auto"]
    timeout: Positive
    on_bad_image: Literal["error", "skip"]
    bad_image_limit: Fraction
    verify: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return height_width(self.image_size)


@dataclass(frozen=True)
class ModelConfig:
    """Group `model`: the Vision Transformer's shape."""

    name: Name
    patch_size: Count | Literal["auto"]
    dim: Count
    depth: Count
    heads: Count
    mlp_ratio: Positive
    positions: Annotated[str, Registered("model/positions.py", "POSITIONS")]
    pool: Annotated[str, Registered("model/pooling.py", "POOLINGS")]
    attention: Annotated[str, Registered("model/scores.py", "ATTENTIONS")]
    registers: Whole
    norm: Annotated[str, Registered("model/norms.py", "NORMS")]
    mlp: Annotated[str, Registered("model/mlp.py", "MLPS")]
    layer_scale: Positive | None
    qkv_bias: bool
    qk_norm: bool
    dropout: Fraction
    drop_path: Fraction
    patch_dropout: Fraction
    zero_branches: bool
    distillation_token: bool


@dataclass(frozen=True)
class AugmentConfig:
    """Group `augment`: what happens to the training images, drawn per image."""

    name: Name
    crop: Literal["auto", "none", "padded", "resized"]
    crop_padding: Fraction
    crop_scale: Annotated[list[float], Length(2), Range(0.001, 1)]
    flip: Probability | Literal["auto"]
    policy: Annotated[str, Registered("data/policies.py", "POLICIES")]
    operations: Annotated[int, Range(1, 14)]
    magnitude: Annotated[int, Range(0, 30)]
    color_jitter: Probability
    erasing: Probability
    mixup: NonNegative
    cutmix: NonNegative
    mix_probability: Probability
    repeats: Count


@dataclass(frozen=True)
class OptimConfig:
    """Group `optim`: the optimiser."""

    name: Annotated[str, Registered("optim/build.py", "OPTIMIZERS")]
    lr: NonNegative | Literal["auto"]
    other_lr: NonNegative | Literal["auto"]
    weight_decay: NonNegative
    layer_decay: Annotated[float, Range(0.01, 1)]
    betas: Annotated[list[float], Length(2), Range(0, 1, open_high=True)]
    momentum: Fraction
    clip_norm: Positive | None


@dataclass(frozen=True)
class ScheduleConfig:
    """Group `schedule`: the learning rate as a function of the step."""

    name: Annotated[str, Registered("optim/schedule.py", "SCHEDULES")]
    warmup: Span
    final: Probability
    patch_dropout_end: Span
    mix_end: Span
    small_images: Side | Annotated[list[Side], Length(2)] | None
    small_images_end: Span


@dataclass(frozen=True)
class TrainerConfig:
    """Group `trainer`: how long, how big, how often."""

    epochs: Positive | None
    steps: Count | None
    batch_size: Count
    eval_batch_size: Count
    accumulate: Count
    precision: Literal["auto", "bf16", "fp32"]
    device: Literal["auto", "cpu", "cuda"]
    compile: bool
    shard: Literal["none", "fsdp"]
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
class RunConfig:
    """All settings of one training run; immutable."""

    data: DataConfig
    model: ModelConfig
    augment: AugmentConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    distill: DistillConfig
    seed: Whole
    name: Name | None
    outputs: Place
    resume: Place | None


@dataclass(frozen=True)
class EvalDataConfig:
    """Where `vit-eval` finds the images, and how it reads them."""

    root: Place | None
    image_size: Side | Annotated[list[Side], Length(2)] | None
    workers: Whole | Literal["auto"]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels; None: those of the model."""
        return None if self.image_size is None else height_width(self.image_size)


@dataclass(frozen=True)
class EvalConfig:
    """All settings of `vit-eval`."""

    checkpoint: Place | Annotated[list[Place], Length(2)]
    split: Literal["val", "test"]
    images: Place | None
    tta: Literal["none", "flip"]
    corruptions: bool
    report: bool
    data: EvalDataConfig
    device: Literal["auto", "cpu", "cuda"]
    output: Place | None

    @property
    def checkpoints(self) -> list[str]:
        """The model to evaluate, and perhaps one to compare it with."""
        return [self.checkpoint] if isinstance(self.checkpoint, str) else self.checkpoint


@dataclass(frozen=True)
class PredictDataConfig:
    """How `vit-predict` reads images."""

    workers: Whole | Literal["auto"]


@dataclass(frozen=True)
class PredictConfig:
    """All settings of `vit-predict`."""

    checkpoint: Place
    images: Places
    output: Annotated[str, Ending((".csv", ".jsonl"))] | None
    top: Count
    sheet: Annotated[str, Ending((".png",))] | None
    batch_size: Count | None
    data: PredictDataConfig
    device: Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ExplainConfig:
    """All settings of `vit-explain`."""

    checkpoint: Place
    images: Places
    limit: Count
    methods: Annotated[list[Method], NotEmpty()]
    class_: Place | None
    layers: bool
    device: Literal["auto", "cpu", "cuda"]
    output: Place | None
