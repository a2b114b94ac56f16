"""What a checkpoint holds besides tensors, as types: one that was made elsewhere may hold anything.

Fields with a default are missing in checkpoints of earlier versions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vit.config.model import ModelOptions
from vit.config.rules import Count, Length, NonNegative, Range, Whole
from vit.config.schema import RGB

Entries = dict[str, Any]
MAIN = {"top1": "top-1", "map": "mAP"}
"""Scores in percent that models are chosen by, of one label per image and of several, and what they
are called."""


def main_score(scores: Iterable[str], split: str = "") -> str:
    """The key of MAIN that is, behind `split`, among the names of scores; the first, if none is."""
    names = set(scores)
    return next((key for key in MAIN if split + key in names), "top1")


def _tensors(value: Any) -> str | None:
    """Every value is a tensor."""
    other = next((key for key, tensor in value.items() if not hasattr(tensor, "dtype")), None)
    return None if other is None else f"holds {other}, which is no tensor"


def _fifty_or_none(value: Any) -> str | None:
    """A limit for each of fifty percents, or nothing at all."""
    return None if len(value) in (0, 50) else "must have 50 entries, or none"


Weights = Annotated[dict[str, Any], _tensors]
Limits = Annotated[list[float | None], _fifty_or_none]


@dataclass(frozen=True, kw_only=True)
class SavedModel(ModelOptions):
    """The architecture: what `ViTConfig` takes."""

    dim: Count
    depth: Count
    heads: Count
    image_size: Annotated[list[Count], Length(2)]
    patch_size: Count
    num_classes: Count
    channels: Count
    mlp_dim: Count


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the model's input."""

    image_size: Annotated[list[Count], Length(2)]
    channels: Count
    mean: RGB
    std: Annotated[list[float], Range(1e-6, 1e6)]
    aspect: Literal["crop", "native"] = "crop"
    center_crop: Annotated[float, Range(0.1, 1)] = 1.0
    interpolation: str = "bilinear"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How the run evaluated."""

    batch_size: Count
    precision: Literal["bf16", "fp16", "fp32", "tf32"]


@dataclass(frozen=True, kw_only=True)
class SavedBest:
    """The best validation so far: top-1 and top-5, or of several labels per image the others."""

    loss: float
    step: Whole
    epoch: float
    top1: float | None = None
    top5: float | None = None
    map: float | None = None
    exact: float | None = None

    @property
    def scores(self) -> dict[str, float]:
        """Those that it has, by name."""
        names = ("loss", "top1", "top5", "map", "exact")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def score(self) -> float:
        """The one that models are chosen by."""
        return self.scores[main_score(self.scores)]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The sums of the metrics where each window began."""

    log: Annotated[list[float], Length(5)]
    epoch: Annotated[list[float], Length(5)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The run's settings; all of them are checked where a run goes on."""

    data: Entries


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training goes on."""

    model: Weights
    ema: Weights | None
    optimizer: Entries
    marks: Windows
    best: SavedBest | None
    evaluated_at: Whole
    stale: Whole
    seconds: NonNegative
    images: Whole
    metrics_bytes: Whole
    environment: Entries
    metrics_digest: str | None = None
    bad_images: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted on validation images, so that the probabilities of weights can be acted on.

    Attributes:
        weights: digest of the weights that it is of; empty: it is in no checkpoint yet.
        images: it was fitted on so many.
        temperature: the logits are divided by it; None: they are not, because of `why`.
        sets: for 50, 51, ... 99 % what a label may score to be in the set of an image, and
        unknown: for 1, 2, ... 50 % the energy below which an image counts as unknown; None: there
            are too few images to say. Both are empty where nothing was fitted.
    """

    weights: str = ""
    images: Whole = 0
    temperature: Annotated[float, Range(0.01, 100)] | None = None
    why: str = ""
    sets: Limits = field(default_factory=list)
    unknown: Limits = field(default_factory=list)

    def told(self) -> str:
        """What is done to probabilities, in words."""
        if self.temperature is None:
            return f"as trained: {self.why}"
        return f"with temperature {self.temperature:.3f}, fitted on {self.images:,} images"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that every checkpoint holds; `training`, when training can go on from it."""

    spec: SavedModel
    preprocessing: Preprocessing
    classes: list[str]
    evaluation: Evaluation
    config: Settings
    step: Whole
    weights: Weights
    images: str | None
    training: Progress | None = None
    thresholds: list[float] | None = None
    calibration: Calibration | None = None
    plugins: dict[str, str] = field(default_factory=dict)
