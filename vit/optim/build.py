"""Optimisers by name. A new one is a function and a line in OPTIMIZERS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import nn

from vit.config.schema import OptimConfig

Group = dict[str, Any]


def adamw(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused: one kernel, which also skips non-finite steps."""
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, betas=(beta1, beta2), fused=True)


OPTIMIZERS: dict[str, Callable[[list[Group], OptimConfig], torch.optim.Optimizer]] = {
    "adamw": adamw,
}


class Declared(Protocol):
    """A model that declares what an optimiser must know of its parameters, by name."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All parameters with their names."""

    def decays(self, name: str) -> bool:
        """Whether a parameter takes weight decay."""

    def depth_of(self, name: str) -> int:
        """The depth of a parameter: 0 is nearest to the image."""


def parameter_groups(model: Declared, weight_decay: float, layer_decay: float) -> list[Group]:
    """Parameters that share weight decay and learning rate.

    Args:
        model: declares which parameters decay and how deep each lies.
        weight_decay: of those that decay; the others take none.
        layer_decay: factor of the learning rate per step towards the image (Clark et al. 2020;
            Bao et al. 2022, appendix); 1: the same everywhere.

    Returns:
        Groups with `params`, `weight_decay`, and `lr_scale`, the factor of the learning rate.
    """
    parameters = list(model.named_parameters())
    last = max(model.depth_of(name) for name, _ in parameters)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        scale = layer_decay ** (last - model.depth_of(name))
        groups.setdefault((scale, model.decays(name)), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: item[0], reverse=True)
    return [
        {"params": members, "weight_decay": weight_decay * decays, "lr_scale": scale}
        for (scale, decays), members in ordered
    ]


def build_optimizer(model: Declared, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser that `config` names, over `parameter_groups`."""
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    return OPTIMIZERS[config.name](groups, config)
