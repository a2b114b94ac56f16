"""Exact evaluation: every sample once, summed in order in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.data.loader import EvalLoader
from vit.data.native import mirrored as mirror_images
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
        logits: float32 (N, K), if they were asked for.
        mirrored: of the mirror images, float32 (N, K), if they were asked for.
    """

    losses: np.ndarray
    top: np.ndarray
    probability: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    logits: np.ndarray | None = None
    mirrored: np.ndarray | None = None

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
    model: nn.Module,
    loader: EvalLoader,
    device: torch.device,
    precision: str,
    between: Callable[[], None] = lambda: None,
    *,
    logits: bool = False,
    mirrored: bool = False,
) -> Predictions:
    """Run `model` over a split, each process over its batches.

    Args:
        model: from images to logits, its weights as they are; always run eagerly, so that a
            compiled training run and a later evaluation of its checkpoint give the same numbers.
        loader: the split.
        precision: `bf16` or `fp32`.
        between: called after every batch, equally often by every process; may raise to stop.
        logits: keep all logits.
        mirrored: run the mirror images too, and keep their logits.

    Returns:
        The predictions for the whole split, the same in every process and for every world.
    """
    model.eval()
    parts: list[dict[str, Tensor | np.ndarray]] = []
    for images, labels, index, mask in loader:
        answer = _logits(model, images, mask, device, precision)
        part: dict[str, Tensor | np.ndarray] = {"labels": labels, "index": index}
        part |= _judge(answer, labels)
        if logits:
            part["logits"] = answer
        if mirrored:
            mirror = mirror_images(images, mask)
            part["mirrored"] = _logits(model, mirror, mask, device, precision)
        parts.append(part)
        between()
    for _ in range(len(loader) - len(parts)):  # rounds in which other processes have a batch
        if is_sharded(model):  # whose weights are gathered by all or by none
            for _ in range(1 + mirrored):
                _logits(model, loader.dummy_batch(), None, device, precision)
        between()
    ours = [{name: _on_host(column) for name, column in part.items()} for part in parts]
    shares = loader.world.gather((ours, loader.bad.reasons))
    for _, reasons in shares:
        loader.bad.note(reasons)
    in_order = [part[k] for k in range(len(loader)) for part, _ in shares if k < len(part)]
    columns = {name: np.concatenate([part[name] for part in in_order]) for name in in_order[0]}
    return Predictions(**{**columns, "losses": columns["losses"].astype(np.float64)})


def with_mirror_images(predictions: Predictions) -> Predictions:
    """Predictions by the mean of the probabilities of each image and its mirror image.

    Args:
        predictions: with `logits` and `mirrored`.

    Returns:
        The same images; `logits` are the logarithms of the mean probabilities.
    """
    assert predictions.logits is not None
    assert predictions.mirrored is not None
    views = [
        torch.from_numpy(x).log_softmax(-1) for x in (predictions.logits, predictions.mirrored)
    ]
    logits = torch.logaddexp(*views) - math.log(2)
    judged = _judge(logits, torch.from_numpy(predictions.labels))
    columns = {name: column.numpy() for name, column in judged.items()}
    columns["losses"] = columns["losses"].astype(np.float64)
    return replace(predictions, **columns, logits=logits.numpy(), mirrored=None)


def _logits(
    model: nn.Module, images: Tensor, mask: Tensor | None, device: torch.device, precision: str
) -> Tensor:
    """Of a batch, in float32."""
    with autocast(device, precision):
        logits: Tensor = model(images, mask) if is_sharded(model) else model.forward(images, mask)
    return logits.float()


def _judge(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Loss, best classes and probability of the best one, of each image of a batch."""
    return {
        "losses": F.cross_entropy(logits, labels, reduction="none"),
        "top": logits.topk(min(5, logits.shape[1])).indices,
        "probability": logits.softmax(dim=-1).amax(dim=-1),
    }


def _on_host(column: Tensor | np.ndarray) -> np.ndarray:
    return column.cpu().numpy() if isinstance(column, Tensor) else column
