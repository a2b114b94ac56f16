"""The pre-norm encoder block: attention, MLP, residual connections and drop-path.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.model.attention import SelfAttention


class DropPath(nn.Module):
    """Drops a residual branch per image (stochastic depth, Huang et al. 2016).

    Args:
        rate: probability of dropping; kept branches are scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        mask = torch.full((x.shape[0],) + (1,) * (x.ndim - 1), keep, device=x.device)
        return x * (mask.bernoulli() / keep).to(x.dtype)


class Mlp(nn.Module):
    """Linear, GELU, linear.

    Args:
        dim: width D.
        hidden: width of the hidden layer.
        dropout: probability of dropping a feature, after each linear layer.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021, eq. 2 and 3).

    Args:
        dim, heads: width D and number of heads.
        hidden: width of the MLP's hidden layer.
        dropout: after the attention's projection and the MLP's layers.
        drop_path: rate of dropping each of the two branches.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, dropout: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); `mask` as in `attend`."""
        x = x + self.drop_path(self.attn(self.norm1(x), mask))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out
