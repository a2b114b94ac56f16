"""Readers of weight files: runs, safetensors, torch, npz, timm."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vit.artifacts import checkpoint
from vit.errors import ConfigError, nearest
from vit.inference.load import find, trained_on
from vit.runtime import console
from vit.training.pretrained import Pretrained

TIMM = "timm/"


def load_pretrained(place: str) -> Pretrained:
    """The weights that `model.weights` names.

    Args:
        place: a run folder or checkpoint of ours; a file of a timm model (`.safetensors`, `.pth`,
            or the original `.npz`); a folder with `model.safetensors`, as the Hugging Face hub
            has them; or `timm/<model>`, which is downloaded.

    Raises:
        ConfigError: there is no such thing, or it cannot be read.
    """
    if place.startswith(TIMM):
        return _of_timm(place)
    path = Path(place)
    inside = path / "model.safetensors"
    if not path.exists():
        raise ConfigError(
            f"model.weights={place} does not exist; give a run folder, a file or timm/<model>"
        )
    read = READERS.get(path.suffix.lower())
    if path.is_dir():
        read, path = (_of_safetensors, inside) if inside.is_file() else (_of_run, path)
    if read is None:
        raise ConfigError(
            f"model.weights={place} is of no known kind; give a run folder, one of "
            f"{', '.join(READERS)}, or timm/<model>"
        )
    try:
        return read(path, place)
    except ConfigError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise ConfigError(
            f"model.weights={place} cannot be read ({_short(error)}); give a run folder, a file or "
            f"timm/<model>"
        ) from None


def _of_run(path: Path, place: str) -> Pretrained:
    file, content = find(path, console.warn)
    facts = content["preprocessing"]
    return Pretrained(
        place, content["weights"], content["spec"], content["classes"], facts["mean"],
        facts["std"], trained_on(file, content["images"]),
    )  # fmt: skip


def _of_torch(path: Path, place: str) -> Pretrained:
    from timm.models import load_state_dict

    try:
        return _of_run(path, place)
    except checkpoint.BadCheckpointError:
        return Pretrained(place, load_state_dict(str(path), weights_only=True))


def _of_safetensors(path: Path, place: str) -> Pretrained:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        ours = json.loads((file.metadata() or {}).get(checkpoint.IN_SAFETENSORS, "null"))
    if ours is not None:
        seen = ours["preprocessing"]
        return Pretrained(
            place, load_file(path), ours["spec"], ours["classes"], seen["mean"], seen["std"],
            trained_on(path, ours["origin"].get("images")),
        )  # fmt: skip
    beside = path.with_name("config.json")  # as the Hugging Face hub has it
    facts = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    seen, arguments = facts.get("pretrained_cfg", {}), facts.get("model_args") or {}
    known = {"heads": arguments["num_heads"]} if "num_heads" in arguments else {}
    return Pretrained(
        place, load_file(path), known, facts.get("label_names"), _floats(seen.get("mean")),
        _floats(seen.get("std")),
    )  # fmt: skip


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
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # two lines for each retry
    console.say(f"weights  {place}, from the cache or the hub, which is tried for a minute")
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
    """The first sentence of a message, without its remedy."""
    return re.split(r"\. |; ", (str(error) or type(error).__name__).splitlines()[0])[0]


def _floats(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


READERS: dict[str, Callable[[Path, str], Pretrained]] = {
    ".pt": _of_torch,
    ".pth": _of_torch,
    ".bin": _of_torch,
    ".safetensors": _of_safetensors,
    ".npz": _of_npz,
}
