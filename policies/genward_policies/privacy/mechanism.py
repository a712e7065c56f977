"""Noisy counts: the only answers that a family which trains by `fit` gets about protected records.

Neighbouring tables differ by one record, added or removed, so one count changes by 1: a table of counts moves by 1 in
L2, and its L1 distance to anything fixed by at most 1. Costs are in rho of zero-concentrated differential privacy (Bun
and Steinke 2016, arXiv:1605.02065), which adds up over answers chosen one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from genward.data.codec import TableCodec, words
from genward.errors import CheckFailed, UsageError
from genward.family import Spec
from genward.fitting import Place, counted, discretised, merged, places
from genward_policies.privacy.accounting import choice_for

if TYPE_CHECKING:
    from genward_policies.privacy.randomness import Randomness

LARGEST = 1 << 22  # cells of one table of counts
_ROUNDING = 1e-9  # of what is left: a request over it by no more gets what is left
_PUBLIC_BINS = 32
_Counts = NDArray[np.float64]


class PrivateMechanism:
    """A `genward.family.Mechanism` whose answers are noisy and paid for.

    Args:
        x: encoded records (N, width).
        bins: the family's.
        rows: a public figure for N.
        rho: what may be spent.
        spend: called with (rho, what for) ahead of each answer; when it raises, there is none.
    """

    def __init__(
        self,
        spec: Spec,
        x: NDArray[np.float32],
        bins: int,
        rows: float,
        rho: float,
        randomness: Randomness,
        spend: Callable[[float, str], None],
    ) -> None:
        if not 0 < rho < math.inf:
            raise UsageError(f"rho is {rho}", remedy="give a budget above 0")
        self._codes, self._domain = discretised(spec, x, bins)
        self._names = [place.column for place in places(spec, bins)]
        self._rows, self._left = float(rows), rho
        self._randomness, self._spend = randomness, spend
        self._counts: dict[tuple[int, ...], _Counts] = {}

    @property
    def domain(self) -> tuple[int, ...]:
        return self._domain

    @property
    def rows(self) -> float:
        return self._rows

    @property
    def rho(self) -> float:
        return self._left

    def merge(self, field: int, groups: Sequence[int]) -> None:
        """Count groups of a field's values from now on; a record still has one value, so nothing is paid."""
        self._codes, self._domain = merged(self._codes, self._domain, field, groups)
        self._counts = {key: counts for key, counts in self._counts.items() if field not in key}

    def measure(self, fields: Sequence[int], rho: float) -> _Counts:
        """Counts of every combination of values, with Gaussian noise of variance 1 / (2 rho) (proposition 1.6).

        The noise is rounded to whole numbers, as if the noisy counts were: that is post-processing, and leaves no
        trace of the floating-point grid on which the noise was drawn (Mironov 2012). Raises CheckFailed when `rho` is
        more than is left.
        """
        counts = self._count(fields)
        paid = self._pay(rho, f"measure {self._title(fields)}")
        return counts + np.rint(self._randomness.normal(counts.shape) * math.sqrt(0.5 / paid))

    def select(
        self,
        candidates: Sequence[Sequence[int]],
        expected: Sequence[_Counts],
        penalties: Sequence[float],
        rho: float,
    ) -> int:
        """Which candidate differs most from what is expected, by the exponential mechanism.

        The largest score wins after Gumbel noise of scale 2 / epsilon, which is the exponential mechanism itself. Its
        epsilon is the one that a Gaussian of this rho is no better than (`accounting.choice_for`), a little less than
        the sqrt(8 rho) that zCDP alone would allow (Cesar and Rogers 2021, arXiv:2004.07223), so that answers of both
        kinds compose as Gaussians do. Raises CheckFailed when `rho` is more than is left.
        """
        if not candidates or not len(candidates) == len(expected) == len(penalties):
            raise CheckFailed("candidates, expectations and penalties are not equally many", where="select")
        scores = [self._apart(*each) for each in zip(candidates, expected, penalties, strict=True)]
        paid = self._pay(rho, f"select of {len(candidates)}")
        return int(np.argmax(scores + self._randomness.gumbel((len(scores),)) * 2 / choice_for(paid)))

    def _apart(self, fields: Sequence[int], expected: _Counts, penalty: float) -> float:
        counts = self._count(fields)
        if np.shape(expected) != counts.shape or not (np.isfinite(expected).all() and math.isfinite(penalty)):
            shape = "x".join(str(side) for side in counts.shape)
            raise CheckFailed(f"what is expected is no finite table of {shape}", where=self._title(fields))
        return float(np.abs(counts - expected).sum() - penalty)

    def _pay(self, rho: float, what: str) -> float:
        """Take what an answer costs from what is left, and have it booked; the answer comes after."""
        if not 0 < rho < math.inf:
            raise CheckFailed(f"an answer for rho {rho}", where=what, remedy="give each answer a part of the budget")
        if rho > self._left * (1 + _ROUNDING):
            message = f"asks for rho {rho:.6g}, and {self._left:.6g} is left"
            raise CheckFailed(message, where=what, remedy="plan the answers within `mechanism.rho`")
        paid = min(rho, self._left)
        self._left -= paid
        self._spend(paid, what)
        return paid

    def _count(self, fields: Sequence[int]) -> _Counts:
        """True counts; never handed out."""
        key = tuple(int(field) for field in fields)
        if not key or len(set(key)) < len(key) or not all(0 <= field < len(self._domain) for field in key):
            raise CheckFailed(f"fields {list(key)} are not different fields of {len(self._domain)}", where="mechanism")
        cells = math.prod(self._domain[field] for field in key)
        if cells > LARGEST:
            raise CheckFailed(f"{cells} cells", where=self._title(key), remedy=f"ask for {LARGEST} at most")
        if key not in self._counts:
            self._counts[key] = counted(self._codes, self._domain, key)
        return self._counts[key]

    def _title(self, fields: Sequence[int]) -> str:
        return " x ".join(self._names[field] for field in fields)


def noisy_marginals(
    spec: Spec, codec: TableCodec, x: NDArray[np.float32], rho: float, randomness: Randomness
) -> dict[str, Any]:
    """Noisy counts of each generated column, all for `rho` together: public, and as JSON has it.

    {"rho", "sigma": the noise's deviation, "columns": {name: {"kind": "number", "edges": bounds of the bins in the
    column's unit, "counts", "missing": a count, or None where none may be} or {"kind": "choice", "values", "counts"}}}.
    A choice's last value is None where it may be missing. Counts are whole and may be negative.
    """
    columns = places(spec, _PUBLIC_BINS)
    each = rho / len(columns)
    mechanism = PrivateMechanism(spec, x, _PUBLIC_BINS, 0.0, rho, randomness, lambda rho, what: None)
    found = {c.column: _described(c, codec, mechanism.measure([i], each)) for i, c in enumerate(columns)}
    return {"rho": rho, "sigma": math.sqrt(0.5 / each), "columns": found}


def _described(place: Place, codec: TableCodec, counts: _Counts) -> Mapping[str, Any]:
    column, plain = codec.schema.column(place.column), counts.tolist()
    if place.is_choice:
        values = [*words(column), *([None] if column.nullable else [])]
        return {"kind": "choice", "values": values, "counts": plain}
    present = len(place.cuts) + 1
    missing = None if place.choice is None else plain[present]
    return {"kind": "number", "edges": _bounds(place, codec), "counts": plain[:present], "missing": missing}


def _bounds(place: Place, codec: TableCodec) -> list[float]:
    """Bounds of a number's bins in its unit; between two stairs, the middle."""
    quantiles = codec.quantiles[place.column]
    inner = torch.special.ndtri(torch.tensor(place.cuts, dtype=torch.float64)).numpy()
    ends = np.array([-quantiles.reach, quantiles.reach])
    middle = (quantiles.decode(inner - 1e-6) + quantiles.decode(inner + 1e-6)) / 2
    low, high = quantiles.decode(ends)
    return [float(low), *middle.tolist(), float(high)]
