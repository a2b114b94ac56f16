"""Optimisers by name. A new one is a function and a line in OPTIMIZERS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

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


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    decays: Callable[[str], bool],
    weight_decay: float,
) -> list[Group]:
    """Two groups: parameters that take weight decay and those that do not.

    Args:
        parameters: as from `model.named_parameters()`.
        decays: the model's own word on a parameter's name.
        weight_decay: for the first group.
    """
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for name, parameter in parameters:
        (with_decay if decays(name) else without).append(parameter)
    return [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    decays: Callable[[str], bool],
    config: OptimConfig,
) -> torch.optim.Optimizer:
    """The optimiser that `config` names, over `parameter_groups`."""
    return OPTIMIZERS[config.name](
        parameter_groups(parameters, decays, config.weight_decay), config
    )
