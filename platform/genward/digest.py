"""The digest of a response: over canonical rows in fixed blocks, whatever format or pieces they left in."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Rows

BLOCK = 1024  # rows


class RowsDigest:
    """Rows in, digest out. A block is 1,024 rows: its numbers as float64 then its codes as int32, little-endian, row by
    row, with one NaN for all; the digest is SHA-256 over the SHA-256 of the blocks, so pieces do not matter."""

    def __init__(self) -> None:
        self._outer = hashlib.sha256()
        self._numbers: list[NDArray[np.float64]] = []
        self._codes: list[NDArray[np.int32]] = []
        self._held = 0
        self.rows = 0

    def update(self, rows: Rows) -> None:
        """Add rows."""
        self._numbers.append(np.where(np.isnan(rows.numbers), np.nan, rows.numbers).astype("<f8"))
        self._codes.append(rows.codes.astype("<i4"))
        self._held += len(rows)
        self.rows += len(rows)
        if self._held >= BLOCK:
            self._flush(self._held // BLOCK * BLOCK)

    def _flush(self, until: int) -> None:
        numbers, codes = np.concatenate(self._numbers), np.concatenate(self._codes)
        for start in range(0, until, BLOCK):
            inner = hashlib.sha256(numbers[start : min(start + BLOCK, until)].tobytes())
            inner.update(codes[start : min(start + BLOCK, until)].tobytes())
            self._outer.update(inner.digest())
        self._numbers, self._codes = [numbers[until:]], [codes[until:]]
        self._held -= until

    def final(self) -> str:
        """`sha256:...` over everything added."""
        if self._held:
            self._flush(self._held)
        return f"sha256:{self._outer.hexdigest()}"


def digest_of(rows: Rows) -> str:
    """The digest of rows at hand; a single block without gaps is hashed as it lies in memory."""
    plain = 0 < len(rows) <= BLOCK and rows.numbers.dtype == "<f8" and rows.codes.dtype == "<i4"
    if plain and not np.isnan(rows.numbers).any():
        inner = hashlib.sha256(rows.numbers.tobytes() + rows.codes.tobytes())
        return f"sha256:{hashlib.sha256(inner.digest()).hexdigest()}"
    found = RowsDigest()
    found.update(rows)
    return found.final()
