"""What a report draws, as plain data: it goes into `quality.json`, and the pictures are made from it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from genward.contracts import Evidence
from genward.data.schema import Column
from genward.evaluate.claims import CLAIMS
from genward.evaluate.marginals import Cuts, correlation, pairs_of, ranked
from genward.evaluate.near import Space, closeness
from genward.evaluate.sides import Floats, Sides
from genward.strictjson import canonical

FORMAT = "genward.quality/1"
_BINS = 40
_MOST_COLUMNS = 60  # that are drawn; a wider table's first ones by distance
_MOST_NAMES = 30  # of a matrix


def document(sides: Sides, evidence: Sequence[Evidence], about: Mapping[str, Any]) -> dict[str, Any]:
    """The report as data: what was judged, the claims, and what is drawn. `about` are strings and counts to show."""
    told = {item.claim: item for item in evidence}
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "about": dict(about),
        "claims": [claim(told[name]) for name in CLAIMS if name in told],
        "columns": _columns(sides, told.get("one_way")),
        "pairs": _pairs(sides),
        "correlations": _correlations(sides),
        "closeness": _closeness(sides),
    }


def to_json(report: Mapping[str, Any]) -> bytes:
    """`quality.json`."""
    return canonical(report)


def claim(item: Evidence) -> dict[str, Any]:
    """A claim as plain data."""
    names = ("claim", "value", "low", "high", "reference", "n", "unit", "method")
    return {**{name: getattr(item, name) for name in names}, "extra": dict(item.extra)}


def _columns(sides: Sides, one_way: Evidence | None) -> list[dict[str, Any]]:
    """Shares of each column's values, real and synthetic, the farthest apart first."""
    by = {} if one_way is None else dict(one_way.extra.get("by", {}))
    found = [
        {**_column(c, sides.test[:, i], sides.made[:, i]), **by.get(c.name, {})}
        for i, c in enumerate(sides.schema.columns)
    ]
    return sorted(found, key=lambda told: -told.get("value", 0.0))[:_MOST_COLUMNS]


def _column(column: Column, real: Floats, made: Floats) -> dict[str, Any]:
    gaps = [float(np.isnan(side).mean()) for side in (real, made)]
    about = {"name": column.name, "kind": column.kind, "unit": column.unit, "gaps": gaps}
    sides = [side[~np.isnan(side)] for side in (real, made)]
    if column.is_number:
        return {**about, **_numbers(*sides)}
    words = ("false", "true") if column.kind == "boolean" else column.categories
    counts = [np.bincount(side.astype(int), minlength=len(words)) for side in sides]
    order = np.argsort(-counts[0], kind="stable")[:_BINS]
    shares = [(count[order] / max(1, count.sum())).tolist() for count in counts]
    return {**about, "labels": [words[i] for i in order], "real": shares[0], "made": shares[1]}


def _numbers(real: Floats, made: Floats) -> dict[str, Any]:
    """Shares in even bins. The real values' middle 98 % set them, on an asinh scale where tails are long; what lies
    beyond is in the outer bins."""
    there = real if len(real) else made
    if not len(there):
        return {"edges": [], "real": [], "made": [], "scale": "linear"}
    low, middle, high = (float(q) for q in np.quantile(there, [0.01, 0.5, 0.99]))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    unit = float(np.median(np.abs(there - middle))) or (high - low)
    bent = (high - low) > 30 * unit
    ends = np.arcsinh((np.array([low, high]) - middle) / unit) if bent else np.array([low, high])
    edges = np.linspace(ends[0], ends[1], _BINS + 1)
    edges = np.sinh(edges) * unit + middle if bent else edges
    shares = [_shares(side, edges) for side in (real, made)]
    scale = "asinh" if bent else "linear"
    return {"edges": edges.tolist(), "real": shares[0], "made": shares[1], "scale": scale}


def _shares(values: Floats, edges: Floats) -> list[float]:
    counts = np.bincount(np.searchsorted(edges[1:-1], values, side="right"), minlength=len(edges) - 1)
    found: list[float] = (counts / max(1, len(values))).tolist()
    return found


def _pairs(sides: Sides) -> dict[str, Any]:
    """Distances of pairs of columns less those of real rows, as a matrix; None where a pair was not looked at."""
    names = sides.schema.names[:_MOST_NAMES]
    matrix: list[list[float | None]] = [[None] * len(names) for _ in names]
    cuts = Cuts.fit(sides)
    test, made, twin = (cuts.codes(side) for side in (sides.test, sides.made, sides.twin))
    for i, j in pairs_of(sides):
        if j < len(names):
            excess = cuts.apart(made, test, (i, j)) - cuts.apart(twin, test, (i, j))
            matrix[i][j] = matrix[j][i] = round(excess, 5)
    return {"names": names, "excess": matrix}


def _correlations(sides: Sides) -> dict[str, Any]:
    at = [i for i, column in enumerate(sides.schema.columns) if column.is_number][:_MOST_NAMES]
    n = sides.settings.rows
    real, made = (correlation(ranked(sides.some(side, n)[:, at])) for side in (sides.test, sides.made))
    return {"names": [sides.schema.names[i] for i in at], "real": _plain(real), "made": _plain(made)}


def _plain(matrix: Floats) -> list[list[float | None]]:
    return [[round(float(v), 4) if np.isfinite(v) else None for v in row] for row in matrix]


def _closeness(sides: Sides) -> dict[str, list[float]]:
    """Quantiles (101) of the distance to the nearest training row, of synthetic and of held-out rows."""
    if not sides.known:
        return {}
    made, test = closeness(sides, Space.fit(sides.schema, sides.train))
    shares = np.linspace(0, 1, 101)
    return {"made": np.quantile(made, shares).tolist(), "real": np.quantile(test, shares).tolist()}
