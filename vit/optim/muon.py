"""Muon, with all matrices of one shape orthogonalised together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from timm.optim.muon import (
    _COEFFICIENTS,
    Muon,
    get_lr_scale,
    resolve_ns_coefficients,
    zeropower_via_newtonschulz,
)
from torch import Tensor
from torch.optim.adamw import adamw


class BatchedMuon(Muon):
    """timm's Muon, to rounding, with one Newton-Schulz iteration for all matrices of one shape.

    Attributes:
        stacked: parameters that are several matrices, one below the other, and how many: each is
            orthogonalised by itself. Of a run that began without them they stay whole.

    Groups with `use_fallback` take torch's AdamW, fused.
    """

    stacked: Mapping[Tensor, int] = MappingProxyType({})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; a parameter without a gradient stays."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["use_fallback"]:
                self._adamw(group, params)
            elif params:
                self._orthogonalise(group, params)

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] |= {
                    "use_muon": False, "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p),
                }  # fmt: skip
            # Earlier versions kept it on the host.
            self.state[p]["step"] = self.state[p]["step"].to(p.device)
        steps, means, squares = (
            [self.state[p][key] for p in params] for key in ("step", "exp_avg", "exp_avg_sq")
        )
        grads = [p.grad for p in params if p.grad is not None]
        beta1, beta2 = group["betas"]
        adamw(
            params, grads, means, squares, [], steps, fused=True, amsgrad=False, beta1=beta1,
            beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            maximize=False,
        )  # fmt: skip

    def _orthogonalise(self, group: dict[str, Any], params: list[Tensor]) -> None:
        momenta = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state |= {
                    "use_muon": True, "momentum_buffer": torch.zeros_like(p),
                    "matrices": self.stacked.get(p, 1),
                }  # fmt: skip
            momenta.append(state["momentum_buffer"])
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, momenta, group["momentum"])
        shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p, update in zip(params, updates, strict=True):
            count = self.state[p].get("matrices", 1)
            for matrix, its_update in zip(p.chunk(count), update.chunk(count), strict=True):
                shapes[matrix.shape].append((matrix, its_update))
        coefficients = resolve_ns_coefficients(group["ns_coefficients"], _COEFFICIENTS)
        for shape, members in shapes.items():
            matrices, their_updates = zip(*members, strict=True)
            together = zeropower_via_newtonschulz(
                torch.stack(their_updates), group["ns_steps"], coefficients, eps=group["eps"]
            )
            together = together.to(params[0].dtype, memory_format=torch.contiguous_format)
            torch._foreach_add_(
                list(matrices), list(together.unbind()),
                alpha=-group["lr"] * get_lr_scale(shape, group["adjust_lr_fn"]),
            )  # fmt: skip
