"""Weights of other libraries: the names they give to a Vision Transformer's tensors, and ours.

A family is recognised by the name of its patch embedding; what stands before that name (`module.`,
`backbone.`, `visual.trunk.`, ...) is a prefix of all its names. A new one is an entry of FAMILIES,
and what of its names is new in NAMES.

Legend: D width, K width of a head.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

FAMILIES = {
    "patch_embed.proj.weight": "timm, DINO, DINOv2, DINOv3 or MAE",
    "embeddings.patch_embeddings.projection.weight": "ViT, DeiT, DINOv2 or ViT-MAE of Hugging Face",
    "embeddings.patch_embeddings.weight": "DINOv3 of Hugging Face",
    "embeddings.patch_embedding.weight": "CLIP or SigLIP of Hugging Face",
    "conv1.weight": "CLIP or OpenCLIP",
    "embedding.kernel": "the original ViT and AugReg",
    "conv_proj.weight": "torchvision",
}
"""Whose names they are, by that of the patch embedding's weight."""
NAMES = (
    (r"^(?:embeddings\.patch_embeddings?(?:\.projection)?|conv1|embedding|conv_proj)\.",
     "patch_embed.proj."),
    (r"^(?:cls|class_token|(?:embeddings\.)?class_embedding|embeddings\.cls_token)$", "cls_token"),
    (r"^(?:(?:embeddings\.)?register_tokens|storage_tokens)$", "reg_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^(?:embeddings\.position_embedding(?:s|\.weight)|positional_embedding)$", "pos_embed"),
    (r"^(?:encoder|Transformer\.posembed_input)\.pos_embedding$", "pos_embed"),
    (r"^(?:attn_pool\.latent|head\.probe)$", "pool.query"),
    (r"^attn_pool\.(q|kv|proj)\.", r"pool.attention.\1."),
    (r"^head\.attention\.in_proj_", "pool.attention.qkv."),
    (r"^head\.attention\.out_proj\.", "pool.attention.proj."),
    (r"^head\.layernorm\.", "pool.norm."),
    (r"^(?:attn_pool|head(?=\.mlp))\.", "pool."),
    (r"^(?:(?:cls_)?classifier|heads\.head)\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # in chunks, as DINOv2 trains
    (r"^(?:transformer\.resblocks\.|Transformer\.encoderblock_)", "blocks."),
    (r"^(?:model\.)?(?:encoder\.)?layers?\.(?:encoder_layer_)?", "blocks."),
    (r"^(?:pre_layrnorm|ln_pre)\.", "norm_pre."),
    (r"\.(?:ln_1|layer_norm1|layernorm_before|LayerNorm_0)\.", ".norm1."),
    (r"\.(?:ln_2|layer_norm2|layernorm_after|LayerNorm_2)\.", ".norm2."),
    (r"^(?:layernorm|post_layernorm|ln_post|encoder\.ln|Transformer\.encoder_norm)\.", "norm."),
    (r"\.(?:self_attn|self_attention|MultiHeadDotProductAttention_1)\.", ".attn."),
    (r"(?<!^pool)\.attention\.(?:attention\.)?", ".attn."),
    (r"\.attn\.([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.attn\.([qkv])_(weight|bias)$", r".attn.\1.\2"),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.(?:output\.dense|o_proj|out_proj|out)\.", ".attn.proj."),
    (r"\.attn\.(lambda_\w+|sub_norm\.weight)$", r".attn.score.\1"),
    (r"\.(?:intermediate\.dense|MlpBlock_3\.Dense_0)\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.(?:output\.dense|MlpBlock_3\.Dense_1)\.", r"\1.mlp.fc2."),
    (r"\.mlp\.(?:w12|weights_in|c_fc|0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:w1|gate_proj)\.", ".mlp.fc1_g."),
    (r"\.mlp\.(?:w2|up_proj)\.", ".mlp.fc1_x."),
    (r"\.mlp\.(?:w3|weights_out|down_proj|c_proj|3|linear_2)\.", ".mlp.fc2."),
    (r"\.(?:gamma_(\d)|layer_scale(\d)\.lambda1)$", r".ls\1\2.gamma"),
    (r"\.(?:kernel|scale)$", ".weight"),  # of Flax
)  # fmt: skip
"""Patterns of names within the model, and what takes their place, one after another."""
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
        of_imagenet: it saw images normalised by ImageNet's mean and deviation, as DINOv2, DINOv3
            and DeiT III did, which have LayerScale; BEiT, which has it too, did not.
    """

    family: str
    weights: dict[str, Tensor]
    facts: dict[str, Any]
    left_out: dict[str, int]
    of_imagenet: bool


def recognise(tensors: Mapping[str, Tensor]) -> Recognised:
    """The weights of a Vision Transformer, whoever named them, under our names.

    Raises:
        ValueError: there are none, or they are not whole.
    """
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    found = [
        (name.removesuffix(patches), patches)
        for patches in FAMILIES
        for name in tensors
        if name == patches or name.endswith("." + patches)
    ]
    if not found:
        raise ValueError("no weights of a Vision Transformer with names that are known")
    if any(name.endswith("rope.freqs") for name in tensors):
        raise ValueError("its rotary frequencies are learned (RoPE-Mixed), ours are fixed")
    # of several models in a file the average, else the teacher, else the one that is least deep
    prefix, patches = min(
        found, key=lambda f: ("ema" not in f[0], "teacher" not in f[0], len(f[0]))
    )
    rooms = [*accumulate(re.findall(r"[^.]*\.", prefix), initial="")][::-1]
    weights: dict[str, Tensor] = {}
    left_out: Counter[str] = Counter()
    for name, tensor in tensors.items():
        inner = name.removeprefix(next(room for room in rooms if name.startswith(room)))
        known = LEFT_OUT if name.startswith(prefix) else LEFT_OUT + OUTSIDE
        if words := next((words for pattern, words in known if re.search(pattern, inner)), None):
            left_out[words] += 1
            continue
        for pattern, ours in NAMES:
            inner = re.sub(pattern, ours, inner)
        weights[inner] = tensor
    is_beit = any(name.endswith("attn.q_bias") for name in tensors)
    return Recognised(
        FAMILIES[patches], _in_our_layout(weights), _told_by(tensors, weights), dict(left_out),
        of_imagenet="blocks.0.ls1.gamma" in weights and not is_beit,
    )  # fmt: skip


def _told_by(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What names say of a model besides its parts: how it encodes positions, a CLIP's epsilon."""
    scaled = any(name.endswith(".gamma_1") for name in tensors)
    positioned = "pos_embed" in weights
    keyless = "blocks.0.attn.q.bias" in weights and "blocks.0.attn.k.bias" not in weights
    turned = any(re.search(r"\.periods|embeddings\.patch_embeddings\.weight$", n) for n in tensors)
    if turned or (scaled and "reg_token" in weights and not positioned):
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
