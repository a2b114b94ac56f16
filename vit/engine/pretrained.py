"""Weights to start from, wherever they come from: `model.weights`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit.artifacts import checkpoint, console
from vit.config.checks import OF_FILES
from vit.config.errors import ConfigError, VitError
from vit.config.schema import RunConfig
from vit.config.suggest import nearest
from vit.engine.restore import find
from vit.model.start import SAME, MismatchError, Start, differs, spec_of, start_from
from vit.model.vit import VisionTransformer
from vit.runtime.device import autocast

TIMM = "timm/"
HEAD = 64
"""Width of a head, where weights do not say how many heads there are: all of timm's plain ViTs'."""
BROUGHT = (
    "data.image_size", "data.mean", "data.std", "model.dim", "model.depth", "model.heads",
    "model.mlp_ratio", "model.mlp", "model.norm", "model.layer_scale", "model.qkv_bias",
    "model.qk_norm", "model.attention", "model.positions", "model.patch_size", "model.pool",
    "model.registers",
)  # fmt: skip
"""Settings that weights may bring with them."""
MOST_NAMES = 8
"""Tensors that are named in a line."""


@dataclass(frozen=True)
class Pretrained:
    """Weights with timm's names, and what came with them.

    Attributes:
        place: where they are from, as the user gave it.
        weights: the state dict.
        spec: what is known of the model's spec besides what the weights say.
        classes: names of the logits; None: not known.
        mean, std: of each channel, what the model's images were normalised with; None: not known.
    """

    place: str
    weights: dict[str, Tensor]
    spec: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    def settings(self, config: RunConfig) -> dict[str, Any]:
        """Settings of the run `config` that the weights decide, keys of BROUGHT: the model's shape,
        how its images were normalised where they have as many channels, and the image size where
        the run's images have none of their own.

        Raises:
            ConfigError: these are no weights of a Vision Transformer.
        """
        try:
            spec = {**spec_of(self.weights), **self.spec}
        except ValueError as error:
            raise ConfigError(f"model.weights={self.place} cannot be used: {error}") from None
        if "heads" not in spec and spec["dim"] % HEAD == 0:
            spec["heads"] = spec["dim"] // HEAD
        brought = (*SAME, "patch_size", "pool", "registers")
        found = {f"model.{key}": spec.get(key) for key in brought if key != "mlp_dim"}
        found["model.mlp_ratio"] = ratio(spec["mlp_dim"], spec["dim"])
        if self.mean is not None and len(self.mean) == len(config.data.mean):
            found |= {"data.mean": self.mean, "data.std": self.std}
        if config.data.name in OF_FILES:
            found["data.image_size"] = spec.get("image_size")
        kept = {key: value for key, value in found.items() if value is not None}
        return {**kept, "model.layer_scale": spec["layer_scale"]}

    def into(self, model: VisionTransformer, classes: list[str]) -> Start:
        """Give the weights to `model`, whose logits are `classes`, as far as they fit.

        Raises:
            ConfigError: they are of a model of another shape, or of no Vision Transformer.
        """
        try:
            same = self.classes is None or self.classes == classes
            return start_from(model, self.weights, self.spec, same_classes=same)
        except MismatchError as error:
            wanted = " ".join(
                setting(key, error.spec)
                for key in SAME
                if key in error.spec and differs(key, error.spec, model.spec)
            )
            raise ConfigError(
                f"model.weights={self.place} is of a model of another shape; give {wanted}"
            ) from None
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"model.weights={self.place} cannot be used: {error}") from None


def told(start: Start, config: RunConfig) -> list[str]:
    """What became of the weights that `config.model.weights` names, as lines to read."""
    lines = [f"weights  {config.model.weights}: {len(start.taken)} tensors taken"]
    for word, names in (
        ("resized", start.resized), ("new", start.new), ("not used", start.unused),
    ):  # fmt: skip
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            lines.append(f"         {word}: {', '.join(names[:MOST_NAMES])}{more}")
    mean, std = ([round(x, 4) for x in values] for values in (config.data.mean, config.data.std))
    lines.append(f"         images are normalised with mean {mean}, deviation {std}")
    if config.trainer.freeze != "none":
        lines.append(f"         frozen: {config.trainer.freeze}")
    return lines


@torch.no_grad()
def features(
    model: VisionTransformer, images: Tensor, mask: Tensor | None, precision: str
) -> Tensor:
    """What the head of `model` sees of normalised images, in evaluation: float32 (B, D)."""
    model.eval()
    with autocast(images.device, precision):
        return model.features(images, mask).float()


def setting(key: str, spec: dict[str, Any]) -> str:
    """A value of a spec as the user would give it."""
    if key == "mlp_dim":
        return f"model.mlp_ratio={ratio(spec['mlp_dim'], spec['dim']):.6g}"
    value = spec[key]
    word = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return f"model.{key}={word}"


def ratio(mlp_dim: int, dim: int) -> float:
    """`mlp_ratio` of a hidden width, of which the model takes the whole part."""
    exact = mlp_dim / dim
    return exact if int(dim * exact) == mlp_dim else (mlp_dim + 0.5) / dim


def load_pretrained(place: str) -> Pretrained:
    """The weights that `model.weights` names.

    Args:
        place: a run folder or checkpoint of ours; a file of a timm model (`.safetensors`, `.pth`,
            or the original `.npz`); a folder with `model.safetensors`, as the Hugging Face hub
            has them; or `timm/<model>`, which is downloaded.

    Raises:
        ConfigError: there is no such thing, or it cannot be read.
        NoCheckpointError: the run folder has no undamaged checkpoint.
    """
    if place.startswith(TIMM):
        return _of_timm(place)
    path = Path(place)
    if path.is_dir():
        inside = path / "model.safetensors"
        return _of_safetensors(inside, place) if inside.is_file() else _of_run(path, place)
    if not path.exists():
        raise ConfigError(
            f"model.weights={place} does not exist; give a run folder, a file or timm/<model>"
        )
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ConfigError(
            f"model.weights={place} is of no known kind; give a run folder, one of "
            f"{', '.join(READERS)}, or timm/<model>"
        )
    try:
        return read(path, place)
    except VitError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ConfigError(f"model.weights={place} cannot be read ({_short(error)})") from None


def _of_run(path: Path, place: str) -> Pretrained:
    _, content = find(path, console.warn)
    facts = content["preprocessing"]
    return Pretrained(
        place, content["weights"], content["spec"], content["classes"], facts["mean"], facts["std"]
    )


def _of_torch(path: Path, place: str) -> Pretrained:
    from timm.models import load_state_dict

    try:
        return _of_run(path, place)
    except checkpoint.BadCheckpointError:
        return Pretrained(place, load_state_dict(str(path), weights_only=True))


def _of_safetensors(path: Path, place: str) -> Pretrained:
    from safetensors.torch import load_file

    beside = path.with_name("config.json")  # as the Hugging Face hub has it
    facts = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    facts = facts.get("pretrained_cfg", {})
    return Pretrained(
        place, load_file(path), mean=_floats(facts.get("mean")), std=_floats(facts.get("std"))
    )


def _of_npz(path: Path, place: str) -> Pretrained:
    """The original JAX weights (Dosovitskiy et al. 2021; AugReg, Steiner et al. 2022), by timm."""
    from timm.models import VisionTransformer as Timm

    with np.load(path, allow_pickle=False) as arrays:
        shapes = {name.removeprefix("opt/target/"): arrays[name].shape for name in arrays.files}
    first = "Transformer/encoderblock_0/"
    try:
        patch, _, channels, dim = shapes["embedding/kernel"]
        _, heads, _ = shapes[f"{first}MultiHeadDotProductAttention_1/query/kernel"]
        hidden = shapes[f"{first}MlpBlock_3/Dense_0/kernel"][1]
        positions = shapes["Transformer/posembed_input/pos_embedding"][1]
    except KeyError as error:
        raise ConfigError(
            f"model.weights={place} is not in the layout of the original ViT (no {error})"
        ) from None
    side = patch * int((positions - ("cls" in shapes)) ** 0.5)
    model = Timm(
        img_size=side, patch_size=patch, in_chans=channels, embed_dim=dim, num_heads=heads,
        depth=sum(name.endswith("MlpBlock_3/Dense_0/bias") for name in shapes),
        mlp_ratio=(hidden + 0.5) / dim, class_token="cls" in shapes,
        num_classes=shapes["head/bias"][0] if "head/bias" in shapes else 0,
        global_pool="token" if "cls" in shapes else "avg", fc_norm=False,
    )  # fmt: skip
    model.load_pretrained(str(path))
    half = [0.5] * channels
    return Pretrained(place, model.state_dict(), {"heads": heads}, mean=half, std=half)


def _of_timm(place: str) -> Pretrained:
    import timm
    from timm.data.config import resolve_model_data_config

    name = timm_name(place, "model.weights")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:
        raise ConfigError(
            f"model.weights={place} could not be downloaded ({_short(error)}); "
            f"give a file of it: model.weights=<.safetensors, .pth or .npz>"
        ) from None
    if type(model) is not timm.models.VisionTransformer:
        raise ConfigError(
            f"model.weights={place} is a {type(model).__name__}, no plain Vision Transformer; "
            f"try timm/vit_small_patch16_224"
        )
    facts = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    attention = model.get_submodule("blocks.0.attn")
    return Pretrained(
        place, model.state_dict(),
        {"heads": attention.num_heads, "image_size": [*model.patch_embed.img_size]},
        mean=_floats(facts["mean"]), std=_floats(facts["std"]),
    )  # fmt: skip


def timm_name(place: str, key: str) -> str:
    """The name of a timm model, from `timm/<model>` that was given as `key`.

    Raises:
        ConfigError: timm has no such model.
    """
    import timm

    name = place.removeprefix(TIMM)
    if not timm.is_model(name):
        close = nearest(name.partition(".")[0], timm.list_models())
        hint = f"{TIMM}{close}" if close else "a name that timm.list_models() has"
        raise ConfigError(f"{key}={place}: timm has no such model; try {hint}")
    return name


def _short(error: Exception) -> str:
    """The first sentence of a message."""
    return (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]


def _floats(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


READERS: dict[str, Callable[[Path, str], Pretrained]] = {
    ".pt": _of_torch,
    ".pth": _of_torch,
    ".bin": _of_torch,
    ".safetensors": _of_safetensors,
    ".npz": _of_npz,
}
