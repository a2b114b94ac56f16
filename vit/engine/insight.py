"""What a model has learned, as numbers to draw: positions, filters, how far it looks.

Legend: B batch, L layers, H heads, N patches in rows x columns, T tokens, D width, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.engine.explain import attention_maps
from vit.model.vit import VisionTransformer


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
    """Principal components of the patch embedding's filters (Dosovitskiy et al. 2021, fig. 7).

    Returns:
        the first `count` (fewer, where patches have fewer pixels), each scaled to [0, 1], 0.5 is
        zero: (count, C, P, P).
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
    """How far patches look: the mean distance between a patch and those that it attends to,
    weighted by attention (Dosovitskiy et al. 2021, section 4.5).

    Args:
        model: in eval mode.
        images: normalised (B, C, height, width), of the model's size.
        mask: boolean (B, N), which patches exist; None: all do.

    Returns:
        pixels, (L, H).
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
