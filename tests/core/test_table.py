"""Slots, cells, walks and pages: permutations, shares, replay after growth, and pages that split anywhere."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from genward import table as tables
from genward.contracts import Rows
from genward.errors import IntegrityError, UsageError
from genward.table import Cell, Table, Walk, scan

POOL, TENANT = b"pool" * 4, b"acme" * 4
CELLS = tuple(Cell({"phase": ("in", (name,))}, share) for name, share in (("a", 2.0), ("b", 1.0), ("c", 1.0)))


def fetch(slots: NDArray[np.int64]) -> Rows:
    """Rows that tell their slot."""
    return Rows(slots[:, None].astype(float), np.zeros((len(slots), 0), dtype=np.int32), slots)


@pytest.mark.parametrize("slots", [1, 2, 1000, 1_000_003])
def test_a_walk_is_a_permutation_of_the_pool(slots: int) -> None:
    walk = Walk(Table(slots), TENANT, POOL)
    assert walk.length == slots
    assert np.array_equal(np.sort(walk.slots(0, slots)), np.arange(slots))


@pytest.mark.parametrize("slots", [5000, 1_000_003])
def test_a_walk_of_cells_is_the_walk_without_the_others(slots: int) -> None:
    table = Table(slots, cells=CELLS)
    order = Walk(table, TENANT, POOL).slots(0, slots)
    part = Walk(table, TENANT, POOL, cells=[1, 2])
    wanted = order[np.isin(table.cell_of(order, POOL), [1, 2])]
    assert part.length == len(wanted)
    assert np.array_equal(part.slots(0, part.length), wanted)
    assert np.array_equal(part.slots(1234, 777), wanted[1234 : 1234 + 777])


def test_tenants_walk_differently_and_repeatably() -> None:
    table = Table(1000)
    orders = [Walk(table, key, POOL).slots(0, 1000) for key in (TENANT, TENANT, b"other tenant key")]
    assert np.array_equal(orders[0], orders[1])
    assert (orders[0] == orders[2]).sum() < 12


def test_positions_wrap_around() -> None:
    walk = Walk(Table(10, block=1), TENANT, POOL)
    assert np.array_equal(walk.slots(7, 26), np.tile(walk.slots(0, 10), 4)[7:33])
    assert np.array_equal(walk.slots(10**12 + 3, 2), walk.slots(3, 2))


@pytest.mark.parametrize("slots", [5000, 1_000_003])
@pytest.mark.parametrize("reach", [1, 700, 4999, 2_000_000])
def test_a_walk_that_is_cut_short_meets_the_same_slots_whatever_cells_are_asked_for(slots: int, reach: int) -> None:
    table = Table(slots, cells=CELLS)
    first = Walk(table, TENANT, POOL).slots(0, min(reach, slots))
    assert np.array_equal(Walk(table, TENANT, POOL, reach=reach).slots(0, len(first)), first)
    part = Walk(table, TENANT, POOL, cells=[1, 2], reach=reach)
    wanted = first[np.isin(table.cell_of(first, POOL), [1, 2])]
    assert part.length == len(wanted)
    assert np.array_equal(part.slots(0, part.length), wanted)


def test_a_walk_is_cut_short_across_segments_and_without_a_pool() -> None:
    table = Table(300).raised(1000)
    order = Walk(table, TENANT, POOL).slots(0, 1000)
    assert np.array_equal(Walk(table, TENANT, POOL, reach=450).slots(0, 450), order[:450])
    assert Walk(table, TENANT, POOL, reach=200).length == 200
    endless = Walk(Table(None), TENANT, POOL, reach=5)
    assert (endless.length, endless.slots(3, 4).tolist()) == (5, [3, 4, 0, 1])


def test_without_a_pool_position_is_slot() -> None:
    walk = Walk(Table(None), TENANT, POOL)
    assert walk.slots(10**9, 3).tolist() == [10**9, 10**9 + 1, 10**9 + 2]


def test_a_raised_pool_begins_with_the_walk_it_had() -> None:
    small = Table(700)
    grown = small.raised(1000).raised(1500)
    assert grown.segments == (700, 300, 500)
    old, new = Walk(small, TENANT, POOL), Walk(grown, TENANT, POOL)
    assert np.array_equal(new.slots(0, 700), old.slots(0, 700))
    replayed = Walk(grown, TENANT, POOL, segments=1)
    assert np.array_equal(replayed.slots(650, 100), old.slots(650, 100)), "an old receipt wraps where it did"
    assert np.array_equal(np.sort(new.slots(0, 1500)), np.arange(1500))


def test_cells_have_their_shares() -> None:
    """Each count within five standard deviations of its share."""
    n, table = 200_000, Table(200_000, cells=CELLS)
    counts = np.bincount(table.cell_of(np.arange(n), POOL), minlength=3)
    shares = np.array([0.5, 0.25, 0.25])
    assert (np.abs(counts - n * shares) < 5 * np.sqrt(n * shares * (1 - shares))).all()


def test_a_slot_keeps_its_cell_however_it_is_asked_for() -> None:
    table = Table(5000, cells=CELLS)
    whole = table.cell_of(np.arange(5000), POOL)
    some = np.array([4999, 3, 3, 77])
    assert np.array_equal(table.cell_of(some, POOL), whole[some])


@settings(max_examples=60)
@given(st.integers(0, 3000), st.lists(st.integers(0, 60), max_size=6), st.integers(2, 7))
def test_any_split_of_a_page_gives_the_same_rows(start: int, parts: list[int], divisor: int) -> None:
    walk = Walk(Table(900, block=1), TENANT, POOL)
    whole = scan(walk, start, sum(parts), fetch, lambda r: r.slots % divisor == 0)
    at, pieces = start, [np.empty(0, dtype=np.int64)]
    for n in parts:
        page = scan(walk, at, n, fetch, lambda r: r.slots % divisor == 0)
        pieces.append(page.rows.slots)
        at += page.scanned
    joined = np.concatenate(pieces)
    assert np.array_equal(joined[: len(whole.rows)], whole.rows.slots)
    assert whole.exhausted or at == start + whole.scanned


def test_a_page_that_asks_for_too_much_gets_what_exists_and_says_so() -> None:
    walk = Walk(Table(100, block=1), TENANT, POOL)
    page = scan(walk, 42, 50, fetch, lambda r: r.slots < 30)
    assert (len(page.rows), page.scanned, page.exhausted) == (30, 100, True)
    assert len(set(page.rows.slots.tolist())) == 30
    limited = scan(walk, 42, 50, fetch, lambda r: r.slots < 30, limit=10)
    assert limited.scanned == 10 and limited.exhausted


def test_nothing_asked_and_nothing_there() -> None:
    walk = Walk(Table(100, block=1), TENANT, POOL)
    assert (len(scan(walk, 3, 0, fetch).rows), scan(walk, 3, 0, fetch).exhausted) == (0, False)
    empty = Walk(Table(100, block=1, cells=CELLS), TENANT, POOL, cells=[])
    assert empty.length == 0 and scan(empty, 5, 3, fetch)[2:] == (0, True)


def test_a_page_without_a_pool_stays_inside_its_cells() -> None:
    table = Table(None, cells=CELLS)
    page = scan(Walk(table, TENANT, POOL, cells=[2]), 0, 100, fetch)
    assert (table.cell_of(page.rows.slots, POOL) == 2).all() and page.scanned > 200


def test_many_random_pages_repeat_no_row_and_leave_no_predicate() -> None:
    _pages(2_000)


@pytest.mark.soak
def test_a_million_random_pages_repeat_no_row_and_leave_no_predicate() -> None:
    _pages(1_000_000)


def _pages(count: int) -> None:
    rng = np.random.default_rng(5)
    table = Table(3000, block=1, cells=CELLS)
    every = np.arange(3000)
    cell, value = table.cell_of(every, POOL), rng.random(3000)
    walks = [Walk(table, bytes([t]) * 16, POOL, cells) for t in range(8) for cells in (None, [0], [1, 2])]
    draws = rng.integers(0, 2**31, (count, 3))
    limits = rng.random(count)
    for (which, start, n), limit in zip(draws.tolist(), limits.tolist(), strict=True):
        walk = walks[which % len(walks)]
        page = scan(walk, start, n % 20, fetch, lambda r, limit=limit: value[r.slots] < limit)  # type: ignore[misc]
        slots = page.rows.slots
        assert (value[slots] < limit).all() and len(np.unique(slots)) == len(slots)
        assert walk.cells is None or np.isin(cell[slots], walk.cells).all()


def test_json_and_back() -> None:
    cells = (*CELLS, Cell({"x": ("between", 1.0, 2.0, -0.5, 0.5)}, 0.25))
    table = Table(1000, 4, 64, cells, (600, 400))
    assert Table.from_json(table.to_json()) == table
    assert Table.from_json(Table(None).to_json()) == Table(None)


@pytest.mark.parametrize(
    "bad",
    [{}, {"slots": 3}, b"[", b"\xff", {**Table(10).to_json(), "segments": [3]}, {**Table(10).to_json(), "cells": [3]}],
)
def test_what_is_no_table_is_refused(bad: object) -> None:
    with pytest.raises(IntegrityError):
        Table.from_json(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        {"slots": 0},
        {"slots": 10, "candidates": 3},
        {"slots": 10, "segments": (4, 4)},
        {"slots": 9, "cells": (Cell({}, -1.0),)},
        {"slots": 9, "cells": (Cell({}, 0.0),)},
    ],
)
def test_impossible_tables_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Table(**bad)  # type: ignore[arg-type]


def test_impossible_walks_are_refused() -> None:
    with pytest.raises(UsageError):
        Table(100).raised(100)
    with pytest.raises(UsageError):
        Walk(Table(100), TENANT, POOL, segments=2)
    with pytest.raises(UsageError):
        Walk(Table(100), TENANT, POOL).slots(-1, 1)


def test_orders_above_the_sorting_limit_need_no_array() -> None:
    walk = Walk(Table(10**9), TENANT, POOL)
    found = walk.slots(10**9 - 5, 10)
    assert len(set(found.tolist())) == 10 and found.max() < 10**9
    assert tables.SORTED < 10**9


def test_the_page_about_the_table_says_what_the_code_does() -> None:
    page = Path(__file__).parents[2] / "docs" / "table.md"
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted > 10 and found.failed == 0
