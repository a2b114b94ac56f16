"""Multi-head self-attention, fused or as plain products, and its weights on request.

Legend: B batch, T tokens, D width, H heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(scale * q k^T) v with the kernel that is fastest for device and dtype.

    On CPUs in bf16 the fused kernel's backward is several times slower than plain products.

    Args:
        q, k, v: (B, H, T, K).
        scale: factor of the logits.
        mask: boolean, broadcastable to (B, H, T, T); True keeps. None keeps all.

    Returns:
        (B, H, T, K).
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return attention_weights(q, k, scale, mask) @ v
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def attention_weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(scale * q k^T): (B, H, T, T), each row sums to 1."""
    logits = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    return logits.softmax(dim=-1)


class SelfAttention(nn.Module):
    """Scaled dot-product self-attention (Vaswani et al. 2017, section 3.2.2).

    Args:
        dim: width D of the tokens; a multiple of `heads`.
        heads: number of heads H.
        dropout: probability of dropping an output feature.
        qkv_bias: queries, keys and values have a bias.
        head_norm: builds a norm of a given width, for queries and keys of each head (QK-norm,
            Henry et al. 2020; Dehghani et al. 2023); None: none.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        qkv_bias: bool = True,
        head_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.Identity() if head_norm is None else head_norm(dim // heads)
        self.k_norm = nn.Identity() if head_norm is None else head_norm(dim // heads)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, T, D), each (B, H, T, K)."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B H T K
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix tokens (B, T, D) -> (B, T, D); `mask` as in `attend`."""
        q, k, v = self.project(x)
        mixed = attend(q, k, v, self.scale, mask)
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))  # B T D
        return out

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights that `forward` uses for tokens (B, T, D): (B, H, T, T)."""
        q, k, _ = self.project(x)
        return attention_weights(q, k, self.scale, mask)
