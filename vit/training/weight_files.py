"""Readers of weight files: runs, safetensors, torch, npz, folders of the hub, timm."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit.artifacts import checkpoint
from vit.config.model import ViTConfig
from vit.errors import ConfigError, first_line, nearest
from vit.inference.load import find, trained_on
from vit.model.families import recognise
from vit.model.layers import MLPS
from vit.model.vit import VisionTransformer
from vit.model.weights import PATCHES
from vit.runtime import console
from vit.training.pretrained import Pretrained

TIMM = "timm/"
GELUS = {
    "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu", "silu": "swiglu", "GELU": "gelu", "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu", "SiLU": "swiglu",
}  # fmt: skip
"""`model.mlp` of an activation as Hugging Face or timm calls it."""


def load_pretrained(place: str) -> Pretrained:
    """The weights that `model.weights` names.

    Args:
        place: a run folder or checkpoint of ours; a file of weights whose names a family of
            `vit.model.families` has (`.safetensors`, `.pth`, `.pt`, `.ckpt`, `.tar`, `.bin`, or the
            original `.npz`); a folder as the Hugging Face hub has it; or `timm/<model>`, which is
            downloaded.

    Raises:
        ConfigError: there is no such thing, or it cannot be read.
    """
    if place.startswith(TIMM):
        return _of_timm(place)
    path = Path(place)
    if not path.exists():
        raise ConfigError(
            f"model.weights={place} does not exist; give a run folder, a file or timm/<model>"
        )
    read = _of_folder if path.is_dir() else READERS.get(path.suffix.lower())
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
    return _of_ours(place, *find(path, console.warn))


def _of_ours(place: str, path: Path, content: Mapping[str, Any]) -> Pretrained:
    seen = content["preprocessing"]
    return Pretrained(
        place, content["weights"], content["spec"], content["classes"], seen["mean"], seen["std"],
        trained_on(path, content["images"]),
    )  # fmt: skip


def _of_torch(path: Path, place: str) -> Pretrained:
    content = checkpoint.foreign(path)
    if isinstance(content, dict) and "format_version" in content:
        return _of_run(path, place)
    arch = content.get("arch") if isinstance(content, dict) else None
    return _recognised(place, dict(_tensors(content)), _facts_of_timm(arch, {}))


def _of_safetensors(path: Path, place: str) -> Pretrained:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        ours = json.loads((file.metadata() or {}).get(checkpoint.IN_SAFETENSORS, "null"))
    if ours is None:
        return _recognised(place, load_file(path), {})
    images = ours["origin"].get("images")
    return _of_ours(place, path, {**ours, "weights": load_file(path), "images": images})


def _of_folder(path: Path, place: str) -> Pretrained:
    """A run, or what the Hugging Face hub has of timm or transformers, in one file or several."""
    from safetensors.torch import load_file

    files = next(filter(None, (sorted(path.glob(name)) for name in IN_FOLDERS)), None)
    if files is None:
        return _of_run(path, place)
    tensors: dict[str, Tensor] = {}
    for file in files:
        safe = file.suffix == ".safetensors"
        tensors |= load_file(file) if safe else dict(_tensors(checkpoint.foreign(file)))

    def beside(name: str) -> dict[str, Any]:
        file = path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    config, images = beside("config.json"), beside("preprocessor_config.json")
    if "model_type" in config:
        labels = sorted((config.get("id2label") or {}).items(), key=lambda label: int(label[0]))
        named = [str(name) for _, name in labels]
        classes = None if all(name.startswith("LABEL_") for name in named) else named
        return _recognised(
            place, tensors, _facts_of_transformers(config), classes, images.get("image_mean"),
            images.get("image_std"),
        )  # fmt: skip
    seen = config.get("pretrained_cfg", {})
    facts = _facts_of_timm(config.get("architecture"), config.get("model_args") or {})
    return _recognised(
        place, tensors, facts, config.get("label_names"), seen.get("mean"), seen.get("std")
    )


def _recognised(
    place: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any],
    classes: list[str] | None = None, mean: Any = None, std: Any = None,
) -> Pretrained:  # fmt: skip
    """Weights that others named; `facts` of `ViTConfig` hold before what the names say."""
    known = {key: value for key, value in facts.items() if value is not None}
    try:
        found = recognise(tensors)
        if known.get("mlp", "gelu") not in MLPS:
            raise ValueError(f"its MLP has {known['mlp']}, ours one of {', '.join(MLPS)}")
    except ValueError as error:
        raise ConfigError(f"model.weights={place} cannot be used: {error}") from None
    if mean is None and found.of_imagenet:
        from timm.data.constants import IMAGENET_DEFAULT_MEAN as mean
        from timm.data.constants import IMAGENET_DEFAULT_STD as std
    if known.pop("dim", None) not in (None, len(found.weights[PATCHES])):  # changed by its trainer
        del known["heads"]
    return Pretrained(
        place, found.weights, {**found.facts, **known}, classes, _floats(mean), _floats(std),
        family=found.family, left_out=found.left_out,
    )  # fmt: skip


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested dictionaries, with the keys that lead to it."""
    if isinstance(content, Tensor) and content.is_floating_point():
        yield name, content.float()
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _facts_of_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json of transformers says of the model.

    Raises:
        ConfigError: rotary positions with another base than ours.
    """
    vision = config.get("vision_config") or config
    if vision.get("rope_theta", 100.0) != 100.0:
        raise ConfigError(f"rotary positions with the base {vision['rope_theta']}, ours have 100")
    act, size = vision.get("hidden_act", "gelu"), vision.get("image_size")
    gated = vision.get("use_gated_mlp") or vision.get("use_swiglu_ffn")
    return {
        "heads": vision.get("num_attention_heads"),
        "norm_eps": vision.get("layer_norm_eps"),
        "mlp": "swiglu" if gated else GELUS.get(act, act),
        "image_size": [size, size] if isinstance(size, int) else size,
    }


def _facts_of_timm(name: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What timm knows of its model `name`; of others nothing but what `arguments` say."""
    import timm

    if isinstance(name, str) and timm.is_model(name):
        # it may be no Vision Transformer, or this timm has not its arguments
        with contextlib.suppress(Exception), torch.device("meta"):
            return _facts_of(timm.create_model(name, **arguments))
    return {"heads": arguments.get("num_heads")}


def _facts_of(model: Any) -> dict[str, Any]:
    """What a timm model says of itself that its weights do not show, by options of `ViTConfig`."""
    block, rope = model.blocks[0], getattr(model, "rope", None)
    act = type(getattr(block.mlp, "act", None)).__name__
    facts = {
        "dim": model.embed_dim,
        "heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
        "mlp": GELUS.get(act, act),
    }
    if rope is not None and type(rope).__name__ == "RotaryEmbeddingDinoV3":
        facts["positions"] = "rope2d_dinov3"
    elif rope is not None:
        far = "learned+rope2d_eva02" if rope.temperature == 10000 else "learned+rope2d"
        facts["positions"] = far if model.pos_embed is not None else "rope2d"
    return facts


def _of_npz(path: Path, place: str) -> Pretrained:
    """The original weights, of Flax (Dosovitskiy et al. 2021; AugReg, Steiner et al. 2022)."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name.replace("/", "."): torch.from_numpy(file[name]) for name in file.files}
    heads = {w.shape[1] for name, w in arrays.items() if name.endswith(".query.kernel")}
    half = [0.5] * next((w.shape[2] for w in arrays.values() if w.ndim == 4), 0)
    tensors = {name: _as_torch_has_it(name, w) for name, w in arrays.items()}
    return _recognised(place, tensors, {"heads": max(heads, default=None)}, None, half, half)


def _as_torch_has_it(name: str, weights: Tensor) -> Tensor:
    """Weights of Flax, whose kernels are (inputs, outputs), or of an image (P, P, C, D)."""
    if not name.endswith(".kernel"):
        return weights.flatten() if name.endswith(".bias") else weights
    if weights.ndim == 4:
        return weights.permute(3, 2, 0, 1)
    return weights.flatten(0, -2).T if ".out." in name else weights.flatten(1).T


def _of_timm(place: str) -> Pretrained:
    import timm
    from timm.data.config import resolve_model_data_config

    name = timm_name(place, "model.weights")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # two lines for each retry
    console.say(f"weights  {place}, from the cache or the hub, which is tried for a minute")
    try:
        model: Any = timm.create_model(name, pretrained=True).eval()
    except Exception as error:
        raise ConfigError(
            f"model.weights={place} could not be downloaded ({_short(error)}); "
            f"give a file of it: model.weights=<.safetensors, .pth or .npz>"
        ) from None
    facts = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    with contextlib.suppress(Exception):  # a model of another kind fails in many ways
        known = {**_facts_of(model), "image_size": [*model.patch_embed.img_size]}
        found = _recognised(place, model.state_dict(), known, None, facts["mean"], facts["std"])
        if _agree(model, found):
            return found
    raise ConfigError(
        f"model.weights={place} is a {type(model).__name__} of a kind that ours is not; "
        f"try timm/vit_small_patch16_224"
    )


@torch.no_grad()
def _agree(theirs: Any, found: Pretrained) -> bool:
    """Whether our model with these weights sees in noise what timm's sees."""
    spec = found.architecture
    ours = VisionTransformer(ViTConfig(**spec, num_classes=1)).eval()
    found.into(ours, ["noise"])
    noise = torch.randn(1, spec["channels"], *spec["image_size"])
    tokens, other = ours.forward_features(noise), theirs.forward_features(noise)
    same = torch.allclose(tokens, other, rtol=1e-3, atol=1e-3)
    if same and spec["pool"] != "cls":
        pooled, other = (m.forward_head(tokens, pre_logits=True) for m in (ours, theirs))
        same = torch.allclose(pooled, other, rtol=1e-3, atol=1e-3)
    return same


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
    return re.split(r"\. |; ", first_line(error))[0]


def _floats(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


IN_FOLDERS = (
    "model.safetensors", "model-*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin",
)  # fmt: skip
"""Patterns of the files of weights of a folder: the first that is there."""
READERS: dict[str, Callable[[Path, str], Pretrained]] = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".tar", ".bin"), _of_torch),
    ".safetensors": _of_safetensors,
    ".npz": _of_npz,
}
