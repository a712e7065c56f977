"""Ranks by a table are what a binary search says, for every float."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward_policies.watermark.ranks import Table
from genward_policies.watermark.scheme import LEVELS, Axis, Scheme

ODD = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, -5e-324, 2.2e-308, 1.7e308, -1.7e308]
FLOATS = st.floats(width=64)
EDGES = st.one_of(
    st.sets(FLOATS.filter(lambda x: not np.isnan(x)), min_size=1, max_size=40),
    st.sets(st.floats(0, 1e6, exclude_min=True), min_size=1, max_size=239),
    st.sets(st.floats(298.0, 298.0 + 1e-9), min_size=1, max_size=60),
    st.sets(st.integers(-300, 300).map(float), min_size=1, max_size=239),
)


def _searched(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), 0, np.searchsorted(edges, values, side="right") + 1)


def _near(edges: np.ndarray) -> np.ndarray:
    """Each edge and its two neighbours."""
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf), -edges, edges * 1.001])


@given(EDGES, st.lists(FLOATS, max_size=50))
def test_a_table_says_what_a_search_says(chosen: set[float], more: list[float]) -> None:
    edges = np.unique(np.array(sorted(chosen)))  # 0.0 and -0.0 are one edge
    values = np.concatenate([_near(edges), np.array(ODD), np.array(more, dtype=np.float64)])
    values = np.resize(values, max(len(values), 300))  # fewer are searched for
    assert np.array_equal(Table(edges)(values), _searched(edges, values))
    few = values[:20]
    assert np.array_equal(Table(edges)(few), _searched(edges, few))


@pytest.mark.parametrize("scale", [1e-310, 1e-3, 1.0, 1e300])
def test_long_tails_even_edges_and_columns_of_a_matrix(scale: float) -> None:
    rng = np.random.default_rng(0)
    for drawn in (rng.lognormal(0, 4, 5000), rng.normal(size=5000), np.round(rng.normal(size=5000), 2)):
        matrix = np.column_stack([drawn * scale, drawn])
        edges = np.unique(np.quantile(matrix[:, 0], np.arange(1, LEVELS) / LEVELS))
        assert np.array_equal(Table(edges)(matrix[:, 0]), _searched(edges, matrix[:, 0]))


def test_values_of_another_type_have_the_ranks_of_their_float64() -> None:
    axis = Axis("x", (0.1, 0.2, 0.3))
    single = np.full(300, np.float32(0.1))
    assert np.array_equal(axis.levels(single), axis.levels(single.astype(np.float64)))
    assert axis.levels(np.arange(300)).tolist() == [1, *[4] * 299]


def test_few_rows_have_the_cells_of_many() -> None:
    axes = (Axis("a", tuple(float(i) for i in range(1, LEVELS))), Axis("b", words=3), Axis("c", (0.5,)))
    scheme = Scheme(axes, ((0, 1), (1, 2), (2, 0)), ((3, 0), (0, 7), (0, 9)), 24, 2, "tenant", 1, 1e-6)
    rng = np.random.default_rng(0)
    levels = np.column_stack([rng.integers(0, axis.size, 1000) for axis in axes])
    many = scheme.cells(levels)
    for few in (0, 1, 2, 200, 256):
        assert np.array_equal(scheme.cells(levels[:few]), many[:few])
        assert np.array_equal(scheme.cells(levels[:few], (2, 0)), many[:few][:, [2, 0]])
