"""Explanations: attention maps, rollout, relevance; and what a model has learned, as arrays.

Legend: B batch, C channels, L blocks, H heads, T tokens (prefix + patches).

Every function takes a model in eval mode and normalised images (B, C, height, width), on its device
and of its size or smaller, and answers on the grid of their patches (rows, columns). Of padded
images `mask`, boolean (B, patches), says which patches exist; the others get 0. Attention and
rollout say where information came from, whatever was decided; relevance what spoke for a class.
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.data.padding import unpadded
from vit.model.attention import Dot
from vit.model.vit import Block, VisionTransformer

MOST_TOKENS = 1100
"""The attention maps of longer sequences take much memory: they are drawn only where asked for."""


def recorded_forward(
    model: VisionTransformer, images: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Logits; the attention weights they are computed from, (B, H, T, T) of each block; and how
    much the pooling takes of each token, (B, T).

    The logits can be differentiated by the weights, with the norms as `detached_norm` takes them.
    """
    maps: list[Tensor] = []

    def from_weights(score: Dot, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        q, k, v, mask = inputs
        maps.append(score.weights(q, k, mask))
        return score.mix(maps[-1], v)

    def detached(norm: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        is_known = isinstance(norm, nn.LayerNorm | nn.RMSNorm)  # a plug-in's stays as it is
        return detached_norm(norm, *inputs) if is_known else out

    blocks = [block for block in model.blocks if isinstance(block, Block)]
    outer = (model.norm_pre, model.norm, model.fc_norm)
    inner = (norm for block in blocks for norm in (block.norm1, block.norm2))
    norms = [norm for norm in (*outer, *inner) if not isinstance(norm, nn.Identity)]
    with contextlib.ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.register_forward_hook(detached))
        for block in blocks:
            hooks.enter_context(block.attn.score.register_forward_hook(from_weights))
        x, mask = model.encode(images, mask)
        logits = model.forward_head(x, mask)
    return logits, maps, model.pool.reading(x, model.prefix, mask)


def _as_shares(model: VisionTransformer, maps: list[Tensor]) -> list[Tensor]:
    """Attention maps whose rows sum to 1: what differential attention takes away counts as 0."""
    if model.config.attention != "differential":
        return maps
    return [F.normalize(weights.clamp(min=0), p=1, dim=-1) for weights in maps]


def detached_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, (..., D), whose gradient takes what it divides by as given (Ali et al. 2022).

    With the true gradient a branch that decides everything counts for nothing: more of it makes a
    vector longer, which the norm undoes.
    """
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    assert norm.eps is not None
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(dim=-1, keepdim=True)
    size = (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt().detach()
    out = x / size * norm.weight
    return out + norm.bias if isinstance(norm, nn.LayerNorm) else out


@torch.no_grad()
def attention_maps(
    model: VisionTransformer, images: Tensor, mask: Tensor | None = None
) -> list[Tensor]:
    """The attention weights of every block, each (B, H, T, T)."""
    return recorded_forward(model, images, mask)[1]


@torch.no_grad()
def class_attention(model: VisionTransformer, images: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much the pooled tokens look at each patch, in every block and head: (B, L, H, rows,
    columns), each map at least 0 and in sum at most 1.

    With `pool=cls` the class token; with `mean` the mean over the patches; with `attention` the
    patches as its weights, averaged over heads, mix them.
    """
    _, maps, pooled = recorded_forward(model, images, mask)
    looks = pooled[:, None, None, None] @ torch.stack(_as_shares(model, maps), dim=1)  # B L H 1 T
    return _on_patches(model, images, looks[..., 0, :])


@torch.no_grad()
def rollout(model: VisionTransformer, images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020), read out as the logits read the tokens: (B, rows,
    columns), at least 0 and in sum at most 1.

    Of every block: attention averaged over heads, half of it and half of the residual connection,
    multiplied through the blocks.
    """
    _, maps, pooled = recorded_forward(model, images, mask)
    flow = _read(model, pooled)[:, None]  # B 1 T
    for weights in reversed(_as_shares(model, maps)):
        flow = (flow @ weights.mean(dim=1) + flow) / 2
    return _on_patches(model, images, flow[:, 0])


def relevance(
    model: VisionTransformer, images: Tensor, classes: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Relevance of each patch for a class (Chefer, Gur & Wolf 2021, section 3.1).

    Attention weights count by how much they raise the logit, none below 0 and averaged over heads
    (eq. 5), and add up over the blocks (eq. 6). Unlike the paper's, the gradient takes the norms as
    `detached_norm` does: by the true one a patch that decides everything counts for little. A class
    that is known by what is absent has no patch to show. `classes` are integers (B,).

    Returns:
        (B, rows, columns), at least 0; comparable within an image, not between images.
    """
    with torch.enable_grad():
        logits, maps, pooled = recorded_forward(model, images.detach().requires_grad_(), mask)
        slopes = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps)
    flow = _read(model, pooled.detach())[:, None]  # B 1 T
    for weights, slope in zip(reversed(maps), reversed(slopes), strict=True):
        flow = flow + flow @ (slope * weights.detach()).clamp(min=0).mean(dim=1)
    return _on_patches(model, images, flow[:, 0])


def heat(values: Tensor) -> Tensor:
    """Maps (..., rows, columns) for drawing: the least of each is 0, its most is 1.

    A map that is constant, to rounding, is 0 everywhere.
    """
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    span = high - low
    flat = span <= 1e-5 * high.abs()
    return torch.where(flat, 0.0, (values - low) / span.where(~flat, 1.0))


def heat_of_each(maps: Tensor, mask: Tensor | None) -> list[np.ndarray]:
    """`heat` of each image's maps, of (B, ..., rows, columns), without padding and on the host."""
    return [heat(values).cpu().numpy() for values in unpadded(maps, mask)]


def pictures_of_each(images: Tensor, mask: Tensor | None) -> list[np.ndarray]:
    """Pixels in [0, 1], (B, C, height, width), as RGB images without padding: uint8 (H, W, 3)."""
    pixels = (255 * images).round().byte().expand(-1, 3, -1, -1).cpu()
    return [picture.permute(1, 2, 0).numpy() for picture in unpadded(pixels, mask)]


def _read(model: VisionTransformer, pooled: Tensor) -> Tensor:
    """How much the logits take of each token, (B, T); `pooled`: how much the pooling does.

    With a distillation token they are the mean of what two heads say.
    """
    if model.head_dist is None:
        return pooled
    token = torch.zeros_like(pooled)
    token[:, model.distillation_place] = 1
    return (pooled + token) / 2


def _on_patches(model: VisionTransformer, images: Tensor, tokens: Tensor) -> Tensor:
    """Values of tokens (..., T) as those of patches (..., rows, columns)."""
    rows, columns = (side // model.config.patch_size for side in images.shape[-2:])
    return tokens[..., model.prefix :].reshape(*tokens.shape[:-1], rows, columns)


def position_similarity(model: VisionTransformer) -> Tensor | None:
    """Cosine similarity of each patch's position embedding with all others (Dosovitskiy et al.
    2021, fig. 7): (rows, columns, rows, columns); None where there is no table of positions.
    """
    if model.pos_embed is None:
        return None
    rows, columns, _ = model.coordinates.shape
    table = F.normalize(model.pos_embed[0].detach().float(), dim=-1)
    return (table @ table.T).view(rows, columns, rows, columns)


def patch_filters(model: VisionTransformer, count: int = 28) -> Tensor:
    """Principal components of the patch embedding's filters (Dosovitskiy et al. 2021, fig. 7): the
    first `count` (fewer, where patches have fewer pixels), each scaled to [0, 1], 0.5 is zero:
    (count, C, P, P).
    """
    filters = model.patch_embed.proj.weight.detach().float()
    flat = filters.flatten(1)  # D C*P*P
    components: Tensor = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False).Vh
    shown = components[:count]
    shown = shown / shown.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    return (0.5 + shown / 2).reshape(len(shown), *filters.shape[1:])


@torch.no_grad()
def attention_distance(
    model: VisionTransformer, images: Tensor, mask: Tensor | None = None
) -> Tensor:
    """How far patches look: the mean distance in pixels, (L, H), between a patch and those that it
    attends to, weighted by attention (Dosovitskiy et al. 2021, section 4.5). For images of the
    model's size.
    """
    places = model.coordinates.flatten(0, 1).float() * model.patch_embed.patch_size
    far = torch.cdist(places, places)  # N N
    found = []
    for weights in attention_maps(model, images, mask):
        among = weights[:, :, model.prefix :, model.prefix :].float()
        among = among / among.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        looks = (among * far).sum(dim=-1)  # B H N
        found.append(looks.mean(dim=(0, 2)) if mask is None else looks.mT[mask].mean(dim=0))
    return torch.stack(found)
