"""Token merging at inference (ToMe, Bolya et al. 2023, arXiv 2210.09461).

Legend: B batch, N patches, T tokens (prefix + patches), D width, K width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.model.positions import rotary
from vit.model.vit import Block, VisionTransformer


def merged(model: VisionTransformer, r: int) -> nn.Module:
    """`model` with the same weights, in eval mode, whose blocks merge `r` patches away each.

    The logits come from fewer tokens and are not quite the same: between attention and MLP patches
    whose keys are alike become their mean, at most half of the patches of a block. From then on it
    counts as many times as it has patches, in attention and pooling; rotary positions turn it by
    their mean angle. Class token, distillation token and registers stay as they are. A last block
    of which the logits read these alone merges nothing. How many tokens there are depends on `r`
    and the size of the images alone, so that it can be exported.

    Args:
        model: any; it is put into eval mode.
        r: patches that each block merges away; 0: `model` itself.

    Raises:
        ValueError: `r` is negative, or more than half of the patches.

    Example:
        >>> model = VisionTransformer(image_size=32, patch_size=4, dim=192, depth=6, heads=3)
        >>> merged(model, r=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 1000])
    """
    patches = math.prod(model.config.grid)
    if not 0 <= r <= patches // 2:
        raise ValueError(
            f"a block can merge 0 to {patches // 2} of the model's {patches} patches, not {r}"
        )
    return MergingTransformer(model, r).eval() if r else model.eval()


class MergingTransformer(nn.Module):
    """See `merged`, which makes it."""

    def __init__(self, model: VisionTransformer, r: int) -> None:
        super().__init__()
        self.model = model
        self.r = r

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of images: (B, C, height, width) -> (B, num_classes).

        Raises:
            ValueError: there is a mask: all patches must exist.
        """
        if mask is not None:
            raise ValueError("token merging takes whole images, without a mask of patches")
        model, prefix = self.model, self.model.prefix
        x, angles, _ = model.embed(images)
        sizes = images.new_ones(images.shape[0], x.shape[1] - prefix, 1)  # B N 1
        log_sizes: Tensor | None = None
        for number, block in enumerate(model.blocks, start=1):
            assert isinstance(block, Block)
            queries = model.queries if number == len(model.blocks) else None
            rope = None if angles is None else rotary(angles, prefix)
            q, keys, v = block.attn.project(block.norm1(x), rope)
            mixed = block.attn.mix(q[:, :, :queries], keys, v, log_sizes)
            x = x[:, :queries] + block.ls1(mixed)
            r = min(self.r, sizes.shape[1] // 2) if queries is None else 0
            if r:
                add, before = matching(keys[:, :, prefix:].mean(dim=1), r), sizes
                sizes = add(before)
                x = torch.cat([x[:, :prefix], add(x[:, prefix:] * before) / sizes], dim=1)
                angles = None if angles is None else add(angles * before) / sizes
                log_sizes = F.pad(sizes[..., 0].log(), (prefix, 0))  # B T
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return model.forward_head(model.norm(x), log_sizes)


def matching(keys: Tensor, r: int) -> Callable[[Tensor], Tensor]:
    """Bipartite soft matching (section 3 of the paper): which `r` tokens go into which others.

    Every second token, from the first on, points at the one of the others whose key is most like
    its own by cosine; of these pairs the `r` most alike become one token each.

    Args:
        keys: (B, N, K).
        r: 1 to N // 2.

    Returns:
        a function that adds up values of tokens that become one, (B, N, F) -> (B, N - r, F): first
        the tokens that pointed and stay, then those that were pointed at, in their order.
    """
    with torch.autocast(keys.device.type, enabled=False):  # in bf16 cosines near 1 are the same
        keys = F.normalize(keys.float(), dim=-1)
        alike, nearest = (keys[:, ::2] @ keys[:, 1::2].mT).max(dim=-1)  # B ceil(N/2)
    order = alike.argsort(dim=-1, descending=True)
    going, staying = order[:, :r], order[:, r:].sort(dim=-1).values
    into = nearest.gather(1, going)

    def add(values: Tensor) -> Tensor:
        def rows(index: Tensor) -> Tensor:
            return index[..., None].expand(-1, -1, values.shape[-1])

        pointing, others = values[:, ::2], values[:, 1::2]
        others = others.scatter_add(1, rows(into), pointing.gather(1, rows(going)))
        return torch.cat([pointing.gather(1, rows(staying)), others], dim=1)

    return add
