"""Normalisations by name. A new one is a line in NORMS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RmsNorm(nn.RMSNorm):
    """x / rms(x) * weight (Zhang & Sennrich 2019), in fp32 under autocast, as LayerNorm is."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        exact = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(exact), self.normalized_shape, self.weight, self.eps)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": partial(nn.LayerNorm, eps=1e-6),
    "rmsnorm": partial(RmsNorm, eps=1e-6),
}
