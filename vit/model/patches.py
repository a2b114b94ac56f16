"""From pixels to patches, and fewer of them.

Legend: B batch, C channels, N patches, P patch side, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each linearly, as one matrix product.

    The weight has a convolution's shape (D, C, P, P), as in timm.
    """

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, N, D) in raster order."""
        size = self.patch_size
        batch, channels, height, width = images.shape
        patches = images.view(batch, channels, height // size, size, width // size, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # B N C*P*P
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class PatchDropout(nn.Module):
    """In training, keeps a random part of each image's patches (Liu et al. 2022, PatchDropout).

    Args:
        rate: share of the patches that is dropped; at least one is kept.
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
