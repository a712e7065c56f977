"""Predicates: read from strings, checked against the schema, met exactly; a missing value meets none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward.contracts import Condition
from genward.data.schema import Column, Schema
from genward.errors import GenwardError, UsageError
from genward.table import Cell, Predicate, Table

SCHEMA = Schema(
    columns=(
        Column(name="density", kind="numeric", minimum=0, maximum=20, step=0.1),
        Column(name="density at 300 K", kind="numeric"),
        Column(name="count", kind="integer", minimum=1, maximum=9),
        Column(name="made", kind="datetime"),
        Column(name="phase", kind="categorical", categories=("fcc", "bcc", "in situ")),
        Column(name="stable", kind="boolean"),
    )
)
CODEC = SimpleNamespace(
    number_columns=("density", "density at 300 K", "count", "made"), code_columns=("phase", "stable")
)
NUMBERS = np.array([[3 * 0.1, 1, 1, 0], [5, 2, 2, 86400], [np.nan] * 4, [7.5, 3, 9, 2e9]])
CODES = np.array([[0, 0], [1, 1], [-1, -1], [2, 1]], dtype=np.int32)


@pytest.mark.parametrize(
    ("clauses", "kept"),
    [
        ([], [0, 1, 2, 3]),
        (["density>5"], [3]),
        (["density >= 5"], [1, 3]),
        (["density<5"], [0]),
        (["density<=0.3"], [0]),
        (["density=0.3"], [0]),
        (["density!=0.3"], [1, 3]),
        (["density at 300 K > 1"], [1, 3]),
        (["count<=2", "phase=bcc"], [1]),
        (["phase!=bcc"], [0, 3]),
        (["phase in {fcc, in situ}"], [0, 3]),
        (["phase='in situ'"], [3]),
        (["stable=true"], [1, 3]),
        (["stable!=TRUE"], [0]),
        (["made>=1970-01-02"], [1, 3]),
        (["made<1970-01-02T00:00:00+00:00"], [0]),
    ],
)
def test_rows_that_meet_a_predicate(clauses: list[str], kept: list[int]) -> None:
    predicate = Predicate.parse(clauses, SCHEMA)
    assert np.flatnonzero(predicate.mask(NUMBERS, CODES, CODEC)).tolist() == kept


@pytest.mark.parametrize(
    ("clause", "said"),
    [
        ("desnity>5", "did you mean 'density'"),
        ("phase=fccc", "did you mean 'fcc'"),
        ("phase>fcc", "no order"),
        ("density=cubic", "not a number"),
        ("density>nan", "finite"),
        ("density>20", "lies between"),
        ("density<0", "lies between"),
        ("made>yesterday", "ISO date"),
        ("phase in {}", "empty set"),
        ("phase in fcc", "wants a set"),
        ("density in {1,2}", "range"),
        ("stable=maybe", "no category"),
        ("density", "no operator"),
        ("", "no operator"),
        ("density ~ 3", "no operator"),
    ],
)
def test_bad_clauses_say_what_to_do(clause: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Predicate.parse([clause], SCHEMA)


def test_conditions_are_checked_like_strings() -> None:
    for bad in (
        Condition("phase", "=", ("fcc", "bcc")),
        Condition("density", "=", True),
        Condition("count", "like", 3),
    ):  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            Predicate.of([bad], SCHEMA)
    assert Predicate.of([Condition("density", ">", 5)], SCHEMA) == Predicate.parse(["density > 5.0"], SCHEMA)


def test_canonical_bytes_ignore_order_and_spelling() -> None:
    one = Predicate.parse(["phase in {bcc,fcc}", "density>5"], SCHEMA)
    two = Predicate.parse(["density > 5.00", "phase in [fcc, bcc, fcc]", "density>5"], SCHEMA)
    assert one.canonical() == two.canonical() == b'[["density", ">", 5.0],["phase", "in", ["bcc", "fcc"]]]'
    assert one.canonical() != Predicate.parse(["density>5"], SCHEMA).canonical()
    assert Predicate.of(one.conditions, SCHEMA) == one


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_our_words(text: str) -> None:
    try:
        Predicate.parse([text], SCHEMA)
    except GenwardError as error:
        assert isinstance(error, UsageError)


@given(
    st.sampled_from(["<", "<=", ">", ">=", "=", "!="]), st.integers(0, 200), st.lists(st.integers(0, 200), min_size=1)
)
def test_operators_on_a_grid_are_those_of_integers(op: str, v: int, xs: list[int]) -> None:
    compare = {"<": int.__lt__, "<=": int.__le__, ">": int.__gt__, ">=": int.__ge__, "=": int.__eq__, "!=": int.__ne__}
    try:
        predicate = Predicate.parse([f"density{op}{v / 10}"], SCHEMA)
    except UsageError:
        return  # beyond the column's bounds
    numbers = np.full((len(xs), 4), np.nan)
    numbers[:, 0] = np.array(xs) * 0.1
    kept = predicate.mask(numbers, np.zeros((len(xs), 2), dtype=np.int32), CODEC)
    assert kept.tolist() == [compare[op](x, v) for x in xs]


def test_cells_that_may_hold_rows() -> None:
    phases = [("in", ("fcc", "bcc")), ("in", ("in situ",))]
    bins = [("between", 0.0, 5.0, -1.0, 0.0), ("between", 5.0, 20.0, 0.0, 1.0)]
    table = Table(100, cells=tuple(Cell({"phase": p, "density": b}) for p in phases for b in bins))
    cells = [
        Predicate.parse(c, SCHEMA).cells(table) for c in (["phase=bcc"], ["density<3"], ["phase!=bcc", "density>5"])
    ]
    assert cells == [(0, 1), (0, 2), (0, 1, 2, 3)]  # 5.0 lies on the edge of both bins
    assert Predicate.parse(["count>3"], SCHEMA).cells(table) == (0, 1, 2, 3)
    assert Predicate.parse(["phase in {in situ}", "density>=6"], SCHEMA).cells(table) == (3,)
    assert Predicate.parse(["density>5"], SCHEMA).cells(Table(100)) == (0,)
