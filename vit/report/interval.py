"""The intervals of a share and of a difference of two; no NumPy, for what answers at once."""

from math import hypot, sqrt
from statistics import NormalDist


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share `hits / count` (Wilson 1927), `count` at least 1."""
    z = NormalDist().inv_cdf(0.975)
    middle, reach = hits + z**2 / 2, z * sqrt(hits * (count - hits) / count + z**2 / 4)
    return max(0.0, (middle - reach) / (count + z**2)), min(1.0, (middle + reach) / (count + z**2))


def difference(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares, each `(hits, count)` on images of its own
    (Newcombe 1998, method 10: a hybrid of the score intervals).
    """
    share, other = first[0] / first[1], second[0] / second[1]
    (low, high), (other_low, other_high) = wilson(*first), wilson(*second)
    between = share - other
    return (
        between - hypot(share - low, other_high - other),
        between + hypot(high - share, other - other_low),
    )
