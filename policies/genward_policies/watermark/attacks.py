"""What happens to a file on its way: noise, rounding, lost columns, rows of other origin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genward.noise import normal_quantile
from genward_policies.watermark.config import parsed
from genward_policies.watermark.exam import Columns

Floats = NDArray[np.float64]


def attacked(columns: Columns, attack: str, usual: Columns, rng: np.random.Generator) -> Columns:
    """A file after an attack as a policy names it; "" leaves it as it is. `usual` are unmarked rows of the release."""
    if not attack:
        return columns
    kind, number = parsed(attack)
    if kind == "columns":
        keep = rng.permutation(len(columns))[: math.ceil(number / 100 * len(columns))]
        return {name: columns[name] for place, name in enumerate(columns) if place in keep}
    if kind == "unmarked":
        return _mixed(columns, number / 100, usual, rng)
    numbers = {name: values for name, values in columns.items() if values.dtype.kind == "f"}
    if kind == "round":
        return {**columns, **{name: rounded(values, int(number)) for name, values in numbers.items()}}
    return {**columns, **{name: _noised(v, usual[name], number / 100, rng) for name, v in numbers.items()}}


def rounded(values: Floats, digits: int) -> Floats:
    """Numbers with so many significant digits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        power = 10.0 ** (digits - 1 - np.floor(np.log10(np.abs(values))))
        found = np.round(values * power) / power
    return np.where(np.isfinite(found), found, values)


def _noised(values: Floats, usual: Floats, size: float, rng: np.random.Generator) -> Floats:
    """Gaussian noise on normal scores: ranks among usual values, `size` of a standard deviation, and back."""
    known = np.sort(usual[~np.isnan(usual)])
    low, high = (np.searchsorted(known, values, side=side) for side in ("left", "right"))
    ranks = np.clip((low + high) / 2, 0.5, len(known) - 0.5) / len(known)
    moved = _normal_cdf(normal_quantile(ranks) + size * rng.normal(size=len(values)))
    found: Any = np.interp(moved, (np.arange(len(known)) + 0.5) / len(known), known)
    return np.where(np.isnan(values), values, found)


def _normal_cdf(z: Floats) -> Floats:
    return np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z.tolist()])


def _mixed(columns: Columns, share: float, usual: Columns, rng: np.random.Generator) -> Columns:
    rows = len(next(iter(columns.values())))
    away = rng.random(rows) < share
    other = rng.integers(0, len(next(iter(usual.values()))), rows)
    return {name: np.where(away, usual[name][other], values) for name, values in columns.items()}
