"""Rows on the wire: JSON, CSV, Arrow stream and Parquet, whole or piece by piece.

JSON is {"request", "model", "columns": [...], "rows": [[...], ...]}; missing values are null. When there were fewer
rows than were asked for, JSON ends with "exhausted": true and Parquet's metadata say so; headers say so where it is
known before the first byte.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from genward.contracts import Rows
from genward.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from genward.data.codec import TableCodec
    from genward.data.schema import Column

JSON, CSV = "application/json", "text/csv"
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
_FEW = 100  # up to here numpy is no quicker
MEDIA = {"json": JSON, "csv": CSV, "arrow": ARROW, "parquet": PARQUET}


@lru_cache(256)
def media_type(accept: str) -> str:
    """The media type an Accept header asks for, by its q values; UsageError when none of ours is among them."""
    wanted = []
    for place, part in enumerate(accept.split(",")):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((p.partition("=")[2] for p in parameters if p.startswith("q=")), "1")
        try:
            wanted.append((-float(quality), place, name.lower()))
        except ValueError:
            raise UsageError(f"Accept: {part.strip()!r} cannot be read") from None
    for refused, _, name in sorted(wanted):
        if refused < 0 and name in ("*/*", "application/*", ""):
            return JSON
        if refused < 0 and name in MEDIA.values():
            return name
    raise UsageError(f"cannot answer as {accept!r}", remedy=f"accept one of {', '.join(MEDIA.values())}")


class Encoder(ABC):
    """Turns rows into bytes: `start`, any number of `piece`s, `end`. Metadata travels where the format has a place."""

    def __init__(self, codec: TableCodec, facts: Mapping[str, str]) -> None:
        self.codec, self.facts = codec, facts
        self.exhausted = False  # set before `end`: there are fewer rows than were asked for

    def start(self) -> bytes:
        """What stands before the first rows."""
        return b""

    @abstractmethod
    def piece(self, rows: Rows) -> bytes:
        """Some rows."""

    def end(self) -> bytes:
        """What stands behind the last rows."""
        return b""

    def whole(self, rows: Rows) -> bytes:
        """All at once."""
        return b"".join((self.start(), self.piece(rows), self.end()))


class JsonEncoder(Encoder):
    """See the module's docstring."""

    def __init__(self, codec: TableCodec, facts: Mapping[str, str]) -> None:
        super().__init__(codec, facts)
        self._first = True

    def start(self) -> bytes:
        head = orjson.dumps({**self.facts, "columns": self.codec.schema.names})
        return head[:-1] + b',"rows":['

    def piece(self, rows: Rows) -> bytes:
        columns = _columns(self.codec, rows)
        body = orjson.dumps(list(zip(*columns, strict=True)))[1:-1]
        lead = b"" if self._first or not body else b","
        self._first = self._first and not body
        return lead + body

    def end(self) -> bytes:
        return b'],"exhausted":true}' if self.exhausted else b"]}"


class CsvEncoder(Encoder):
    """RFC 4180 with a header."""

    def start(self) -> bytes:
        return self._written(self.codec.arrow.empty_table().to_batches(), header=True)

    def piece(self, rows: Rows) -> bytes:
        return self._written([self.codec.decode(rows.numbers, rows.codes)], header=False)

    def _written(self, batches: list[pa.RecordBatch], header: bool) -> bytes:
        import pyarrow as pa
        import pyarrow.csv

        table = _plain(pa.Table.from_batches(batches, self.codec.arrow))
        out = io.BytesIO()
        pyarrow.csv.write_csv(table, out, pyarrow.csv.WriteOptions(include_header=header))
        return out.getvalue()


class _Sink(io.RawIOBase):
    """Bytes that a writer wrote since the last look."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def taken(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


class ArrowEncoder(Encoder):
    """Arrow IPC stream; the facts are schema metadata."""

    def start(self) -> bytes:
        import pyarrow as pa

        self._sink = _Sink()
        self._schema = _with_facts(self.codec.arrow, self.facts)
        self._writer = self._open(pa, self._sink)
        return self._sink.taken()

    def _open(self, pa: Any, sink: _Sink) -> Any:
        return pa.ipc.new_stream(sink, self._schema)

    def piece(self, rows: Rows) -> bytes:
        self._write(self.codec.decode(rows.numbers, rows.codes))
        return self._sink.taken()

    def _write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch.replace_schema_metadata(self._schema.metadata))

    def end(self) -> bytes:
        self._writer.close()
        return self._sink.taken()


class ParquetEncoder(ArrowEncoder):
    """Parquet, a row group a piece; the facts are key-value metadata."""

    def _open(self, pa: Any, sink: _Sink) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetWriter(sink, self._schema)

    def end(self) -> bytes:
        if self.exhausted:
            self._writer.add_key_value_metadata({"genward.exhausted": "true"})
        return super().end()


_ENCODERS: Mapping[str, type[Encoder]] = {
    JSON: JsonEncoder,
    CSV: CsvEncoder,
    ARROW: ArrowEncoder,
    PARQUET: ParquetEncoder,
}


def encoder(media: str, codec: TableCodec, facts: Mapping[str, str]) -> Encoder:
    """The encoder of a media type."""
    return _ENCODERS[media](codec, facts)


def _columns(codec: TableCodec, rows: Rows) -> list[list[Any]]:
    """Columns as Python values, None for missing, in the schema's order."""
    numbers, codes = iter(rows.numbers.T.tolist()), iter(rows.codes.T.tolist())
    return [_read(next(numbers if column.is_number else codes), column) for column in codec.schema.columns]


def _read(values: list[Any], column: Column) -> list[Any]:
    """A column's numbers or codes as what they stand for; NaN becomes null in orjson."""
    if column.kind == "numeric":
        return values
    if column.kind == "integer":
        return _integers(values)
    if column.kind == "datetime":
        return [None if v != v else np.datetime_as_string(np.datetime64(int(v), "s")) + "Z" for v in values]
    words: list[Any] = [False, True, None] if column.kind == "boolean" else [*column.categories, None]  # code -1
    return [words[code] for code in values]


def _integers(values: list[float]) -> list[int | None]:
    if len(values) > _FEW and not math.isnan(sum(values)):
        found: list[int | None] = np.array(values).astype(np.int64).tolist()
        return found
    return [None if v != v else int(v) for v in values]


def _plain(table: pa.Table) -> pa.Table:
    """Dictionary columns as strings, for formats that have no dictionaries."""
    import pyarrow as pa

    for place, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(place, column.name, table[column.name].cast(pa.string()))
    return table


def _with_facts(schema: pa.Schema, facts: Mapping[str, str]) -> pa.Schema:
    return schema.with_metadata({f"genward.{key}": value for key, value in facts.items()})
