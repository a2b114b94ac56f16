"""Multi-head attention: within one sequence (the encoder's) and between sequences.

Legend: B batch, T tokens or keys, Q queries, D width, H heads, K and V widths of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vit.model.scores import ATTENTIONS


class Attention(nn.Module):
    """Multi-head attention of queries over keys and values (Vaswani et al. 2017, section 3.2.2).

    Args:
        dim: width D of queries, keys, values and output.
        heads: number of heads H.
        d_k: width K of each head's queries and keys; None: dim // heads.
        d_v: width V of each head's values; None: dim // heads.
        attention: how a query scores a key, a key of `scores.ATTENTIONS`.
        bias: the projections have a bias.

    Raises:
        ValueError: `d_k` or `d_v` is left open and `dim` is not a multiple of `heads`.

    Example:
        >>> attention = Attention(dim=64, heads=4, d_k=8, d_v=32)
        >>> query, memory = torch.zeros(2, 5, 64), torch.zeros(2, 9, 64)
        >>> attention(query, memory, memory).shape
        torch.Size([2, 5, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        d_k: int | None = None,
        d_v: int | None = None,
        attention: str = "scaled_dot",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if None in (d_k, d_v) and dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}; give d_k and d_v")
        d_k, d_v = d_k or dim // heads, d_v or dim // heads
        self.heads = heads
        self.q = nn.Linear(dim, heads * d_k, bias=bias)
        self.k = nn.Linear(dim, heads * d_k, bias=bias)
        self.v = nn.Linear(dim, heads * d_v, bias=bias)
        self.score = ATTENTIONS[attention](heads, d_k)
        self.proj = nn.Linear(heads * d_v, dim, bias=bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, D).
            key, value: (B, T, D).
            mask: boolean, True keeps: (B, T) for keys that exist, or broadcastable to
                (B, H, Q, T). At least one key of every query is kept. None keeps all. Floats
                instead are added to the logits, as in `scores.attend`.

        Returns:
            (B, Q, D).
        """
        q, k, v = self._split(self.q(query)), self._split(self.k(key)), self._split(self.v(value))
        mixed = self.score(q, k, v, over_keys(mask))  # B H Q V
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights that `forward` uses: (B, H, Q, T)."""
        q, k = self._split(self.q(query)), self._split(self.k(key))
        return self.score.weights(q, k, over_keys(mask))

    def _split(self, x: Tensor) -> Tensor:
        """Features by head: (B, T, H * K) -> (B, H, T, K)."""
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with queries, keys and values from one product, as timm has it.

    Args:
        dim: width D of the tokens; a multiple of `heads`.
        heads: number of heads H.
        dropout: probability of dropping an output feature.
        qkv_bias: queries, keys and values have a bias.
        head_norm: builds a norm of a given width, for queries and keys of each head (QK-norm,
            Henry et al. 2020; Dehghani et al. 2023); None: none.
        attention: how a query scores a key, a key of `scores.ATTENTIONS`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        qkv_bias: bool = True,
        head_norm: Callable[[int], nn.Module] | None = None,
        attention: str = "scaled_dot",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.Identity() if head_norm is None else head_norm(dim // heads)
        self.k_norm = nn.Identity() if head_norm is None else head_norm(dim // heads)
        self.score = ATTENTIONS[attention](heads, dim // heads)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def project(self, x: Tensor, rotary: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, T, D), each (B, H, T, K)."""
        batch, tokens, dim = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)  # B H T K
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        return rotate(self.q_norm(q), rotary), rotate(self.k_norm(k), rotary), v

    def forward(
        self,
        x: Tensor,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        only: int | None = None,
    ) -> Tensor:
        """Mix tokens (B, T, D) -> (B, T, D), or (B, only, D).

        Args:
            x: tokens.
            rotary: how to rotate queries and keys, as in `rotate`.
            mask: as in `Attention`.
            only: so many tokens, the first, ask; None: all.
        """
        return self.with_keys(x, rotary, mask, only)[0]

    def with_keys(
        self,
        x: Tensor,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        only: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`forward`, and the keys (B, H, T, K) that are scored."""
        q, k, v = self.project(x, rotary)
        return self._join(self.score(q[:, :, :only], k, v, over_keys(mask))), k

    def weights(
        self, x: Tensor, rotary: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The attention weights that `forward` uses: (B, H, T, T)."""
        q, k, _ = self.project(x, rotary)
        return self.score.weights(q, k, over_keys(mask))

    def with_weights(
        self, x: Tensor, rotary: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward` and `weights` in one graph, in which the second makes the first."""
        q, k, v = self.project(x, rotary)
        weights = self.score.weights(q, k, over_keys(mask))
        return self._join(weights @ v), weights

    def _join(self, mixed: Tensor) -> Tensor:
        """What the heads say, projected: (B, H, T, K) -> (B, T, D)."""
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


def rotate(x: Tensor, rotary: Tensor | None) -> Tensor:
    """Rotate feature pairs (j, j + K/2) of queries or keys (Su et al. 2021, section 3.2.2).

    Args:
        x: (B, H, T, K).
        rotary: cosines and sines of the angles, broadcastable to (2, B, H, T, K/2); None: none.
    """
    if rotary is None:
        return x
    cos, sin = rotary.unbind(0)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def over_keys(mask: Tensor | None) -> Tensor | None:
    """A mask of keys (B, T) for all heads and queries, (B, 1, 1, T); other masks as they are."""
    return mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask
