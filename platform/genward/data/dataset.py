"""Data sets: a table and its schema, kept under the digest of their content."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from genward.data.readers import arrow_schema, read_table, stream_table
from genward.data.schema import Schema
from genward.errors import DataError, IntegrityError, NotFound, Unavailable


@dataclass(frozen=True)
class Dataset:
    """A data set on disk."""

    name: str
    schema: Schema
    path: Path  # of the Parquet file
    digest: str  # of schema and rows, whatever file they came from
    rows: int
    parents: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Read a data set's folder; NotFound, or IntegrityError when it cannot be read."""
        if not (folder / "dataset.json").is_file():
            raise NotFound("no data set here", where=str(folder))
        try:
            data = json.loads((folder / "dataset.json").read_bytes())
            schema = Schema.from_yaml((folder / "schema.yaml").read_text(encoding="utf-8"), str(folder))
            path = folder / "data.parquet"
            return cls(data["name"], schema, path, data["digest"], data["rows"], tuple(data["parents"]))
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            raise IntegrityError(f"the data set cannot be read: {error}", where=str(folder)) from None

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows, or some columns of them."""
        try:
            return pyarrow.parquet.read_table(self.path, columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise IntegrityError(f"the data cannot be read: {error}", where=str(self.path)) from None

    def split(self, seed: int, held_out: float = 0.2) -> tuple[pa.Table, pa.Table]:
        """(train, test): a share of the rows held out, drawn by seed and digest; the same for every caller."""
        label = hashlib.sha256(f"{self.digest}/{seed}".encode()).digest()
        order = np.random.default_rng(int.from_bytes(label[:8], "big")).permutation(self.rows)
        cut = max(1, min(self.rows - 1, round(self.rows * held_out))) if self.rows > 1 else 0
        table = self.table()
        return table.take(np.sort(order[cut:])), table.take(np.sort(order[:cut]))

    def split_by_row(self, seed: int, held_out: float = 0.2) -> tuple[pa.Table, pa.Table]:
        """(train, test): each row goes by a hash of itself, so that one row more or less moves no other row across."""
        key, limit = f"genward split {seed}".encode(), int(held_out * 2**64)
        table = self.table()
        lines = _lines([column.to_pylist() for column in table.columns])
        sides = [int.from_bytes(hashlib.blake2b(line.encode(), key=key, digest_size=8).digest()) for line in lines]
        test = pa.array([side < limit for side in sides], pa.bool_())
        return table.filter(pa.compute.invert(test)), table.filter(test)


def ingest(
    source: Path, schema: Schema | None, folder: Path, name: str | None = None, parents: Sequence[str] = ()
) -> Dataset:
    """Check a file against a schema and keep it as `folder/<digest>`, in bounded memory.

    Without a schema one is inferred. The folder appears by one rename; a crash or a full disk leaves nothing.
    The same content again gives the data set that is there.
    """
    used = schema or Schema.infer(read_table(source), str(source))
    temporary = folder / f".adding-{secrets.token_hex(8)}"
    try:
        temporary.mkdir(parents=True)
        digest, rows = _convert(source, used, temporary / "data.parquet")
        title = name or source.name.split(".")[0]
        _describe(temporary, used, {"name": title, "digest": digest, "rows": rows, "parents": list(parents)})
        target = folder / digest.removeprefix("sha256:")
        if not target.exists():
            temporary.rename(target)
            _sync(folder)
        return Dataset.open(target)
    except OSError as error:
        remedy = "free some space or make the folder writable; nothing was left behind"
        raise Unavailable(f"cannot write: {error.strerror}", where=str(folder), remedy=remedy) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(source: Path, schema: Schema, target: Path) -> tuple[str, int]:
    """Write Parquet and digest the rows as canonical Arrow values, batch by batch."""
    hasher, rows = hashlib.sha256(schema.digest.encode()), 0
    with pyarrow.parquet.ParquetWriter(target, arrow_schema(schema)) as writer:
        for batch in stream_table(source, schema):
            writer.write_batch(batch)
            rows += batch.num_rows
            _digest_rows(hasher, batch)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return f"sha256:{hasher.hexdigest()}", rows


def _digest_rows(hasher: hashlib._Hash, batch: pa.RecordBatch) -> None:
    """The same rows give the same digest however a file was cut into batches: one row after the other, as JSON."""
    lines = _lines([column.to_pylist() for column in batch.columns])
    hasher.update("".join(f"{line}\n" for line in lines).encode())


def _lines(columns: Sequence[Sequence[object]]) -> Iterator[str]:
    """Rows as JSON."""
    return (json.dumps(row, default=str, separators=(",", ":")) for row in zip(*columns, strict=True))


def _describe(folder: Path, schema: Schema, facts: dict[str, object]) -> None:
    for name, text in (("schema.yaml", schema.to_yaml()), ("dataset.json", json.dumps(facts, indent=2))):
        with (folder / name).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
