"""Loading a trained model from a run folder or a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit.artifacts import checkpoint
from vit.artifacts.run_dir import RunDir
from vit.config.checks import nearest_multiples
from vit.config.model import ViTConfig
from vit.config.saved import Calibration
from vit.config.schema import ReadConfig
from vit.config.validate import to_data_section
from vit.data.manifest import Manifest
from vit.data.task import ONE_LABEL, SEVERAL_LABELS, Task
from vit.errors import (
    MOST_NAMES,
    ConfigError,
    DataError,
    DivergedError,
    NoCheckpointError,
    first_line,
    nearest,
    shortened,
)
from vit.inference.calibration import digest
from vit.model.vit import VisionTransformer
from vit.model.weights import not_finite, resized
from vit.runtime import console


@dataclass(frozen=True)
class Trained:
    """A trained model and all that is needed to use it.

    Attributes:
        model: the selected weights, on the device, in eval mode.
        classes: names of the logits.
        preprocessing: how an image becomes the model's input: `image_size` [height, width],
            `channels`, `mean`, `std`, `aspect`, `center_crop`, and how files are read.
        evaluation: `batch_size` and `precision` of the run's own evaluations.
        config: the run's settings as plain values.
        step: the optimiser step of the weights.
        path: the file.
        images: digest of the list of the run's images; None: an earlier version kept none.
        thresholds: probability from which on each of several labels is given, (K,); None: an image
            has one label, the most probable one.
        calibration: what makes its probabilities ones to act on; None: there is no record of these
            weights, or none was asked for.
    """

    model: VisionTransformer
    classes: list[str]
    preprocessing: dict[str, Any]
    evaluation: dict[str, Any]
    config: dict[str, Any]
    step: int
    path: Path
    images: str | None
    thresholds: list[float] | None = None
    calibration: Calibration | None = None

    @property
    def task(self) -> Task:
        """What its labels are."""
        return ONE_LABEL if self.thresholds is None else SEVERAL_LABELS

    @property
    def temperature(self) -> float:
        """What logits are divided by; 1: they stay."""
        return (self.calibration and self.calibration.temperature) or 1.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of all classes, (B, K), as they are told to users."""
        return self.task.probabilities(logits / self.temperature)

    def given(self, logits: Tensor) -> list[list[str] | None]:
        """The labels that each image is given, by logits (B, K); None: each has one."""
        if self.thresholds is None:
            return [None] * len(logits)
        thresholds = torch.tensor(self.thresholds, dtype=torch.float64)
        given = logits.double().cpu().sigmoid() >= thresholds
        return [[self.classes[k] for k in row.nonzero()[:, 0].tolist()] for row in given]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device

    @property
    def name(self) -> str:
        """What to call it: its run, else its file."""
        run = RunDir.of(self.path)
        return run.path.name if run else self.path.name

    def about(self) -> dict[str, Any]:
        """Which model it is, for metrics.json."""
        size = self.preprocessing["image_size"]
        return {"checkpoint": str(self.path), "step": self.step, "image_size": size}

    def read_config(self) -> ReadConfig:
        """How its images are read: from their files, the way that its own evaluations did.

        No other settings of the run are looked at. Small images that the run kept are not used
        where the model takes larger ones now.

        Raises:
            ConfigError: these are not of this version.
        """
        told = {"mean", "std", "aspect", "center_crop"} & self.preprocessing.keys()
        seen = {key: self.preprocessing[key] for key in told}
        own = to_data_section(ReadConfig, {**self.config["data"], **seen, "memory": "stream"})
        config = replace(own, image_size=self.preprocessing["image_size"])
        is_kept = own.size == config.size or max(config.size) / own.center_crop <= own.cache_size
        return config if is_kept else replace(config, cache="none")

    def check(self, answers: Tensor) -> None:
        """Look at logits of the model, or at what was computed from them.

        Raises:
            DivergedError: one is not finite.
        """
        if not answers.isfinite().all():
            raise DivergedError(
                f"{self.path} gives answers that are not finite, its training diverged; give "
                f"another checkpoint, or train again with a lower optim.lr"
            )


def load_trained(
    where: Path,
    device: torch.device,
    report: Callable[[str], None],
    size: tuple[int, int] | None = None,
    *,
    calibrated: bool = True,
) -> Trained:
    """The model of a run folder (its best weights, else its last) or of a checkpoint file.

    Args:
        report: told when the best checkpoint is damaged and the newest is taken instead.
        size: height and width of the images that it is for; None: of those it was trained on.
        calibrated: with the calibration that it has of these weights.

    Raises:
        NoCheckpointError: nothing there, nothing undamaged, or weights that are not finite.
        ConfigError: `size` is not whole patches.
    """
    path, content = find(where, report)
    try:
        weights, config = content["weights"], ViTConfig(**content["spec"])
        if wrong := _misfit(content, config):
            raise ValueError(wrong)
        if name := not_finite(weights):
            raise checkpoint.BadCheckpointError(
                f"{path} holds weights that are not finite ({name}), its training diverged; "
                f"give another checkpoint"
            )
        if size is not None:
            _check_size(size, config.patch_size)
            weights, config = resized(weights, config, size)
        record = Calibration(**content["calibration"]) if content.get("calibration") else None
        if record is not None and not (calibrated and record.weights == digest(weights)):
            record = None
        model = VisionTransformer(config)
        model.load_state_dict(weights)
        preprocessing = {"aspect": "crop", **content["preprocessing"]}  # once there was no other
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise NoCheckpointError(f"{path} describes no model of this version ({reason})") from None
    trained = Trained(
        model=model.to(device).eval(),
        classes=content["classes"],
        preprocessing={**preprocessing, "image_size": list(config.image_size)},
        evaluation=content["evaluation"],
        config=content["config"],
        step=content["step"],
        path=path,
        images=content["images"],
        thresholds=content.get("thresholds"),
        calibration=record,
    )
    try:
        trained.read_config()
    except ConfigError as error:
        told = shortened(error.problems, 2)
        raise NoCheckpointError(f"{path} reads no images of this version ({told})") from None
    return trained


def _misfit(content: dict[str, Any], config: ViTConfig) -> str | None:
    """What in a checkpoint is not of its own architecture, found without memory for weights."""
    weights, seen = content["weights"], content["preprocessing"]
    blocks = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    numbers = {
        "blocks": (blocks, config.depth),
        "classes": (len(content["classes"]), config.num_classes),
        "channels": (seen["channels"], config.channels),
        "channels with a mean": (len(seen["mean"]), config.channels),
        "channels with a deviation": (len(seen["std"]), config.channels),
    }
    if (thresholds := content.get("thresholds")) is not None:
        numbers["thresholds"] = (len(thresholds), config.num_classes)
    for what, (found, wanted) in numbers.items():
        if found != wanted:
            return f"{found} {what}, not {wanted}"
    with torch.device("meta"):
        expected = VisionTransformer(config).state_dict()
    for name in {**expected, **weights}:
        if name not in weights or name not in expected:
            return f"{name} is {'missing' if name in expected else 'no weight'}"
        if weights[name].shape != expected[name].shape:
            return f"{name} is {[*weights[name].shape]}, not {[*expected[name].shape]}"
    return None


def read_manifest(run: RunDir | None, digest: str | None) -> Manifest | None:
    """The list of a run's images; None: there is none that is sound, which is warned of, or an
    earlier version kept none, whose `digest` is None.
    """
    if digest is None or run is None:
        return None
    try:
        manifest = Manifest.from_bytes(run.images.read_bytes())
        if manifest.digest() == digest:
            return manifest
        reason = "it is of other images"
    except Exception as error:  # a damaged file fails in many ways
        reason = first_line(error)
    console.warn(f"the list of the run's images, {run.images}, cannot be used ({reason})")
    return None


def trained_on(path: Path, digest: str | None) -> list[Manifest]:
    """The images that the weights of a run were trained on, as far as they are known."""
    manifest = read_manifest(RunDir.of(path), digest)
    if manifest is None:
        console.warn(
            f"which images {path} was trained on is not known: if there are such among the test "
            f"images, scores are too high"
        )
        return []
    return manifest.trained()


RELABELLED = "labelled or weighted otherwise since the run started, which keeps what it had"
"""What `tell_changes` says of `Restored.relabelled`."""


def tell_changes(what: str, names: Sequence[str]) -> None:
    """Warn of the images `what`, if there are any."""
    if names:
        console.warn(f"images {what}: {len(names):,} ({shortened(names)})")


def check_classes(found: list[str], expected: list[str], where: str, remedy: str) -> None:
    """Refuse data of other classes than a model's.

    Raises:
        DataError: both lists, of many classes what differs, and `remedy`.
    """
    if found == expected:
        return
    now, then, only = found, expected, ""
    if max(len(found), len(expected)) > MOST_NAMES:
        now, then, only = sorted({*found} - {*expected}), sorted({*expected} - {*found}), "only "
    raise DataError(
        f"{where} {only}has the classes {shortened(now) or '-'}, the checkpoint {only}has "
        f"{shortened(then) or '-'}; {remedy}"
    )


def _check_size(size: tuple[int, int], patch: int) -> None:
    height, width = size
    if not (height % patch or width % patch):
        return
    near = nearest_multiples(height, patch)
    if height != width:
        near = "[{},{}]".format(*(round(side / patch) * patch or patch for side in size))
    raise ConfigError(
        f"data.image_size={height if height == width else [height, width]} is no multiple of the "
        f"model's patch of {patch} px; try data.image_size={near}"
    )


def find(where: Path, report: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that a path stands for; see `load_trained`."""
    if where.is_file():
        return where, checkpoint.load(where)
    if not where.exists():
        beside = os.listdir(where.parent) if where.parent.is_dir() else []
        close = nearest(where.name, beside)
        hint = f" (did you mean {where.parent / close}?)" if close else ""
        raise NoCheckpointError(
            f"checkpoint={where} does not exist; give a run folder or a file{hint}"
        )
    run = RunDir(where)
    runs = sorted(str(place.parent) for place in where.glob("*/checkpoints"))
    if runs and not run.checkpoints.is_dir():
        raise NoCheckpointError(f"checkpoint={where} holds runs; give one of {shortened(runs)}")
    if run.best.is_file():
        try:
            return run.best, checkpoint.load(run.best)
        except checkpoint.BadCheckpointError as error:
            report(f"{error}; taking the newest checkpoint instead of the best")
    return checkpoint.newest(run, report)
