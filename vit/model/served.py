"""A model with its preprocessing inside: bytes in, logits out.

Legend: B batch, C channels, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Served(nn.Module):
    """Scales and normalises pixels, and runs a model on them.

    Args:
        model: images (B, C, height, width), normalised, to logits (B, K); it is copied.
        mean, std: one value per channel, of pixels in [0, 1].
        dtype: of the model's weights and of what it computes; normalising and logits are float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype).eval()
        self.dtype = dtype
        self.register_buffer("mean", 255 * torch.tensor(mean))
        self.register_buffer("std", 255 * torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, height, width, C) -> float32 (B, K)."""
        normalised = (images.float() - self.mean) / self.std
        logits: Tensor = self.model(normalised.permute(0, 3, 1, 2).to(self.dtype)).float()
        return logits
