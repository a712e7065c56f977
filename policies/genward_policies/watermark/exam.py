"""A file held against a scheme: which hashes it has, what is usual for rows like it, and its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genward_policies.watermark.marking import MarkKey
from genward_policies.watermark.scheme import Axis, Cells, Levels, Scheme
from genward_policies.watermark.statistic import Counts, Lift, Weights

_FEWEST = 500  # usual rows that must be left when they are narrowed to where a file lies
_CHANCE = 1e-4  # of a file of ordinary rows to keep within its bounds

Columns = Mapping[str, NDArray[Any]]  # by name: numbers with NaN for missing, or codes with -1


def levels(axes: Sequence[Axis], columns: Columns) -> Levels:
    """Levels (n, axes) of columns; a column that is not there is missing everywhere."""
    rows = len(next(iter(columns.values()))) if columns else 0
    out = np.zeros((len(axes), rows), dtype=np.intp).T  # column by column, as cells are made of them
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

    def like(self, file: Levels, places: Iterable[int]) -> Usual:
        """The rows that lie where a file lies: a file of one slice is held against rows of that slice.

        Column by column, where it would hardly be chance that the file has nothing outside, and as long as enough rows
        are left. `places` are the columns that the file has.
        """
        keep = np.ones(len(self.levels), dtype=bool)
        for place in sorted(places):
            inside = _seen(file[:, place], self.scheme.axes[place])[self.levels[:, place]]
            share = float(inside[keep].mean())
            if share ** len(file) < _CHANCE and (keep & inside).sum() >= _FEWEST:
                keep &= inside
        return self if keep.all() else Usual(self.scheme, self.levels[keep])


def _seen(levels_: NDArray[np.intp], axis: Axis) -> NDArray[np.bool_]:
    """Which levels of a column a file reaches: categories that it has, numbers between its ends, gaps if it has any."""
    seen = np.zeros(axis.size, dtype=bool)
    seen[levels_] = True
    numbers = np.flatnonzero(seen[1:]) + 1
    if not axis.words and len(numbers):
        seen[numbers[0] : numbers[-1] + 1] = True
    return seen


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
            number
            for number, inside in enumerate(scheme.hashes)
            if there.issuperset(inside) and not constant.issuperset(inside)
        )
        if not hashes:
            return cls(usual, hashes, Weights.of(_NOTHING, _NOTHING))
        like = usual.like(found, there)
        return cls(like, hashes, Weights.of(Counts.of(scheme.cells(found, hashes)), like.counts(hashes)))

    def lift(self, key: MarkKey) -> Lift:
        """What marking would do to this file's score under a key."""
        cells = self.usual.cells
        return Lift.of(cells, cells[:, self.hashes], key, self.usual.scheme.candidates)


_NOTHING = Counts(np.empty(0, dtype=np.uint64), np.empty(0), 0)
