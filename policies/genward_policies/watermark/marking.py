"""Scores: a keyed uniform number for each cell, added up over a row's hashes.

The pseudo-random function is AES-128 over the cell's number, as for all keyed noise (`genward.noise`); it needs no
look-up, so that a page costs the same whether its cells were seen before or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genward import noise
from genward.contracts import KeyProvider
from genward_policies.watermark.scheme import Cells

PRF = 252  # number of the noise; the key is the mark's own


@dataclass(frozen=True)
class MarkKey:
    """A key of 16 bytes and how much it counts beside others."""

    secret: bytes
    weight: int = 1

    @property
    def id(self) -> str:
        """A name by which a key can be told and not guessed."""
        return hashlib.blake2b(b"genward mark key", key=self.secret, digest_size=8).hexdigest()


def tenant_key(keys: KeyProvider, digest: str, tenant: str | None, epoch: int = 0) -> MarkKey:
    """The key of a tenant, or of the release for everybody (`tenant` None), in one epoch."""
    label = f"watermark/{digest}" if tenant is None else f"watermark/{digest}/{tenant}"
    return MarkKey(keys.derive(label if epoch == 0 else f"{label}/epoch/{epoch}", 16))


def scores(cells: Cells, keys: Sequence[MarkKey]) -> NDArray[np.float64]:
    """The score (n,) of rows by their cells (n, hashes): whole numbers, exact, so that ties are ties everywhere."""
    total = np.zeros(len(cells), dtype=np.int64)
    columns = cells.T
    for key in keys:
        words = noise.words(key.secret, columns.reshape(-1), PRF)[:, 0]
        total += key.weight * words.reshape(columns.shape).sum(axis=0, dtype=np.int64)
    return total.astype(np.float64)


def uniforms(cells: NDArray[np.uint64], key: MarkKey, step: int = 0, count: int = 1) -> NDArray[np.float64]:
    """Centred uniforms (cells, count) of distinct cells; the first of step 0 is what `scores` adds up."""
    words = noise.words(key.secret, cells, PRF, step, count).astype(np.float64)
    return np.asarray((words + 0.5) * 2.0**-32 - 0.5)
