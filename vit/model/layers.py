"""Layers: patch embedding, norms, MLPs, DropPath. A new norm or MLP is a line in NORMS or MLPS.

Legend: B batch, C channels, N patches, P patch side, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.config.model import ViTConfig


class RmsNorm(nn.RMSNorm):
    """x / rms(x) * weight (Zhang & Sennrich 2019), in fp32 under autocast, as LayerNorm is."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        exact = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(exact), self.normalized_shape, self.weight, self.eps)


NORMS: dict[str, Callable[..., nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": RmsNorm}


def norm_of(config: ViTConfig, width: int | None = None) -> nn.Module:
    """A norm of the model's kind, over `width` features; None: as wide as its tokens."""
    return config.part("norm", NORMS)(width or config.dim, eps=config.norm_eps)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016, section 2), as in OpenAI's CLIP."""
    return x * (1.702 * x).sigmoid()


class GeluMlp(nn.Module):
    """Linear, GELU (exact, or one of its approximations), linear; dropout after each linear."""

    def __init__(
        self, dim: int, hidden: int, dropout: float = 0.0,
        gelu: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:  # fmt: skip
        super().__init__()
        self.gelu = gelu
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.drop(self.fc2(self.drop(self.gelu(self.fc1(x)))))
        return out


class SwiGlu(nn.Module):
    """(silu(x G) * x X) W (Shazeer 2020, eq. 6, with biases as in timm's SwiGLU).

    Three matrices instead of two: mlp_ratio 2.67 has the weights of a GELU MLP of ratio 4.
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
    "gelu_tanh": partial(GeluMlp, gelu=partial(F.gelu, approximate="tanh")),
    "quick_gelu": partial(GeluMlp, gelu=quick_gelu),
    "swiglu": SwiGlu,
}


class DropPath(nn.Module):
    """Drops a residual branch per image with probability `rate` (stochastic depth, Huang et al.
    2016); kept branches are scaled by 1 / (1 - rate).
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
    """A learned factor per feature on a residual branch (Touvron et al. 2021, eq. 3)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return x * self.gamma


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each linearly, as one matrix product.

    The weight has a convolution's shape (D, C, P, P), as in timm.
    """

    def __init__(self, patch_size: int, channels: int, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, N, D) in raster order."""
        size = self.patch_size
        batch, channels, height, width = images.shape
        patches = images.view(batch, channels, height // size, size, width // size, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # B N C*P*P
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class PatchDropout(nn.Module):
    """In training, drops a share `rate` of each image's patches at random, never all of them
    (Liu et al. 2022, PatchDropout).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(
        self, patches: Tensor, coordinates: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Choose patches, in their order.

        Args:
            patches: (B, N, D).
            coordinates: (row, column) of each patch, (N, 2).
            mask: boolean (B, N), True for patches that exist, which are kept first; None: all.

        Returns:
            patches (B, M, D), coordinates (N, 2) or (B, M, 2), mask (B, M) or None.
        """
        if self.rate == 0 or not self.training:
            return patches, coordinates, mask
        batch, count, _ = patches.shape
        kept = max(1, round(count * (1 - self.rate)))
        lot = torch.rand(batch, count, device=patches.device)
        if mask is not None:
            lot = lot + ~mask
        chosen = lot.topk(kept, largest=False).indices.sort().values  # B M
        patches = patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[-1]))
        return patches, coordinates[chosen], None if mask is None else mask.gather(1, chosen)
