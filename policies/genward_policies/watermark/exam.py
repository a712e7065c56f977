"""A file held against a scheme: which hashes it has, what is usual for rows like it, and its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genward_policies.watermark.marking import MarkKey
from genward_policies.watermark.scheme import Axis, Cells, Levels, Scheme
from genward_policies.watermark.statistic import Counts, Lift, Weights

_FEWEST = 500  # usual rows that must be left when they are narrowed to what a file holds constant

Columns = Mapping[str, NDArray[Any]]  # by name: numbers with NaN for missing, or codes with -1


def levels(axes: Sequence[Axis], columns: Columns) -> Levels:
    """Levels (n, axes) of columns; a column that is not there is missing everywhere."""
    rows = len(next(iter(columns.values()))) if columns else 0
    out = np.zeros((rows, len(axes)), dtype=np.intp)
    for place, axis in enumerate(axes):
        if axis.name in columns:
            out[:, place] = axis.levels(columns[axis.name])
    return out


@dataclass(frozen=True)
class Usual:
    """Unmarked rows of the release, drawn under the key that everybody knows: what its cells' frequencies are."""

    scheme: Scheme
    levels: Levels

    @cached_property
    def cells(self) -> Cells:
        return self.scheme.cells(self.levels)

    @cached_property
    def _each(self) -> list[Counts]:
        return [Counts.of(self.cells[:, number]) for number in range(len(self.scheme.hashes))]

    def counts(self, hashes: Sequence[int]) -> Counts:
        """Counts of some hashes, rising: cells of a later hash are larger."""
        chosen = [self._each[number] for number in sorted(hashes)]
        cells = np.concatenate([np.empty(0, dtype=np.uint64), *(c.cells for c in chosen)])
        counts = np.concatenate([np.empty(0), *(c.counts for c in chosen)])
        return Counts(cells, counts, len(self.levels))

    def narrowed(self, given: Mapping[int, int]) -> Usual:
        """Rows that have these levels in these columns, column by column as long as enough of them are left."""
        keep = np.ones(len(self.levels), dtype=bool)
        for place, level in given.items():
            fewer = keep & (self.levels[:, place] == level)
            keep = fewer if fewer.sum() >= _FEWEST else keep
        return self if keep.all() else Usual(self.scheme, self.levels[keep])


@dataclass(frozen=True)
class Exam:
    """A file's weights in the hashes that can say something about it."""

    usual: Usual
    hashes: tuple[int, ...]
    weights: Weights

    @classmethod
    def of(cls, usual: Usual, columns: Columns) -> Exam:
        """Hashes with a column that the file lacks are left out, and those wholly inside columns that it holds
        constant, since these say what was asked for and not which candidate was chosen."""
        scheme = usual.scheme
        found = levels(scheme.axes, columns)
        there = {place for place, axis in enumerate(scheme.axes) if axis.name in columns}
        constant = {place for place in there if len(found) and (found[:, place] == found[0, place]).all()}
        hashes = tuple(
            number for number, columns_ in enumerate(scheme.hashes) if there.issuperset(columns_) and not constant.issuperset(columns_)
        )
        like = usual.narrowed({place: int(found[0, place]) for place in sorted(constant)})
        file = Counts.of(scheme.cells(found, hashes)) if hashes else Counts(np.empty(0, np.uint64), np.empty(0), 0)
        return cls(like, hashes, Weights.of(Counts(file.cells, file.counts, len(found)), like.counts(hashes)))

    def lift(self, key: MarkKey) -> Lift:
        """What marking would do to this file's score under a key."""
        cells = self.usual.cells
        return Lift.of(cells, cells[:, self.hashes], key, self.usual.scheme.candidates)
