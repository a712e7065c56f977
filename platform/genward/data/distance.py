"""Features of rows, and the distance of two tables in them: what copies and losses are measured by.

The distance is Frechet's between normal fits (Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500) over the
codec's encoded values and 64 fixed random rectified features of them, which see what means and covariances of the
values do not. Its own sampling error is part of it: about c / n + c / m for n and m rows of the same law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

    from genward.data.codec import TableCodec

Floats = NDArray[np.float64]
FEATURES = 64
_LEAST = 0.1  # spread below which a column is not blown up further: a category of one row in a hundred
_SEED = 20_260_401


def encoded(codec: TableCodec, table: pa.Table) -> NDArray[np.float32]:
    """Every field of rows as the codec encodes it, generated ones first, (N, width + condition_width)."""
    return np.concatenate(list(codec.encode(table).values()), axis=1)


def features(rows: NDArray[Any]) -> Floats:
    """Values and random rectified features of them, (n, width + 64)."""
    x = np.asarray(rows, dtype=np.float64)
    rng = np.random.default_rng(_SEED)
    weights = rng.normal(size=(x.shape[1], FEATURES)) / np.sqrt(x.shape[1])
    return np.concatenate([x, np.maximum(x @ weights + rng.normal(size=FEATURES) / 2, 0.0)], axis=1)


def frechet(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> float:
    """|m1 - m2|^2 + tr(A + B - 2 (A B)^(1/2)) of two (mean, covariance)."""
    apart = a[0] - b[0]
    values, vectors = np.linalg.eigh(a[1])
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b[1] @ root), 0.0)).sum()
    return float(apart @ apart + np.trace(a[1]) + np.trace(b[1]) - 2 * common)


@dataclass(frozen=True)
class Space:
    """Standardised features: each encoded value less its mean, over its spread, of the rows it was fitted to."""

    middle: Floats
    spread: Floats

    @classmethod
    def fit(cls, rows: NDArray[Any]) -> Space:
        x = np.asarray(rows, dtype=np.float64)
        return cls(x.mean(axis=0), np.maximum(x.std(axis=0), _LEAST))

    def normal(self, rows: NDArray[Any]) -> tuple[Floats, Floats]:
        """Mean and covariance of the features of rows, at least two."""
        found = features((np.asarray(rows, dtype=np.float64) - self.middle) / self.spread)
        return found.mean(axis=0), np.cov(found, rowvar=False, bias=True)
