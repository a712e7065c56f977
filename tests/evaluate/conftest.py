"""Small tables whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from genward.data.schema import Schema
from genward.evaluate import Settings

Table = Callable[..., pa.Table]
QUICK = Settings(rows=1500, near=600, resamples=60)


def related(rows: int, seed: int) -> pa.Table:
    """y hangs on x and group; x has gaps; low is never above high."""
    rng = np.random.default_rng(seed)
    x, group, low = rng.normal(size=rows), rng.integers(0, 3, rows), rng.gamma(2.0, size=rows)
    y = x**2 + group + 0.1 * rng.normal(size=rows)
    return pa.table(
        {
            "x": pa.array(x, mask=rng.random(rows) < 0.1),
            "group": pa.array(np.array(["a", "b", "c"])[group]),
            "y": y,
            "low": low,
            "high": low + rng.gamma(1.0, size=rows),
        }
    )


@pytest.fixture(scope="session")
def tables() -> tuple[pa.Table, pa.Table, pa.Table]:
    """Training, held-out and other real rows."""
    return related(1200, 1), related(600, 2), related(1200, 3)


@pytest.fixture(scope="session")
def schema(tables: tuple[pa.Table, pa.Table, pa.Table]) -> Schema:
    return Schema.infer(pa.concat_tables(tables))
