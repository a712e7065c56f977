"""What was lost, in the codec's encoded space, where every number is near a standard normal.

The distance is Frechet's between normal fits (Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500) over the
encoded values and 64 fixed random rectified features of them, which see what means and covariances of the values do
not. Its own sampling error is part of it for parent and child alike. Both make rows from the same fresh noise, so that
their difference is far better known than either: the interval is a bootstrap over noise and real rows together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FEATURES = 64
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
    before, after = _frechet(fits[1], fits[0]), _frechet(fits[2], fits[0])
    rng = np.random.default_rng(_SEED)
    gaps = []
    for _ in range(TIMES):
        reals, noises = (rng.multinomial(groups, np.full(groups, 1 / groups)).astype(np.float64) for _ in range(2))
        against = real_m.fit(reals)
        gaps.append(_frechet(child_m.fit(noises), against) - _frechet(parent_m.fit(noises), against))
    value, half = (after - before) / before, _Z * float(np.std(gaps, ddof=1)) / before
    return Loss(value, value - half, value + half, before, after)


def distance(real: NDArray[Any], made: NDArray[Any]) -> float:
    """Distance of generated rows from real ones."""
    ones = np.ones(1)
    return _frechet(_moments(made, 1).fit(ones), _moments(real, 1).fit(ones))


def features(rows: NDArray[Any]) -> Floats:
    """Encoded values and random rectified features of them, (n, width + 64)."""
    x = np.asarray(rows, dtype=np.float64)
    rng = np.random.default_rng(_SEED)
    weights = rng.normal(size=(x.shape[1], FEATURES)) / np.sqrt(x.shape[1])
    return np.concatenate([x, np.maximum(x @ weights + rng.normal(size=FEATURES) / 2, 0.0)], axis=1)


def _moments(rows: NDArray[Any], groups: int) -> _Moments:
    """Rows dealt out to groups in turn: real ones may come sorted."""
    found = [features(rows[start::groups]) for start in range(groups)]
    count = np.array([float(len(part)) for part in found])
    return _Moments(count, np.stack([p.sum(axis=0) for p in found]), np.stack([p.T @ p for p in found]))


def _frechet(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> float:
    """|m1 - m2|^2 + tr(A + B - 2 (A B)^(1/2))."""
    apart = a[0] - b[0]
    values, vectors = np.linalg.eigh(a[1])
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b[1] @ root), 0.0)).sum()
    return float(apart @ apart + np.trace(a[1]) + np.trace(b[1]) - 2 * common)


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
