"""Entitlement slices: the condition values that a grant covers, as clauses that are joined to the caller's by AND."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from genward.contracts import Condition
from genward.errors import PolicyError, UsageError
from genward.table_predicate import Predicate
from genward_policies.access.config import Grant, Value

if TYPE_CHECKING:
    from genward.data.schema import Column, Schema

_BOOLEANS = ("false", "true")


def clauses(grant: Grant, schema: Schema) -> tuple[Condition, ...]:
    """A grant's slice in a release's schema; PolicyError when the schema lacks a column or a value."""
    columns = {column.name: column for column in schema.columns}
    try:
        found = [c for name, values in grant.where.items() for c in _clauses(name, values, columns.get(name))]
        return Predicate.of(found, schema).conditions
    except UsageError as error:
        where = f"access.{grant.id}"
        raise PolicyError(f"{error.where or 'where'}: {error.what}", where=where, remedy=error.remedy) from None


def _clauses(name: str, values: Sequence[Value], column: Column | None) -> list[Condition]:
    if column is None:  # let the predicate say which columns there are
        return [Condition(name, "=", str(values[0]))]
    if column.kind in ("categorical", "boolean"):
        return [Condition(name, "in", tuple(_name(value) for value in values))]
    if len(values) == 1:
        return [Condition(name, "=", _plain(values[0]))]
    if len(values) != 2:
        raise UsageError(f"{len(values)} values are given", where=name, remedy="a number has a range: [low, high]")
    low, high = (Condition(name, op, _plain(v)) for op, v in zip((">=", "<="), values, strict=True))  # type: ignore[arg-type]
    return [low, high]


def _name(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Value) -> str | float | bool:
    return value if isinstance(value, str | bool) else float(value)


def can_meet(asked: Sequence[Condition], slice_: Sequence[Condition], schema: Schema) -> bool:
    """Whether some value may meet both; each was made ready by a `Predicate` of this schema."""
    columns = {column.name: column for column in schema.columns}
    together: dict[str, list[Condition]] = {}
    for condition in (*slice_, *asked):
        together.setdefault(condition.column, []).append(condition)
    return all(_possible(found, columns[name]) for name, found in together.items())


def _possible(conditions: Sequence[Condition], column: Column) -> bool:
    if column.kind in ("categorical", "boolean"):
        known = _BOOLEANS if column.kind == "boolean" else tuple(column.categories)
        return bool(set(known).intersection(*(_names(c, known) for c in conditions)))
    return _interval(conditions, column)


def _names(condition: Condition, known: Sequence[str]) -> set[str]:
    value = condition.value
    given = {str(v) for v in value} if isinstance(value, tuple) else {str(value)}
    return set(known) - given if condition.op == "!=" else given


def _interval(conditions: Sequence[Condition], column: Column) -> bool:
    """Ends within a billionth of each other are the same, as they are for the predicate that filters."""
    numbers: Mapping[str, list[float]] = {op: [] for op in ("=", "!=", "<", "<=", ">", ">=")}
    for condition in conditions:
        numbers[condition.op].append(float(condition.value))  # type: ignore[arg-type]
    low = max([*numbers[">"], *numbers[">="], *numbers["="]], default=-math.inf)
    high = min([*numbers["<"], *numbers["<="], *numbers["="]], default=math.inf)
    if low == -math.inf or high == math.inf:
        return True
    near = 1e-9 * max(abs(low), abs(high), column.grid)
    if abs(high - low) <= near:  # one point: no strict end and no exception may stand on it
        return not any(abs(v - low) <= near for op in ("<", ">", "!=") for v in numbers[op])
    return low < high
