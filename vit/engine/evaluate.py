"""Exact evaluation: every sample once, summed in order in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit.data.loader import EvalLoader
from vit.model.vit import VisionTransformer
from vit.runtime.device import autocast
from vit.runtime.dist import is_sharded


@dataclass(frozen=True)
class Predictions:
    """What the model says of each of N samples, in their order.

    Attributes:
        losses: cross-entropy in nats, float64 (N,).
        top: the five most probable classes, best first (fewer with fewer classes), (N, 5).
        probability: of the best class, float32 (N,).
        labels: the truth, (N,).
        index: which samples of the split they are, (N,): damaged ones may have been left out.
    """

    losses: np.ndarray
    top: np.ndarray
    probability: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def scores(self) -> dict[str, float]:
        """`loss` in nats, `top1` and `top5` in percent, over all samples alike."""
        hits = self.top == self.labels[:, None]
        count = len(self.labels)
        return {
            "loss": float(self.losses.sum() / count),
            "top1": float(100 * hits[:, 0].sum() / count),
            "top5": float(100 * hits.any(axis=1).sum() / count),
        }


@torch.no_grad()
def predict(
    model: VisionTransformer,
    loader: EvalLoader,
    device: torch.device,
    precision: str,
    between: Callable[[], None] = lambda: None,
) -> Predictions:
    """Run `model` over a split, each process over its batches.

    Args:
        model: its weights as they are; always run eagerly, so that a compiled training run and a
            later evaluation of its checkpoint give the same numbers.
        loader: the split.
        precision: `bf16` or `fp32`.
        between: called after every batch, equally often by every process; may raise to stop.

    Returns:
        The predictions for the whole split, the same in every process and for every world.
    """
    model.eval()
    parts = []
    for k in range(len(loader)):
        if loader.has(k):
            images, labels, index = loader.batch(k)
            parts.append((*_judge(model, images, labels, device, precision), labels, index))
        elif is_sharded(model):  # whose weights are gathered by all or by none
            _judge(model, *loader.nothing(), device, precision)
        between()
    ours = [(*(column.cpu().numpy() for column in part[:-1]), part[-1]) for part in parts]
    shares = loader.world.gather((ours, loader.bad.reasons))
    for _, reasons in shares:
        loader.bad.note(reasons)
    in_order = [part[k] for k in range(len(loader)) for part, _ in shares if k < len(part)]
    losses, *others = (np.concatenate(column) for column in zip(*in_order, strict=True))
    return Predictions(losses.astype(np.float64), *others)


def _judge(
    model: VisionTransformer, images: Tensor, labels: Tensor, device: torch.device, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, best classes and probability of the best one, of each image of a batch."""
    with autocast(device, precision):
        logits = model(images) if is_sharded(model) else model.forward(images)
    logits = logits.float()
    losses = F.cross_entropy(logits, labels, reduction="none")
    top = logits.topk(min(5, logits.shape[1])).indices
    return losses, top, logits.softmax(dim=-1).amax(dim=-1)
