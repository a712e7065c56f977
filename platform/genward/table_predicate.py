"""What a request may ask of rows: clauses joined by AND, checked against a schema, honoured exactly.

A missing value meets no clause, `!=` included. Dates compare as seconds since the epoch, UTC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from genward.contracts import Condition, Operator, Value
from genward.errors import UsageError

if TYPE_CHECKING:
    from genward.data.schema import Column, Schema
    from genward.table import Cell, Table

_OPERATORS = ("<=", ">=", "!=", "=", "<", ">", "in")
_ORDER = ("<", "<=", ">", ">=")
_BOOLEANS = ("false", "true")  # their codes are 0 and 1
_LOOSE = re.compile(r"\s*(?P<name>.*?)\s*(?P<op><=|>=|!=|=|<|>|\bin\b)\s*(?P<value>.*?)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Clause:
    """One clause made ready: either wanted `codes` (with their names) or an operator and a number."""

    condition: Condition
    codes: frozenset[int] | None = None
    names: frozenset[str] = frozenset()
    number: float = 0.0
    tolerance: float = 0.0


@dataclass(frozen=True)
class Predicate:
    """Clauses joined by AND; empty keeps every row. Build with `parse` or `of`.

    Two numbers within 1e-9 of their size, or of their column's grid, are the same: 3 x 0.1 is 0.3.
    """

    clauses: tuple[_Clause, ...] = ()

    @classmethod
    def parse(cls, clauses: Sequence[str], schema: Schema) -> Predicate:
        """From strings such as "phase=cubic", "density>5", "x != 3", "phase in {fcc, bcc}"; raises UsageError."""
        return cls.of([_split(text, schema) for text in clauses], schema) if clauses else _EVERYTHING

    @classmethod
    def of(cls, conditions: Sequence[Condition], schema: Schema) -> Predicate:
        """From conditions, their types checked against the schema; raises UsageError."""
        return cls(tuple(_ready(condition, schema) for condition in conditions))

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return tuple(clause.condition for clause in self.clauses)

    def canonical(self) -> bytes:
        """The same bytes for the same clauses in any order: what a cursor and a receipt name."""
        items = {json.dumps([c.column, c.op, c.value], ensure_ascii=True) for c in self.conditions}
        return f"[{','.join(sorted(items))}]".encode()

    def mask(self, numbers: NDArray[np.float64], codes: NDArray[np.int32], codec: Any) -> NDArray[np.bool_]:
        """Which rows meet every clause, (n,) bool, from raw numbers (n, P) and codes (n, Q)."""
        keep = np.ones(len(numbers), dtype=bool)
        for clause in self.clauses:
            keep &= _meets(clause, numbers, codes, codec)
        return keep

    def cells(self, table: Table) -> tuple[int, ...]:
        """Indices of the table's cells that may hold rows of this predicate; (0,) when none is declared."""
        if not table.cells:
            return (0,)
        return tuple(i for i, cell in enumerate(table.cells) if all(_overlaps(c, cell) for c in self.clauses))


_EVERYTHING = Predicate()


def _split(text: str, schema: Schema) -> Condition:
    """Column, operator and value; the longest column name the clause begins with wins, so names may hold spaces."""
    stripped = text.strip()
    names = sorted((c.name for c in schema.columns if stripped.startswith(c.name)), key=len, reverse=True)
    for name in names:
        rest = stripped[len(name) :]
        op = next((o for o in _OPERATORS if rest.lstrip().startswith(o)), None)
        if op and (op != "in" or re.match(r"\s+in\b", rest)):
            return Condition(name, cast(Operator, op), _value(rest.lstrip()[len(op) :].strip(), op))
    found = _LOOSE.fullmatch(text)
    if found is None:
        raise UsageError("this clause has no operator", where=repr(text), remedy="for example density>5 or phase=cubic")
    _column(found["name"], schema)
    raise UsageError("this clause cannot be read", where=repr(text), remedy=f"operators: {' '.join(_OPERATORS)}")


def _value(text: str, op: str) -> Value:
    if op != "in":
        return _unquoted(text)
    if not (text[:1] in ("{", "[", "(") and text[-1:] in ("}", "]", ")")):
        raise UsageError("`in` wants a set", where=repr(text), remedy="for example phase in {fcc, bcc}")
    return tuple(_unquoted(part.strip()) for part in text[1:-1].split(",") if part.strip())


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _column(name: str, schema: Schema) -> Column:
    for column in schema.columns:
        if column.name == name:
            return column
    raise UsageError(f"no column {name!r}", remedy=_did_you_mean(name, [c.name for c in schema.columns]))


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known[:12])}"


def _ready(condition: Condition, schema: Schema) -> _Clause:
    column = _column(condition.column, schema)
    if condition.op not in _OPERATORS:
        raise UsageError(f"no operator {condition.op!r}", where=column.name, remedy=f"one of {' '.join(_OPERATORS)}")
    if column.kind in ("categorical", "boolean"):
        return _choice(condition, column)
    if condition.op == "in":
        raise UsageError("`in` is for categories", where=column.name, remedy="give a range with >= and <=")
    number = _number(condition.value, column)
    _reachable(condition.op, number, column)
    tolerance = 1e-9 * max(abs(number), column.grid)
    return _Clause(Condition(column.name, condition.op, number), number=number, tolerance=tolerance)


def _choice(condition: Condition, column: Column) -> _Clause:
    if condition.op in _ORDER:
        raise UsageError(
            f"categories have no order, so {condition.op!r} has no meaning", where=column.name, remedy="use = or in"
        )
    known = _BOOLEANS if column.kind == "boolean" else tuple(column.categories)
    asked = condition.value if isinstance(condition.value, tuple) else (condition.value,)
    if not asked or (condition.op != "in" and len(asked) != 1):
        raise UsageError("one category is wanted" if asked else "an empty set matches nothing", where=column.name)
    names = {_category(value, known, column) for value in asked}
    wanted = set(known) - names if condition.op == "!=" else names
    value: Value = tuple(sorted(names)) if condition.op == "in" else next(iter(names))
    codes = frozenset(i for i, name in enumerate(known) if name in wanted)
    return _Clause(Condition(column.name, condition.op, value), codes, frozenset(wanted))


def _category(value: Any, known: Sequence[str], column: Column) -> str:
    name = str(value).lower() if column.kind == "boolean" else str(value)
    if name not in known:
        raise UsageError(f"no category {str(value)!r}", where=column.name, remedy=_did_you_mean(name, known))
    return name


def _number(value: Value, column: Column) -> float:
    try:
        if column.kind == "datetime":
            return _seconds(value)
        if isinstance(value, (bool, tuple)):
            raise ValueError
        number = float(value)
    except ValueError:
        kind = "an ISO date" if column.kind == "datetime" else "a number"
        raise UsageError(f"{value!r} is not {kind}", where=column.name) from None
    if not np.isfinite(number):
        raise UsageError(f"{value!r} is not a finite number", where=column.name)
    return number


def _seconds(value: Value) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        raise ValueError
    moment = datetime.fromisoformat(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _reachable(op: str, number: float, column: Column) -> None:
    """Refuse a clause that no value within the column's declared bounds can meet."""
    low, high = column.bounds
    above = high is not None and {"=": number > high, ">": number >= high, ">=": number > high}.get(op, False)
    below = low is not None and {"=": number < low, "<": number <= low, "<=": number < low}.get(op, False)
    if above or below:
        raise UsageError(
            f"no value can be {op} {number:g}",
            where=column.name,
            remedy=f"it lies between {column.minimum} and {column.maximum}",
        )


def _meets(clause: _Clause, numbers: NDArray[np.float64], codes: NDArray[np.int32], codec: Any) -> NDArray[np.bool_]:
    name = clause.condition.column
    if clause.codes is not None:
        found = codes[:, list(codec.code_columns).index(name)]
        return np.isin(found, list(clause.codes))
    x, v = numbers[:, list(codec.number_columns).index(name)], clause.number
    same = np.abs(x - v) <= clause.tolerance  # comparisons with NaN are false
    return _compared(clause.condition.op, x, v, same)


def _compared(op: str, x: NDArray[np.float64], v: float, same: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if op in ("=", "!="):
        return same if op == "=" else ~same & ~np.isnan(x)
    beyond = x < v if op in ("<", "<=") else x > v
    return beyond | same if op in ("<=", ">=") else beyond & ~same


def _overlaps(clause: _Clause, cell: Cell) -> bool:
    """Whether some row of the cell may meet the clause; bins are taken with both ends, so nothing is missed."""
    where = cell.where.get(clause.condition.column)
    if where is None:
        return True
    if where[0] == "in":
        return any(_name(value) in clause.names for value in where[1])
    low, high, v = float(where[1]), float(where[2]), clause.number
    met = {"=": low <= v <= high, "<": low <= v, "<=": low <= v, ">": high >= v, ">=": high >= v}
    return met.get(clause.condition.op, True)


def _name(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
