"""What the logits are: of the pooled tokens alone, or also of a teacher's token.

Legend: B batch, T tokens, D width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneHead(nn.Module):
    """The logits are those of the pooled tokens."""

    reads = 0

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """(B, K), (B, T, D) -> (B, K)."""
        return logits


class DistillationHead(nn.Linear):
    """The head of the distillation token (DeiT, Touvron et al. 2021, section 4).

    Args:
        dim: width D of the tokens.
        num_classes: number of logits K.
        place: of the distillation token among the tokens.

    Attributes:
        reads: so many tokens, the first, must be computed for it.
    """

    def __init__(self, dim: int, num_classes: int, place: int) -> None:
        super().__init__(dim, num_classes)
        self.place = place
        self.reads = place + 1

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """In training (B, K), (B, T, D) -> (B, 2, K), both heads' logits; else their mean (B, K).

        Args:
            logits: of the pooled tokens.
            tokens: normalised.
        """
        both = torch.stack([logits, super().forward(tokens[:, self.place])], dim=1)
        return both if self.training else both.mean(dim=1)


class HeadAlone(nn.Module):
    """A head that is called as its model is, with features (B, D) for images."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D) -> (B, K)."""
        logits: Tensor = self.head(features)
        return logits


def by_head(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The class head's and the teacher's logits, both (B, K); the same where there is one head.

    Args:
        logits: of a model in training, (B, K) or (B, 2, K).
    """
    if logits.ndim == 2:
        return logits, logits
    own, listening = logits.unbind(dim=1)
    return own, listening
