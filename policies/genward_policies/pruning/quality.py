"""What was lost, in the codec's encoded space, where every number is near a standard normal.

The distance is that of `genward.data.distance`. Its own sampling error is part of it for parent and child alike. Both
make rows from the same fresh noise, so that their difference is far better known than either: the interval is a
bootstrap over noise and real rows together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genward.data.distance import features, frechet

Floats = NDArray[np.float64]
BLOCKS, TIMES = 128, 300  # groups of rows that a bootstrap draws from, and how often
_SEED = 20_260_401
_Z = 1.959963984540054


@dataclass(frozen=True)
class Loss:
    """Relative to the parent's distance; `low` and `high` are the ends of the 95 % interval."""

    value: float
    low: float
    high: float
    parent: float
    child: float


@dataclass(frozen=True)
class _Moments:
    """Sums over groups of rows: how many, features, products; (g,), (g, F), (g, F, F)."""

    count: Floats
    first: Floats
    second: Floats

    def fit(self, weights: Floats) -> tuple[Floats, Floats]:
        """Mean and covariance under weights of the groups."""
        n = float(weights @ self.count)
        mean = (weights @ self.first) / n
        return mean, np.tensordot(weights, self.second, 1) / n - np.outer(mean, mean)


def relative_loss(real: NDArray[Any], parent: NDArray[Any], child: NDArray[Any]) -> Loss:
    """How much farther the child is from real rows than its parent; rows of both from the same noise, in order."""
    groups = min(BLOCKS, len(real) // 2, len(parent) // 2)
    real_m, parent_m, child_m = (_moments(rows, groups) for rows in (real, parent, child))
    ones = np.ones(groups)
    fits = [m.fit(ones) for m in (real_m, parent_m, child_m)]
    before, after = frechet(fits[1], fits[0]), frechet(fits[2], fits[0])
    rng = np.random.default_rng(_SEED)
    gaps = []
    for _ in range(TIMES):
        reals, noises = (rng.multinomial(groups, np.full(groups, 1 / groups)).astype(np.float64) for _ in range(2))
        against = real_m.fit(reals)
        gaps.append(frechet(child_m.fit(noises), against) - frechet(parent_m.fit(noises), against))
    value, half = (after - before) / before, _Z * float(np.std(gaps, ddof=1)) / before
    return Loss(value, value - half, value + half, before, after)


def distance(real: NDArray[Any], made: NDArray[Any]) -> float:
    """Distance of generated rows from real ones."""
    ones = np.ones(1)
    return frechet(_moments(made, 1).fit(ones), _moments(real, 1).fit(ones))


def _moments(rows: NDArray[Any], groups: int) -> _Moments:
    """Rows dealt out to groups in turn: real ones may come sorted."""
    found = [features(rows[start::groups]) for start in range(groups)]
    count = np.array([float(len(part)) for part in found])
    return _Moments(count, np.stack([p.sum(axis=0) for p in found]), np.stack([p.T @ p for p in found]))


def usefulness(made: NDArray[Any], real: NDArray[Any], own: slice, number: bool) -> float:
    """What a booster that learnt from generated rows is worth on real ones: R^2 or accuracy for the fields `own`."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if number else HistGradientBoostingClassifier
    sides = [(np.delete(rows, own, axis=1), _target(rows[:, own], number)) for rows in (made, real)]
    (x, y), (test_x, test_y) = sides
    return float(kind(random_state=0, early_stopping=False).fit(x, y).score(test_x, test_y))


def _target(fields: NDArray[Any], number: bool) -> NDArray[Any]:
    found: NDArray[Any] = fields[:, 0] if number else fields.argmax(axis=1)
    return found
