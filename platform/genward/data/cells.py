"""Cells of a release: declared combinations of condition values, and the given fields of rows inside them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genward.errors import DataError
from genward.family import Field
from genward.table import Cell

if TYPE_CHECKING:
    from genward.data.codec import TableCodec

Floats = NDArray[np.float32]
_Part = tuple[tuple[Any, ...], NDArray[np.bool_]]


def cells(codec: TableCodec, columns: Mapping[str, Sequence[float] | None], table: pa.Table) -> list[Cell]:
    """Every declared category times every declared bin that some row of the table is in, with its share."""
    if set(columns) != set(codec.conditions):
        given = ", ".join(codec.conditions) or "none"
        remedy = "give --cell for each of them, or train with other --condition columns"
        what = "cells are declared over the condition columns, all of them"
        raise DataError(what, where=f"conditions: {given}", remedy=remedy)
    parts = [_parts(codec, name, bounds, table) for name, bounds in columns.items()]
    found = []
    for combination in itertools.product(*parts):
        share = float(np.logical_and.reduce([inside for _, inside in combination]).mean())
        if share > 0:
            where = dict(zip(columns, (what for what, _ in combination), strict=True))
            found.append(Cell(where, share))
    if not found:
        raise DataError("no row lies in any cell", remedy="check the bounds of the bins")
    return found


def _parts(codec: TableCodec, name: str, bounds: Sequence[float] | None, table: pa.Table) -> list[_Part]:
    from genward.data.codec import words
    from genward.data.readers import as_numbers

    column = codec.schema.column(name)
    array = table[name].combine_chunks()
    if not column.is_number and bounds is not None:
        raise DataError(f"a {column.kind} cell column has no bounds", where=name, remedy="name the column alone")
    if not column.is_number:
        values = array.cast(pa.string()).to_numpy(zero_copy_only=False)
        return [(("in", (word,)), values == word) for word in words(column)]
    if bounds is None or len(bounds) < 2 or list(bounds) != sorted(set(bounds)):
        raise DataError("a numeric cell column needs rising bounds", where=name, remedy=f"for example {name}=0,1,2")
    numbers, quantiles = as_numbers(array).to_numpy(zero_copy_only=False), codec.quantiles[name]
    return [
        (("between", low, high, quantiles.cdf(low), quantiles.cdf(high)), (numbers >= low) & (numbers < high))
        for low, high in itertools.pairwise(map(float, bounds))
    ]


def condition(codec: TableCodec, cells: Sequence[Cell], ids: NDArray[np.intp], uniforms: Floats) -> Floats:
    """Given fields (n, condition_width): what the cell says, and the row's own uniforms for the rest."""
    spec = codec.spec
    out = np.zeros((len(ids), spec.condition_width), dtype=np.float32)
    for place, field in enumerate(spec.given):
        for index in np.unique(ids):
            rows = ids == index
            what = cells[index].where.get(field.column)
            out[rows, field.start : field.start + field.width] = _values(codec, field, what, uniforms[rows, place])
    return out


def _values(codec: TableCodec, field: Field, what: tuple[Any, ...] | None, uniforms: Floats) -> Floats:
    from genward.data.codec import quantile_values, words

    if field.kind == "number":
        low, high = (what[3], what[4]) if what else (0.0, 1.0)
        shares = np.clip(low + (high - low) * uniforms.astype(np.float64), 1e-9, 1 - 1e-9)
        return quantile_values(shares)[:, None]
    column = codec.schema.column(field.column)
    if what and column.is_number:
        codes = np.zeros(len(uniforms), dtype=np.intp)  # a row in a bin has a value
    elif what:
        codes = np.full(len(uniforms), words(column).index(str(what[1][0])), dtype=np.intp)
    else:
        ends = np.cumsum(codec.shares[field.column])
        codes = np.minimum(np.searchsorted(ends / ends[-1], uniforms, side="right"), field.width - 1)
    return np.eye(field.width, dtype=np.float32)[codes]
