"""One optimiser step: forward, backward, update, without synchronising with the host."""

from __future__ import annotations

import contextlib

import torch
from torch.utils._pytree import tree_leaves

from vit.config.schema import TrainerConfig
from vit.data.types import Batch
from vit.model.vit import VisionTransformer
from vit.optim.build import step_unless
from vit.runtime.device import autocast
from vit.runtime.dist import World, full_tensor, no_sync
from vit.runtime.seeding import reseed
from vit.training.loss import Loss, by_head
from vit.training.state import TrainState


def train_step(
    state: TrainState, batch: Batch, lr: float, *, seed: int, world: World, config: TrainerConfig,
    loss: Loss, clip_norm: float | None, device: torch.device,
) -> None:  # fmt: skip
    """Train on `batch`, our share of the global batch, and advance `state` by one step.

    A batch in `config.accumulate` parts gives the gradient of the whole batch. A step whose loss
    or gradient is not finite changes no weight: the flag reaches a fused optimiser on the device,
    and the other processes with the gradient, which is all that they exchange.
    """
    optimizer, scale, parameters = state.optimizer, state.loss_scale, state.parameters
    if not state.model.training:
        state.model.train()
    for p in parameters:  # not at the end: who wants to see the gradient may
        p.grad = None
    counted = []
    share = config.batch_size / world.size  # of which the gradient is averaged over the world
    assert isinstance(config.accumulate, int)
    for number, part in enumerate(batch.split(config.accumulate)):
        reseed(seed, "model", state.step, world.rank, number)
        is_last = number == config.accumulate - 1
        with contextlib.nullcontext() if is_last else no_sync(state.forward):
            with autocast(device, config.precision):
                inputs = (part.images,) if part.mask is None else (part.images, part.mask)
                logits = state.forward(*inputs)
            losses = loss(logits, part)
            total = losses.sum()
            mean = total / share
            # Not a number where the loss is not finite: then the gradients say so to everyone.
            factor = 0 * mean.detach() + (1 if scale is None else scale.factor)
            mean.backward(factor)  # type: ignore[no-untyped-call]
        own, _ = by_head(logits)
        counted.append((total.detach(), loss.task.right(own, part.labels).sum()))

    if scale is not None:
        scale.undo(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    norm = full_tensor(norm)
    columns = [sum(column[1:], column[0]) for column in zip(*counted, strict=True)]
    row = torch.stack([*columns, norm])
    is_bad = ~norm.isfinite()
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

    state.unread.append((row, len(batch.labels)))
    state.step += 1


def parts_that_fit(
    model: VisionTransformer, config: TrainerConfig, world: World, device: torch.device
) -> int:
    """In how many parts a batch is computed so that the memory of a GPU suffices, by trying.

    Forward and backward pass of noise, with room left for two moments of the optimiser; on the CPU
    one. The model and its gradients are as before.

    Raises:
        torch.OutOfMemoryError: not even one image fits.
    """
    share = config.batch_size // world.size
    for parts in (n for n in range(1, share + 1) if share % n == 0):
        try:
            if device.type != "cpu":
                _try_out(model, share // parts, config.precision, device)
            break
        except torch.OutOfMemoryError:
            if parts == share:
                raise
        finally:
            for p in model.parameters():
                p.grad = None
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return max(world.all_gather_object(parts))


def _try_out(model: VisionTransformer, images: int, precision: str, device: torch.device) -> None:
    moments = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
    height, width = model.config.image_size
    noise = torch.randn(images, model.config.channels, height, width, device=device)
    with autocast(device, precision):
        logits = model.train()(noise)
    sum(part.float().square().sum() for part in tree_leaves(logits)).backward()
    del moments
