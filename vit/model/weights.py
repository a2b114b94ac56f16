"""Weights to and from timm's `VisionTransformer`, whose names are ours; to other image sizes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def not_finite(weights: Mapping[str, Any]) -> str | None:
    """The name of the first tensor that holds a number that is not finite; None: all are finite."""
    tensors = ((name, w) for name, w in weights.items() if isinstance(w, Tensor))
    return next((name for name, w in tensors if not w.isfinite().all()), None)


def timm_kwargs(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with which `timm.models.VisionTransformer` reads our state dict as it is.

    timm reads fixed positions as a parameter that it then holds.

    Raises:
        ValueError: rope2d, attention pooling, or attention other than scaled_dot, of which timm's
            plain model has none, or a distillation token, which it gives a position.
    """
    for key, names in {
        "positions": ("learned", "sincos1d", "sincos2d", "none"),
        "pool": ("cls", "mean"),
        "attention": ("scaled_dot",),
        "distillation_token": (False,),
    }.items():
        if spec[key] not in names:
            raise ValueError(f"timm's VisionTransformer has no {key}={spec[key]}")
    from timm.layers.mlp import Mlp, SwiGLU
    from timm.layers.norm import RmsNorm

    return {
        "img_size": tuple(spec["image_size"]),
        "patch_size": spec["patch_size"],
        "in_chans": spec["channels"],
        "num_classes": spec["num_classes"],
        "embed_dim": spec["dim"],
        "depth": spec["depth"],
        "num_heads": spec["heads"],
        "mlp_ratio": (spec["mlp_dim"] + 0.5) / spec["dim"],  # which timm rounds down
        "pos_embed": "none" if spec["positions"] == "none" else "learn",
        "class_token": spec["pool"] == "cls",
        "global_pool": "token" if spec["pool"] == "cls" else "avg",
        "no_embed_class": True,
        "fc_norm": False,
        "reg_tokens": spec["registers"],
        "qkv_bias": spec["qkv_bias"],
        "qk_norm": spec["qk_norm"],
        "init_values": spec["layer_scale"],
        "norm_layer": {"layernorm": None, "rmsnorm": partial(RmsNorm, eps=1e-6)}[spec["norm"]],
        "mlp_layer": {"gelu": Mlp, "swiglu": SwiGLU}[spec["mlp"]],
        "act_layer": {"gelu": nn.GELU, "swiglu": nn.SiLU}[spec["mlp"]],
    }


def from_timm(state: Mapping[str, Tensor], spec: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of `VisionTransformer(**spec)` from that of a timm model of the same shape.

    timm's default gives the class token a position of its own (row 0 of `pos_embed`, (1, 1+N, D)),
    and the distillation token another (row 1); they are constant, so they are folded into the
    tokens.

    Raises:
        ValueError: pooling through `fc_norm`, which our model does not have.
    """
    state = dict(state)
    if any(name.startswith("fc_norm.") for name in state):
        raise ValueError("timm weights with fc_norm: build the timm model with fc_norm=False")
    height, width = spec["image_size"]
    patches = (height // spec["patch_size"]) * (width // spec["patch_size"])
    table = state.get("pos_embed")
    tokens = [token for token in ("cls_token", "dist_token") if token in state]
    if table is not None and table.shape[1] == patches + len(tokens):
        for row, token in enumerate(tokens):
            state[token] = state[token] + table[:, row : row + 1]
        state["pos_embed"] = table[:, len(tokens) :]
    return state


def resized(
    state: Mapping[str, Tensor], spec: Mapping[str, Any], size: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and spec of the same model for images of another size.

    A position table, learned or fixed, is resampled as timm does it (`resample_abs_pos_embed`:
    bicubic, antialiased, in fp32); rotary positions go on with the coordinates. At the model's own
    size nothing changes.

    Args:
        state: of `VisionTransformer(**spec)`.
        spec: its arguments.
        size: height and width in pixels.

    Raises:
        ValueError: `size` is not a multiple of the patch size.
    """
    patch = spec["patch_size"]
    if size[0] % patch or size[1] % patch:
        raise ValueError(f"image_size={size} is not a multiple of patch_size={patch}")
    old, new = ((height // patch, width // patch) for height, width in (spec["image_size"], size))
    state = dict(state)
    if state.get("pos_embed") is not None:
        state["pos_embed"] = resized_positions(state["pos_embed"], old, new)
    return state, {**spec, "image_size": list(size)}


def resized_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions (1, rows * columns, D) of a grid `old` for a grid `new`; see `resized`."""
    if new == old:
        return table
    grid = table.float().mT.reshape(1, -1, *old)  # 1 D rows columns
    grid = F.interpolate(grid, new, mode="bicubic", antialias=True)
    return grid.flatten(2).mT.contiguous().to(table.dtype)
