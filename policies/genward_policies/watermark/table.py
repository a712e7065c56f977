"""Files of strangers: some rows of any number of them, and their columns as a scheme wants them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genward.data.codec import words
from genward.data.readers import MISSING, as_numbers, plain
from genward.data.schema import Column, Schema
from genward_policies.watermark.exam import Columns
from genward_policies.watermark.scheme import Axis

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT = 50_000  # rows of a file that are looked at; which ones hangs on their number alone, never on a key
_PARTS = 1000  # batches that are kept apart
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_TRUTH = {"true": 1, "1": 1, "yes": 1, "false": 0, "0": 0, "no": 0}


@dataclass(frozen=True)
class Read:
    """Rows that were kept, in no order that means anything, and how many there were."""

    table: pa.Table
    rows: int


def read(rows: pa.Table | Iterable[pa.RecordBatch], most: int = KEPT, seed: int = 0) -> Read:
    """At most so many rows, each as likely as another, in memory that does not grow with the file.

    Every row gets a random priority, the same whenever the file is read, and the lowest stay. Nobody who does not know
    `seed` can tell which ones, and put his rows elsewhere.
    """
    if isinstance(rows, pa.Table):
        rows = rows.to_batches()
    rng, kept, count = np.random.default_rng(seed), _Kept(most), 0
    for batch in rows:
        kept.add(batch, rng.random(batch.num_rows))
        count += batch.num_rows
    kept.thin(most)
    return Read(_joined(kept.parts), count)


class _Kept:
    """Rows with the lowest priorities so far: at most twice as many as are wanted."""

    def __init__(self, most: int) -> None:
        self.parts, self.ranks = list[pa.RecordBatch](), list[Any]()
        self._most, self._limit, self._rows = most, 1.0, 0

    def add(self, batch: pa.RecordBatch, drawn: NDArray[np.float64]) -> None:
        """Keep what is low enough of a batch."""
        places = np.flatnonzero(drawn < self._limit)
        if not len(places):
            return
        self.parts.append(batch if len(places) == batch.num_rows else batch.take(pa.array(places)))
        self.ranks.append(drawn[places])
        self._rows += len(places)
        if self._rows > 2 * self._most or len(self.parts) > _PARTS:
            self.thin(self._most)

    def thin(self, most: int) -> None:
        """Drop all but the lowest `most`."""
        if not self.parts:
            return
        drawn, table = np.concatenate(self.ranks), _joined(self.parts)
        if len(drawn) > most:
            keep = np.sort(np.argpartition(drawn, most)[:most])
            drawn, table = drawn[keep], table.take(pa.array(keep))
            self._limit = float(drawn.max())
        self.parts, self.ranks, self._rows = table.combine_chunks().to_batches(), [drawn], len(drawn)


def _joined(parts: list[pa.RecordBatch]) -> pa.Table:
    if not parts:
        return pa.table({})
    return pa.concat_tables([pa.Table.from_batches([part]) for part in parts], promote_options="permissive")


@dataclass(frozen=True)
class Told:
    """The columns of a file that a scheme knows, and how many values of each could not be read."""

    columns: Columns
    unreadable: Mapping[str, int]


def columns_of(table: pa.Table, schema: Schema, axes: Iterable[Axis]) -> Told:
    """Columns by name, in the schema's units: numbers as float64, choices as codes. What cannot be read is missing; a
    column of which nothing can be read is not there."""
    found: dict[str, Any] = {}
    unreadable: dict[str, int] = {}
    for axis in axes:
        if axis.name not in table.column_names:
            continue
        column, array = schema.column(axis.name), _whole(table[axis.name])
        array = _known(pc.utf8_trim_whitespace(array)) if _text(array) else array
        values, missing = _numbers(array, column) if column.is_number else _codes(array, column)
        bad = int(missing.sum()) - array.null_count
        if bad > 0:
            unreadable[axis.name] = bad
        if not missing.all() or array.null_count == len(array):
            found[axis.name] = values
    return Told(found, unreadable)


def _whole(array: pa.ChunkedArray) -> pa.Array:
    joined = array.combine_chunks()
    found: pa.Array = plain(joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined)
    return found


def _known(text: pa.Array) -> pa.Array:
    """Text, and gaps in the place of words for them."""
    gap = pc.is_in(text, value_set=pa.array(MISSING, text.type))
    return pc.if_else(gap, pa.scalar(None, text.type), text)


def _text(array: pa.Array) -> bool:
    return bool(pa.types.is_string(array.type) or pa.types.is_large_string(array.type))


def _numbers(array: pa.Array, column: Column) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    try:
        if column.kind == "datetime" and not pa.types.is_timestamp(array.type):
            array = _times(array)
        elif _text(array):
            array = pc.if_else(pc.match_substring_regex(array, _NUMBER), array, pa.scalar(None, array.type))
        values = as_numbers(array.cast(pa.timestamp("us")) if column.kind == "datetime" else array.cast(pa.float64()))
        numbers = values.fill_null(float("nan")).to_numpy(zero_copy_only=False).astype(np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = np.full(len(array), np.nan)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    return numbers, np.isnan(numbers)


def _times(array: pa.Array) -> pa.Array:
    """Text as times; a value that is none is missing."""
    text = array.cast(pa.string())
    try:
        return text.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        stamps = (_time(value) for value in text.to_pylist())
        return pa.array(stamps, pa.timestamp("us"))


def _time(value: str | None) -> Any:
    try:
        return None if value is None else pa.scalar(value).cast(pa.timestamp("us")).as_py()
    except pa.ArrowInvalid:
        return None


def _codes(array: pa.Array, column: Column) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    try:
        text = array.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.full(len(array), -1, dtype=np.int32), np.ones(len(array), dtype=bool)
    if column.kind == "boolean":
        lower = pc.utf8_lower(text)
        place = pc.index_in(lower, value_set=pa.array(list(_TRUTH)))
        known = np.array([*_TRUTH.values(), -1], dtype=np.int32)
        codes = known[place.fill_null(len(_TRUTH)).to_numpy(zero_copy_only=False)]
    else:
        found = pc.index_in(text, value_set=pa.array(words(column), pa.string()))
        codes = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, codes < 0
