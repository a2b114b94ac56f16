"""The training loss. K classes, B batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def binary_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the classes of binary cross-entropies (Wightman et al. 2021; DeiT III), in nats.

    Arguments and result as in `cross_entropy`.
    """
    smooth = targets * (1 - smoothing) + smoothing / targets.shape[1]
    losses = F.binary_cross_entropy_with_logits(logits.float(), smooth, reduction="none")
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
