"""Pooling: from tokens to one vector per image. A new one is a class and a line in POOLINGS.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.model.attention import Attention


class Pooling(nn.Module):
    """The interface.

    Args:
        dim: width D of the tokens.
        heads: number of heads, for poolings that have some.

    Attributes:
        needs_class_token: the model prepends one.
        reads: so many tokens, the first, are pooled, so that the last block computes no others;
            None: all.
    """

    needs_class_token = False
    reads: int | None = None

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            tokens: (B, T, D), normalised.
            prefix: number of tokens (class token, registers) before the patches.
            mask: boolean (B, T), True for tokens that exist; None: all do.

        Returns:
            (B, D).
        """
        raise NotImplementedError

    def reading(self, tokens: Tensor, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
        """How much of each token `forward` takes, averaged over heads: (B, T), rows sum to 1."""
        raise NotImplementedError


class ClassToken(Pooling):
    """The class token, the first of the sequence (Dosovitskiy et al. 2021, section 3.1)."""

    needs_class_token = True
    reads = 1

    def forward(self, tokens: Tensor, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
        """See Pooling."""
        return tokens[:, 0]

    def reading(self, tokens: Tensor, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
        """See Pooling."""
        weights = torch.zeros_like(tokens[..., 0])
        weights[:, 0] = 1
        return weights


class MeanPool(Pooling):
    """The mean over patches (Zhai et al. 2022, section 3.2)."""

    def forward(self, tokens: Tensor, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
        """See Pooling."""
        patches = tokens[:, prefix:]
        if mask is None:
            return patches.mean(dim=1)
        kept = mask[:, prefix:, None].to(patches.dtype)
        return (patches * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)

    def reading(self, tokens: Tensor, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
        """See Pooling."""
        kept = torch.ones_like(tokens[..., 0]) if mask is None else mask.to(tokens.dtype)
        kept = F.pad(kept[:, prefix:], (prefix, 0))
        return kept / kept.sum(dim=1, keepdim=True).clamp(min=1)


class AttentionPool(Pooling):
    """One learned query attends to the patches with several heads (Lee et al. 2019, section 3.2).

    Args:
        dim: width D of the tokens.
        heads: number of heads.

    Example:
        >>> pool = AttentionPool(dim=64, heads=4)
        >>> pool(torch.zeros(2, 9, 64)).shape
        torch.Size([2, 64])
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.query = nn.Parameter(torch.randn(dim))
        self.attention = Attention(dim, heads)

    def forward(self, tokens: Tensor, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
        """See Pooling."""
        query, patches, kept = self._inputs(tokens, prefix, mask)
        pooled: Tensor = self.attention(query, patches, patches, kept)[:, 0]
        return pooled

    def weights(self, tokens: Tensor, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
        """How much each head looks at each patch: (B, H, T - prefix)."""
        query, patches, kept = self._inputs(tokens, prefix, mask)
        return self.attention.weights(query, patches, kept)[:, :, 0]

    def reading(self, tokens: Tensor, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
        """See Pooling."""
        return F.pad(self.weights(tokens, prefix, mask).mean(dim=1), (prefix, 0))

    def _inputs(
        self, tokens: Tensor, prefix: int, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        query = self.query.expand(len(tokens), 1, -1)
        return query, tokens[:, prefix:], None if mask is None else mask[:, prefix:]


POOLINGS: dict[str, Callable[[int, int], Pooling]] = {
    "cls": ClassToken,
    "mean": MeanPool,
    "attention": AttentionPool,
}
