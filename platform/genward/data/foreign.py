"""Tables that others made: CSV, Parquet or Arrow, whose columns nobody promised. Read batch by batch in flat memory.

What a file is shows in its first bytes, not in its name. Text stays text: whoever reads on knows the schema.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from genward.data.readers import MISSING, _check_names, _explained, _header, _line, _open_csv
from genward.errors import DataError, NotFound, UsageError

ROWS = 65_536  # of a batch, at most
_PARQUET, _ARROW, _STREAM, _GZIP = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"\x1f\x8b"


def foreign_table(
    path: Path, renamed: Mapping[str, str] | None = None, most: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of a file, columns renamed by {name in the file: name here}.

    Raises NotFound when there is no file; DataError for what is no table, has no rows, or more than `most` of them;
    UsageError for a column to rename that is not there, or a name that stands twice afterwards.
    """
    if not path.is_file():
        raise NotFound("no such file", where=str(path))
    batches = _batches(path)
    first = next(batches, None)
    if first is None:
        raise DataError("the file has no rows", where=str(path), remedy="give a table with a header and data")
    names = _names(first.schema.names, renamed or {}, str(path))
    return _counted(chain([first], batches), names, str(path), most)


def _counted(
    batches: Iterator[pa.RecordBatch], names: Sequence[str], where: str, most: int | None
) -> Iterator[pa.RecordBatch]:
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        if most is not None and rows > most:
            raise DataError(f"more than {most} rows", where=where, remedy="give a part of it")
        yield batch.rename_columns(list(names))


def _names(given: Sequence[str], renamed: Mapping[str, str], where: str) -> list[str]:
    if strangers := [name for name in renamed if name not in given]:
        raise UsageError(
            f"no column {strangers[0]!r} to rename", where=where, remedy=f"there are: {', '.join(given[:12])}"
        )
    names = [renamed.get(name, name) for name in given]
    _check_names(names, where)
    return names


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Batches with rows, whatever the format."""
    with path.open("rb") as file:
        head = file.read(6)
    try:
        yield from (batch for batch in _read(path, head) if batch.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a table: {_line(error)}", where=str(path)) from None


def _read(path: Path, head: bytes) -> Iterator[pa.RecordBatch]:
    if head[:4] == _PARQUET:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=ROWS)
    elif head == _ARROW:
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
            yield from (file.get_batch(number) for number in range(file.num_record_batches))
    elif head[:4] == _STREAM:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as stream:
            yield from stream
    else:
        yield from _csv(path, zipped=head[:2] == _GZIP)


def metadata(path: Path) -> dict[str, str]:
    """Key-value metadata of an Arrow or Parquet file; CSV has none."""
    if not path.is_file():
        raise NotFound("no such file", where=str(path))
    try:
        with path.open("rb") as file:
            head = file.read(6)
        if head[:4] == _PARQUET:
            found = pyarrow.parquet.read_schema(path).metadata
        elif head[:4] == _STREAM or head == _ARROW:
            with pa.OSFile(str(path)) as source:
                found = (pa.ipc.open_file if head == _ARROW else pa.ipc.open_stream)(source).schema.metadata
        else:
            return {}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a table: {_line(error)}", where=str(path)) from None
    return {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in (found or {}).items()}


def _csv(path: Path, zipped: bool) -> Iterator[pa.RecordBatch]:
    """All columns as text."""
    if zipped != (path.suffix == ".gz"):
        raise DataError("compressed, or not, against its name", where=str(path), remedy="name gzip files .gz")
    header, uneven = _header(path), list[Any]()
    convert = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in header}, null_values=list(MISSING), strings_can_be_null=True
    )
    try:
        with _open_csv(path, convert, uneven) as reader:
            yield from reader
    except (pa.ArrowException, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise _explained(error, path, header, uneven) from None
