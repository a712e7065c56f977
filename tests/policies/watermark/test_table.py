"""Some rows of any number, always the same; columns as the schema has them, whatever is written in their place."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from genward.data.schema import Column, Schema
from genward_policies.watermark.scheme import Axis
from genward_policies.watermark.table import columns_of, read

SCHEMA = Schema(
    columns=(
        Column(name="density", kind="numeric"),
        Column(name="count", kind="integer"),
        Column(name="phase", kind="categorical", categories=("fcc", "bcc")),
        Column(name="cast", kind="boolean"),
        Column(name="day", kind="datetime"),
    )
)
AXES = [
    Axis("density", (1.0,)),
    Axis("count", (1.0,)),
    Axis("phase", words=2),
    Axis("cast", words=2),
    Axis("day", (1.0,)),
]


def _batches(count: int, rows: int) -> Iterator[pa.RecordBatch]:
    for place in range(count):
        yield pa.record_batch({"x": np.arange(place * rows, (place + 1) * rows)})


def test_a_stream_of_any_length_keeps_some_rows_in_flat_memory() -> None:
    tracemalloc.start()
    found = read(_batches(2000, 1000), most=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = found.table["x"].to_numpy()
    assert (found.rows, len(kept), len(set(kept.tolist()))) == (2_000_000, 1000, 1000)
    assert peak + pa.total_allocated_bytes() < 8 << 20
    assert np.histogram(kept, bins=4, range=(0, 2_000_000))[0].min() > 200  # every part as likely as another


def test_which_rows_stay_is_the_same_however_they_come() -> None:
    """The rows' numbers decide, so that a file says the same again."""
    first = read(_batches(50, 100), most=300)
    again = read(pa.Table.from_batches(list(_batches(50, 100))), most=300)
    other = read(_batches(5, 1000), most=300)
    assert sorted(first.table["x"].to_pylist()) == sorted(again.table["x"].to_pylist())
    assert sorted(first.table["x"].to_pylist()) == sorted(other.table["x"].to_pylist())


def test_a_small_file_is_kept_whole() -> None:
    assert read(_batches(3, 10)).table["x"].to_pylist() == list(range(30))
    assert read([]).rows == 0


def test_text_is_read_as_the_schema_has_it_and_what_cannot_be_is_missing_and_told() -> None:
    table = pa.table(
        {
            "density": [" 7.9 ", "1e3", "heavy", "NA", None],
            "count": ["1", "2.0", "", "-3", "x"],
            "phase": ["fcc", " bcc", "liquid", "", None],
            "cast": ["TRUE", "no", "perhaps", "1", None],
            "day": ["1970-01-02", "1970-01-01T00:00:10", "soon", None, "NA"],
        }
    )
    told = columns_of(table, SCHEMA, AXES)
    assert np.array_equal(told.columns["density"], [7.9, 1000, np.nan, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(told.columns["count"], [1, 2, np.nan, -3, np.nan], equal_nan=True)
    assert told.columns["phase"].tolist() == [0, 1, -1, -1, -1]
    assert told.columns["cast"].tolist() == [1, 0, -1, 1, -1]
    assert np.array_equal(told.columns["day"], [86400, 10, np.nan, np.nan, np.nan], equal_nan=True)
    assert told.unreadable == {"density": 1, "count": 1, "phase": 1, "cast": 1, "day": 1}


def test_typed_columns_are_read_as_they_are() -> None:
    typed = pa.table(
        {
            "density": pa.array([1, None], pa.int32()),
            "count": pa.array([2.0, float("inf")]),
            "phase": pa.array(["bcc", "fcc"]).dictionary_encode(),
            "cast": [True, None],
            "day": pa.array([86_400_000, 0], pa.timestamp("ms")),
        }
    )
    told = columns_of(typed, SCHEMA, AXES).columns
    assert np.array_equal(told["density"], [1, np.nan], equal_nan=True)
    assert np.array_equal(told["count"], [2, np.nan], equal_nan=True)
    assert told["phase"].tolist() == [1, 0]
    assert told["cast"].tolist() == [1, -1]
    assert told["day"].tolist() == [86400, 0]


def test_a_column_of_which_nothing_can_be_read_is_not_there() -> None:
    table = pa.table({"density": ["a", "b"], "phase": [[1], [2]], "count": [None, None], "other": [1, 2]})
    told = columns_of(table, SCHEMA, AXES)
    assert set(told.columns) == {"count"}  # empty is something that can be read
    assert told.unreadable == {"density": 2, "phase": 2}
