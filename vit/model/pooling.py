"""Pooling: from tokens to one vector per image. A new one is a class and a line in POOLINGS.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ClassToken(nn.Module):
    """The class token, the first of the sequence (Dosovitskiy et al. 2021, section 3.1)."""

    needs_class_token = True

    def forward(self, tokens: Tensor, prefix: int, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, D). `prefix` tokens precede the patches; `mask` (B, T), True keeps."""
        return tokens[:, 0]


class MeanPool(nn.Module):
    """The mean over patches (Zhai et al. 2022, section 3.2)."""

    needs_class_token = False

    def forward(self, tokens: Tensor, prefix: int, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, D). `prefix` tokens precede the patches; `mask` (B, T), True keeps."""
        patches = tokens[:, prefix:]
        if mask is None:
            return patches.mean(dim=1)
        kept = mask[:, prefix:, None].to(patches.dtype)
        return (patches * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


POOLINGS: dict[str, Callable[[], ClassToken | MeanPool]] = {
    "cls": ClassToken,
    "mean": MeanPool,
}
