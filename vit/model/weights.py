"""Weights to and from timm's `VisionTransformer`, whose names are ours; to other image sizes; as a
start for a model of other classes, patch size or channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.config.model import ViTConfig
from vit.errors import shortened
from vit.model.layers import MLPS, NORMS
from vit.model.vit import VisionTransformer

PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")
"""Tokens before the patches, in their order."""
SCORE_NAMES = {
    "blocks.0.attn.score.log_scale": "cosine",
    "blocks.0.attn.score.vector": "additive",
    "blocks.0.attn.score.lambda_q1": "differential",
}
"""Parameters that a kind of attention alone has."""
PATCHES = "patch_embed.proj.weight"
OPTIONAL_KEYS = (
    "head", "cls_token", "dist_token", "reg_token", "pos_embed", "pool.", "attn_pool.",
    "pre_logits.", "mask_token",
)  # fmt: skip
"""Beginnings of names that a model may do without: how it reads its tokens, and extra tokens."""


@dataclass(frozen=True)
class LoadReport:
    """What became of weights, each a list of names, with sizes where they changed."""

    taken: list[str]
    resized: list[str]
    new: list[str]
    unused: list[str]


def not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a number that is not finite; None: all are finite."""
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)


def timm_kwargs(config: ViTConfig) -> dict[str, Any]:
    """Arguments with which `timm.models.VisionTransformer` reads our state dict as it is.

    timm reads fixed positions as a parameter that it then holds.

    Raises:
        ValueError: rotary positions, a pooling with attention, or attention other than scaled_dot,
            which timm's plain model has not, or a distillation token, which it gives a position; a
            norm or an MLP of a plug-in.
    """
    for key, names in {
        "positions": ("learned", "sincos1d", "sincos2d", "none"),
        "pool": ("cls", "mean"),
        "attention": ("scaled_dot",),
        "distillation_token": (False,),
        "norm": NORMS,
        "mlp": MLPS,
    }.items():
        if (value := getattr(config, key)) not in names:
            raise ValueError(f"timm's VisionTransformer has no {key}={value}")
    from timm.layers.create_norm import get_norm_layer
    from timm.layers.mlp import Mlp, SwiGLU

    norm = get_norm_layer(config.norm)  # type: ignore[no-untyped-call]
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "num_classes": config.num_classes,
        "embed_dim": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": (config.mlp_dim + 0.5) / config.dim,  # which timm rounds down
        "pos_embed": "none" if config.positions == "none" else "learn",
        "class_token": config.pool == "cls",
        "global_pool": "token" if config.pool == "cls" else "avg",
        "no_embed_class": True,
        "fc_norm": config.pooled_norm,
        "pre_norm": config.pre_norm,
        "reg_tokens": config.registers,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "norm_layer": partial(norm, eps=config.norm_eps),
        "mlp_layer": SwiGLU if config.mlp == "swiglu" else Mlp,
        "act_layer": "silu" if config.mlp == "swiglu" else config.mlp,
    }


def _fit_tokens(state: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """Tokens that `model` has no place of its own for as registers, if they are as many as it has.

    Whatever is neither pooled nor a patch is one: the class token of a model that pools its
    patches, the distillation token where nothing is distilled.
    """
    own = [token for token in PREFIX_TOKENS[:2] if getattr(model, token) is not None]
    others = [state[token] for token in PREFIX_TOKENS if token in state and token not in own]
    if not others or sum(token.shape[1] for token in others) != model.config.registers:
        return state
    kept = {name: w for name, w in state.items() if name in own or name not in PREFIX_TOKENS}
    return {**kept, "reg_token": torch.cat(others, dim=1)}


def resized(
    state: Mapping[str, Tensor], config: ViTConfig, size: tuple[int, int]
) -> tuple[dict[str, Tensor], ViTConfig]:
    """State dict and architecture of the same model for images of another size.

    A position table, learned or fixed, is resampled as timm does it (`resample_abs_pos_embed`:
    bicubic, antialiased, in fp32); rotary positions go on with the coordinates. At the model's own
    size nothing changes.

    Args:
        state: of `VisionTransformer(config)`.
        config: its architecture.
        size: height and width in pixels.

    Raises:
        ValueError: `size` is not a multiple of the patch size.
    """
    other = replace(config, image_size=size)
    state = dict(state)
    if "pos_embed" in state:
        state["pos_embed"] = _resampled(state["pos_embed"], config.grid, other.grid)
    return state, other


def _resampled(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions (1, rows * columns, D) of a grid `old` for a grid `new`; see `resized`."""
    if new == old:
        return table
    grid = table.float().mT.reshape(1, -1, *old)  # 1 D rows columns
    grid = F.interpolate(grid, new, mode="bicubic", antialias=True)
    return grid.flatten(2).mT.contiguous().to(table.dtype)


def spec_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a state dict with timm's names says of its model: options of `ViTConfig`.

    It does not say how many heads there are; `image_size` is there if it is square.

    Raises:
        ValueError: these are no weights of a Vision Transformer with timm's names.
    """
    norm = next((norm for norm in ("norm", "fc_norm") if f"{norm}.weight" in state), None)
    if PATCHES not in state or state[PATCHES].ndim != 4 or norm is None:
        raise ValueError("no weights of a Vision Transformer with timm's names")
    pool = "cls" if "cls_token" in state and norm == "norm" else "mean"
    if "pool.query" in state:
        pool = "map" if "pool.norm.weight" in state else "attention"
        if "cls_token" in state:
            raise ValueError("its pooling takes the class token, too, ours the patches alone")
    dim, channels, patch, _ = state[PATCHES].shape
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    gates = "blocks.0.mlp.fc1_g.weight"
    hidden = state.get(gates, state.get("blocks.0.mlp.fc1.weight"))
    if hidden is None:
        raise ValueError("its blocks are not ours (no blocks.0.mlp.fc1.weight)")
    spec: dict[str, Any] = {
        "patch_size": patch,
        "channels": channels,
        "dim": dim,
        "depth": len(blocks),
        "mlp_dim": len(hidden),
        "mlp": "swiglu" if gates in state else "gelu",
        "norm": "layernorm" if f"{norm}.bias" in state else "rmsnorm",
        "pre_norm": "norm_pre.weight" in state,
        "pooled_norm": norm == "fc_norm",
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "attention": next(
            (kind for name, kind in SCORE_NAMES.items() if name in state), "scaled_dot"
        ),
        "pool": pool,
        "registers": registers_for(state, pool, distillation=False),
    }
    if "pos_embed" in state:
        spec["positions"] = "learned"
        if size := _image_size(state, patch, (0, 0)):
            spec["image_size"] = list(size)
    return spec


def registers_for(state: Mapping[str, Tensor], pool: str, distillation: bool) -> int:
    """How many registers hold the tokens of `state` that have no place of their own in a model.

    The class token has one where `pool` is "cls", the distillation token with `distillation`.
    """
    own = {"cls_token": pool == "cls", "dist_token": distillation}
    return sum(state[t].shape[1] for t in PREFIX_TOKENS if t in state and not own.get(t))


def load_matching(
    model: VisionTransformer, state: Mapping[str, Tensor], image_size: Sequence[int] | None, *,
    same_classes: bool,
) -> LoadReport:  # fmt: skip
    """Give `model` the weights of another, as far as they fit; the others stay as they are.

    Positions are resampled as timm does it (`weights.resized`), the patch embedding by the
    pseudo-inverse of the resize (FlexiViT, Beyer et al. 2023, section 3.4), and its channels are
    summed (to one) or repeated, both by timm.

    Args:
        model: changed in place; in ARCH_KEYS it is as the other.
        state: with timm's names.
        image_size: height and width in pixels of the other's images; None: not known.
        same_classes: the head is taken too, if it has as many classes.

    Raises:
        ValueError: weights of a model with other parts, or positions on an unknown grid.
    """
    resized: list[str] = []
    state = _fit_tokens(_fit_positions(state, image_size, model, resized), model)
    state = _fit_patches(state, model, resized)
    if not same_classes:
        state = {name: tensor for name, tensor in state.items() if not model.is_head(name)}
    wanted = model.state_dict()
    taken = [name for name in wanted if name in state and state[name].shape == wanted[name].shape]
    for reason, names in (
        ("its model has parts that ours has not", state.keys() - wanted.keys()),
        ("they lack parts of the model", wanted.keys() - state.keys()),
        ("they have parts of another size", state.keys() & wanted.keys() - set(taken)),
    ):
        if needed := sorted(name for name in names if not name.startswith(OPTIONAL_KEYS)):
            raise ValueError(f"{reason} ({shortened(needed)})")
    model.load_state_dict({name: state[name] for name in taken}, strict=False)
    return LoadReport(
        taken,
        resized,
        new=[name for name in wanted if name not in taken],
        unused=[name for name in state if name not in taken],
    )


def _fit_positions(
    state: Mapping[str, Tensor], size: Sequence[int] | None, model: VisionTransformer,
    resized: list[str],
) -> dict[str, Tensor]:  # fmt: skip
    """Positions of patches alone, for the grid of `model`; if it is another, `resized` says so.

    timm's default gives the class token a position of its own (row 0 of `pos_embed`, (1, 1+N, D)),
    the distillation token another, and some models their registers. They are constant, so they
    are added to these tokens.
    """
    state, grid = dict(state), model.config.grid
    if "pos_embed" not in state:
        return state
    table, row = state["pos_embed"], 0
    patch = state[PATCHES].shape[-1]
    size = size or _image_size(state, patch, grid)
    if size is None:
        raise ValueError(f"its {table.shape[1]} positions are of no square image")
    rows, columns = (side // patch for side in size)
    if (rows, columns) != grid:
        resized.append(f"positions {rows}x{columns} -> {grid[0]}x{grid[1]}")
    for token in PREFIX_TOKENS:
        if token in state and row < table.shape[1] - rows * columns:
            count = state[token].shape[1]
            state[token] = state[token] + table[:, row : row + count]
            row += count
    state["pos_embed"] = _resampled(table[:, row:], (rows, columns), grid)
    return state


def _fit_patches(
    state: dict[str, Tensor], model: VisionTransformer, resized: list[str]
) -> dict[str, Tensor]:
    """The patch embedding for the channels and patches of `model`; says so in `resized`."""
    from timm.layers.patch_embed import resample_patch_embed
    from timm.models import adapt_input_conv

    patches, channels, side = state[PATCHES], model.config.channels, model.config.patch_size
    if patches.shape[1] != channels:
        resized.append(f"patch embedding {patches.shape[1]} -> {channels} channels")
        patches = adapt_input_conv(channels, patches, base_chans=patches.shape[1])
    if patches.shape[-1] != side:
        resized.append(f"patch embedding {patches.shape[-1]} -> {side} px")
        patches = resample_patch_embed(patches, [side, side])
    return {**state, PATCHES: patches}


def _image_size(
    state: Mapping[str, Tensor], patch: int, wanted: tuple[int, int]
) -> tuple[int, int] | None:
    """Height and width of the images that positions are of: square, or of the grid `wanted`."""
    count = state["pos_embed"].shape[1]
    tokens = [state[token].shape[1] for token in PREFIX_TOKENS if token in state]
    counts = {count, *(count - so_far for so_far in accumulate(tokens))}
    for rows, columns in (*((math.isqrt(n),) * 2 for n in sorted(counts)), wanted):
        if rows * columns in counts:
            return rows * patch, columns * patch
    return None
