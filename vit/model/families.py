"""Weights of other libraries: the names they give to a Vision Transformer's tensors, and ours.

A family is recognised by the name of its patch embedding; what stands before that name (`module.`,
`backbone.`, `visual.trunk.`, ...) is a prefix of all its names. A new one is an entry of FAMILIES.

Legend: D width, K width of a head.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

_HEADS = (
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
_HUGGING_FACE = (
    (r"^embeddings\.register_tokens", "reg_token"),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token)", r"\1"),
    (r"^(?:model\.)?(?:encoder\.)?layers?\.", "blocks."),
    (r"\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(?:intermediate\.dense|mlp\.weights_in)\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    *_HEADS,
)
_FUSED = (
    (r"\.(?:ln_|layer_norm)(\d)\.", r".norm\1."),
    (r"\.(?:attn|self_attention)\.in_proj_", ".attn.qkv."),
    (r"\.(?:attn|self_attn|self_attention)\.out_proj\.", ".attn.proj."),
)
"""Of a block with `torch.nn.MultiheadAttention`, and what is named after it."""


@dataclass(frozen=True)
class Family:
    """How a library names the tensors.

    Attributes:
        name: whose names they are.
        patches: name of the patch embedding's weight.
        names: patterns of all other names, and what takes their place, one after another.
        facts: options of `ViTConfig` that its tensors do not show.
    """

    name: str
    patches: str
    names: tuple[tuple[str, str], ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = (
    Family("timm, DINO, DINOv2, DINOv3 or MAE", "patch_embed.proj.weight", (
        (r"^(?:register_tokens|storage_tokens)$", "reg_token"),
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # in chunks, as DINOv2 trains
        (r"\.gamma_(\d)$", r".ls\1.gamma"),
        (r"\.attn\.([qkv])_(?:proj\.)?(weight|bias)$", r".attn.\1.\2"),
        (r"\.attn\.(lambda_\w+|sub_norm\.weight)$", r".attn.score.\1"),
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w1\.", ".mlp.fc1_g."),
        (r"\.mlp\.w2\.", ".mlp.fc1_x."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
        (r"^attn_pool\.latent$", "pool.query"),
        (r"^attn_pool\.(q|kv|proj)\.", r"pool.attention.\1."),
        (r"^attn_pool\.", "pool."),
    )),
    Family(
        "ViT, DeiT, DINOv2 or ViT-MAE of Hugging Face",
        "embeddings.patch_embeddings.projection.weight", _HUGGING_FACE,
    ),
    Family(
        "DINOv3 of Hugging Face", "embeddings.patch_embeddings.weight", _HUGGING_FACE,
        {"positions": "rope2d_dinov3", "norm_eps": 1e-5},
    ),
    Family("CLIP or SigLIP of Hugging Face", "embeddings.patch_embedding.weight", (
        (r"^embeddings\.class_embedding", "cls_token"),
        (r"^embeddings\.position_embedding\.weight", "pos_embed"),
        (r"^encoder\.layers\.", "blocks."),
        (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
        *_FUSED,
        (r"^pre_layrnorm\.", "norm_pre."),
        (r"^post_layernorm\.", "norm."),
        (r"^head\.probe", "pool.query"),
        (r"^head\.attention\.in_proj_", "pool.attention.qkv."),
        (r"^head\.attention\.out_proj\.", "pool.attention.proj."),
        (r"^head\.layernorm\.", "pool.norm."),
        (r"^head\.mlp\.", "pool.mlp."),
        *_HEADS,
    )),
    Family("CLIP or OpenCLIP", "conv1.weight", (
        (r"^class_embedding", "cls_token"),
        (r"^positional_embedding", "pos_embed"),
        (r"^transformer\.resblocks\.", "blocks."),
        *_FUSED,
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        (r"^ln_pre\.", "norm_pre."),
        (r"^ln_post\.", "norm."),
    )),
    Family("the original ViT and AugReg", "embedding.kernel", (  # of Flax
        (r"^cls$", "cls_token"),
        (r"^Transformer\.posembed_input\.pos_embedding", "pos_embed"),
        (r"^Transformer\.encoderblock_", "blocks."),
        (r"^Transformer\.encoder_norm\.", "norm."),
        (r"\.LayerNorm_0\.", ".norm1."),
        (r"\.LayerNorm_2\.", ".norm2."),
        (r"\.MlpBlock_3\.Dense_0\.", ".mlp.fc1."),
        (r"\.MlpBlock_3\.Dense_1\.", ".mlp.fc2."),
        (r"\.MultiHeadDotProductAttention_1\.([qkv])(?:uery|ey|alue)\.", r".attn.\1."),
        (r"\.MultiHeadDotProductAttention_1\.out\.", ".attn.proj."),
        (r"\.(?:kernel|scale)$", ".weight"),
    )),
    Family("torchvision", "conv_proj.weight", (
        (r"^class_token", "cls_token"),
        (r"^encoder\.pos_embedding", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_", "blocks."),
        *_FUSED,
        (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.head\.", "head."),
    )),
)  # fmt: skip
LEFT_OUT: tuple[tuple[str, str], ...] = (
    (r"(?:^|\.)decoder", "the decoder of a masked autoencoder"),
    (r"mask_token$", "the mask token"),
    (r"^head\.(?:mlp\.\d|last_layer)\.|^(?:dino|ibot)_head\.|^projectors\.", "DINO's projection"),
    (r"^(?:visual\.)?proj$|^visual_projection\.", "the projection into the space of texts"),
    (r"^pooler\.|^pre_logits\.", "the layer before the head"),
    (r"(?:^|\.)rope\w*\.|\.bias_mask$|position_ids$|^local_cls_norm\.", "what is computed here"),
)
"""Patterns of names that are known and not taken, and what they are in words ..."""
OUTSIDE = (
    (r"^text|^token_embedding|^positional_embedding|^transformer\.|^ln_final", "the text model"),
    (r"^logit_", "the scale of its logits"),
    (r"^optim", "the state of an optimiser"),
    (r"^student\.", "the student"),
    (r"^(?!head\.|head_dist\.|(?:cls_|distillation_)?classifier\.)", "parts around the model"),
)
"""... and, of names without the model's prefix, further ones."""


@dataclass(frozen=True)
class Recognised:
    """Weights under our names.

    Attributes:
        family: whose names they were.
        weights: the state dict.
        facts: options of `ViTConfig` that are known besides what the weights say.
        left_out: what was known and not taken, in words, with how many tensors it was.
    """

    family: str
    weights: dict[str, Tensor]
    facts: dict[str, Any]
    left_out: dict[str, int]


def recognise(tensors: Mapping[str, Tensor]) -> Recognised:
    """The weights of a Vision Transformer, whoever named them, under our names.

    Raises:
        ValueError: there are none, or they are not whole.
    """
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    found = [
        (name.removesuffix(family.patches), family)
        for family in FAMILIES
        for name in tensors
        if name == family.patches or name.endswith("." + family.patches)
    ]
    if not found:
        raise ValueError("no weights of a Vision Transformer with names that are known")
    if any(name.endswith("rope.freqs") for name in tensors):
        raise ValueError("its rotary frequencies are learned (RoPE-Mixed), ours are fixed")
    # of several models in a file the average, else the teacher, else the one that is least deep
    prefix, family = min(found, key=lambda f: ("ema" not in f[0], "teacher" not in f[0], len(f[0])))
    layer = re.escape(family.patches.rpartition(".")[0])
    names = ((rf"^{layer}\.", "patch_embed.proj."), *family.names)
    rooms = [*accumulate(re.findall(r"[^.]*\.", prefix), initial="")][::-1]
    weights: dict[str, Tensor] = {}
    left_out: Counter[str] = Counter()
    for name, tensor in tensors.items():
        is_inside = name.startswith(prefix)
        inner = name.removeprefix(next(room for room in rooms if name.startswith(room)))
        known = LEFT_OUT if is_inside else LEFT_OUT + OUTSIDE
        if words := next((words for pattern, words in known if re.search(pattern, inner)), None):
            left_out[words] += 1
            continue
        for pattern, ours in names if is_inside else _HEADS:
            inner = re.sub(pattern, ours, inner)
        weights[inner] = tensor
    facts = {**family.facts, **_told_by(tensors, weights)}
    return Recognised(family.name, _in_our_layout(weights), facts, dict(left_out))


def _told_by(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What names say of a model besides its parts: how it encodes positions, a CLIP's epsilon."""
    scaled = any(name.endswith(".gamma_1") for name in tensors)
    positioned = "pos_embed" in weights
    keyless = "blocks.0.attn.q.bias" in weights and "blocks.0.attn.k.bias" not in weights
    if any(".periods" in name for name in tensors) or (
        scaled and "reg_token" in weights and not positioned
    ):
        return {"positions": "rope2d_dinov3", "norm_eps": 1e-5}
    if "norm_pre.weight" in weights:
        return {"norm_eps": 1e-5}
    if scaled and not keyless:
        return {"positions": "learned+rope2d" if positioned else "rope2d"}
    if keyless and positioned and not scaled:
        return {"positions": "learned+rope2d_eva02"}
    return {}


def _in_our_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one matrix, gates in two, tokens of the shapes that ours have.

    Raises:
        ValueError: a part of one block is missing that others have.
    """
    out = dict(weights)
    parts = [m for m in (re.match(r"(.*\.attn)\.([qkv])\.(\w+)$", name) for name in weights) if m]
    blocks, kinds = sorted({m[1] for m in parts}), {m.expand(r"\2.\3") for m in parts}
    if lacking := [f"{b}.{kind}" for b in blocks for kind in kinds if f"{b}.{kind}" not in out]:
        raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    for block in blocks:
        for kind in {kind.partition(".")[2] for kind in kinds}:
            some = next(f"{block}.{part}.{kind}" for part in "qkv" if f"{part}.{kind}" in kinds)
            nothing = torch.zeros_like(out[some])  # the keys of some have no bias
            rows = [out.pop(f"{block}.{part}.{kind}", nothing) for part in "qkv"]
            out[f"{block}.qkv.{kind}"] = torch.cat(rows)
    for joined in ("qkv", "kv"):
        for name in [name for name in out if name.startswith(f"pool.attention.{joined}.")]:
            kind = name.rpartition(".")[2]
            for part, row in zip(joined, out.pop(name).chunk(len(joined)), strict=True):
                out[f"pool.attention.{part}.{kind}"] = row
    for name in [name for name in out if re.search(r"\.mlp\.fc1(_x)?\.", name)]:
        mlp, layer, kind = name.rsplit(".", 2)
        narrow = out.get(f"{mlp}.fc2.weight")
        if layer == "fc1_x" and f"{mlp}.fc1_g.{kind}" not in out:
            out[f"{mlp}.fc1.{kind}"] = out.pop(name)
        elif layer == "fc1" and narrow is not None and len(out[name]) == 2 * narrow.shape[-1]:
            out[f"{mlp}.fc1_g.{kind}"], out[f"{mlp}.fc1_x.{kind}"] = out.pop(name).chunk(2)
    for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        if name in out:
            out[name] = out[name].reshape(1, -1, out[name].shape[-1])
    if "pool.query" in out:
        out["pool.query"] = out["pool.query"].flatten()
    return {name: tensor for name, tensor in out.items() if tensor.numel()}


def rotated_as_ours(weights: Mapping[str, Tensor], heads: int, positions: str) -> dict[str, Tensor]:
    """Queries and keys whose features stand in the order in which ours are rotated.

    Ours are pairs (j, j + K/2), first those of the column, then those of the row. DINOv3's begin
    with the row; EVA-02's and RoPE-ViT's are neighbours, EVA-02's begin with the row.

    Args:
        weights: under our names.
        heads, positions: of the model, as in `ViTConfig`.
    """
    out = dict(weights)
    for name, tensor in weights.items():
        if not re.search(r"\.attn\.(?:qkv|q_norm|k_norm)\.", name):
            continue
        order = torch.arange(weights["patch_embed.proj.weight"].shape[0] // heads)
        if positions != "rope2d_dinov3":
            order = order.view(-1, 2).T.flatten()
        if positions in ("rope2d_dinov3", "learned+rope2d_eva02"):
            order = order.view(2, 2, -1).flip(1).flatten()
        rows = tensor.reshape(-1, len(order), *tensor.shape[1:])
        both = 2 * heads if ".qkv." in name else 1  # values are not rotated
        out[name] = torch.cat([rows[:both, order], rows[both:]]).flatten(0, 1)
    return out
