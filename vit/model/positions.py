"""Position encodings: objects `(patches, coordinates, table) -> (patches, angles)`.

The model owns `table` under timm's name `pos_embed`: a parameter (learned), a buffer (fixed) or
None. A new encoding is one class here and one line in POSITIONS.

Legend: B batch, N patches, D width, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 10000.0
ROTARY_TEMPERATURE = 100.0


class Positions(Protocol):
    """A position encoding for a grid of patches."""

    def table(self) -> nn.Parameter | Tensor | None:
        """What the model stores as `pos_embed`: (1, N, D) or None."""

    def __call__(
        self, patches: Tensor, coordinates: Tensor, table: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Encode positions.

        Args:
            patches: (B, N, D).
            coordinates: integer (row, column) of each patch, (N, 2) or (B, N, 2).
            table: what `table()` gave, as the model holds it now.

        Returns:
            patches (B, N, D) with additive positions, and the angles in radians by which
            attention turns the feature pairs of queries and keys, (N, K/2) or (B, N, K/2); None:
            it does not.
        """


class Additive:
    """Adds row `y * width + x` of the table to the patch at (y, x)."""

    def __init__(self, grid: tuple[int, int], dim: int, heads: int) -> None:
        self.grid = grid
        self.dim = dim

    def __call__(
        self, patches: Tensor, coordinates: Tensor, table: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """See Positions."""
        assert table is not None
        index = coordinates[..., 0] * self.grid[1] + coordinates[..., 1]  # N or B N
        return patches + F.embedding(index, table[0]), None


class Learned(Additive):
    """One trainable vector per position (Dosovitskiy et al. 2021, section 3.1)."""

    def table(self) -> nn.Parameter:
        """Standard normal, the scale of the embedded patches: (1, N, D).

        Where the usual 0.02 is too faint, small images with few patches take many epochs longer.
        """
        height, width = self.grid
        table = torch.empty(1, height * width, self.dim)
        return nn.Parameter(nn.init.normal_(table))


class SinCos1d(Additive):
    """Fixed sine and cosine of the raster index (Vaswani et al. 2017, section 3.5)."""

    def table(self) -> Tensor:
        """Halves [sin, cos] of geometric frequencies: (1, N, D); D is even."""
        height, width = self.grid
        return sincos(torch.arange(height * width), self.dim)[None]


class SinCos2d(Additive):
    """Fixed sine and cosine of column and row, as in MoCo v3 and big_vision's ViT-S/16."""

    def table(self) -> Tensor:
        """Quarters [sin x, cos x, sin y, cos y] of geometric frequencies: (1, N, D); D % 4 is 0."""
        if self.dim % 4:
            raise ValueError(f"dim={self.dim} is not a multiple of 4, as sincos2d needs")
        y, x = grid_coordinates(*self.grid).flatten(0, 1).unbind(-1)
        return torch.cat([sincos(x, self.dim // 2), sincos(y, self.dim // 2)], dim=-1)[None]


class NoPositions:
    """Patches stay as they are: the model sees a bag of patches."""

    def __init__(self, grid: tuple[int, int], dim: int, heads: int) -> None:
        pass

    def table(self) -> None:
        """Nothing is stored."""

    def __call__(
        self, patches: Tensor, coordinates: Tensor, table: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """See Positions."""
        return patches, None


class Rope2d:
    """Rotary positions along both axes (RoPE-Axial, Heo et al. 2024, section 3.2).

    Half of a head's feature pairs turn with the column, half with the row, at geometric
    frequencies from 1 down towards 1/100: attention sees how far two patches are apart.
    """

    def __init__(self, grid: tuple[int, int], dim: int, heads: int) -> None:
        self.width = dim // heads
        if self.width % 4:
            raise ValueError(f"dim={dim} / heads={heads} is not a multiple of 4, as rope2d needs")

    def table(self) -> None:
        """Nothing is stored."""

    def __call__(
        self, patches: Tensor, coordinates: Tensor, table: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """See Positions."""
        steps = torch.arange(self.width // 4, device=coordinates.device)
        frequencies = ROTARY_TEMPERATURE ** (-steps / len(steps))
        angles = coordinates.flip(-1)[..., None] * frequencies  # ... N 2 K/4, x before y
        return patches, angles.flatten(-2)


def rotary(angles: Tensor, prefix: int) -> Tensor:
    """Cosines and sines for all tokens: `prefix` of them, not turned, before the patches.

    Args:
        angles: (N, K/2) or (B, N, K/2), radians.
        prefix: number of tokens before the patches.

    Returns:
        (2, 1, prefix + N, K/2) or (2, B, 1, prefix + N, K/2), to broadcast over heads.
    """
    angles = F.pad(angles, (0, 0, prefix, 0)).unsqueeze(-3)
    return torch.stack([angles.cos(), angles.sin()])


def grid_coordinates(height: int, width: int) -> Tensor:
    """Integer (row, column) of each patch: (height, width, 2)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns], dim=-1)


def sincos(index: Tensor, dim: int) -> Tensor:
    """[sin(i w), cos(i w)] with w_j = 10000^(-j / (dim/2 - 1)) over (N,) indices: (N, dim).

    The frequencies span 1 to 1/10000 inclusive, as in big_vision's `posemb_sincos_2d`.

    Raises:
        ValueError: `dim` is odd.
    """
    if dim % 2:
        raise ValueError(f"dim={dim} is odd; sine and cosine need an even one")
    power = torch.linspace(0, 1, dim // 2, dtype=torch.float64)
    angles = index.double()[:, None] * TEMPERATURE**-power
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


POSITIONS: dict[str, Callable[[tuple[int, int], int, int], Positions]] = {
    "learned": Learned,
    "sincos1d": SinCos1d,
    "sincos2d": SinCos2d,
    "rope2d": Rope2d,
    "none": NoPositions,
}
