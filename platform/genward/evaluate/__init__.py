"""How good synthetic rows are, measured on rows that training never saw, beside real rows against real rows.

`evaluate` takes three tables and gives evidence; `features` are a table's numbers; `plots` draws its columns.
Every figure has its interval and says by which method; docs/quality.md explains each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from genward.contracts import Evidence, Progress
from genward.data.schema import Schema
from genward.errors import DataError
from genward.evaluate.claims import CLAIMS
from genward.evaluate.classify import c2st, tstr
from genward.evaluate.exact import broken, copies, overlap
from genward.evaluate.marginals import correlations, one_way, pairs
from genward.evaluate.near import near
from genward.evaluate.png import plots
from genward.evaluate.sides import Floats, Settings, Sides, features

__all__ = ["CLAIMS", "Floats", "Settings", "Sides", "evaluate", "features", "measures", "plots", "sides_of"]
_USUAL = Settings()


def evaluate(
    real_train: pa.Table | None,
    real_test: pa.Table,
    synthetic: pa.Table,
    schema: Schema,
    target: str | None,
    progress: Progress,
    settings: Settings = _USUAL,
) -> list[Evidence]:
    """All claims of CLAIMS, in their order.

    Args:
        real_train: rows the generator learnt from; None when they are not at hand, then the held-out rows are cut in
            two for the references, and what is about memory is not measured.
        real_test: held-out rows, the only ones that judge.
        target: the column that the usefulness test predicts; without one it is not measured.

    Raises DataError when a table has no row, CheckFailed when held-out rows are training rows. A claim that few rows
    or empty columns cannot carry says that it was not measured, and why.
    """
    sides = sides_of(real_train, real_test, synthetic, schema, settings)
    if target is not None:
        schema.column(target)
    found: dict[str, Evidence] = {}
    steps = measures(sides, target)
    progress.start("evaluate", len(steps))
    for done, step in enumerate(steps):
        found |= {item.claim: item for item in step()}
        progress.update(done + 1, list(found)[-1])
    progress.finish(f"c2st {_value(found, 'c2st')}, tstr {_value(found, 'tstr')}")
    return [found[claim] for claim in CLAIMS]


def measures(sides: Sides, target: str | None) -> Sequence[Callable[[], list[Evidence]]]:
    """The measures, the quickest refusal first."""
    return [
        lambda: overlap(sides),
        lambda: copies(sides),
        lambda: broken(sides),
        lambda: one_way(sides),
        lambda: pairs(sides),
        lambda: correlations(sides),
        lambda: near(sides),
        lambda: tstr(sides, target),
        lambda: c2st(sides),
    ]


def sides_of(
    real_train: pa.Table | None, real_test: pa.Table, synthetic: pa.Table, schema: Schema, settings: Settings = _USUAL
) -> Sides:
    """The three tables as numbers; DataError when one has no row."""
    test, made = features(real_test, schema), features(synthetic, schema)
    if real_train is not None:
        train = features(real_train, schema)
    else:
        order = np.random.default_rng(settings.seed).permutation(len(test))
        train, test = test[order[: len(test) // 2]], test[order[len(test) // 2 :]]
    named = {"training": train, "held-out": test, "synthetic": made}
    if empty := [name for name, rows in named.items() if not len(rows)]:
        raise DataError(f"there are no {empty[0]} rows to judge by", remedy="give a larger table")
    return Sides(schema, train, test, made, settings, real_train is not None)


def _value(found: dict[str, Evidence], claim: str) -> str:
    value = found[claim].value
    return "not measured" if value is None else f"{value:.3f}"
