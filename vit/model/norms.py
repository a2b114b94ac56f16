"""Normalisations by name. A new one is a line in NORMS, and a case in `steady`."""

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


def steady(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, (..., D), whose gradient takes what it divides by as given (Ali et al. 2022).

    With the true gradient a branch that decides everything counts for nothing: more of it makes a
    vector longer, which the norm undoes.
    """
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
    assert norm.eps is not None
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(dim=-1, keepdim=True)
    size = (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt().detach()
    out = x / size * norm.weight
    return out + norm.bias if isinstance(norm, nn.LayerNorm) else out


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": partial(nn.LayerNorm, eps=1e-6),
    "rmsnorm": partial(RmsNorm, eps=1e-6),
}
