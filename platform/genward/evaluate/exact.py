"""What is counted and not estimated: copies of training rows, broken rules, held-out rows that were trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Evidence
from genward.data.schema import Column, Schema
from genward.errors import CheckFailed
from genward.evaluate.near import UNKNOWN
from genward.evaluate.sides import Floats, Sides, keys
from genward.evaluate.stats import chance_of_more, newcombe, wilson

_LIKELY = 1e-3
_SURE = 1e-5  # it stops somebody's work, is asked at every release, and twins come in clusters: 95 % would cry wolf
Bools = NDArray[np.bool_]


def copies(sides: Sides) -> list[Evidence]:
    """Synthetic rows that equal a training row in every column, beside real rows that equal another training row.

    A table of few values repeats itself: what counts is the excess over what real rows show; see `_excess`.
    """
    if not sides.known:
        return [Evidence("exact_copies", None, UNKNOWN)]
    train, test, made = (keys(side, sides.schema) for side in (sides.train, sides.test, sides.made))
    hits = int(np.isin(made, train).sum())
    real = int(np.isin(test, train).sum()) + int(_repeated(train).sum())
    low, high = wilson(hits, len(made))
    method = (
        "share of synthetic rows equal to a training row in every column, on the columns' grids; Wilson interval; "
        "reference: real rows equal to another one that is a training row"
    )
    extra = {"rows": hits, **_excess(hits, len(made), real, len(train) + len(test))}
    reference = real / (len(train) + len(test))
    return [Evidence("exact_copies", hits / len(made), method, len(made), low, high, "", reference, extra)]


def _excess(hits: int, n: int, real: int, others: int) -> dict[str, Any]:
    """By how much a share is beyond that of real rows (Newcombe's interval), and whether by more than chance: a gate
    asks at every release, so chance is one in a thousand (Fisher's exact test)."""
    excess, low, high = newcombe(hits, n, real, others)
    sure = chance_of_more(hits, n, real, others) < _LIKELY
    return {"excess": excess, "excess_low": low, "excess_high": high, "beyond_chance": sure}


def _repeated(rows: NDArray[np.void]) -> Bools:
    """Which rows have an equal one."""
    _, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse.reshape(-1)] > 1)


def _chance(hits: int, expected: float) -> float:
    """How often so many or more come of themselves (Poisson)."""
    from scipy.stats import poisson

    return float(poisson.sf(hits - 1, expected))


def overlap(sides: Sides) -> list[Evidence]:
    """Held-out rows that are training rows. Repeated rows explain as many as training rows have twins; when there are
    more than that by more than chance, the split is none: CheckFailed, unless the settings say to name it only."""
    if not sides.known:
        return [Evidence("held_out_overlap", None, UNKNOWN)]
    train, test = keys(sides.train, sides.schema), keys(sides.test, sides.schema)
    hits, twins = int(np.isin(test, train).sum()), int(_repeated(train).sum())
    beyond = _chance(hits, len(test) * (twins + 1) / len(train)) < _SURE
    if beyond and sides.settings.overlap == "refuse":
        what = (
            f"{hits} of {len(test)} held-out rows are training rows, and repeated rows explain {twins / len(train):.2%}"
        )
        raise CheckFailed(f"{what}: the figures would flatter", remedy="hold out rows that training never saw")
    method = (
        "share of held-out rows equal to a training row; reference: training rows equal to another; Wilson interval"
    )
    named = "; MORE THAN REPEATED ROWS EXPLAIN: the other figures flatter" if beyond else ""
    low, high = wilson(hits, len(test))
    extra = {"rows": hits, "beyond_repeats": beyond}
    share = hits / len(test)
    return [Evidence("held_out_overlap", share, method + named, len(test), low, high, "", twins / len(train), extra)]


def broken(sides: Sides) -> list[Evidence]:
    """Share of synthetic rows that break a rule of the schema; how many break each is in `extra`."""
    made, test = violations(sides.made, sides.schema), violations(sides.test, sides.schema)
    if not made:
        return [Evidence("rules_violated", None, "not measured: the schema states no rule", len(sides.made))]
    worst = [int(np.logical_or.reduce(list(side.values())).sum()) for side in (made, test)]
    real = {rule: float(rows.mean()) for rule, rows in test.items()}
    found = rules_evidence(made, len(sides.made), worst[1] / len(sides.test), real)
    extra = {**found.extra, **_excess(worst[0], len(sides.made), worst[1], len(sides.test))}
    return [
        Evidence(found.claim, found.value, found.method, found.n, found.low, found.high, "", found.reference, extra)
    ]


def rules_evidence(
    made: dict[str, Bools], n: int, reference: float | None = None, real: dict[str, float] | None = None
) -> Evidence:
    """The claim from which rows break which rule."""
    hits = int(np.logical_or.reduce(list(made.values())).sum())
    low, high = wilson(hits, n)
    method = f"share of synthetic rows that break one of the schema's {len(made)} rules; Wilson interval"
    by = {rule: {"value": float(rows.mean()), "reference": (real or {}).get(rule)} for rule, rows in made.items()}
    extra = {"by": {rule: told for rule, told in by.items() if told["value"] or told["reference"]}, "rows": hits}
    return Evidence("rules_violated", hits / n, method, n, low, high, "", reference, extra)


def violations(rows: Floats, schema: Schema) -> dict[str, Bools]:
    """Which rows break each rule that the schema states: bounds, gaps, sums, order."""
    found: dict[str, Bools] = {}
    for i, column in enumerate(schema.columns):
        if not column.nullable:
            found[f"{column.name} is there"] = np.isnan(rows[:, i])
        if column.is_number and column.bounds != (None, None):
            found[_bounds_text(column)] = _outside(rows[:, i], column)
    at = {name: rows[:, i] for i, name in enumerate(schema.names)}
    for group in schema.sums:
        total = np.sum([at[name] for name in group.columns], axis=0)
        off = np.abs(total - group.total) > group.tolerance * (1 + 1e-9)
        found[f"{' + '.join(group.columns)} = {group.total:g}"] = off
    for rule in schema.rules:
        found[f"{rule.below} <= {rule.above}"] = at[rule.below] > at[rule.above]
    return found


def _bounds_text(column: Column) -> str:
    low, high = (f"{b:g}" if isinstance(b, float) else b for b in (column.minimum, column.maximum))
    left, right = "" if low is None else f"{low} <= ", "" if high is None else f" <= {high}"
    return f"{left}{column.name}{right}"


def _outside(values: Floats, column: Column) -> Bools:
    """As the readers check it: what rounds to a bound is on it."""
    low, high = column.bounds
    slack = 1e-9 * max(abs(low or 0.0), abs(high or 0.0))
    below = values < (-np.inf if low is None else low) - slack
    return np.asarray(below | (values > (np.inf if high is None else high) + slack))
