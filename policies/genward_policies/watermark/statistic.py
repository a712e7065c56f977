"""What a file says under a key.

    S = sum over cells of a_c (U_c - 1/2)      a_c = n_c - n pi_c      variance given the file: sum a_c^2 / 12

n_c counts the file's rows in cell c, pi_c is the share of the release's unmarked rows there. Under a random key the U_c
are independent uniforms whatever the rows are, and a centred uniform is strictly sub-Gaussian (Arbel, Marchal and
Nguyen, On strict sub-Gaussianity, 2020), so P(z >= x) <= exp(-x^2/2) for every file: no law of the rows is assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from genward_policies.watermark.marking import MarkKey, scores, uniforms
from genward_policies.watermark.scheme import Cells

_FAINT = 0.1  # rows expected of a cell that the file does not have, below which it says nothing
_CHUNK = 1 << 14  # cells looked at together
_WORDS = 4  # decoys of one cipher block
_LEAST = 1e-300  # smaller chances are not told apart
NORMAL = NormalDist()


@dataclass(frozen=True)
class Counts:
    """Distinct cells, rising, how many of `rows` rows have each."""

    cells: NDArray[np.uint64]
    counts: NDArray[np.float64]
    rows: int

    @classmethod
    def of(cls, cells: Cells) -> Counts:
        distinct, counts = np.unique(cells, return_counts=True)
        return cls(distinct, counts.astype(np.float64), len(cells))


@dataclass(frozen=True)
class Weights:
    """The weights of a file's cells: they depend on the file and never on a key."""

    cells: NDArray[np.uint64]
    weights: NDArray[np.float64]
    rows: int

    @classmethod
    def of(cls, file: Counts, usual: Counts) -> Weights:
        """Counts less what is usual. Cells that the file lacks count too where rows of them were expected."""
        expected = usual.counts * (file.rows / max(usual.rows, 1))
        places = np.searchsorted(usual.cells, file.cells)
        inside = np.minimum(places, max(len(usual.cells) - 1, 0))
        known = (usual.cells[inside] == file.cells) if len(usual.cells) else np.zeros(len(file.cells), dtype=bool)
        own = file.counts - np.where(known, expected[inside] if len(expected) else 0.0, 0.0)
        left = expected >= _FAINT
        left[inside[known]] = False
        cells = np.concatenate([file.cells, usual.cells[left]])
        return cls(cells, np.concatenate([own, -expected[left]]), file.rows)

    @cached_property
    def deviation(self) -> float:
        """The standard deviation of S over keys."""
        return math.sqrt(float(self.weights @ self.weights) / 12)

    def total(self, key: MarkKey) -> float:
        """S under a key."""
        return float(self.weights @ uniforms(self.cells, key)[:, 0])

    def z(self, key: MarkKey) -> float:
        """S in standard deviations; 0 for a file that says nothing."""
        return self.total(key) / self.deviation if self.deviation else 0.0

    def decoys(self, count: int, key: MarkKey) -> NDArray[np.float64]:
        """z under `count` keys that nobody holds, drawn from one random key."""
        if not self.deviation:
            return np.zeros(count)
        found = np.zeros(-(-count // _WORDS) * _WORDS)
        for start in range(0, len(self.cells), _CHUNK):
            part = slice(start, start + _CHUNK)
            for step, place in enumerate(range(0, len(found), _WORDS)):
                drawn = uniforms(self.cells[part], key, step + 1, _WORDS)
                found[place : place + _WORDS] += self.weights[part] @ drawn
        return found[:count] / self.deviation


def bound(z: float) -> float:
    """The chance of such a z, or a larger one, under a key that did not mark the file: at most this."""
    return max(math.exp(-z * z / 2), _LEAST) if z > 0 else 1.0


def needed(p: float) -> float:
    """The z whose bound is p."""
    return math.sqrt(-2 * math.log(p))


@dataclass(frozen=True)
class Lift:
    """What marking does to the mean score of a row, in the hashes that a file has: `shift` a row; `spread` is the
    standard deviation among unmarked rows, of which there were `rows`."""

    shift: float
    spread: float
    rows: int

    @classmethod
    def of(cls, every: Cells, present: Cells, key: MarkKey, candidates: int) -> Lift:
        """From unmarked rows: the best of k by the whole score, told in the score of the hashes that are left."""
        whole = scores(every, [key])
        part = scores(present, [key]) * 2.0**-32
        ends = (np.arange(len(whole) + 1) / len(whole)) ** candidates
        best = float(np.diff(ends) @ part[np.argsort(whole, kind="stable")])
        return cls(best - float(part.mean()), float(part.std()), len(part))

    def expected(self, weights: Weights) -> float:
        """z of a file of so many rows, were it marked wholly."""
        return weights.rows * self.shift / weights.deviation if weights.deviation else 0.0

    def power(self, weights: Weights, p: float) -> float:
        """The chance that such a file would be recognised at p."""
        return NORMAL.cdf(self.expected(weights) - needed(p)) if weights.deviation else 0.0

    def share(self, weights: Weights, key: MarkKey) -> tuple[float, float, float]:
        """(share of the rows that are marked, ends of its 95 % interval): file and usual rows are both samples."""
        if self.shift <= 0 or not weights.rows:
            return 0.0, 0.0, 1.0
        middle = weights.total(key) / weights.rows / self.shift
        half = 1.96 * self.spread * math.sqrt(1 / weights.rows + 1 / self.rows) / self.shift
        return tuple(min(max(x, 0.0), 1.0) for x in (middle, middle - half, middle + half))  # type: ignore[return-value]
