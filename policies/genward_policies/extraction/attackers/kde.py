"""Hoard and jitter: the delivered rows themselves, drawn again and again, each number a little off.

A smoothed bootstrap that keeps means and covariances (Silverman and Young 1987, Biometrika 74): rows are drawn towards
their mean by as much as the noise spreads them. Against tabular generators nothing trained does better.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from genward.attacker import Attacker, Rows

_JITTER = 0.05  # of a column's spread


class Hoard(Attacker):
    """Keeps every row."""

    name: ClassVar[str] = "kde"
    effort = "light"

    def fit(self, rows: Rows, seed: int) -> None:
        self._rows, self._middle, self._spread = rows, rows.mean(axis=0), rows.std(axis=0)

    def sample(self, n: int, seed: int) -> Rows:
        rng = np.random.default_rng([seed, 1])
        drawn = self._rows[rng.integers(len(self._rows), size=n)]
        near = self._middle + np.sqrt(1 - _JITTER**2) * (drawn - self._middle)
        return self.target.hardened(near + _JITTER * self._spread * rng.normal(size=drawn.shape))
