"""One predicate decides when something falls due."""

from __future__ import annotations

from fractions import Fraction


def due(step: int, every: Fraction) -> bool:
    """Whether a multiple of `every` steps lies in (step - 1, step].

    `every` need not be whole: with n images and batch B an epoch is n / B steps, and epoch k
    falls due at ceil(k * n / B).
    """
    return step // every > (step - 1) // every
