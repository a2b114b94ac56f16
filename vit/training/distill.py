"""Distillation: the teacher of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.config.schema import RunConfig
from vit.data.manifest import Manifest
from vit.data.reading.reader import Normalise
from vit.errors import ConfigError, NoCheckpointError
from vit.inference.load import check_classes, load_trained, trained_on
from vit.model.weights import not_finite
from vit.runtime import console
from vit.runtime.device import autocast
from vit.training.state import weights_of
from vit.training.weight_files import TIMM, timm_name


class Teacher:
    """Answers for the student's images, in its own normalisation and size.

    Args:
        model: gives logits of normalised images; on the device, never trained here.
        mean, std, size: of the teacher's images: per channel, and height and width in pixels.
        config: of the student.
        device: where both compute.
        images: that it was trained on, as far as they are known.
    """

    def __init__(
        self, model: nn.Module, mean: list[float], std: list[float], size: tuple[int, int],
        config: RunConfig, device: torch.device, images: Sequence[Manifest] = (),
    ) -> None:  # fmt: skip
        self.images = images
        self.model = model.eval().requires_grad_(False)
        self.size = size
        self.device = device
        self.precision = config.trainer.precision
        students = Normalise(config.data.mean, config.data.std, device)
        own = Normalise(mean, std, device)
        self.scale = students.std / own.std
        self.shift = (students.mean - own.mean) / own.std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images that are normalised for the student, (B, C, height, width)."""
        theirs = images * self.scale + self.shift
        if theirs.shape[-2:] != self.size:
            theirs = F.interpolate(theirs, self.size, mode="bilinear", antialias=True)
        with autocast(self.device, self.precision):
            logits: Tensor = self.model(theirs)
        return logits

    def fingerprint(self) -> str:
        """Of its weights: another teacher gives another run."""
        digest = hashlib.sha256()
        for name, weights in sorted(weights_of(self.model).items()):
            digest.update(name.encode() + weights.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def load_teacher(config: RunConfig, classes: list[str], device: torch.device) -> Teacher | None:
    """The teacher that `config.distill` of a student names; None: it names none.

    Raises:
        ConfigError: it does not exist, is damaged or not finite, or was trained on other classes or
            channels.
    """
    name = config.distill.teacher
    if name is None:
        return None
    images: Sequence[Manifest] = ()
    if name.startswith(TIMM):
        model, facts = _of_timm(name, config.distill.weights, len(classes))
    else:
        try:
            trained = load_trained(Path(name), device, console.warn)
        except NoCheckpointError as error:
            reason = str(error).partition("; ")[0]
            raise ConfigError(
                f"distill.teacher={name} cannot be used ({reason}); give a run folder or a file"
            ) from None
        model, facts = trained.model, trained.preprocessing
        images = trained_on(trained.path, trained.images)
        check_classes(classes, trained.classes, "the data", f"{name} is no teacher for it")
        if trained.thresholds is not None:
            raise ConfigError(
                f"distill.teacher={name} gives several labels to an image, the data has one each; "
                f"give a teacher of the same kind of labels"
            )
    if len(facts["mean"]) != len(config.data.mean):
        raise ConfigError(
            f"distill.teacher={name} takes images of {len(facts['mean'])} channels, the data has "
            f"{len(config.data.mean)}; give a teacher of the same kind of images"
        )
    height, width = facts["image_size"]
    return Teacher(
        model.to(device), facts["mean"], facts["std"], (height, width), config, device, images
    )


def _of_timm(name: str, weights: str | None, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """A timm model with weights from a file, and its preprocessing."""
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.models import load_state_dict

    architecture = timm_name(name, "distill.teacher")
    if not Path(str(weights)).is_file():
        raise ConfigError(f"distill.weights={weights} does not exist; give a file")
    model = timm.create_model(architecture, num_classes=classes)
    try:
        model.load_state_dict(load_state_dict(str(weights)))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[-1].strip()
        raise ConfigError(
            f"distill.weights={weights} holds no weights of {name} for {classes} classes ({reason})"
        ) from None
    if tensor := not_finite(model.state_dict()):
        raise ConfigError(
            f"distill.weights={weights} holds weights that are not finite ({tensor}); give others"
        )
    facts = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    size = facts["input_size"][1:]
    return model, {"mean": [*facts["mean"]], "std": [*facts["std"]], "image_size": size}
