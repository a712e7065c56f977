"""What a table shows beyond its types: too few rows, constant columns, sums that do not add up."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genward.contracts import Finding
from genward.data.readers import as_numbers
from genward.data.schema import Order, Schema, SumGroup

FEW_ROWS = 50


def check(schema: Schema, table: pa.Table) -> list[Finding]:
    """Findings, errors first."""
    found = _rows(table) + [f for name in schema.names for f in _constant(table, name)]
    found += [f for group in schema.sums for f in _sum(table, group)]
    found += [f for rule in schema.rules for f in _order(table, rule)]
    return sorted(found, key=lambda finding: finding.level)


def _rows(table: pa.Table) -> list[Finding]:
    if table.num_rows < 2:
        return [Finding("error", f"{table.num_rows} row is nothing to learn from")]
    if table.num_rows < FEW_ROWS:
        return [Finding("warning", f"only {table.num_rows} rows")]
    return []


def _constant(table: pa.Table, name: str) -> list[Finding]:
    distinct = pc.count_distinct(table[name], mode="only_valid").as_py()
    if distinct == 0:
        return [Finding("error", "no value at all: leave the column out", name)]
    return [Finding("warning", "the same value in every row", name)] if distinct == 1 else []


def _sum(table: pa.Table, group: SumGroup) -> list[Finding]:
    parts = [as_numbers(table[name].combine_chunks()).to_numpy(zero_copy_only=False) for name in group.columns]
    off = np.abs(np.sum(parts, axis=0) - group.total) > group.tolerance
    if not off.any():
        return []
    row = int(np.flatnonzero(off)[0]) + 1
    return [
        Finding("error", f"{int(off.sum())} rows do not add up to {group.total:g}, first row {row}", group.columns[0])
    ]


def _order(table: pa.Table, rule: Order) -> list[Finding]:
    below, above = (
        as_numbers(table[n].combine_chunks()).to_numpy(zero_copy_only=False) for n in (rule.below, rule.above)
    )
    off = below > above  # never where one is missing
    if not off.any():
        return []
    row, message = int(np.flatnonzero(off)[0]) + 1, f"{rule.below} is above {rule.above}"
    return [Finding("error", f"{message} in {int(off.sum())} rows, first row {row}", rule.below)]
