"""The types of the settings of the commands that use a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vit.config.rules import Count, Fraction, Length, Percent, Registered, Whole, ending, not_empty
from vit.config.schema import Device, Place, Places, RunConfig, Side, height_width

SET, UNKNOWN = Percent(50, 99), Percent(1, 50)
"""Rules of the cases in which a set holds the truth, and of known images that count as unknown."""
Method = Annotated[str, Registered("inference/pictures.py", "METHODS")]
Format = Annotated[str, Registered("export/formats.py", "FORMATS", "export")]


@dataclass(frozen=True)
class EvalDataConfig:
    """Where `vit-eval` finds the images, and how it reads them."""

    root: Place | None
    image_size: Side | Annotated[list[Side], Length(2)] | None
    workers: Whole | Literal["auto"]
    on_bad_image: Literal["error", "skip"] | None
    bad_image_limit: Fraction | None

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
    merge: Whole
    corruptions: bool
    calibration: Literal["auto", "none", "save"]
    report: bool
    data: EvalDataConfig
    device: Device
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
    output: Annotated[str, ending(".csv", ".jsonl")] | None
    top: Count
    set: Annotated[str, SET] | None
    unknown: Annotated[str, UNKNOWN] | None
    calibration: Literal["auto", "none"]
    sheet: Annotated[str, ending(".png")] | None
    batch_size: Count | None
    data: PredictDataConfig
    device: Device


@dataclass(frozen=True)
class EmbedDataConfig:
    """How `vit-embed` reads images."""

    image_size: Side | Annotated[list[Side], Length(2)] | None
    workers: Whole | Literal["auto"]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels; None: those of the model."""
        return None if self.image_size is None else height_width(self.image_size)


@dataclass(frozen=True)
class EmbedModelConfig:
    """Weights to embed with."""

    weights: Place | None


@dataclass(frozen=True)
class EmbedConfig:
    """All settings of `vit-embed`."""

    checkpoint: Place | None
    model: EmbedModelConfig
    images: Places | None
    output: Annotated[str, ending(".npy", ".parquet")] | None
    knn: Place | None
    neighbours: Count
    page: Annotated[str, ending(".html")] | None
    batch_size: Count | None
    data: EmbedDataConfig
    device: Device


@dataclass(frozen=True)
class ExplainConfig:
    """All settings of `vit-explain`."""

    checkpoint: Place
    images: Places
    limit: Count
    methods: Annotated[list[Method], not_empty]
    class_: Place | None
    layers: bool
    explorer: Whole
    calibration: Literal["auto", "none"]
    device: Device
    output: Place | None


@dataclass(frozen=True)
class ExportConfig:
    """All settings of `vit-export`."""

    checkpoint: Place
    format: Format
    precision: Literal["fp32", "fp16", "int8"]
    merge: Whole
    calibration: Literal["auto", "none"]
    output: Place | None
    split: Literal["val", "test"] | None
    images: Place | None
    limit: Count | None
    batch_size: Count
    data: EvalDataConfig

    def evaluation(self) -> EvalConfig:
        """The evaluation that sees the images which this export is compared on."""
        return EvalConfig(
            checkpoint=self.checkpoint, split="val", images=self.images, tta="none",
            merge=self.merge, corruptions=False, calibration=self.calibration, report=False,
            data=self.data, device="cpu", output=None,
        )  # fmt: skip


SCHEMAS: dict[str, type] = {
    "train": RunConfig, "eval": EvalConfig, "predict": PredictConfig, "explain": ExplainConfig,
    "export": ExportConfig, "embed": EmbedConfig,
}  # fmt: skip
"""The settings of each command."""
