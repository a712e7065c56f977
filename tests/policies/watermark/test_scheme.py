"""Schemes: what is sealed is read back, what is no scheme is refused, and cells are what bins say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward.errors import CheckFailed, IntegrityError
from genward_policies.watermark.attacks import rounded
from genward_policies.watermark.exam import levels
from genward_policies.watermark.policy import packed, unpacked
from genward_policies.watermark.scheme import LEVELS, MOST_COLUMNS, Axis, Scheme, axes_of, drawn


def test_a_scheme_is_read_back_as_it_was_sealed(trial: Any) -> None:
    assert Scheme.from_json(trial.scheme.to_json()) == trial.scheme


@pytest.mark.parametrize(
    ("name", "value"),
    [("format", "genward.watermark/9"), ("scheme", "edit"), ("bins", 7), ("bins", 1), ("candidates", 1),
     ("payload", "nobody"), ("hashes", [[99]]), ("hashes", []), ("offsets", [[1]]), ("at_fpr", 0), ("rows", 0),
     ("axes", [{"name": "x", "edges": [2.0, 1.0]}]), ("axes", [{"name": "x"}]), ("axes", 5)],
)  # fmt: skip
def test_what_is_no_scheme_is_refused(trial: Any, name: str, value: Any) -> None:
    data = json.loads(trial.scheme.to_json())
    with pytest.raises(IntegrityError, match="scheme cannot be read"):
        Scheme.from_json(json.dumps({**data, name: value}).encode())


def test_usual_levels_are_read_back_and_a_stranger_s_are_refused(trial: Any) -> None:
    data = packed(trial.usual.levels)
    assert np.array_equal(unpacked(data, trial.scheme), trial.usual.levels)
    for bad in (data[:-20], b"no zlib", packed(trial.usual.levels[:-1]), packed(trial.usual.levels + 500)):
        with pytest.raises(IntegrityError):
            unpacked(bad, trial.scheme)


def test_levels_have_equal_shares_and_gaps_their_own(ground: Any) -> None:
    axis = next(axis for axis in ground.axes if axis.name == "x0")
    counts = np.bincount(axis.levels(ground.usual["x0"]), minlength=LEVELS + 1)
    assert counts[0] == 0
    assert counts[1:].min() > 0.5 * 10_000 / LEVELS
    assert axis.levels(np.array([np.nan, -1e300, 1e300])).tolist() == [0, 1, LEVELS]


def test_rounding_moves_no_value_that_many_rows_share(ground: Any) -> None:
    """The atom 298.15 keeps its level as 298, since edges lie half way between values."""
    axis = next(axis for axis in ground.axes if axis.name == "x7")
    atom, near = np.array([298.15]), rounded(np.array([298.15]), 3)
    assert near[0] == 298.0
    assert axis.levels(atom) == axis.levels(near)


def test_a_column_with_one_value_carries_nothing() -> None:
    numbers = {"same": np.full(50, 3.0), "empty": np.full(50, np.nan), "two": np.arange(50.0)}
    words = {"one": np.zeros(50, np.int32), "pair": np.arange(50, dtype=np.int32) % 2}
    assert [axis.name for axis in axes_of(numbers, words)] == ["two", "pair"]
    with pytest.raises(CheckFailed, match="fewer than two columns"):
        drawn(axes_of({"two": numbers["two"]}, {}), np.ones((50, 1), np.intp), 16, 64, 4, np.random.default_rng(0))


def test_hashes_take_columns_until_their_cells_tell_rows_apart(ground: Any) -> None:
    for spread in (16, 256):
        scheme = Scheme(
            ground.axes, *drawn(ground.axes, ground.usual_levels, 16, spread, 12, np.random.default_rng(0)),
            16, 2, "tenant", 10, 1e-6,
        )  # fmt: skip
        cells = scheme.cells(ground.usual_levels)
        for number, columns in enumerate(scheme.hashes):
            counts = np.unique(cells[:, number], return_counts=True)[1]
            shared = float((counts * (counts - 1.0)).sum()) / (len(cells) * (len(cells) - 1.0))
            assert len(set(columns)) == len(columns) <= MOST_COLUMNS
            assert shared < 1.2 / spread or len(columns) == MOST_COLUMNS
        assert {place for columns in scheme.hashes for place in columns} == set(range(len(ground.axes)))


@given(st.lists(st.tuples(*[st.integers(0, LEVELS)] * 2, st.integers(0, 3)), min_size=2, max_size=40))
def test_two_rows_share_a_cell_exactly_where_all_their_bins_agree(rows: list[tuple[int, int, int]]) -> None:
    edges = tuple(float(i) for i in range(1, LEVELS))
    axes = (Axis("a", edges), Axis("b", edges), Axis("c", words=3))
    scheme = Scheme(axes, ((0, 1), (1, 2), (2, 0)), ((3, 0), (7, 0), (0, 9)), 24, 2, "tenant", 1, 1e-6)
    found, cells = np.array(rows, dtype=np.intp), scheme.cells(np.array(rows, dtype=np.intp))

    def bins(place: int, offset: int) -> list[int]:
        column = found[:, place].tolist()
        return column if place == 2 else [0 if x == 0 else (x - 1 + offset) // (LEVELS // 24) + 1 for x in column]

    for number, (columns, offsets) in enumerate(zip(scheme.hashes, scheme.offsets, strict=True)):
        keys = list(zip(*(bins(c, o) for c, o in zip(columns, offsets, strict=True)), strict=True))
        same = np.array([[a == b for b in keys] for a in keys])
        assert np.array_equal(cells[:, None, number] == cells[None, :, number], same)
    assert not set(cells[:, 0]) & set(cells[:, 1])


def test_a_missing_column_is_missing_in_every_row(ground: Any) -> None:
    less = {name: values for name, values in ground.usual.items() if name != "x3"}
    place = [axis.name for axis in ground.axes].index("x3")
    found = levels(ground.axes, less)
    assert (found[:, place] == 0).all()
    other = np.delete(np.arange(len(ground.axes)), place)
    assert np.array_equal(found[:, other], ground.usual_levels[:, other])
