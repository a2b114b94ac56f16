"""The MLP of a block. A new kind is a class and a line in MLPS.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class GeluMlp(nn.Module):
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


class SwiGlu(nn.Module):
    """(silu(x G) * x X) W (Shazeer 2020, eq. 6, with biases as in timm's SwiGLU).

    Three matrices instead of two: mlp_ratio 2.67 has the weights of a GELU MLP of ratio 4.

    Args:
        dim, hidden, dropout: as in GeluMlp.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(dim, hidden)
        self.fc1_x = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.drop(self.fc2(self.drop(F.silu(self.fc1_g(x)) * self.fc1_x(x))))
        return out


MLPS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "gelu": GeluMlp,
    "swiglu": SwiGlu,
}
