"""Files of strangers are read whatever they are called, in flat memory, and what is no table is refused with a word."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from genward.data.foreign import foreign_table, metadata
from genward.errors import DataError, NotFound, UsageError

TABLE = pa.table({"a": [1.5, 2.0, None], "b": ["x", "y", "NA"], "c": [1, 2, 3]})


def _written(path: Path, kind: str) -> Path:
    if kind == "parquet":
        pyarrow.parquet.write_table(TABLE, path)
    elif kind == "csv":
        pyarrow.csv.write_csv(TABLE, path)
    else:
        opener = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with opener(str(path), TABLE.schema) as writer:
            writer.write_table(TABLE)
    return path


def _whole(path: Path, **given: Any) -> pa.Table:
    return pa.Table.from_batches(list(foreign_table(path, **given)))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream", "csv"])
def test_what_a_file_is_shows_in_its_bytes_and_not_in_its_name(tmp_path: Path, kind: str) -> None:
    found = _whole(_written(tmp_path / "data.bin", kind))
    assert found.column_names == ["a", "b", "c"]
    assert [float(x) if x is not None else None for x in found["a"].to_pylist()] == [1.5, 2.0, None]


def test_a_compressed_csv_is_read_by_its_name(tmp_path: Path) -> None:
    data = _written(tmp_path / "t.csv", "csv").read_bytes()
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(data))
    assert _whole(tmp_path / "t.csv.gz").num_rows == 3
    (tmp_path / "hidden.csv").write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match=r"\.gz"):
        _whole(tmp_path / "hidden.csv")


def test_columns_are_renamed_by_a_map(tmp_path: Path) -> None:
    path = _written(tmp_path / "t", "csv")
    assert _whole(path, renamed={"a": "z"}).column_names == ["z", "b", "c"]
    with pytest.raises(UsageError, match="no column 'q' to rename"):
        _whole(path, renamed={"q": "z"})
    with pytest.raises(DataError, match="stand twice: b"):
        _whole(path, renamed={"a": "b"})


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (b"\x89PNG\r\n\x1a\n\x00\x00", "UTF-8"), (b"PAR1 and no more", "not a table"),
     (b"a,b\n", "no rows"), (b"ARROW1\x00\x00junk", "not a table"),
     (b"\xff\xff\xff\xff\x00\x01\x00\x00xx", "not a table"),
     (b"a,b\n1,2\n3\n", "row 2"), (b"a,a\n1,2\n", "twice")],
)  # fmt: skip
def test_what_is_no_table_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match=message):
        _whole(tmp_path / "x")


def test_no_file_and_too_many_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        foreign_table(tmp_path / "nothing")
    with pytest.raises(DataError, match="more than 2 rows"):
        _whole(_written(tmp_path / "t", "parquet"), most=2)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_metadata_are_read_where_a_format_has_them(tmp_path: Path, kind: str) -> None:
    global TABLE
    plain, TABLE = TABLE, TABLE.replace_schema_metadata({"genward.model": "m:1"})
    try:
        assert metadata(_written(tmp_path / "t", kind))["genward.model"] == "m:1"
    finally:
        TABLE = plain
    assert metadata(_written(tmp_path / "c", "csv")) == {}
