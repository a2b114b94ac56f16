"""The exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """An average over about the last 1 / (1 - decay) steps; shorter at the start of a run.

    `decay_t = min(decay, (1 + t) / (10 + t))`, as in TensorFlow's ExponentialMovingAverage, keeps
    the random initial weights out of the average.

    Args:
        model: is copied; the copy is never trained.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights of `model` after the optimiser's step number `step`."""
        if self._pairs is None:  # not before: parameters may be spread over processes first
            self._pairs = list(self.model.parameters()), list(model.parameters())
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._pairs, 1 - decay)
