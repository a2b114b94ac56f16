"""The training loss. K classes, B batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vit.config.schema import DistillConfig, TrainerConfig
from vit.data.task import ONE_LABEL, SEVERAL_LABELS, Task
from vit.data.types import Batch

Teach = Callable[[Tensor], Tensor]
"""From the student's images to a teacher's logits, (B, C, height, width) -> (B, K)."""


def binary_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the classes of binary cross-entropies (Wightman et al. 2021; DeiT III), in nats.

    Arguments and result as in `cross_entropy`.
    """
    smooth = targets * (1 - smoothing) + smoothing / targets.shape[1]
    losses = F.binary_cross_entropy_with_logits(logits.float(), smooth, reduction="none")
    return losses.mean(dim=1)


def label_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float, positive: Tensor
) -> Tensor:
    """Mean over labels, each for itself, of binary cross-entropies, in nats: float32 (B,).

    Args:
        logits: (B, K).
        targets: probability of each label, (B, K).
        smoothing: how far they are moved towards one half, in [0, 1).
        positive: how much more a label that is there counts than one that is not, (K,).
    """
    smooth = targets * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), smooth, reduction="none", pos_weight=positive
    )
    return losses.mean(dim=1)


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each image, in nats.

    Args:
        logits: (B, K).
        targets: class probabilities (B, K).
        smoothing: share of the probability that is spread over all classes (Szegedy et al. 2016).

    Returns:
        float32 (B,).
    """
    return F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)


LOSSES = {"cross_entropy": cross_entropy, "bce": binary_cross_entropy}


def soft_distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Divergence from a teacher's softened probabilities, times temperature^2 (Hinton et al. 2015).

    Args:
        logits: the student's (B, K).
        taught: the teacher's logits (B, K).
        temperature: both are divided by it.

    Returns:
        Kullback-Leibler divergence of each image in nats, float32 (B,).
    """
    ours = (logits.float() / temperature).log_softmax(dim=1)
    theirs = (taught.float() / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)


def hard_distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Cross-entropy to the class that the teacher finds most probable (DeiT, eq. 3).

    Arguments and result as in `soft_distillation`; the temperature is of no account.
    """
    return F.cross_entropy(logits.float(), taught.argmax(dim=1), reduction="none")


DISTILLATIONS = {"soft": soft_distillation, "hard": hard_distillation}


@dataclass(frozen=True)
class Loss:
    """What training makes small: the loss to the targets, mixed with that to a teacher's answer.

    Attributes:
        trainer: which loss to the targets, and how smooth they are.
        distill: how a teacher's answer counts.
        teach: the teacher; None: none.
        positive: see `label_cross_entropy`; None: images have one label each.
    """

    trainer: TrainerConfig
    distill: DistillConfig | None = None
    teach: Teach | None = None
    positive: Tensor | None = None

    @property
    def task(self) -> Task:
        """What the labels are."""
        return ONE_LABEL if self.positive is None else SEVERAL_LABELS

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss of each image, float32 (B,).

        Args:
            logits: (B, K), or (B, 2, K) where a head of its own listens to the teacher.
            batch: the images as the student saw them, and their targets.
        """
        own, listening = by_head(logits)
        smoothing = self.trainer.label_smoothing
        if self.positive is not None:
            losses = label_cross_entropy(own, batch.targets, smoothing, self.positive)
        else:
            losses = LOSSES[self.trainer.loss](own, batch.targets, smoothing)
        if batch.weights is not None:
            losses = losses * batch.weights
        if self.teach is None or self.distill is None:
            return losses
        to_teacher = DISTILLATIONS[self.distill.kind]
        taught = to_teacher(listening, self.teach(batch.images), self.distill.temperature)
        return losses.lerp(taught, self.distill.share)


def by_head(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The class head's and the teacher's logits, both (B, K), of those of a model in training,
    (B, K) or (B, 2, K); the same where there is one head.
    """
    if logits.ndim == 2:
        return logits, logits
    own, listening = logits.unbind(dim=1)
    return own, listening
