"""The digest of a response: over canonical rows in fixed blocks, whatever format or pieces they left in."""

from __future__ import annotations

import hashlib
from typing import Any

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
        gaps = np.isnan(rows.numbers)
        numbers = np.where(gaps, np.nan, rows.numbers) if gaps.any() else rows.numbers
        self._numbers.append(np.ascontiguousarray(numbers, dtype="<f8"))
        self._codes.append(np.ascontiguousarray(rows.codes, dtype="<i4"))
        self._held += len(rows)
        self.rows += len(rows)
        if self._held >= BLOCK:
            self._flush(self._held // BLOCK * BLOCK)

    def _flush(self, until: int) -> None:
        numbers, codes = _joined(self._numbers), _joined(self._codes)
        for start in range(0, until, BLOCK):
            inner = hashlib.sha256(numbers[start : min(start + BLOCK, until)].data)
            inner.update(codes[start : min(start + BLOCK, until)].data)
            self._outer.update(inner.digest())
        self._held -= until
        self._numbers, self._codes = ([numbers[until:]], [codes[until:]]) if self._held else ([], [])

    def final(self) -> str:
        """`sha256:...` over everything added."""
        if self._held:
            self._flush(self._held)
        return f"sha256:{self._outer.hexdigest()}"


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def digest_of(rows: Rows) -> str:
    """The digest of rows at hand; a single block without gaps is hashed as it lies in memory."""
    plain = 0 < len(rows) <= BLOCK and rows.numbers.dtype == "<f8" and rows.codes.dtype == "<i4"
    if plain and not np.isnan(rows.numbers).any():
        inner = hashlib.sha256(rows.numbers.tobytes() + rows.codes.tobytes())
        return f"sha256:{hashlib.sha256(inner.digest()).hexdigest()}"
    found = RowsDigest()
    found.update(rows)
    return found.final()
