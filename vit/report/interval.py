"""The interval of a share; no NumPy, for what answers at once."""

from math import sqrt
from statistics import NormalDist


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share `hits / count` (Wilson 1927), `count` at least 1."""
    z = NormalDist().inv_cdf(0.975)
    middle, reach = hits + z**2 / 2, z * sqrt(hits * (count - hits) / count + z**2 / 4)
    return max(0.0, (middle - reach) / (count + z**2)), min(1.0, (middle + reach) / (count + z**2))
