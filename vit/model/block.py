"""The pre-norm encoder block: attention, MLP, residual connections and drop-path.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vit.model.attention import SelfAttention
from vit.model.mlp import MLPS
from vit.model.norms import NORMS, steady


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


class LayerScale(nn.Module):
    """A learned factor per feature on a residual branch (Touvron et al. 2021, eq. 3).

    Args:
        dim: width D.
        initial: the factors at the start.
    """

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return x * self.gamma


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al. 2021, eq. 2 and 3).

    Args:
        dim, heads: width D and number of heads.
        hidden: width of the MLP's hidden layer.
        dropout: after the attention's projection and the MLP's layers.
        drop_path: rate of dropping each of the two branches.
        norm, mlp: keys of `norms.NORMS` and `mlp.MLPS`.
        layer_scale: initial factor of LayerScale on both branches; None: no LayerScale.
        qkv_bias, attention: see SelfAttention.
        qk_norm: queries and keys are normalised per head.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        norm: str = "layernorm",
        mlp: str = "gelu",
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attention: str = "scaled_dot",
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

        head_norm = NORMS[norm] if qk_norm else None
        self.norm1 = NORMS[norm](dim)
        self.attn = SelfAttention(dim, heads, dropout, qkv_bias, head_norm, attention)
        self.ls1 = scale()
        self.norm2 = NORMS[norm](dim)
        self.mlp = MLPS[mlp](dim, hidden, dropout)
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        only: int | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D) or (B, only, D); arguments as in `SelfAttention`."""
        return self.feed_forward(self.attend(x, rotary, mask, only)[0])

    def attend(
        self,
        x: Tensor,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        only: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The first half of `forward`, and the keys (B, H, T, K) of its attention."""
        mixed, keys = self.attn.with_keys(self.norm1(x), rotary, mask, only)
        return x[:, :only] + self.drop_path(self.ls1(mixed)), keys

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half of `forward`, each token by itself: (B, T, D) -> (B, T, D)."""
        out: Tensor = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return out

    def with_weights(
        self, x: Tensor, rotary: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward` and the attention weights (B, H, T, T) that it is computed from.

        The gradient takes the norms as `steady` does.
        """
        mixed, weights = self.attn.with_weights(steady(self.norm1, x), rotary, mask)
        x = x + self.drop_path(self.ls1(mixed))
        out: Tensor = x + self.drop_path(self.ls2(self.mlp(steady(self.norm2, x))))
        return out, weights
