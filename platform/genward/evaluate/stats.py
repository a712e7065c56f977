"""Intervals: every figure of a judgement says how far it may be off by chance. All are two-sided, 95 %."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Z = 1.959963984540054  # the normal quantile of .975


def wilson(hits: float, n: int) -> tuple[float, float]:
    """Ends of the interval of a share (Wilson 1927); none of 12 may still be a quarter."""
    p, z2 = hits / n, Z * Z
    middle, half = p + z2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return (0.0 if hits == 0 else max(0.0, low)), (1.0 if hits == n else min(1.0, high))


def newcombe(hits: float, n: int, other_hits: float, other_n: int, z: float = Z) -> tuple[float, float, float]:
    """(difference, low, high) of two independent shares: the hybrid score interval (Newcombe 1998, method 10)."""
    p, q = hits / n, other_hits / other_n
    (low_p, high_p), (low_q, high_q) = wilson(hits, n), wilson(other_hits, other_n)
    below, above = math.hypot(p - low_p, high_q - q), math.hypot(high_p - p, q - low_q)
    return p - q, p - q - below, p - q + above


def around(value: float, deviation: float, least: float = 0.0, most: float = 1.0) -> tuple[float, float]:
    """The normal interval of a figure with this standard error, within what the figure can be."""
    half = Z * deviation
    return min(value, max(least, value - half)), max(value, min(most, value + half))


def middle(values: Floats) -> tuple[float, float]:
    """The percentile interval of resampled values; not-a-numbers are left out."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def auc(positive: Floats, negative: Floats) -> tuple[float, float]:
    """(area under the ROC curve, its variance) of scores, by DeLong's placements (Sun and Xu 2014).

    With few scores, or all on the right side, placements do not vary and promise too much: the variance is never less
    than Hanley and McNeil's (1982) at the area that one more pair on either side would give.
    """
    from scipy.stats import rankdata

    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    above = (ranks[:n] - rankdata(positive)) / m
    below = 1 - (ranks[n:] - rankdata(negative)) / n
    area = float(above.mean())
    spread = sum(float(side.var(ddof=1)) / len(side) for side in (above, below) if len(side) > 1)
    return area, max(spread, _hanley(area, n, m))


def _hanley(area: float, n: int, m: int) -> float:
    k = min(n, m)
    a = (area * k + 1) / (k + 2)
    same, other = a / (2 - a), 2 * a * a / (1 + a)
    return (a * (1 - a) + (n - 1) * (same - a * a) + (m - 1) * (other - a * a)) / (n * m)
