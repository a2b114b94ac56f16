"""Position encodings: objects `(patches, coordinates, table) -> (patches, rotary)`.

The model owns `table` under timm's name `pos_embed`: a parameter (learned), a buffer (fixed) or
None. A new encoding is one class here and one line in POSITIONS.

Legend: B batch, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 10000.0


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
            patches (B, N, D) with additive positions, and what attention needs to rotate
            queries and keys (None: nothing).
        """


class Additive:
    """Adds row `y * width + x` of the table to the patch at (y, x)."""

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
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
        y, x = grid_coordinates(*self.grid).unbind(-1)
        return torch.cat([sincos(x, self.dim // 2), sincos(y, self.dim // 2)], dim=-1)[None]


class NoPositions:
    """Patches stay as they are: the model sees a bag of patches."""

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        pass

    def table(self) -> None:
        """Nothing is stored."""

    def __call__(
        self, patches: Tensor, coordinates: Tensor, table: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """See Positions."""
        return patches, None


def grid_coordinates(height: int, width: int) -> Tensor:
    """Integer (row, column) of each patch in raster order: (N, 2)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows.flatten(), columns.flatten()], dim=-1)


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


POSITIONS: dict[str, Callable[[tuple[int, int], int], Positions]] = {
    "learned": Learned,
    "sincos1d": SinCos1d,
    "sincos2d": SinCos2d,
    "none": NoPositions,
}
