"""Multi-head attention: of one sequence over itself (the encoder's), and between sequences.

A score says how a query is compared with a key; a new one is a class and a line in SCORES.

Legend: B batch, T tokens or keys, Q queries, D width, H heads, K and V widths of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.config.model import ViTConfig
from vit.config.plugins import part
from vit.model.layers import RmsNorm, norm_of


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """softmax(scale * q k^T) v with the kernel that is fastest for device and dtype.

    On CPUs in bf16 the fused kernel's backward is several times slower than plain products.

    Args:
        q: (B, H, Q, K).
        k: (B, H, T, K).
        v: (B, H, T, V).
        scale: factor of the logits.
        mask: broadcastable to (B, H, Q, T): boolean, True keeps, or floats that are added to the
            logits: the logarithm of how many keys each one stands for. None: each is one.

    Returns:
        (B, H, Q, V).
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return softmax((q * scale) @ k.transpose(-2, -1), mask) @ v
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def softmax(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention weights of logits (B, H, Q, T): each row sums to 1 over the keys that `mask` keeps.

    A row without such a key is not a number. `mask` as in `attend`.
    """
    return masked(logits, mask).softmax(dim=-1)


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (B, H, Q, T), minus infinity for the keys that `mask`, as in `attend`, leaves out."""
    if mask is None:
        return logits
    is_choice = mask.dtype == torch.bool
    return logits.masked_fill(~mask, -math.inf) if is_choice else logits + mask


class Dot(nn.Module):
    """softmax(q k^T): dot-product attention (Luong et al. 2015, eq. 8).

    The other products are this one on other queries or keys, or with another scale.

    Attributes:
        formula: the logits as people write them; of `differential` the weights.
    """

    formula = "q · k"

    def __init__(self, heads: int, width: int, place: int = 0) -> None:
        super().__init__()
        self.scale = 1.0

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The queries and keys whose product is taken, of the same shapes."""
        return q, k

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, Q, K), (B, H, T, K), (B, H, T, V) -> (B, H, Q, V); `mask` as in `attend`."""
        return attend(*self.prepare(q, k), v, self.scale, mask)

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """What the softmax is taken of, (B, H, Q, T)."""
        q, k = self.prepare(q, k)
        return (q * self.scale) @ k.transpose(-2, -1)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """The weights that `forward` uses, (B, H, Q, T)."""
        return softmax(self.logits(q, k), mask)

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """What `forward` makes of values by these weights: (B, H, Q, T), (B, H, T, V)."""
        return weights @ v


class ScaledDot(Dot):
    """softmax(q k^T / sqrt(K)) (Vaswani et al. 2017, eq. 1)."""

    formula = "q · k / √K"

    def __init__(self, heads: int, width: int, place: int = 0) -> None:
        super().__init__(heads, width)
        self.scale = width**-0.5


class Cosine(Dot):
    """softmax(cos(q, k) / t) with a learned temperature t per head (Liu et al. 2022, eq. 2).

    It starts at t = 0.1; the parameter is log(1 / t).
    """

    formula = "cos(q, k) / t"

    def __init__(self, heads: int, width: int, place: int = 0) -> None:
        super().__init__(heads, width)
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(10)))

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Unit queries times 1 / t, and unit keys."""
        exact = torch.promote_types(q.dtype, torch.float32)
        unit = F.normalize(q.to(exact), dim=-1) * self.log_scale.exp()[:, None, None]
        return unit.to(q.dtype), F.normalize(k.to(exact), dim=-1).to(k.dtype)


class Additive(Dot):
    """softmax(u^T tanh(q + k)), u learned per head (Bahdanau et al. 2015, appendix A.1.2).

    The paper's two matrices are the projections to q and k. Memory grows with Q * T * K.
    """

    formula = "u · tanh(q + k)"

    def __init__(self, heads: int, width: int, place: int = 0) -> None:
        super().__init__(heads, width)
        self.vector = nn.Parameter(torch.randn(heads, width) * width**-0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Dot."""
        return self.weights(q, k, mask) @ v

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """See Dot."""
        sums = q[:, :, :, None] + k[:, :, None]  # B H Q T K
        logits: Tensor = (sums.tanh() @ self.vector[:, None, :, None])[..., 0]
        return logits


class Differential(Dot):
    """The difference of two attentions, each by half of the features (Ye et al. 2024, eq. 1 to 3).

    softmax(q1 k1^T / sqrt(K/2)) - lambda softmax(q2 k2^T / sqrt(K/2)), a learned lambda, and a norm
    of each head's mixed values. Some weights are below 0; rows sum to 1 - lambda.
    """

    formula = "softmax(q₁ · k₁ / √(K/2)) − λ softmax(q₂ · k₂ / √(K/2))"

    def __init__(self, heads: int, width: int, place: int = 0) -> None:
        super().__init__(heads, width)
        self.scale = (width // 2) ** -0.5
        self.start = 0.8 - 0.6 * math.exp(-0.3 * place)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(0.1 * torch.randn(width // 2)) for _ in range(4)
        )
        self.sub_norm = RmsNorm(width, eps=1e-5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Dot."""
        (q1, q2), (k1, k2) = q.chunk(2, dim=-1), k.chunk(2, dim=-1)
        first, second = (attend(*pair, v, self.scale, mask) for pair in ((q1, k1), (q2, k2)))
        return self._scaled(first - self.share().to(q.dtype) * second)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Dot."""
        (q1, q2), (k1, k2) = q.chunk(2, dim=-1), k.chunk(2, dim=-1)
        first, second = (super(Differential, self).weights(*p, mask) for p in ((q1, k1), (q2, k2)))
        return first - self.share() * second

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """See Dot."""
        return self._scaled(weights @ v)

    def share(self) -> Tensor:
        """Lambda, a scalar."""
        first = (self.lambda_q1 * self.lambda_k1).sum().exp()
        return first - (self.lambda_q2 * self.lambda_k2).sum().exp() + self.start

    def _scaled(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.sub_norm(mixed) * (1 - self.start)
        return out.to(mixed.dtype)


SCORES: dict[str, Callable[..., Dot]] = {
    "scaled_dot": ScaledDot,
    "dot": Dot,
    "cosine": Cosine,
    "additive": Additive,
    "differential": Differential,
}


class Attention(nn.Module):
    """Multi-head attention of queries over keys and values (Vaswani et al. 2017, section 3.2.2).

    Args:
        dim: width D of queries, keys, values and output.
        heads: number of heads H.
        d_k: width K of each head's queries and keys; None: dim // heads.
        d_v: width V of each head's values; None: dim // heads.
        attention: how a query is compared with a key, a key of SCORES; differential takes
            values as wide as its keys.
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
        self, dim: int, heads: int, d_k: int | None = None, d_v: int | None = None,
        attention: str = "scaled_dot", bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if None in (d_k, d_v) and dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}; give d_k and d_v")
        d_k, d_v = d_k or dim // heads, d_v or dim // heads
        self.heads = heads
        self.q = nn.Linear(dim, heads * d_k, bias=bias)
        self.k = nn.Linear(dim, heads * d_k, bias=bias)
        self.v = nn.Linear(dim, heads * d_v, bias=bias)
        self.score = part(SCORES, "attention", attention)(heads, d_k)
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
                instead are added to the logits, as in `attend`.

        Returns:
            (B, Q, D).
        """
        q, k, v = (
            split_heads(part, self.heads) for part in (self.q(query), self.k(key), self.v(value))
        )
        mixed = self.score(q, k, v, over_keys(mask))  # B H Q V
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights that `forward` uses: (B, H, Q, T)."""
        q, k = (split_heads(part, self.heads) for part in (self.q(query), self.k(key)))
        weights: Tensor = self.score.weights(q, k, over_keys(mask))
        return weights


class SelfAttention(nn.Module):
    """Multi-head self-attention with queries, keys and values from one product, as timm has it.

    With `qk_norm`, queries and keys of each head are normalised (Henry et al. 2020; Dehghani et al.
    2023). `place` is how many blocks come before it.
    """

    def __init__(self, config: ViTConfig, place: int = 0) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.q_norm, self.k_norm = (
            norm_of(config, config.head_dim) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        self.score = config.part("attention", SCORES)(config.heads, config.head_dim, place)
        self.proj = nn.Linear(config.dim, config.dim)
        self.proj_drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, mask: Tensor | None = None,
        queries: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Mix tokens (B, T, D) -> (B, T, D), or (B, queries, D).

        Args:
            x: tokens.
            rope: cosines and sines, as in `rotate`; None: none.
            mask: as in `Attention`.
            queries: so many tokens, the first, ask; None: all.
        """
        q, k, v = self.project(x, rope)
        return self.mix(q if queries is None else q[:, :, :queries], k, v, mask)

    def project(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, T, D), each (B, H, T, K)."""
        batch, tokens, width = x.shape
        by_head = self.qkv(x).view(batch, tokens, 3 * self.heads, width // self.heads)
        parts = by_head.chunk(3, dim=2)  # B T H K
        q, k, v = (part.transpose(1, 2) for part in parts)
        return rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope), v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """What tokens take from others: (B, H, Q, K), (B, H, T, K), (B, H, T, K) -> (B, Q, D)."""
        mixed = self.score(q, k, v, over_keys(mask))  # B H Q K
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Features by head: (B, T, H * K) -> (B, H, T, K)."""
    batch, tokens, width = x.shape
    return x.view(batch, tokens, heads, width // heads).transpose(1, 2)


def rotate(x: Tensor, rope: Tensor | None) -> Tensor:
    """Rotate feature pairs (j, j + K/2) of queries or keys (Su et al. 2021, section 3.2.2).

    Args:
        x: (B, H, T, K).
        rope: cosines and sines of the angles, broadcastable to (2, B, H, T, K/2); None: none.
    """
    if rope is None:
        return x
    cos, sin = rope.unbind(0)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def over_keys(mask: Tensor | None) -> Tensor | None:
    """A mask of keys (B, T) for all heads and queries, (B, 1, 1, T); other masks as they are."""
    return mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask
