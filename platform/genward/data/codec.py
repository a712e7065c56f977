"""Codecs: invertible maps between tables and tensors.

A number becomes one value that is close to standard normal (a quantile transform with knots evenly spaced in normal
quantiles), a category a one-hot, a gap of its own a choice {present, missing}: missingness is modelled, not filled in.
Repeated values (atoms) own an interval of quantiles, so that decoding gives them back exactly.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genward.data.quantiles import Quantiles
from genward.data.readers import arrow_schema, as_numbers
from genward.data.schema import Column, Schema
from genward.errors import DataError, IntegrityError
from genward.family import Field, Spec
from genward.noise import normal_quantile
from genward.strictjson import canonical, parse

if TYPE_CHECKING:
    from torch import nn

    from genward.table import Cell

FORMAT = "genward.codec.table/1"
_LIMIT = 64 << 20  # bytes of a codec's JSON
_BOOLEANS = ("false", "true")

Floats = NDArray[np.float32]


class Codec(ABC):
    """Base of codecs: fitted from a schema first; what it takes from data is listed in `estimated`."""

    name: ClassVar[str]
    modality: ClassVar[str]

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """The layout of encoded records."""

    @property
    @abstractmethod
    def estimated(self) -> Mapping[str, Sequence[str]]:
        """What was estimated from data, by column."""

    @abstractmethod
    def encode(self, table: pa.Table, rng: np.random.Generator | None = None) -> dict[str, Floats]:
        """Records: {"x": (N, width)} and, with conditions, {"c": (N, condition_width)}."""

    @abstractmethod
    def decoder(self) -> nn.Module:
        """The module that the platform appends to the sample graph."""

    @abstractmethod
    def to_json(self) -> bytes:
        """What `from_json` reads back."""


@dataclass(frozen=True)
class TableCodec(Codec):
    """A codec of mixed tables with gaps.

    `conditions` are columns that are given to the network, not generated. `shares[column]` are the frequencies of a
    choice field of a condition, for releases that declare no cells.
    """

    name: ClassVar[str] = "table"
    modality: ClassVar[str] = "table"

    schema: Schema
    quantiles: Mapping[str, Quantiles]
    conditions: tuple[str, ...] = ()
    shares: Mapping[str, tuple[float, ...]] = None  # type: ignore[assignment]
    public: bool = False  # made by `declared`: nothing in it comes from data

    @classmethod
    def fit(cls, schema: Schema, table: pa.Table, conditions: Sequence[str] = ()) -> TableCodec:
        """Fit to a table that has the schema's columns.

        Raises DataError when a column has no value, or its declared precision does not survive the round trip.
        """
        for name in conditions:
            schema.column(name)
        quantiles = {c.name: _fit_column(c, table[c.name]) for c in schema.columns if c.is_number}
        codec = cls(schema, quantiles, tuple(conditions), {})
        encoded = {f.column: (f, codec._field(table, f)) for f in codec._given if f.kind == "choice"}
        shares = {name: tuple(float(s) for s in x.mean(axis=0)) for name, (_, x) in encoded.items()}
        return cls(schema, quantiles, tuple(conditions), shares)

    @classmethod
    def declared(cls, schema: Schema, conditions: Sequence[str] = ()) -> TableCodec:
        """A codec that takes nothing from data: bounds and categories are the schema's, every condition's value is as
        likely as another.

        Raises DataError that names each number without bounds and the line to add.
        """
        for name in conditions:
            schema.column(name)
        quantiles = {c.name: Quantiles.declared(c) for c in schema.columns if c.is_number}
        plain = cls(schema, quantiles, tuple(conditions), {})
        shares = {f.column: (1 / f.width,) * f.width for f in plain._given if f.kind == "choice"}
        return cls(schema, quantiles, tuple(conditions), shares, public=True)

    # layout

    @cached_property
    def number_columns(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.schema.columns if c.is_number)

    @cached_property
    def code_columns(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.schema.columns if not c.is_number)

    @cached_property
    def spec(self) -> Spec:
        return Spec("table", self._generated, self._given)

    @cached_property
    def _generated(self) -> tuple[Field, ...]:
        return self._laid_out([c for c in self.schema.columns if c.name not in self.conditions])

    @cached_property
    def _given(self) -> tuple[Field, ...]:
        return self._laid_out([c for c in self.schema.columns if c.name in self.conditions])

    def _laid_out(self, columns: Sequence[Column]) -> tuple[Field, ...]:
        fields: list[Field] = []
        start = 0
        for column in columns:
            for kind, width in _parts(column):
                cuts = self.quantiles[column.name].cuts if kind == "number" else ()
                fields.append(Field(column.name, kind, start, width, cuts))  # type: ignore[arg-type]
                start += width
        return tuple(fields)

    @property
    def estimated(self) -> dict[str, list[str]]:
        if self.public:
            return {}
        found = {name: ["quantiles", *q.estimated] for name, q in self.quantiles.items()}
        return found | {name: ["shares"] for name in self.shares}

    # table -> tensors

    def encode(self, table: pa.Table, rng: np.random.Generator | None = None) -> dict[str, Floats]:
        """Records of a table. With `rng`, an atom is put at a random place of its interval, else at its middle."""
        record = {"x": self._fields(table, self._generated, rng)}
        return record | {"c": self._fields(table, self._given, rng)} if self.conditions else record

    def _fields(self, table: pa.Table, fields: Sequence[Field], rng: np.random.Generator | None) -> Floats:
        out = np.zeros((table.num_rows, sum(f.width for f in fields)), dtype=np.float32)
        for field in fields:
            out[:, field.start : field.start + field.width] = self._field(table, field, rng)
        return out

    def _field(self, table: pa.Table, field: Field, rng: np.random.Generator | None = None) -> Floats:
        """One field's values (N, width): a latent number, or a one-hot."""
        column = self.schema.column(field.column)
        array = _chunk(table[field.column])
        if field.kind == "number":
            values = as_numbers(array).to_numpy(zero_copy_only=False)
            there = ~np.isnan(values)
            out = np.zeros((len(values), 1), dtype=np.float32)
            out[there, 0] = self.quantiles[field.column].encode(values[there], rng)
            return out
        codes = _codes(array, column)
        return np.eye(field.width, dtype=np.float32)[codes]

    # tensors -> table

    def decoder(self) -> nn.Module:
        """forward(x (B, width), c (B, condition_width) if any) -> numbers (B, P) float64, codes (B, Q) int32.

        NaN and -1 stand for missing. Numbers are rounded to their grid and kept within bounds; groups add up.
        """
        from genward.data.decoder import TableDecoder

        return TableDecoder(self)

    def decode(self, numbers: NDArray[np.float64], codes: NDArray[np.int32]) -> pa.RecordBatch:
        """Arrow columns in the schema's order: dictionary, bool, timestamp[us], int64, float64; gaps are nulls."""
        at = {name: i for i, name in enumerate(self.number_columns)}
        at |= {name: i for i, name in enumerate(self.code_columns)}
        arrays = [
            _numbers(numbers[:, at[c.name]], c) if c.is_number else self._choices(codes[:, at[c.name]], c)
            for c in self.schema.columns
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.arrow)

    @cached_property
    def arrow(self) -> pa.Schema:
        """The Arrow schema of decoded batches."""
        plain = arrow_schema(self.schema)
        kinds = [_DICTIONARY if c.kind == "categorical" else plain.field(c.name).type for c in self.schema.columns]
        return pa.schema([pa.field(c.name, kind) for c, kind in zip(self.schema.columns, kinds, strict=True)])

    def _choices(self, codes: NDArray[np.int32], column: Column) -> pa.Array:
        mask = codes < 0
        if column.kind == "boolean":
            return pa.array(codes == 1, mask=mask)
        index = pa.array(np.ascontiguousarray(codes), mask=mask)
        return pa.DictionaryArray.from_arrays(index, self._words[column.name])

    @cached_property
    def _words(self) -> dict[str, pa.Array]:
        return {c.name: pa.array(c.categories, pa.string()) for c in self.schema.columns if c.kind == "categorical"}

    # cells

    def cells(self, columns: Mapping[str, Sequence[float] | None], table: pa.Table) -> list[Cell]:
        """Cells: every declared category times every declared bin, with its share of the rows.

        `columns[name]` None: one cell a category; bounds b0 < b1 < ...: one a bin. Rows in no cell do not count.
        """
        from genward.data.cells import cells

        return cells(self, columns, table)

    def condition(self, cells: Sequence[Cell], ids: NDArray[np.intp], uniforms: Floats) -> Floats:
        """Given fields (n, condition_width) of rows in cells `ids`; `uniforms` (n, fields) place a value in its bin."""
        from genward.data.cells import condition

        return condition(self, cells, ids, uniforms)

    # JSON

    def to_json(self) -> bytes:
        plain = {
            "format": FORMAT,
            "schema": self.schema.model_dump(mode="json"),
            "quantiles": {name: q.to_json() for name, q in self.quantiles.items()},
            "conditions": list(self.conditions),
            "shares": {name: list(shares) for name, shares in self.shares.items()},
        }
        return canonical({**plain, "public": True} if self.public else plain)

    @classmethod
    def from_json(cls, data: bytes) -> TableCodec:
        """Raises IntegrityError when this is no codec."""
        try:
            given = parse(data, "codec.json", _LIMIT)
            if given["format"] != FORMAT:
                raise ValueError(f"format {given['format']!r}")
            schema = Schema.model_validate(given["schema"])
            quantiles = {str(name): Quantiles.from_json(q) for name, q in given["quantiles"].items()}
            shares = {str(name): tuple(float(s) for s in row) for name, row in given["shares"].items()}
            codec = cls(schema, quantiles, tuple(given["conditions"]), shares, given.get("public") is True)
            codec._require_whole()
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, json.JSONDecodeError) as error:
            raise IntegrityError(f"the codec cannot be read: {error}", where="codec.json") from None
        return codec

    def _require_whole(self) -> None:
        """Every number column has its quantiles, every choice of a condition its shares."""
        if set(self.quantiles) != set(self.number_columns):
            raise ValueError("the number columns and their quantiles differ")
        if not set(self.conditions) <= set(self.schema.names):
            raise ValueError("a condition is no column")
        widths = {f.column: f.width for f in self._given if f.kind == "choice"}
        if {name: len(row) for name, row in self.shares.items()} != widths:
            raise ValueError("the shares do not fit the conditions")


_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def _parts(column: Column) -> list[tuple[str, int]]:
    """(kind, width) of a column's fields; a nullable number has a second one, {present, missing}."""
    if column.is_number:
        return [("number", 1), ("choice", 2)] if column.nullable else [("number", 1)]
    return [("choice", len(words(column)) + column.nullable)]


def words(column: Column) -> tuple[str, ...]:
    """The categories of a choice column, in the order of their codes."""
    return _BOOLEANS if column.kind == "boolean" else column.categories


def _codes(array: pa.Array, column: Column) -> NDArray[np.int64]:
    """Which of a choice field's values each row has; the last one is missing."""
    if column.is_number:
        return np.asarray(array.is_null().to_numpy(zero_copy_only=False), dtype=np.int64)
    if column.kind == "boolean":
        index = array.cast(pa.int32())
    else:
        index = pa.compute.index_in(array.cast(pa.string()), value_set=pa.array(column.categories, pa.string()))
    codes = index.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    bad = (codes < 0) & ~array.is_null().to_numpy(zero_copy_only=False)
    if bad.any() or (not column.nullable and (codes < 0).any()):
        raise DataError("a value is no declared category", where=column.name, remedy="check the table first")
    return np.where(codes < 0, len(words(column)), codes)


def _numbers(values: NDArray[np.float64], column: Column) -> pa.Array:
    values = np.ascontiguousarray(values)
    gaps = np.isnan(values)
    mask = gaps if gaps.any() else None
    if column.kind == "numeric":
        return pa.array(values, mask=mask)
    whole = np.nan_to_num(values).astype(np.int64)
    if column.kind == "integer":
        return pa.array(whole, mask=mask)
    return pa.array(whole * 1_000_000, mask=mask).cast(pa.timestamp("us"))


def _chunk(array: Any) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _fit_column(column: Column, array: Any) -> Quantiles:
    values = as_numbers(_chunk(array)).drop_null().to_numpy(zero_copy_only=False)
    if len(values) == 0:
        raise DataError("has no value", where=f"column {column.name!r}", remedy="leave the column out")
    return Quantiles.fit(column, values)


def quantile_values(uniforms: NDArray[Any]) -> Floats:
    """Latent numbers (float32) of uniforms."""
    return np.asarray(normal_quantile(np.asarray(uniforms, dtype=np.float64)), dtype=np.float32)
