"""From noisy counts of fine values to few groups of them, and to how probable each value is.

All of this is post-processing of noisy counts: it costs nothing.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import NDArray

from genward.fitting import Place

Counts = NDArray[np.float64]
_SURE = 1.5  # standard deviations at which two halves of an interval are taken to differ


def smoothed(place: Place, counts: Counts, sigma: float) -> Counts:
    """Counts of a column's values, none negative: a number's are as rough as the noise lets one tell."""
    found = np.maximum(counts, 0.0)
    if not place.is_choice:
        present = len(place.cuts) + 1
        total = max(float(counts[:present].sum()), 0.0)
        found[:present] = _halved(counts[:present], total, sigma)
    floor = 1e-6 * max(float(found.sum()), 1.0)
    return found + floor


def _halved(counts: Counts, total: float, sigma: float) -> Counts:
    """`total` shared between an interval's halves as they were counted where they differ for sure, else evenly; and
    so on within each half (a Haar estimate with a threshold)."""
    n = len(counts)
    if n == 1 or total <= 0:
        return np.full(n, total / n)
    left = n // 2
    share = left / n
    first, second = float(counts[:left].sum()), float(counts[left:].sum())
    apart = first * (1 - share) - second * share
    if abs(apart) > _SURE * sigma * math.sqrt(n * share * (1 - share)):
        share = min(1.0, max(0.0, first / max(first + second, 1e-9)))
    halves = _halved(counts[:left], total * share, sigma), _halved(counts[left:], total * (1 - share), sigma)
    return np.concatenate(halves)


def grouped(place: Place, counts: Counts, most: int) -> NDArray[np.intp]:
    """The group of each value: neighbouring values of a number, split in half by count where most are; the rare ones
    of a choice together. A gap is a group of its own."""
    if place.is_choice:
        kept = np.sort(np.argsort(-counts, kind="stable")[: most - 1]) if len(counts) > most else np.arange(len(counts))
        found = np.full(len(counts), len(kept), dtype=np.intp)
        found[kept] = np.arange(len(kept))
        return found
    present = len(place.cuts) + 1
    starts = _split(counts[:present], most)
    groups = np.searchsorted(starts, np.arange(len(counts)), side="right") - 1
    if place.choice is not None:
        groups[-1] = len(starts)
    return groups


def _split(counts: Counts, most: int) -> NDArray[np.intp]:
    """First values of at most so many intervals: the one with the largest count is halved again and again."""
    ends = np.concatenate([[0.0], np.cumsum(counts)])
    heap = [(-ends[-1], 0, len(counts))]
    done: list[int] = []
    while heap and len(heap) + len(done) < most:
        _, low, high = heapq.heappop(heap)
        if high - low == 1:
            done.append(low)
            continue
        middle = (ends[low] + ends[high]) / 2
        cut = low + 1 + int(np.abs(ends[low + 1 : high] - middle).argmin())
        for start, stop in ((low, cut), (cut, high)):
            heapq.heappush(heap, (-(ends[stop] - ends[start]), start, stop))
    return np.sort(np.array([low for _, low, _ in heap] + done, dtype=np.intp))
