"""The training loss. K classes, B batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
