"""How far single columns and pairs of columns are apart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Evidence
from genward.evaluate.sides import Floats, Rows, Sides
from genward.evaluate.stats import around

Codes = NDArray[np.intp]
_HOW = "normal interval, its standard error from {} resamplings of the rows"


@dataclass(frozen=True)
class _Coded:
    """One column of two tables as codes of the values that they have together; the last code is a gap."""

    a: Codes
    b: Codes
    values: int
    choice: bool

    def apart(self, a: Rows | slice = slice(None), b: Rows | slice = slice(None)) -> float:
        """Distance of the two, or of some rows of them."""
        counts = [np.bincount(codes[rows], minlength=self.values + 1) for codes, rows in ((self.a, a), (self.b, b))]
        return distance(counts[0], counts[1], self.choice)


def distance(a: NDArray[Any], b: NDArray[Any], choice: bool) -> float:
    """Kolmogorov-Smirnov (numbers) or total variation (choices) of two counts by value, the last one being gaps;
    a difference in gaps counts when it is larger."""
    gone = abs(float(a[-1] / a.sum() - b[-1] / b.sum()))
    there = float(a[:-1].sum()), float(b[:-1].sum())
    if not all(there):
        return gone
    gap = a[:-1] / there[0] - b[:-1] / there[1]
    return max(gone, float(0.5 * np.abs(gap).sum() if choice else np.abs(np.cumsum(gap)).max()))


def one_way(sides: Sides) -> list[Evidence]:
    """Mean over columns of the distance to held-out rows."""
    columns = sides.schema.columns
    coded = [_coded(sides.made[:, i], sides.test[:, i], not c.is_number) for i, c in enumerate(columns)]
    real = [_coded(sides.twin[:, i], sides.test[:, i], not c.is_number).apart() for i, c in enumerate(columns)]
    each = np.array([column.apart() for column in coded])
    again = np.array(
        [[column.apart(a, b) for column in coded] for a, b in sides.draws(len(sides.made), len(sides.test))]
    )
    low, high = around(float(each.mean()), float(again.mean(axis=1).std(ddof=1)))
    spans = [around(float(v), float(s)) for v, s in zip(each, again.std(axis=0, ddof=1), strict=True)]
    extra = {
        c.name: {"value": float(v), "low": span[0], "high": span[1], "reference": r}
        for c, v, span, r in zip(columns, each, spans, real, strict=True)
    }
    method = "mean over columns of Kolmogorov-Smirnov (numbers) or total variation distance (choices) to held-out rows"
    method = f"{method}; {_HOW.format(sides.settings.resamples)}"
    reference = float(np.mean(real))
    return [Evidence("one_way", float(each.mean()), method, len(sides.made), low, high, "", reference, {"by": extra})]


def _coded(a: Floats, b: Floats, choice: bool) -> _Coded:
    both = np.concatenate([a, b])
    gone = np.isnan(both)
    values, codes = np.unique(both[~gone], return_inverse=True)
    found = np.full(len(both), len(values), dtype=np.intp)
    found[~gone] = codes
    return _Coded(found[: len(a)], found[len(a) :], len(values), choice)


def pairs(sides: Sides) -> list[Evidence]:
    """Mean over pairs of columns of the total variation distance of their cut joint distributions."""
    n = min(len(sides.test), len(sides.made))
    names, wanted = sides.schema.names, pairs_of(sides)
    if not wanted:
        return [Evidence("pairs", None, "not measured: there is one column only", n)]
    cuts = Cuts.fit(sides)
    test, made, twin = (cuts.codes(side) for side in (sides.test, sides.made, sides.twin))
    each = np.array([cuts.apart(made, test, pair) for pair in wanted])
    real = np.array([cuts.apart(twin, test, pair) for pair in wanted])
    again = [
        np.mean([cuts.apart(made[a], test[b], pair) for pair in wanted])
        for a, b in sides.draws(len(made), len(test), max(20, sides.settings.resamples // 4))
    ]
    low, high = around(float(each.mean()), float(np.std(again, ddof=1)))
    method = (
        f"mean over {len(wanted)} pairs of columns of the total variation distance to held-out rows, numbers cut "
        f"into {cuts.bins} by quantiles; {_HOW.format(len(again))}"
    )
    worst = sorted(zip(each - real, wanted, strict=True), reverse=True)[:5]
    extra = {"worst": [[names[i], names[j], float(excess)] for excess, (i, j) in worst]}
    reference = float(real.mean())
    return [Evidence("pairs", float(each.mean()), method, len(made), low, high, "", reference, extra)]


def pairs_of(sides: Sides) -> list[tuple[int, int]]:
    """The pairs of columns that are looked at: all, or some drawn at random."""
    every = list(combinations(range(len(sides.schema.columns)), 2))
    if len(every) <= sides.settings.pairs:
        return every
    some = np.random.default_rng(sides.settings.seed).permutation(len(every))[: sides.settings.pairs]
    return [every[i] for i in np.sort(some)]


@dataclass(frozen=True)
class Cuts:
    """How columns are cut into few values: numbers by quantiles of the training rows, rare categories together."""

    edges: tuple[Floats | None, ...]  # of a number
    common: tuple[Floats, ...]  # of a choice: the codes that keep a value of their own
    bins: int

    @classmethod
    def fit(cls, sides: Sides, most: int = 10) -> Cuts:
        """As many bins as leave ten rows a cell, between 2 and `most`."""
        bins = int(np.clip(np.sqrt(min(len(sides.test), len(sides.made)) / 10), 2, most))
        edges: list[Floats | None] = []
        common: list[Floats] = []
        for i, column in enumerate(sides.schema.columns):
            there = sides.train[~np.isnan(sides.train[:, i]), i]
            values, counts = np.unique(there, return_counts=True)
            common.append(np.sort(values[np.argsort(-counts)[:bins]]))
            inner = np.linspace(0, 1, bins + 1)[1:-1]
            edges.append(np.unique(np.quantile(there, inner)) if column.is_number and len(there) else None)
        return cls(tuple(edges), tuple(common), bins)

    @property
    def width(self) -> int:
        """How many values a cut column has at most: bins, the rest, a gap."""
        return self.bins + 2

    def codes(self, rows: Floats) -> Codes:
        """Codes (n, columns) of rows; bins is "something else", the one after it a gap."""
        out = np.full(rows.shape, self.bins + 1, dtype=np.intp)
        for i, (edges, common) in enumerate(zip(self.edges, self.common, strict=True)):
            there = ~np.isnan(rows[:, i])
            values = rows[there, i]
            if edges is not None:
                out[there, i] = np.searchsorted(edges, values, side="left")
            elif len(common):
                at = np.minimum(np.searchsorted(common, values), len(common) - 1)
                out[there, i] = np.where(common[at] == values, at, self.bins)
            else:
                out[there, i] = self.bins
        return out

    def apart(self, a: Codes, b: Codes, pair: tuple[int, int]) -> float:
        """Total variation distance of a pair of columns of two coded tables."""
        i, j = pair
        cells = self.width * self.width
        shares = [np.bincount(side[:, i] * self.width + side[:, j], minlength=cells) / len(side) for side in (a, b)]
        return float(0.5 * np.abs(shares[0] - shares[1]).sum())


def correlations(sides: Sides) -> list[Evidence]:
    """Mean difference of Spearman's rank correlations, over pairs of number columns."""
    numbers = [i for i, column in enumerate(sides.schema.columns) if column.is_number]
    n, few = sides.settings.rows, min(len(sides.test), len(sides.made))
    test, made, twin = (ranked(sides.some(side, n)[:, numbers]) for side in (sides.test, sides.made, sides.twin))
    there = np.isfinite(correlation(test)) & np.isfinite(correlation(made)) & np.isfinite(correlation(twin))
    at = np.triu(there, 1)
    if few < 3 or not at.any():
        reason = "not measured: no two number columns vary in every table"
        return [Evidence("correlations", None, reason, few)]
    value, reference = (_difference(correlation(side), correlation(test), at) for side in (made, twin))
    draws = sides.draws(len(made), len(test), max(20, sides.settings.resamples // 4))
    again = [_difference(correlation(made[a]), correlation(test[b]), at) for a, b in draws]
    low, high = around(value, float(np.nanstd(again, ddof=1)), 0.0, 2.0)
    method = f"mean over {int(at.sum())} pairs of number columns of the difference of Spearman's rank correlations"
    method = f"{method} to held-out rows; {_HOW.format(len(again))}"
    return [Evidence("correlations", value, method, len(made), low, high, "", reference)]


def ranked(rows: Floats) -> Floats:
    """Ranks of each column's present values, between -1 and 1; a gap stays NaN."""
    from scipy.stats import rankdata

    there = (~np.isnan(rows)).sum(axis=0)
    ranks = np.asarray(rankdata(rows, axis=0, nan_policy="omit")) if len(rows) else rows
    return np.asarray((2 * ranks - 1) / np.maximum(there, 1) - 1, dtype=np.float64)


def correlation(ranks: Floats) -> Floats:
    """Pearson's correlations (columns, columns) of ranks, over the rows in which both are present; NaN if undefined."""
    there = (~np.isnan(ranks)).astype(np.float64)
    x = np.nan_to_num(ranks)
    n = there.T @ there
    with np.errstate(invalid="ignore", divide="ignore"):
        sums, squares = x.T @ there, (x * x).T @ there
        mean, spread = sums / n, squares / n - (sums / n) ** 2
        found: Floats = ((x.T @ x) / n - mean * mean.T) / np.sqrt(spread * spread.T)
    return np.where((n > 2) & (spread > 1e-12) & (spread.T > 1e-12), found, np.nan)


def _difference(a: Floats, b: Floats, at: NDArray[np.bool_]) -> float:
    gaps = np.abs(a - b)[at]
    return float(np.nanmean(gaps)) if np.isfinite(gaps).any() else float("nan")
