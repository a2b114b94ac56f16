"""One optimiser step: forward, backward, update, without synchronising with the host."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from vit.config.schema import TrainerConfig
from vit.data.types import Batch
from vit.optim.build import step_unless
from vit.runtime.device import autocast
from vit.runtime.dist import World, full_tensor, no_sync
from vit.runtime.seeding import reseed
from vit.training.loss import Loss, by_head
from vit.training.state import TrainState


def train_step(
    state: TrainState,
    batch: Batch,
    lr: float,
    *,
    seed: int,
    world: World,
    config: TrainerConfig,
    loss: Loss,
    clip_norm: float | None,
    device: torch.device,
) -> None:
    """Train on `batch`, our share of the global batch, and advance `state` by one step.

    A batch in `config.accumulate` parts gives the gradient of the whole batch. A step whose loss
    or gradient is not finite changes no weight: the flag reaches a fused optimiser on the device.
    """
    optimizer, scale = state.optimizer, state.loss_scale
    state.model.train()
    optimizer.zero_grad(set_to_none=True)  # not at the end: who wants to see the gradient may
    total_loss = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    share = config.batch_size / world.size  # of which the gradient is averaged over the world
    for number, part in enumerate(batch.split(config.accumulate)):
        reseed(seed, "model", state.step, world.rank, number)
        is_last = number == config.accumulate - 1
        with contextlib.nullcontext() if is_last else no_sync(state.forward):
            with autocast(device, config.precision):
                logits = state.forward(part.images, part.mask)
            losses = loss(logits, part)
            mean = losses.sum() / share
            if scale is not None:
                mean = mean * scale.factor
            mean.backward()  # type: ignore[no-untyped-call]
        total_loss += losses.detach().sum()
        own, _ = by_head(logits)
        correct += (own.argmax(dim=-1) == part.labels).sum()

    if scale is not None:
        scale.undo(state.model.parameters())
    limit = clip_norm or math.inf
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(state.model.parameters(), limit))
    one = torch.ones((), device=device)
    sums = world.all_reduce(_as_tensor(total_loss, correct, one * len(batch.labels)))
    is_bad = ~(norm.isfinite() & sums[0].isfinite())
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)  # absent in runs of the first version
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif device.type != "cpu":
        step_unless(optimizer, is_bad)
    elif not is_bad:  # there to ask costs nothing
        optimizer.step()
    if scale is not None:
        scale.update(is_bad)
    if state.ema is not None:
        state.ema.update(state.model, state.step)

    sums = torch.cat([sums, _as_tensor(norm, one)])
    state.metric_sums += sums.where(~is_bad, 0.0)
    state.non_finite.add(is_bad, state.step)
    state.step += 1


def _as_tensor(*values: Tensor) -> Tensor:
    """Scalars on the device as one float64 vector."""
    return torch.stack([value.double() for value in values])
