"""Readers: right tables come in whole, wrong ones are refused by file, row, column and value."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genward.data.readers import read_table, stream_table
from genward.data.schema import Schema
from genward.errors import DataError, GenwardError, NotFound

SCHEMA = Schema.from_yaml("""
columns:
  - {name: density, kind: numeric, minimum: 0, maximum: 30, digits: 4}
  - {name: n, kind: integer, nullable: true}
  - {name: phase, kind: categorical, categories: [bcc, fcc]}
  - {name: ok, kind: boolean}
  - {name: made, kind: datetime}
ignore: [note]
""")
HEADER = "note,density,n,phase,ok,made\n"
ROW = "x,7.8,3,fcc,true,2024-01-02T03:04:05\n"


def put(folder: Path, text: str | bytes, name: str = "alloys.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv_gzip_and_parquet_of_the_same_rows_are_the_same_table(tmp_path: Path) -> None:
    text = HEADER + ROW + "y, 8.0 ,,bcc,NO,2024-01-02\n"
    table = read_table(put(tmp_path, text), SCHEMA)
    assert table.column_names == SCHEMA.names
    assert table["n"].to_pylist() == [3, None]
    assert table["ok"].to_pylist() == [True, False]
    packed = put(tmp_path, gzip.compress(text.encode()), "alloys.csv.gz")
    assert read_table(packed, SCHEMA).equals(table)
    pyarrow.parquet.write_table(table, tmp_path / "alloys.parquet")
    assert read_table(tmp_path / "alloys.parquet", SCHEMA).equals(table)


@pytest.mark.parametrize(
    ("cell", "column", "said"),
    [
        ("x,heavy,3,fcc,true,2024-01-02", "density", "'heavy'"),
        ("x,99,3,fcc,true,2024-01-02", "density", "out of bounds"),
        ("x,nan,3,fcc,true,2024-01-02", "density", "missing"),
        ("x,inf,3,fcc,true,2024-01-02", "density", "'inf'"),
        ("x,7.8,3.5,fcc,true,2024-01-02", "n", "'3.5'"),
        ("x,7.8,3,hcp,true,2024-01-02", "phase", "no declared category"),
        ("x,7.8,3,fcc,perhaps,2024-01-02", "ok", "'perhaps'"),
        ("x,7.8,3,fcc,true,yesterday", "made", "'yesterday'"),
    ],
)
def test_a_wrong_value_in_row_812_is_named(tmp_path: Path, cell: str, column: str, said: str) -> None:
    path = put(tmp_path, HEADER + ROW * 811 + cell + "\n" + ROW * 50)
    with pytest.raises(DataError) as caught:
        read_table(path, SCHEMA)
    message = str(caught.value)
    assert "alloys.csv" in message
    assert "row 812," in message
    assert repr(column) in message
    assert said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (HEADER, "no rows"),
        (HEADER.replace("note", "n") + ROW, "twice: n"),
        (HEADER.replace("note", "colour") + ROW, "not in the schema: colour"),
        (HEADER.replace("density", "weight") + ROW, "not in the file: density"),
        (HEADER.encode() + "é,7.8,3,fcc,true,2024-01-02\n".encode("latin-1"), "UTF-8"),
        (HEADER.replace("note", "né").encode("latin-1") + ROW.encode(), "UTF-8"),
        (HEADER + "x,7.8\n", "alloys.csv"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(put(tmp_path, text), SCHEMA)
    assert said in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_table(tmp_path / "none.csv", SCHEMA)
    with pytest.raises(DataError, match="table format"):
        read_table(put(tmp_path, "x", "alloys.xlsx"), SCHEMA)
    with pytest.raises(DataError, match="not a Parquet file"):
        read_table(put(tmp_path, "x", "alloys.parquet"), SCHEMA)


@given(body=st.binary(max_size=200), headed=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_a_table_or_one_of_our_errors(tmp_path: Path, body: bytes, headed: bool) -> None:
    path = put(tmp_path, HEADER.encode() + body if headed else body)
    for schema in (SCHEMA, None):
        try:
            read_table(path, schema)
        except GenwardError as error:
            assert str(error)


PEAK = """
import resource, sys
from pathlib import Path
from genward.data.readers import stream_table
from genward.data.schema import Schema
schema = Schema.from_yaml("columns: [{name: a, kind: numeric, digits: 4}, {name: b, kind: numeric, digits: 4}]")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(batch.num_rows for batch in stream_table(Path(sys.argv[1]), schema))
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def peak(path: Path, megabytes: int) -> tuple[int, int]:
    """(rows, MiB of additional peak memory) of streaming a file of that size in a process of its own."""
    block = b"1.2345678901234,9.8765432109876\n" * 32768  # 1 MiB
    with path.open("wb") as file:
        file.write(b"a,b\n")
        for _ in range(megabytes):
            file.write(block)
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], check=True, capture_output=True, text=True)
    rows, extra = map(int, done.stdout.split())
    return rows, extra


def test_a_large_file_is_streamed_in_less_memory_than_it_has(tmp_path: Path) -> None:
    rows, extra = peak(tmp_path / "large.csv", 192)
    assert rows == 192 * 32768
    assert extra < 150


@pytest.mark.soak
def test_two_gigabytes_need_no_more_memory(tmp_path: Path) -> None:
    rows, extra = peak(tmp_path / "large.csv", 2048)
    assert rows == 2048 * 32768
    assert extra < 200


def test_batches_of_a_stream_are_whole_rows_in_order(tmp_path: Path) -> None:
    lines = "".join(f"x,7.8,{i},fcc,true,2024-01-02\n" for i in range(300_000))
    batches = list(stream_table(put(tmp_path, HEADER + lines), SCHEMA))
    assert len(batches) > 1
    assert pa.Table.from_batches(batches)["n"].to_pylist() == list(range(300_000))
