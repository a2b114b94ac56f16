"""Attention kinds: how a query scores a key. A new one is a class and a line in ATTENTIONS.

Legend: B batch, H heads, Q queries, T keys, K width of a head's queries and keys, V of its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    if mask is not None:
        is_choice = mask.dtype == torch.bool
        logits = logits.masked_fill(~mask, -math.inf) if is_choice else logits + mask
    return logits.softmax(dim=-1)


class Score(Protocol):
    """An attention kind, for queries (B, H, Q, K), keys (B, H, T, K) and values (B, H, T, V)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The weighted values, (B, H, Q, V); `mask` as in `attend`."""

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """The weights that the call uses, (B, H, Q, T)."""


class Dot(nn.Module):
    """softmax(q k^T): dot-product attention (Luong et al. 2015, eq. 8).

    The other products are this one on other queries or keys, or with another scale.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.scale = 1.0

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The queries and keys whose product is taken, of the same shapes."""
        return q, k

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Score."""
        return attend(*self.prepare(q, k), v, self.scale, mask)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Score."""
        q, k = self.prepare(q, k)
        return softmax((q * self.scale) @ k.transpose(-2, -1), mask)


class ScaledDot(Dot):
    """softmax(q k^T / sqrt(K)) (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__(heads, width)
        self.scale = width**-0.5


class Cosine(Dot):
    """softmax(cos(q, k) / t) with a learned temperature t per head (Liu et al. 2022, eq. 2).

    It starts at t = 0.1; the parameter is log(1 / t).
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__(heads, width)
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(10)))

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Unit queries times 1 / t, and unit keys."""
        exact = torch.promote_types(q.dtype, torch.float32)
        unit = F.normalize(q.to(exact), dim=-1) * self.log_scale.exp()[:, None, None]
        return unit.to(q.dtype), F.normalize(k.to(exact), dim=-1).to(k.dtype)


class Additive(nn.Module):
    """softmax(u^T tanh(q + k)), u learned per head (Bahdanau et al. 2015, appendix A.1.2).

    The paper's two matrices are the projections to q and k. Memory grows with Q * T * K.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(heads, width) * width**-0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Score."""
        return self.weights(q, k, mask) @ v

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """See Score."""
        sums = q[:, :, :, None] + k[:, :, None]  # B H Q T K
        return softmax((sums.tanh() @ self.vector[:, None, :, None])[..., 0], mask)


ATTENTIONS: dict[str, Callable[[int, int], Score]] = {
    "scaled_dot": ScaledDot,
    "dot": Dot,
    "cosine": Cosine,
    "additive": Additive,
}
