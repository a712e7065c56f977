"""A mixture of normals over encoded rows, over all of them or for each class by itself; its size by BIC."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np

from genward.attacker import Attacker, Rows, Target

_SIZES = (1, 2, 4, 8)
_LEAST = 25  # rows of a component
_CLASSES = 12  # at most
_ROUNDS, _RIDGE = 40, 1e-4


class Mixture(Attacker):
    """One mixture over everything."""

    name: ClassVar[str] = "gmm"

    def fit(self, rows: Rows, seed: int) -> None:
        self._fits = [(len(rows), _best(rows, seed))]

    def sample(self, n: int, seed: int) -> Rows:
        rng = np.random.default_rng([seed, 2])
        counts = np.array([float(count) for count, _ in self._fits])
        shares = rng.multinomial(n, counts / counts.sum())
        parts = [_drawn(fit, int(k), rng) for (_, fit), k in zip(self._fits, shares, strict=True) if k]
        return self.target.hardened(rng.permutation(np.concatenate(parts)))


class ClassMixture(Mixture):
    """A mixture for each value of the choice that says most."""

    name: ClassVar[str] = "gmm-by-class"

    @classmethod
    def cannot(cls, target: Target) -> str:
        return "" if any(2 <= c.stop - c.start <= _CLASSES for c in target.choices) else "no column has few classes"

    def fit(self, rows: Rows, seed: int) -> None:
        classes = _classes(rows, self.target)
        groups = [rows[classes == value] for value in np.unique(classes)]
        self._fits = [(len(group), _best(group, seed)) for group in groups]


def _classes(rows: Rows, target: Target) -> np.ndarray:
    """The value of the most informative choice of each row; values of too few rows are taken together."""
    usable = [c for c in target.choices if 2 <= c.stop - c.start <= _CLASSES]
    found = max((rows[:, c].argmax(axis=1) for c in usable), key=_entropy)
    values, counts = np.unique(found, return_counts=True)
    return np.where(np.isin(found, values[counts < _LEAST]), -1, found)


def _entropy(values: np.ndarray) -> float:
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log(shares)).sum())


def _best(rows: Rows, seed: int) -> Any:
    """The mixture with the least BIC; larger ones are tried while they get better. Too few rows: the rows."""
    best, least = rows, np.inf
    for size in _SIZES:
        if len(rows) < size * _LEAST:
            break
        fit = _fitted(rows, size, seed)
        score = fit.bic(rows)
        if score >= least:
            break
        best, least = fit, score
    return best


def _fitted(rows: Rows, size: int, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():  # an early stop is meant
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture = GaussianMixture(size, reg_covar=_RIDGE, max_iter=_ROUNDS, random_state=seed)
        return mixture.fit(np.asarray(rows, dtype=np.float64))


def _drawn(fit: Any, n: int, rng: np.random.Generator) -> np.ndarray:
    if isinstance(fit, np.ndarray):
        return fit[rng.integers(len(fit), size=n)]
    shares = rng.multinomial(n, fit.weights_ / fit.weights_.sum())
    parts = [
        rng.multivariate_normal(fit.means_[i], fit.covariances_[i], size=int(k), method="eigh")
        for i, k in enumerate(shares)
        if k
    ]
    return np.concatenate(parts)
