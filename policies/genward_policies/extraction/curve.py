"""Curves: how near a copy comes with n rows, D(n) = min(a + b n^-alpha, e / n), and what that is in risk.

D is a distance corrected for finite samples: the distance of a copy's rows from the release's, less the distance that
as many of the release's own rows have. That own distance also says how near the rows themselves are, for who just keeps
them: e / n, whatever an attack was measured to do. Risk is the formula

    R(n) = [ln D'(100) - ln D'(n)] / [ln D'(100) - ln 1.25 F],  D' = D + F,  within [0, 1],

where F is the distance that two samples of 10,000 rows of the release have from each other. Whatever the number of rows
that a calibration drew, it is the risk that an evaluation with 10,000 rows would have found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST = 100  # rows at which there is no risk yet
STANDARD = 10_000  # rows of each side by which risk is told
LARGEST = 1 << 40
_NEAR = 1.25
_RATES = np.linspace(0.3, 1.1, 33)  # no attack learns faster than its rows come, n^-1; steeper is noise

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """D(n) = min(a + b n^-alpha, own / n)."""

    a: float
    b: float
    alpha: float
    own: float

    def at(self, n: float) -> float:
        return min(float(self.a + self.b * float(n) ** -self.alpha), self.own / n)


def fit(
    sizes: Sequence[float], distances: Sequence[float] | Floats, offset: float, own: float, rates: Floats = _RATES
) -> Curve:
    """The curve with the least squared relative errors, each relative to the distance plus `offset`, a and b not
    negative. Sizes and distances: (m,), three or more. `own`: e of what keeps the rows."""
    n, d = np.asarray(sizes, dtype=np.float64), np.asarray(distances, dtype=np.float64)
    weights = 1 / np.maximum(d + offset, offset if offset > 0 else 1e-12)
    found = [(*_line(n**-rate, d, weights), float(rate)) for rate in rates]
    _, a, b, rate = min(found, key=lambda item: item[0])
    return Curve(a, b, rate, own)


def _line(x: Floats, y: Floats, weights: Floats) -> tuple[float, float, float]:
    """(squared error, a, b) of y = a + b x with neither below zero."""
    tried = [(0.0, _slope(x, y, weights)), (_slope(np.ones_like(x), y, weights), 0.0)]
    design = np.column_stack([weights, weights * x])
    a, b = np.linalg.lstsq(design, weights * y, rcond=None)[0]
    if a >= 0 and b >= 0:
        tried = [(float(a), float(b))]
    return min((float((((a + b * x - y) * weights) ** 2).sum()), a, b) for a, b in tried)


def _slope(x: Floats, y: Floats, weights: Floats) -> float:
    return max(0.0, float((weights**2 * x * y).sum() / (weights**2 * x * x).sum()))


@dataclass(frozen=True)
class Risk:
    """One curve of a release with its draws from a bootstrap, in risk.

    Args:
        floor: F, the distance of two samples of STANDARD rows of the release.
        curve: the fit.
        draws: fits to resampled measurements.
    """

    floor: float
    curve: Curve
    draws: tuple[Curve, ...] = ()

    def at(self, n: float) -> float:
        """Risk of n rows, in [0, 1]."""
        return _risk(self.curve, self.floor, n)

    def between(self, n: float) -> tuple[float, float]:
        """Ends of the 95 % interval of the risk of n rows."""
        values = [_risk(curve, self.floor, n) for curve in self.draws] or [self.at(n)]
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)


def _risk(curve: Curve, floor: float, n: float) -> float:
    return 0.0 if n <= FIRST else of_distance(curve.at(n), curve.at(FIRST), floor)


def of_distance(distance: float, first: float, floor: float) -> float:
    """Risk of a copy at a distance, where the copy of 100 rows is at `first`; distances are corrected ones."""
    begin, end = math.log(max(first, 0.0) + floor), math.log(_NEAR * floor)
    if begin <= end:  # the copy is as good as can be told from the first rows on
        return 1.0
    return min(1.0, max(0.0, (begin - math.log(max(distance, 0.0) + floor)) / (begin - end)))


def rows_at(risk: Callable[[float], float], limit: float) -> int:
    """The most rows whose risk is at most `limit`; LARGEST when no number of rows passes it."""
    if risk(LARGEST) <= limit:
        return LARGEST
    low, high = 0, LARGEST  # risk(low) <= limit < risk(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if risk(middle) <= limit else (low, middle)
    return low


def plain(risk: Risk) -> dict[str, Any]:
    """A risk as JSON values."""
    return {"floor": risk.floor, "curve": _list(risk.curve), "draws": [_list(curve) for curve in risk.draws]}


def read(given: Any) -> Risk:
    """Back from JSON; KeyError, TypeError or ValueError when it is none."""
    draws = tuple(Curve(*map(float, item)) for item in given["draws"])
    risk = Risk(float(given["floor"]), Curve(*map(float, given["curve"])), draws)
    values = [risk.floor, *_list(risk.curve), *(v for curve in risk.draws for v in _list(curve))]
    if not all(math.isfinite(v) and v >= 0 for v in values) or risk.floor <= 0:
        raise ValueError("a curve has values that are not finite, or negative")
    return risk


def _list(curve: Curve) -> list[float]:
    return [curve.a, curve.b, curve.alpha, curve.own]
