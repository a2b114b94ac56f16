"""What the course of a run's validation loss says of its length; no NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RISE = 1.1
"""A validation loss that ends so many times above its lowest is said to have risen."""
LATE, FALL = 0.95, 0.98
"""One that after this share of the run is below so many times its lowest of before still falls."""
EARLY = 0.9
"""A lowest validation loss before this share of the run was not where the run ended."""


@dataclass(frozen=True)
class Course:
    """The validation loss of a run.

    Attributes:
        epochs: how long the run was.
        best, lowest: the epoch of the lowest loss, and that.
        last: at the end.
        overfitted, falling: it rose after its lowest; it was still falling at the end.
    """

    epochs: float
    best: float
    lowest: float
    last: float
    overfitted: bool
    falling: bool

    @classmethod
    def of(cls, validations: Sequence[tuple[float, float]], epochs: float) -> Course | None:
        """From (epoch, loss) of each validation, in their order; None of less than two."""
        finite = [(epoch, loss) for epoch, loss in validations if math.isfinite(loss)]
        if len(finite) < 2:
            return None
        best, lowest = min(finite, key=lambda validation: validation[1])
        last = finite[-1][1]
        overfitted = last > RISE * lowest and best < EARLY * epochs
        before = min((loss for epoch, loss in finite if epoch < LATE * epochs), default=math.inf)
        falling = not overfitted and lowest < FALL * before
        return cls(epochs, best, lowest, last, overfitted, falling)

    @property
    def sentence(self) -> str:
        """What it says, in words."""
        if self.overfitted:
            return (
                f"The validation loss was best at epoch {self.best:.3g} of {self.epochs:.3g} "
                f"({self.lowest:.2f}) and rose to {self.last:.2f}: from there on the model learned "
                f"the training images by heart."
            )
        if self.falling:
            return (
                f"The validation loss was still falling at the end ({self.last:.2f}): it did not "
                f"overfit, and more epochs are likely to help."
            )
        return (
            f"The validation loss levelled off ({self.lowest:.2f} at epoch {self.best:.3g} of "
            f"{self.epochs:.3g}, {self.last:.2f} at the end): no sign of overfitting."
        )
