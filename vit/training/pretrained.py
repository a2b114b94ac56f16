"""Starting from pretrained weights (`model.weights`): what they bring, what is resized or new."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vit.config.checks import OF_FILES, SETTING_OF
from vit.config.model import ARCH_KEYS
from vit.config.schema import RunConfig
from vit.config.validate import flatten, to_plain, typed
from vit.data.manifest import Manifest
from vit.errors import ConfigError, shortened
from vit.model.families import rotated_as_ours
from vit.model.vit import VisionTransformer
from vit.model.weights import LoadReport, load_matching, not_finite, registers_for, spec_of

MAE: tuple[float, int, dict[str, Any], str] = (
    2e-3, 1024, {"optim.layer_decay": 0.65, "trainer.freeze": "none", "augment.mixup": 0.8,
                 "augment.cutmix": 1.0},
    "He et al. 2022, arXiv 2111.06377, ViT-B/16",
)  # fmt: skip
"""How weights of a family are fine-tuned with AdamW: the learning rate of the head for batches of
so many images (for others by the root of the ratio), the other settings, and where they are from.
"""
CLIP: tuple[float, int, dict[str, Any], str] = (
    6e-4, 2048, {"optim.layer_decay": 0.6, "trainer.freeze": "blocks:0", "augment.mixup": 0.0,
                 "augment.cutmix": 0.0},
    "as Dong et al. 2022, arXiv 2212.06138, do for ViT-B/16 of CLIP; "
    "embedding frozen, Kumar et al. 2022, arXiv 2211.09359",
)  # fmt: skip
HEAD, WIDEST = 64, 1024
"""Width of a head, where weights do not say how many there are, of models up to this width: ViT-L
and all smaller ones have such heads, wider ones others."""


@dataclass(frozen=True)
class Pretrained:
    """Weights with timm's names, and what came with them.

    Attributes:
        place: where they are from, as the user gave it.
        weights: the state dict.
        spec: what is known of the model's spec besides what the weights say.
        classes: names of the logits; None: not known.
        mean, std: of each channel, what the model's images were normalised with; None: not known.
        trained_on: images of a run of ours.
        family: whose names the tensors had; None: ours.
        left_out: what was in the file and is not used, in words, with how many tensors it is.
    """

    place: str
    weights: dict[str, Tensor]
    spec: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    trained_on: Sequence[Manifest] = ()
    family: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ConfigError: a weight is not finite."""
        if name := not_finite(self.weights):
            raise ConfigError(
                f"model.weights={self.place} holds numbers that are not finite ({name}); give "
                f"other weights"
            )

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """Options of `ViTConfig`, as far as the weights and what came with them say.

        Raises:
            ConfigError: these are no weights of a Vision Transformer.
        """
        try:
            return {**spec_of(self.weights), **self.spec}
        except ValueError as error:
            raise ConfigError(f"model.weights={self.place} cannot be used: {error}") from None

    def settings(self, config: RunConfig, user_keys: Collection[str] = ()) -> dict[str, Any]:
        """Settings of the run `config` that the weights decide, keys of `checks.FROM_WEIGHTS`.

        They are the model's shape, how its images were normalised where they have as many channels,
        and the image size where the run's images have none of their own.

        Raises:
            ConfigError: these are no weights of a Vision Transformer.
        """
        spec = dict(self.architecture)
        if "heads" not in spec and spec["dim"] % HEAD == 0 and spec["dim"] <= WIDEST:
            spec["heads"] = spec["dim"] // HEAD
        pool = config.model.pool if {"model", "model.pool"} & set(user_keys) else spec["pool"]
        spec["registers"] = registers_for(self.weights, pool, config.model.distillation_token)
        found = {setting: spec.get(key) for key, setting in SETTING_OF.items()}
        found["model.mlp_ratio"] = ratio(spec["mlp_dim"], spec["dim"])
        if self.mean is not None and len(self.mean) == len(config.data.mean):
            found |= {"data.mean": self.mean, "data.std": self.std}
        if config.data.name not in OF_FILES:
            found["data.image_size"] = None
        kept = {key: value for key, value in found.items() if value is not None}
        if recipe := self.recipe(config):
            kept |= recipe[0]
        return {**kept, "model.layer_scale": spec["layer_scale"]}

    def recipe(self, config: RunConfig) -> tuple[dict[str, Any], str] | None:
        """Settings that fine-tune weights like these in the run `config`, and where they are from;
        None: those that it says itself.
        """
        if config.trainer.recipe != "weights":
            return None
        words = " ".join([Path(self.place).name, *self.left_out]).lower()
        is_mae = re.search(r"masked autoencoder|(^|[._-])mae([._-]|$)", words)
        contrastive = not self.weights.keys().isdisjoint(("norm_pre.weight", "pool.norm.weight"))
        turned = self.spec.get("positions") == "rope2d_dinov3"
        if not (is_mae or contrastive or turned or re.search("clip|siglip|dino", words)):
            return None
        lr, images, others, source = MAE if is_mae else CLIP
        lr *= (config.trainer.batch_size / images) ** 0.5
        return {"optim.lr": float(f"{lr:.3g}"), **others}, source

    def into(self, model: VisionTransformer, classes: list[str]) -> LoadReport:
        """Give the weights to `model`, whose logits are `classes`, as far as they fit.

        Raises:
            ConfigError: they are of a model of another shape, or of no Vision Transformer.
        """
        theirs, ours = dict(self.architecture), model.config
        if "mlp" not in self.spec and theirs["mlp"] == "gelu" and "gelu" in ours.mlp:
            theirs["mlp"] = ours.mlp  # whose approximation weights do not show
        if theirs["layer_scale"] and ours.layer_scale:
            theirs["layer_scale"] = ours.layer_scale  # only how it starts
        others = [k for k in ARCH_KEYS if k in theirs and theirs[k] != getattr(ours, k)]
        if others:
            wanted = " ".join(_setting(key, theirs) for key in others)
            raise ConfigError(
                f"model.weights={self.place} is of a model of another shape; give {wanted}"
            )
        try:
            same = self.classes is None or self.classes == classes
            weights, positions = self.weights, self.spec.get("positions", "")
            if self.family is not None and "rope2d" in positions:
                weights = rotated_as_ours(weights, ours.heads, positions)
            return load_matching(model, weights, theirs.get("image_size"), same_classes=same)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"model.weights={self.place} cannot be used: {error}") from None


def describe(weights: Pretrained, report: LoadReport, config: RunConfig) -> list[str]:
    """What became of the weights that the run `config` starts from, as lines to read."""
    model = config.model
    lines = [f"weights  {weights.place}: {len(report.taken)} tensors taken"]
    if weights.family is not None:
        lines.append(
            f"         named as in {weights.family}; read as positions {model.positions}, pool "
            f"{model.pool}, {model.registers} registers, {model.mlp}, norms with {model.norm_eps:g}"
        )
    left_out = [f"{words} ({count})" for words, count in weights.left_out.items()]
    for word, names in (
        ("resized", report.resized), ("new", report.new), ("not used", report.unused + left_out),
    ):  # fmt: skip
        if names:
            lines.append(f"         {word}: {shortened(names)}")
    mean, std = ([round(x, 4) for x in values] for values in (config.data.mean, config.data.std))
    lines.append(f"         images are normalised with mean {mean}, deviation {std}")
    silent = {
        f"model.heads={model.heads}": "heads" not in weights.spec,
        "data.mean and data.std as above": weights.mean is None,
        f"model.mlp={model.mlp} (OpenAI's CLIP: quick_gelu, SigLIP: gelu_tanh)": (
            weights.family is not None and model.mlp != "swiglu" and "mlp" not in weights.spec
            and (model.pre_norm or model.pool == "map")
        ),
    }  # fmt: skip
    if guessed := [words for words, so in silent.items() if so]:
        lines.append(f"         the file does not say, so it is taken: {'; '.join(guessed)}")
    if recipe := weights.recipe(config):
        (took, source), plain = recipe, flatten(to_plain(config))
        values = ", ".join(f"{key}={plain[key]}" for key in took)
        lines.append(f"         fine-tuned with {values} ({source})")
    elif config.trainer.freeze != "none":
        lines.append(f"         frozen: {config.trainer.freeze}")
    return lines


def _setting(key: str, spec: Mapping[str, Any]) -> str:
    """A value of a spec as the user would give it."""
    if key == "mlp_dim":
        return f"model.mlp_ratio={ratio(spec['mlp_dim'], spec['dim']):.6g}"
    return f"{SETTING_OF[key]}={typed(spec[key])}"


def ratio(mlp_dim: int, dim: int) -> float:
    """`mlp_ratio` of a hidden width, of which the model takes the whole part."""
    exact = mlp_dim / dim
    return exact if int(dim * exact) == mlp_dim else (mlp_dim + 0.5) / dim
