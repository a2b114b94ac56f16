"""LoRA: trained weights stay, and each matrix of the blocks learns an update of low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SCALE = 2.0
"""alpha / rank of Hu et al. 2022: how much the update counts."""
LEARNED = ".parametrizations.weight.0."
"""Part of the names of what is learned."""


class LowRank(nn.Module):
    """The update of one matrix (out, in), zero at the start (Hu et al. 2022, section 4.1)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated matrix, in fp32 whatever the precision: what `merged` keeps."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + SCALE * (self.up @ self.down)


def add_lora(model: nn.Module, rank: int) -> None:
    """Give every matrix of the blocks of `model` an update of `rank`, in place."""
    for name, module in list(model.named_modules()):
        if name.startswith("blocks.") and isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def merged(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict `weights` of `model` with each update added to its matrix: the names that the
    model has without.
    """
    updated = {
        f"{name}.weight": module.weight.detach().cpu()
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module, "weight")
    }
    kept = {name: tensor for name, tensor in weights.items() if ".parametrizations." not in name}
    return {**kept, **updated}
