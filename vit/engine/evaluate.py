"""Exact evaluation: every sample once, summed in order in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from vit.data.loader import EvalLoader
from vit.model.vit import VisionTransformer
from vit.runtime.device import autocast


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
    """Run `model` over a split.

    Args:
        model: its weights as they are; always run eagerly, so that a compiled training run and a
            later evaluation of its checkpoint give the same numbers.
        loader: the split.
        precision: `bf16` or `fp32`.
        between: called after every batch; may raise to stop.
    """
    model.eval()
    parts, positions = [], []
    for k in range(len(loader)):
        images, labels, index = loader.batch(k)
        with autocast(device, precision):
            logits = model.forward(images)
        logits = logits.float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        top = logits.topk(min(5, logits.shape[1])).indices
        probability = logits.softmax(dim=-1).amax(dim=-1)
        parts.append((losses, top, probability, labels))
        positions.append(index)
        between()
    nats, *others = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    columns = [nats.astype(np.float64), *others, np.concatenate(positions)]
    return Predictions(*columns)
