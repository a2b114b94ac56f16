"""Optimisers by name. A new one is a function and a line in OPTIMIZERS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vit.config.plugins import part
from vit.config.schema import OptimConfig
from vit.optim.lora import LEARNED


class Declared(Protocol):
    """A model that declares what an optimiser must know of its parameters, by name."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All parameters with their names."""

    def decays(self, name: str) -> bool:
        """Whether a parameter takes weight decay."""

    def depth_of(self, name: str) -> int:
        """The depth of a parameter: 0 is nearest to the image."""

    def is_hidden_matrix(self, name: str) -> bool:
        """Whether a parameter maps features to features, within the model."""

    def matrices_in(self, name: str) -> int:
        """How many matrices, one below the other, a hidden matrix is."""

    def is_head(self, name: str) -> bool:
        """Whether a parameter turns features into logits."""


def adamw(model: Declared, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused: one kernel, which also skips non-finite steps."""
    beta1, beta2 = config.betas
    return torch.optim.AdamW(parameter_groups(model, config), betas=(beta1, beta2), fused=True)


def muon(model: Declared, config: OptimConfig) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for all other parameters.

    The update of a matrix of A x B is scaled by sqrt(max(1, A / B)), as in the original. Queries,
    keys and values have a matrix each.
    """
    from vit.optim.muon import BatchedMuon

    assert not isinstance(config.lr, str)
    groups = parameter_groups(model, config, hidden_apart=True)
    for group in groups:
        group["use_fallback"] = not group.pop("is_hidden")
        if group["use_fallback"]:
            assert not isinstance(config.other_lr, str)
            group["lr_scale"] *= config.other_lr / config.lr
    beta1, beta2 = config.betas
    optimizer = BatchedMuon(
        groups, momentum=config.momentum, nesterov=True, adjust_lr_fn="original",
        betas=(beta1, beta2),
    )  # fmt: skip
    optimizer.stacked = {p: model.matrices_in(name) for name, p in model.named_parameters()}
    return optimizer


def lion(model: Declared, config: OptimConfig) -> torch.optim.Optimizer:
    """Lion (Chen et al. 2023): steps by the sign of the momentum."""
    from timm.optim.lion import Lion

    beta1, beta2 = config.betas
    return Lion(parameter_groups(model, config), betas=(beta1, beta2))


def lamb(model: Declared, config: OptimConfig) -> torch.optim.Optimizer:
    """LAMB (You et al. 2020): Adam's update, scaled to each layer's weights; for large batches."""
    from timm.optim.lamb import Lamb

    beta1, beta2 = config.betas
    return Lamb(
        parameter_groups(model, config), betas=(beta1, beta2), max_grad_norm=None,
        decoupled_decay=True,
    )  # fmt: skip


OPTIMIZERS: dict[str, Callable[[Declared, OptimConfig], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
    "lion": lion,
    "lamb": lamb,
}


def build_optimizer(model: Declared, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser that `config` names."""
    return part(OPTIMIZERS, "optim", config.name, config.options)(model, config)


@torch.no_grad()
def step_unless(optimizer: torch.optim.Optimizer, is_bad: Tensor) -> None:
    """Take a step of an optimiser that knows no `found_inf`, and take it back if `is_bad`, without
    asking the device: weights and moments are then as before.

    Args:
        optimizer: its count of steps goes on.
        is_bad: bool, on the device; the gradients, which may be NaN, are then zeroed.
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # In one piece: a hundred small kernels take longer.
    whole = torch.cat([p.grad.flatten() for p in params]).masked_fill_(is_bad, 0.0)
    pieces = torch.split(whole, [p.numel() for p in params])
    for p, piece in zip(params, pieces, strict=True):
        p.grad = piece.view_as(p)
    state = (item for p in params for item in optimizer.state.get(p, {}).items())
    moments = [value for key, value in state if isinstance(value, Tensor) and key != "step"]
    now = [*(p.detach() for p in params), *moments]  # moments that are made now start at zero
    before = torch._foreach_mul(now, is_bad.float())  # all, or nothing
    optimizer.step()
    torch._foreach_mul_(now, (~is_bad).float())
    torch._foreach_add_(now, before)


def freeze(model: Declared, how: str) -> None:
    """Set which parameters are trained.

    Args:
        how: `none`: all are; `all-but-head` (a linear probe); `norm+bias`: vectors and the head are
            (as BitFit, Ben Zaken et al. 2022, with the norms); `blocks:<n>`: the embedding and the
            first n blocks are not; `lora:<rank>`: the updates of `add_lora` and the head are.
    """
    for name, parameter in model.named_parameters():
        if how == "all-but-head":
            parameter.requires_grad_(model.is_head(name))
        elif how == "norm+bias":
            parameter.requires_grad_(parameter.ndim == 1 or model.is_head(name))
        elif how.startswith("lora:"):
            parameter.requires_grad_(LEARNED in name or model.is_head(name))
        elif how.startswith("blocks:"):
            parameter.requires_grad_(model.depth_of(name) > int(how.removeprefix("blocks:")))


def parameter_groups(
    model: Declared, config: OptimConfig, *, hidden_apart: bool = False
) -> list[dict[str, Any]]:
    """Parameters that share weight decay and learning rate.

    Those that are not trained are left out. `config.weight_decay` is of the parameters that
    decay; the others take none.
    `config.layer_decay` is a factor of the learning rate per step towards the image (Clark et al.
    2020; Bao et al. 2022, appendix).

    Args:
        hidden_apart: hidden matrices have groups of their own, with `is_hidden`.

    Returns:
        Groups with `params`, `weight_decay`, and `lr_scale`, the factor of the learning rate.
    """
    parameters = list(model.named_parameters())
    last = max(model.depth_of(name) for name, _ in parameters)
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        scale = config.layer_decay ** (last - model.depth_of(name))
        hidden = hidden_apart and model.is_hidden_matrix(name)
        groups.setdefault((scale, model.decays(name), hidden), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: item[0], reverse=True)
    return [
        {
            "params": members, "weight_decay": config.weight_decay * decays, "lr_scale": scale,
            **({"is_hidden": hidden} if hidden_apart else {}),
        }
        for (scale, decays, hidden), members in ordered
    ]  # fmt: skip
