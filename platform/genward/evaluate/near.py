"""Neighbours: whether synthetic rows reach everywhere, stay where real rows are, and are not training rows again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Evidence
from genward.data.schema import Schema
from genward.evaluate.sides import Floats, Sides
from genward.evaluate.stats import middle, wilson

NEIGHBOURS = 5
_CLOSE = 0.05  # share of held-out rows that lie closer to a training row than what is called close
_CHUNK = 512
UNKNOWN = "not measured: no training rows were given"


@dataclass(frozen=True)
class Space:
    """Rows as points: numbers centred, in robust units on an asinh scale and of unit spread; a choice one-hot; a gap
    of a number in the middle and one step aside."""

    choices: tuple[int, ...]  # how many values; 0 for a number
    centre: Floats
    unit: Floats
    spread: Floats

    @classmethod
    def fit(cls, schema: Schema, rows: Floats) -> Space:
        """Units of some rows, the training rows."""
        choices = tuple(0 if c.is_number else max(2, len(c.categories)) for c in schema.columns)
        fitted = [_units(rows[:, i]) for i in range(len(choices))]
        centre, unit, spread = (np.array(part) for part in zip(*fitted, strict=True))
        return cls(choices, centre, unit, spread)

    def of(self, rows: Floats) -> Floats:
        """Points (n, dimensions)."""
        parts = []
        for i, values in enumerate(self.choices):
            column = rows[:, i]
            gone = np.isnan(column)
            if values:
                parts.append((np.nan_to_num(column, nan=-1.0)[:, None] == np.arange(values)).astype(np.float64))
            else:
                scaled = np.arcsinh((column - self.centre[i]) / self.unit[i]) / self.spread[i]
                parts.append(np.where(gone, 0.0, scaled)[:, None])
            if gone.any() and not values:
                parts.append(gone[:, None].astype(np.float64))
            elif not values:
                parts.append(np.zeros((len(rows), 1)))
        return np.hstack(parts)


def _units(values: Floats) -> tuple[float, float, float]:
    """(centre, unit, spread) of a column."""
    there = values[~np.isnan(values)]
    if not len(there):
        return 0.0, 1.0, 1.0
    centre = float(np.median(there))
    unit = float(np.median(np.abs(there - centre))) or float(there.std()) or abs(centre) or 1.0
    return centre, unit, float(np.arcsinh((there - centre) / unit).std()) or 1.0


def near(sides: Sides) -> list[Evidence]:
    """Coverage, precision, novelty and the share of rows nearer to training rows."""
    space = Space.fit(sides.schema, sides.train)
    return [*_support(sides, space), _novelty(sides, space), _nearest(sides, space)]


# Where real rows are


def _support(sides: Sides, space: Space) -> list[Evidence]:
    """Coverage (Naeem et al. 2020, arXiv:2002.09797) and precision (Kynkaanniemi et al. 2019, arXiv:1904.06991)."""
    n = min(len(sides.test), len(sides.made), len(sides.train), sides.settings.near)
    k = min(NEIGHBOURS, n - 1)
    if k < 1:
        return [Evidence(c, None, f"not measured: {n} rows of a kind", n) for c in ("coverage", "precision")]
    test, made, train = (space.of(sides.some(side, n)) for side in (sides.test, sides.made, sides.train))
    reach = np.partition(apart(test, test), k, axis=1)[:, k] * (1 + 1e-9)  # the 0th neighbour is the row itself
    inside, real = (apart(test, side) <= reach[:, None] for side in (made, train))
    each = f"{n} synthetic rows and {n} held-out ones, each with the ball of its {k} nearest held-out; Wilson interval"
    found = []
    for claim, axis, what in (
        ("coverage", 1, "share of held-out rows with a synthetic row in their ball"),
        ("precision", 0, "share of synthetic rows in the ball of some held-out row"),
    ):
        hits = inside.any(axis=axis)
        low, high = wilson(int(hits.sum()), n)
        reference = float(real.any(axis=axis).mean())
        found.append(Evidence(claim, float(hits.mean()), f"{what}; {each}", n, low, high, "", reference))
    return found


# Whether they are training rows again


def _novelty(sides: Sides, space: Space) -> Evidence:
    """Share of synthetic rows that are not close to a training row, as held-out rows measure closeness."""
    if not sides.known:
        return Evidence("novelty", None, UNKNOWN)
    made, test = closeness(sides, space)
    value = _apart_share(made, test)
    again = [_apart_share(made[a], test[b]) for a, b in sides.draws(len(made), len(test))]
    low, high = middle(np.array(again), min(len(made), len(test)))
    method = (
        f"share of synthetic rows at least as far from every training row as {100 * (1 - _CLOSE):.0f} % of held-out "
        "rows are; bootstrap interval over both"
    )
    reference = _apart_share(test, test)
    return Evidence("novelty", value, method, len(made), min(low, value), max(high, value), "", reference)


def closeness(sides: Sides, space: Space) -> tuple[Floats, Floats]:
    """Distances to the nearest training row, of synthetic and of held-out rows."""
    train = space.of(sides.some(sides.train, sides.settings.against))
    n = sides.settings.near
    return shortest(space.of(sides.some(sides.made, n)), train), shortest(space.of(sides.some(sides.test, n)), train)


def _apart_share(made: Floats, test: Floats) -> float:
    return float((made >= np.quantile(test, _CLOSE, method="lower")).mean())


def _nearest(sides: Sides, space: Space) -> Evidence:
    """Share of synthetic rows nearer to a training row than to a held-out one, both sets equally large."""
    if not sides.known:
        return Evidence("nearest_is_training", None, UNKNOWN)
    n = min(len(sides.train), len(sides.test), 5 * sides.settings.near)
    made, train, test = (
        space.of(sides.some(side, k))
        for side, k in ((sides.made, sides.settings.near), (sides.train, n), (sides.test, n))
    )
    near_train, near_test = shortest(made, train), shortest(made, test)
    hits = float((near_train < near_test).sum() + 0.5 * (near_train == near_test).sum())
    low, high = wilson(hits, len(made))
    method = (
        f"share of synthetic rows nearer to one of {n} training rows than of {n} held-out ones, half where it is the "
        "same; 0.5 is no memory; Wilson interval"
    )
    return Evidence("nearest_is_training", hits / len(made), method, len(made), low, high, "", 0.5)


def apart(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Euclidean distances (n, m)."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(a, b))


def shortest(rows: Floats, others: Floats) -> Floats:
    """Distance of each row to the nearest of the others (n,)."""
    parts = [apart(rows[i : i + _CHUNK], others).min(axis=1) for i in range(0, len(rows), _CHUNK)]
    return np.concatenate(parts) if parts else np.empty(0)
