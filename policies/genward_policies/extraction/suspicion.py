"""How much a sketch looks like an extraction: 1 and above is flagged.

Honest customers come back to what interests them, and what is new to them lies where the population lies. A uniform or
sweeping stream is new all the time and fills the ranges evenly; a probing one is new all the time right beside what it
asked before. Behind a customer's own requests, low and slow, its new conditions still lie where the release has few
rows, which tells most where ranges have long tails.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, lgamma, log, log10

import numpy as np

from genward_policies.extraction.sketch import CELLS, Sketch

LEAST = 150  # queries before anything is said,
LEAST_NEW = 40  # and new ones among them
SPREAD, PROBING, STRANGE = 0.88, 0.50, 2.2  # thresholds, set on simulated customers by benchmarks/extraction.py
_GROWTH, _AT = 0.1, 200  # of the second for ten times as many queries: places fill up, so more are beside another


def suspicion(sketch: Sketch) -> float:
    """The largest of spread, probing and surprise, each over its threshold."""
    if sketch.queries < LEAST or sketch.new < LEAST_NEW:
        return 0.0
    least = PROBING + _GROWTH * log10(sketch.queries / _AT)
    return max(spread(sketch) / SPREAD, probing(sketch) / least, sketch.surprise / STRANGE)


def spread(sketch: Sketch) -> float:
    """The share of queries that are new, times how evenly these fill the cells."""
    return sketch.new / max(1, sketch.queries) * evenness(sketch)


def evenness(sketch: Sketch) -> float:
    """Entropy of the cells of new conditions and how many cells they meet, over those of as many uniform ones; the
    geometric mean."""
    n = int(sketch.cells.sum())
    if n < 2:
        return 0.0
    shares = sketch.cells[sketch.cells > 0] / n
    entropy = float(-(shares * np.log(shares)).sum()) / _entropy(n)
    met = len(shares) / (CELLS * (1 - (1 - 1 / CELLS) ** n))
    return float(np.sqrt(max(0.0, entropy) * met))


def probing(sketch: Sketch) -> float:
    """Share of all queries that are new and beside an earlier one."""
    return sketch.probes / max(1, sketch.queries)


@lru_cache(4096)
def _entropy(n: int) -> float:
    """Expected entropy of n uniform draws over the cells: each count is about Poisson."""
    rate = n / CELLS
    most = int(rate + 12 * rate**0.5 + 20)
    weighed = sum(exp(k * log(rate) - rate - lgamma(k + 1)) * k * log(k) for k in range(2, most))
    return log(n) - CELLS * weighed / n
