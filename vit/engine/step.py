"""One optimiser step: forward, backward, update, without a word to the host."""

from __future__ import annotations

import math

import torch

from vit.config.schema import TrainerConfig
from vit.data.types import Batch
from vit.engine.loss import cross_entropy
from vit.engine.state import TrainState, as_tensor
from vit.runtime.device import autocast
from vit.runtime.seeding import reseed


def train_step(
    state: TrainState,
    batch: Batch,
    lr: float,
    *,
    seed: int,
    rank: int,
    config: TrainerConfig,
    clip_norm: float | None,
    device: torch.device,
) -> None:
    """Train on `batch` and advance `state` by one step.

    A batch in `config.accumulate` parts gives the gradient of the whole batch. A step whose
    gradient is not finite changes no weight: the flag reaches the fused optimiser on the device.
    """
    model, optimizer = state.model, state.optimizer
    model.train()
    total_loss = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    for number, part in enumerate(batch.split(config.accumulate)):
        reseed(seed, "model", state.step, rank, number)
        with autocast(device, config.precision):
            logits = model(part.images)
        losses = cross_entropy(logits, part.targets, config.label_smoothing)
        (losses.sum() / config.batch_size).backward()  # type: ignore[no-untyped-call]
        total_loss += losses.detach().sum()
        correct += (logits.argmax(dim=-1) == part.labels).sum()

    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm or math.inf)
    is_bad = ~norm.isfinite()
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # absent in runs of the first version
    optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update(model, state.step)

    one = torch.ones((), device=device)
    travelled = as_tensor(total_loss, correct, one * len(batch.labels), norm, one)
    state.odometer += travelled.where(~is_bad, 0.0)
    _count_bad(state, is_bad)
    state.step += 1


def _count_bad(state: TrainState, is_bad: torch.Tensor) -> None:
    """Count non-finite steps on the device: in a row, most in a row, in all, number of the last."""
    in_row, most, total, last = state.bad.unbind()
    in_row = (in_row + 1) * is_bad
    last = torch.where(is_bad, state.step, last)
    state.bad = torch.stack([in_row, torch.maximum(most, in_row), total + is_bad, last])
