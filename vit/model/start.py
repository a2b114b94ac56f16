"""To start from weights of a model of other classes, image size, patch size or channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vit.model.vit import VisionTransformer
from vit.model.weights import from_timm, resized_positions

PATCHES = "patch_embed.proj.weight"
SAME = (
    "dim", "depth", "heads", "mlp_dim", "mlp", "norm", "layer_scale", "qkv_bias", "qk_norm",
    "attention", "positions",
)  # fmt: skip
"""What of a spec must agree; image and patch size, channels, classes, tokens, pooling need not."""

LEFT_OUT = (
    "head", "cls_token", "dist_token", "reg_token", "pos_embed", "pool.", "attn_pool.",
    "pre_logits.", "mask_token",
)  # fmt: skip
"""Beginnings of names that a model may do without: how it reads its tokens, and extra tokens."""


class MismatchError(ValueError):
    """Weights of a model of another shape; `spec` says of which, as far as the weights show it."""

    def __init__(self, reason: str, spec: Mapping[str, Any]) -> None:
        super().__init__(reason)
        self.spec = dict(spec)


@dataclass(frozen=True)
class Start:
    """What became of weights, each a list of names, with sizes where they changed."""

    taken: list[str]
    resized: list[str]
    new: list[str]
    unused: list[str]


def spec_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a state dict with timm's names says of its model: keys of `VisionTransformer.spec`.

    It does not say how many heads there are; `image_size` is there if it is square.

    Raises:
        ValueError: these are no weights of a Vision Transformer with timm's names.
    """
    if "fc_norm.weight" in state:
        raise ValueError("weights of a model with a norm after the pooling (fc_norm)")
    if state.get(PATCHES) is None or state[PATCHES].ndim != 4 or "norm.weight" not in state:
        raise ValueError("no weights of a Vision Transformer with timm's names")
    dim, channels, patch, _ = state[PATCHES].shape
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    gates = "blocks.0.mlp.fc1_g.weight"
    hidden = state.get(gates, state.get("blocks.0.mlp.fc1.weight"))
    spec: dict[str, Any] = {
        "patch_size": patch,
        "channels": channels,
        "dim": dim,
        "depth": len(blocks),
        "mlp_dim": 0 if hidden is None else len(hidden),
        "mlp": "swiglu" if gates in state else "gelu",
        "norm": "layernorm" if "norm.bias" in state else "rmsnorm",
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "pool": "cls" if "cls_token" in state else "mean",
        "registers": state["reg_token"].shape[1] if "reg_token" in state else 0,
    }
    if "pos_embed" in state:
        spec["positions"] = "learned"
        size = _image_size(state, patch, (0, 0))
        if size is not None:
            spec["image_size"] = list(size)
    return spec


def start_from(
    model: VisionTransformer,
    state: Mapping[str, Tensor],
    known: Mapping[str, Any],
    *,
    same_classes: bool,
) -> Start:
    """Give `model` the weights of another, as far as they fit; the others stay as they are.

    Positions are resampled as timm does it (`weights.resized`), the patch embedding by the
    pseudo-inverse of the resize (FlexiViT, Beyer et al. 2023, section 3.4), and its channels are
    summed (to one) or repeated, both by timm.

    Args:
        model: changed in place.
        state: with timm's names.
        known: what is known of the other model's spec besides what the weights say.
        same_classes: the head is taken too, if it has as many classes.

    Raises:
        MismatchError: the other model's blocks are not those of `model`.
        ValueError: no weights of such a model, or of one with other parts, or positions on an
            unknown grid.
    """
    theirs = {**spec_of(state), **known}
    if any(key in theirs and differs(key, theirs, model.spec) for key in SAME):
        raise MismatchError("a model of another shape", theirs)
    resized: list[str] = []
    state = _fit_patches(_fit_positions(state, theirs, model, resized), model, resized)
    if not same_classes:
        state = {name: tensor for name, tensor in state.items() if not model.is_head(name)}
    wanted = model.state_dict()
    foreign = [name for name in state if name not in wanted and not name.startswith(LEFT_OUT)]
    if foreign:
        raise ValueError(f"its model has parts that ours has not ({', '.join(foreign)})")
    taken = [name for name in wanted if name in state and state[name].shape == wanted[name].shape]
    model.load_state_dict({name: state[name] for name in taken}, strict=False)
    return Start(
        taken,
        resized,
        new=[name for name in wanted if name not in taken],
        unused=[name for name in state if name not in taken],
    )


def _fit_positions(
    state: Mapping[str, Tensor], theirs: Mapping[str, Any], model: VisionTransformer,
    resized: list[str],
) -> dict[str, Tensor]:  # fmt: skip
    """Positions of patches alone, for the grid of `model`; if it is another, `resized` says so."""
    if state.get("pos_embed") is None:
        return dict(state)
    grid = (model.coordinates.shape[0], model.coordinates.shape[1])
    size = theirs.get("image_size") or _image_size(state, theirs["patch_size"], grid)
    if size is None:
        count = state["pos_embed"].shape[1]
        raise ValueError(f"its {count} positions are of no square image")
    rows, columns = (side // theirs["patch_size"] for side in size)
    if (rows, columns) != grid:
        resized.append(f"positions {rows}x{columns} -> {grid[0]}x{grid[1]}")
    alone = from_timm(state, {**theirs, "image_size": size})
    alone["pos_embed"] = resized_positions(alone["pos_embed"], (rows, columns), grid)
    return alone


def _fit_patches(
    state: dict[str, Tensor], model: VisionTransformer, resized: list[str]
) -> dict[str, Tensor]:
    """The patch embedding for the channels and patches of `model`; says so in `resized`."""
    from timm.layers.patch_embed import resample_patch_embed
    from timm.models import adapt_input_conv

    patches, channels, side = state[PATCHES], model.spec["channels"], model.spec["patch_size"]
    if patches.shape[1] != channels:
        resized.append(f"patch embedding {patches.shape[1]} -> {channels} channels")
        patches = adapt_input_conv(channels, patches, base_chans=patches.shape[1])
    if patches.shape[-1] != side:
        resized.append(f"patch embedding {patches.shape[-1]} -> {side} px")
        patches = resample_patch_embed(patches, [side, side])
    return {**state, PATCHES: patches}


def differs(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two specs disagree; of LayerScale only whether there is one, not where it starts."""
    if key == "layer_scale":
        return (one[key] is None) != (other[key] is None)
    return bool(one[key] != other[key])


def _image_size(
    state: Mapping[str, Tensor], patch: int, wanted: tuple[int, int]
) -> tuple[int, int] | None:
    """Height and width of the images that positions are of: square, or of the grid `wanted`."""
    count = state["pos_embed"].shape[1]
    counts = {count, count - sum(name in state for name in ("cls_token", "dist_token"))}
    for rows, columns in (*((math.isqrt(n),) * 2 for n in sorted(counts)), wanted):
        if rows * columns in counts:
            return rows * patch, columns * patch
    return None
