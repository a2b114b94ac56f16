"""Muon, with all matrices of one shape orthogonalised together."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from timm.optim.muon import (
    _COEFFICIENTS,
    Muon,
    get_lr_scale,
    resolve_ns_coefficients,
    zeropower_via_newtonschulz,
)


class BatchedMuon(Muon):
    """timm's Muon, to rounding, with one Newton-Schulz iteration for all matrices of one shape.

    Groups with `use_fallback` are timm's own affair (AdamW; with Nesterov momentum, NAdamW).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; a parameter without a gradient stays."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["use_fallback"]]
        try:
            super().step(closure)  # type: ignore[no-untyped-call]
        finally:
            self.param_groups = groups
        for group in groups:
            if not group["use_fallback"]:
                self._orthogonalise(group)

    def _orthogonalise(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        momenta = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state |= {"use_muon": True, "momentum_buffer": torch.zeros_like(p)}
            momenta.append(state["momentum_buffer"])
        grads = [p.grad for p in params]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, momenta, group["momentum"])
        shapes: dict[torch.Size, list[int]] = defaultdict(list)
        for i, p in enumerate(params):
            shapes[p.shape].append(i)
        coefficients = resolve_ns_coefficients(group["ns_coefficients"], _COEFFICIENTS)
        for shape, members in shapes.items():
            together = zeropower_via_newtonschulz(
                torch.stack([updates[i] for i in members]), group["ns_steps"], coefficients,
                eps=group["eps"],
            )  # fmt: skip
            together = together.to(params[0].dtype, memory_format=torch.contiguous_format)
            torch._foreach_add_(
                [params[i] for i in members], list(together.unbind()),
                alpha=-group["lr"] * get_lr_scale(shape, group["adjust_lr_fn"]),
            )  # fmt: skip
