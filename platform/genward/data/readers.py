"""CSV and Parquet into Arrow, batch by batch, with errors that name file, row, column and value."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from genward.data.schema import Column, Schema
from genward.errors import DataError, NotFound

BLOCK = 2 << 20  # bytes of CSV read at once: what bounds the memory of a large file
LARGEST_GUESSED = 256 << 20  # bytes of a file whose schema may be guessed: guessing holds the whole table
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
_NOT_UTF8 = re.compile(r"column #(\d+): Row #(\d+): .*invalid UTF8")  # as Arrow says it
_TO_UTF8 = "save it as UTF-8, for example with iconv -f latin1 -t utf-8"
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def read_table(path: Path, schema: Schema | None = None) -> pa.Table:
    """A whole table. With a schema its columns, in its order and types; without one, what Arrow makes of the file."""
    if schema is None:
        return _guessed(path)
    return pa.Table.from_batches(list(stream_table(path, schema)), arrow_schema(schema))


def stream_table(path: Path, schema: Schema) -> Iterator[pa.RecordBatch]:
    """Batches of a table in bounded memory.

    Raises DataError for the first thing wrong: no such column, a column the schema lacks, a value of the wrong type,
    out of bounds (unless the column says `outside: clip`), missing where it must not be, of no declared category;
    NotFound for a file that is not there.
    """
    first = 0
    for batch in _raw(path, schema):
        yield _typed(batch, schema, str(path), first)
        first += batch.num_rows
    if first == 0:
        raise DataError("the file has no rows", where=str(path), remedy="give a table with a header and data")


def arrow_schema(schema: Schema) -> pa.Schema:
    """The Arrow types of a schema's columns."""
    return pa.schema([pa.field(column.name, arrow_type(column)) for column in schema.columns])


def arrow_type(column: Column) -> pa.DataType:
    """numeric float64, integer int64, categorical string, boolean bool, datetime timestamp[us]."""
    types = {"numeric": pa.float64(), "integer": pa.int64(), "categorical": pa.string(), "boolean": pa.bool_()}
    return types.get(column.kind, pa.timestamp("us"))


def _raw(path: Path, schema: Schema) -> Iterator[pa.RecordBatch]:
    if not path.is_file():
        raise NotFound("no such file", where=str(path))
    if _suffix(path) == ".parquet":
        yield from _parquet(path, schema)
    else:
        yield from _csv(path, schema)


def _suffix(path: Path) -> str:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in (".csv", ".parquet", ".pq"):
        raise DataError(
            f"{suffix or 'no ending'} is no table format", where=str(path), remedy="give .csv, .csv.gz or .parquet"
        )
    return ".csv" if suffix.lower() == ".csv" else ".parquet"


def _parquet(path: Path, schema: Schema) -> Iterator[pa.RecordBatch]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _check_names(file.schema_arrow.names, str(path))
        _check_header(file.schema_arrow.names, schema, str(path))
        yield from file.iter_batches(batch_size=65536, columns=schema.names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file: {_line(error)}", where=str(path)) from None


def _csv(path: Path, schema: Schema) -> Iterator[pa.RecordBatch]:
    header = _header(path)
    _check_header(header, schema, str(path))
    convert = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in header},
        include_columns=schema.names,
        null_values=list(MISSING),
        strings_can_be_null=True,
    )
    uneven: list[Any] = []
    try:
        with _open_csv(path, convert, uneven) as reader:
            for batch in reader:
                if batch.num_rows:
                    yield batch
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _explained(error, path, header, uneven) from None


def _open_csv(path: Path, convert: pyarrow.csv.ConvertOptions, uneven: list[Any]) -> Any:
    source = pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None)
    read = pyarrow.csv.ReadOptions(block_size=BLOCK, use_threads=False)
    return pyarrow.csv.open_csv(source, read_options=read, parse_options=_parsing(uneven), convert_options=convert)


def _parsing(uneven: list[Any]) -> pyarrow.csv.ParseOptions:
    """The first row with too many or too few values is noted in `uneven` before it stops the reader."""

    def note(row: Any) -> str:
        uneven.append(row)
        return "error"

    return pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note)


def _explained(error: Exception, path: Path, header: Sequence[str], uneven: Sequence[Any]) -> DataError:
    """Arrow's complaint with the row as people count it: the first row of data is 1."""
    if uneven:
        row, where = uneven[0], f"{path}: row {uneven[0].number - 1}"
        what = f"{row.actual_columns} values, and the header names {row.expected_columns} columns"
        return DataError(what, where=where, remedy="mend the row; a value with commas stands in quotes")
    odd = _NOT_UTF8.search(str(error))
    if odd:
        place = f"{path}: row {int(odd[2]) - 1}, column {header[int(odd[1])]!r}"
        return DataError("not UTF-8 text", where=place, remedy=_TO_UTF8)
    remedy = "is a quote left open, or a row over 2 MB?" if "straddl" in str(error) else ""
    return DataError(f"not a CSV table: {_line(error)}", where=str(path), remedy=remedy)


def _header(path: Path) -> list[str]:
    """The column names of a CSV file; refuses empty files, other encodings and doubled names."""
    import csv

    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
            for _ in zip(range(50), file, strict=False):
                pass  # a file in another encoding is caught here, with a word of help
    except UnicodeDecodeError as error:
        odd = f"not UTF-8 text (byte {error.object[error.start]:#x})"
        raise DataError(odd, where=str(path), remedy=_TO_UTF8) from None
    except (OSError, EOFError, csv.Error) as error:
        raise DataError(f"cannot be read: {_line(error)}", where=str(path)) from None
    if not any(header):
        raise DataError("the file is empty", where=str(path), remedy="give a table with a header and data")
    _check_names(header, str(path))
    return header


def _check_names(header: Sequence[str], where: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"column names stand twice: {', '.join(twice)}", where=where, remedy="rename them")
    if "" in header:
        raise DataError(f"column {header.index('') + 1} has no name", where=where, remedy="name it in the header")


def _check_header(header: Sequence[str], schema: Schema, where: str) -> None:
    missing = [name for name in schema.names if name not in header]
    extra = [name for name in header if name not in schema.names and name not in schema.ignore]
    if missing:
        remedy = _separator(header) or "take them out of the schema, or give the file that has them"
        raise DataError(f"columns of the schema are not in the file: {', '.join(missing)}", where=where, remedy=remedy)
    if extra:
        remedy = "describe them in the schema, or list them under `ignore`"
        raise DataError(f"columns are not in the schema: {', '.join(extra)}", where=where, remedy=remedy)


def _separator(header: Sequence[str]) -> str:
    """A word of help for a file whose one column is a whole line."""
    found = [sign for sign in ";\t|" if len(header) == 1 and sign in header[0]]
    return f"values are separated by {found[0]!r}: save the file with commas" if found else ""


def _typed(batch: pa.RecordBatch, schema: Schema, where: str, first: int) -> pa.RecordBatch:
    arrays = [_column(batch.column(batch.schema.get_field_index(c.name)), c, where, first) for c in schema.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(schema))


def _column(array: pa.Array, column: Column, where: str, first: int) -> pa.Array:
    """One column in its type, every value checked, clipped where the schema says so."""
    found = _cast(array, column)
    if found is None:
        row = next(i for i in range(len(array)) if _cast(array.slice(i, 1), column) is None)
        raise _bad(f"is no {column.kind}", array, row, column, where, first)
    found = _clipped(found, column) if column.outside == "clip" else found
    checks = [(_missing(found, column), "is missing, and the column is not nullable")]
    checks += [(_outside(found, column), "is out of bounds"), (_unknown(found, column), "is no declared category")]
    for bad, message in checks:
        if bad is not None and pc.any(bad).as_py():
            raise _bad(message, array, pc.index(bad, pa.scalar(True)).as_py(), column, where, first)
    return found


def _cast(array: pa.Array, column: Column) -> pa.Array | None:
    """The column's type, or None when some value does not have it."""
    try:
        array = plain(array)
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            return _from_text(pc.utf8_trim_whitespace(array), column)
        if column.kind == "categorical":
            return array.cast(pa.string())
        return _finite(array.cast(arrow_type(column)), column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def plain(array: pa.Array) -> pa.Array:
    """Values in place of dictionary codes, and gaps in place of NaN, which is how many Parquet files write them."""
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if pa.types.is_floating(array.type):
        array = array.cast(pa.float64())
        return pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
    return array


def _finite(array: pa.Array, column: Column) -> pa.Array:
    if column.kind == "numeric" and pc.any(pc.invert(pc.is_finite(array))).as_py():
        raise pa.ArrowInvalid("not finite")
    return array


def _from_text(array: pa.Array, column: Column) -> pa.Array:
    if column.kind == "categorical":
        return array.cast(pa.string())
    if column.kind == "boolean":
        return _truth(pc.utf8_lower(array))
    if column.kind == "integer":
        return array.cast(pa.float64()).cast(pa.int64())  # "3.0" is an integer, "3.5" is refused
    return _finite(array.cast(arrow_type(column)), column)


def _truth(words: pa.Array) -> pa.Array:
    yes, no = (pc.is_in(words, value_set=pa.array(known)) for known in (_TRUE, _FALSE))
    if not pc.all(pc.or_(pc.or_(yes, no), words.is_null())).as_py():
        raise pa.ArrowInvalid("not a truth value")
    return pc.if_else(words.is_null(), pa.scalar(None, pa.bool_()), yes)


def _missing(array: pa.Array, column: Column) -> pa.Array | None:
    return None if column.nullable else array.is_null()


def _outside(array: pa.Array, column: Column) -> pa.Array | None:
    if not column.is_number or column.bounds == (None, None):
        return None
    low, high = column.bounds
    numbers = as_numbers(array)
    slack = 1e-9 * max(abs(low or 0.0), abs(high or 0.0))
    below = pc.less(numbers, pa.scalar((-float("inf") if low is None else low) - slack))
    above = pc.greater(numbers, pa.scalar((float("inf") if high is None else high) + slack))
    return pc.fill_null(pc.or_(below, above), False)


def _clipped(array: pa.Array, column: Column) -> pa.Array:
    """Values beyond a bound put on it; nothing else about a row enters, so that no row tells of another."""
    low, high = column.bounds
    for bound, whole, choose in ((low, math.ceil, pc.max_element_wise), (high, math.floor, pc.min_element_wise)):
        if bound is not None:
            end = _as_scalar(bound, whole, column)
            array = pc.if_else(array.is_valid(), choose(array, end), array)
    return array


def _as_scalar(bound: float, whole: Callable[[float], int], column: Column) -> pa.Scalar:
    if column.kind == "numeric":
        return pa.scalar(bound, pa.float64())
    scaled = whole(bound * 1e6) if column.kind == "datetime" else whole(bound)
    return pa.scalar(scaled, pa.int64()).cast(arrow_type(column))


def _unknown(array: pa.Array, column: Column) -> pa.Array | None:
    if column.kind != "categorical":
        return None
    known = pc.is_in(array, value_set=pa.array(column.categories, pa.string()))
    return pc.and_(pc.invert(known), array.is_valid())


def as_numbers(array: pa.Array) -> pa.Array:
    """A numeric, integer or datetime array as float64; datetimes as seconds since the epoch."""
    if pa.types.is_timestamp(array.type):
        return pc.divide(array.cast(pa.int64()).cast(pa.float64()), 1e6)
    return array.cast(pa.float64(), safe=False)  # integers beyond 2^53 are rounded


def _bad(message: str, array: pa.Array, row: int, column: Column, where: str, first: int) -> DataError:
    value = array[row].as_py()
    place = f"{where}: row {first + row + 1}, column {column.name!r}"
    return DataError(f"{value!r} {message}", where=place, remedy="mend the value, or the schema")


def _guessed(path: Path) -> pa.Table:
    if not path.is_file():
        raise NotFound("no such file", where=str(path))
    if path.stat().st_size > LARGEST_GUESSED:
        remedy = "infer one from a part of it with `genward dataset infer`, edit it, and give it with --schema"
        raise DataError("too large to guess a schema", where=str(path), remedy=remedy)
    try:
        table = _guessed_parquet(path) if _suffix(path) == ".parquet" else _guessed_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot be read: {_line(error)}", where=str(path)) from None
    if table.num_rows == 0:
        raise DataError("the file has no rows", where=str(path), remedy="give a table with a header and data")
    return table


def _guessed_parquet(path: Path) -> pa.Table:
    _check_names(pyarrow.parquet.read_schema(path).names, str(path))
    return pyarrow.parquet.read_table(path)


def _guessed_csv(path: Path) -> pa.Table:
    header, uneven = _header(path), list[Any]()
    convert = pyarrow.csv.ConvertOptions(null_values=list(MISSING), strings_can_be_null=True)
    read = pyarrow.csv.ReadOptions(use_threads=False)  # rows have numbers only without threads
    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as source:
            table = pyarrow.csv.read_csv(source, read, _parsing(uneven), convert)
    except pa.ArrowException as error:
        raise _explained(error, path, header, uneven) from None
    for field in table.schema:
        if pa.types.is_binary(field.type):  # what Arrow makes of text that is not UTF-8
            raise _not_text(table[field.name], field.name, path)
    return table


def _not_text(values: pa.ChunkedArray, name: str, path: Path) -> DataError:
    """The first value that is not UTF-8."""
    row = next(i for i, value in enumerate(values.to_pylist(), 1) if not _is_text(value or b""))
    return DataError("not UTF-8 text", where=f"{path}: row {row}, column {name!r}", remedy=_TO_UTF8)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
