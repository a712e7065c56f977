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


def newcombe(hits: float, n: int, other_hits: float, other_n: int, phi: float = 0.0) -> tuple[float, float, float]:
    """(difference, low, high) of two shares: the hybrid score interval (Newcombe 1998, method 10; of pairs, 1998b).

    `phi` is the correlation of the two answers where the same rows gave both.
    """
    p, q = hits / n, other_hits / other_n
    (low_p, high_p), (low_q, high_q) = wilson(hits, n), wilson(other_hits, other_n)
    below, above = _joined(p - low_p, high_q - q, phi), _joined(high_p - p, q - low_q, phi)
    return p - q, p - q - below, p - q + above


def _joined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a + b * b - 2 * phi * a * b))


def chance_of_more(hits: int, n: int, other_hits: int, other_n: int) -> float:
    """How often so many of the hits or more are on the first side when both sides are alike (Fisher's exact test)."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(hits - 1, n + other_n, hits + other_hits, n))


def around(value: float, deviation: float, least: float = 0.0, most: float = 1.0) -> tuple[float, float]:
    """The normal interval of a figure with this standard error, within what the figure can be."""
    half = Z * deviation
    return min(value, max(least, value - half)), max(value, min(most, value + half))


def middle(values: Floats, n: int) -> tuple[float, float]:
    """The percentile interval of values resampled from n rows; not-a-numbers are left out.

    Of few rows resampling shows too little: the quantiles move outwards as Student's t does (Hesterberg 2015, 3.3).
    """
    from scipy.stats import norm, t

    if not np.isfinite(values).any():
        return math.nan, math.nan
    tail = float(norm.cdf(math.sqrt(n / (n - 1)) * t.ppf(0.025, n - 1))) if n > 1 else 0.0
    low, high = np.nanquantile(values, [tail, 1 - tail])
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
