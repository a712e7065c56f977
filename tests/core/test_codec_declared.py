"""Codecs that take nothing from data: bounds, scales, edges and clipping by the schema; bins that respect values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genward.data.codec import TableCodec
from genward.data.dataset import ingest
from genward.data.readers import read_table
from genward.data.schema import Column, Schema
from genward.errors import DataError
from genward.fitting import Exact, cuts, discretised, places

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


def column(**given: Any) -> Column:
    return Column(**{"name": "a", "kind": "numeric", **given})


def codec_of(*columns: Column, conditions: tuple[str, ...] = ()) -> TableCodec:
    return TableCodec.declared(Schema(columns=columns), conditions)


def back(codec: TableCodec, table: pa.Table) -> pa.RecordBatch:
    numbers, codes = codec.decoder()(torch.from_numpy(codec.encode(table)["x"]))
    return codec.decode(numbers.numpy(), codes.numpy())


LAWS = st.sampled_from(
    [
        {"minimum": -5, "maximum": 20, "step": 0.001},
        {"minimum": -5, "maximum": 20, "step": 0.5},
        {"minimum": 1e-3, "maximum": 1e6, "digits": 4, "scale": "log"},
        {"minimum": 0.5, "maximum": 5000, "step": 0.01, "scale": "log"},
        {"minimum": 0, "maximum": 1e4, "step": 0.1, "edges": [1, 10, 100, 1000]},
        {"minimum": -100, "maximum": 100, "digits": 3, "edges": [-10, 0, 10]},
        {"kind": "integer", "minimum": 0, "maximum": 30, "edges": [1, 2, 5, 10]},
        {"kind": "integer", "minimum": 1, "maximum": 20000, "scale": "log"},
        {"kind": "integer", "minimum": -4, "maximum": 4},
    ]
)


def unit(declared: Column, value: float) -> float:
    """How far a value may come back: nothing on a grid, else half a unit of its last digit."""
    if declared.digits is None:
        return 1e-9
    size = abs(value) if declared.scale == "log" else max(abs(value), 1.0)
    return float(0.51 * 10.0 ** (math.floor(math.log10(size)) + 1 - declared.digits))


@settings(max_examples=120, deadline=None)
@given(LAWS, st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_declared_values_come_back(law: dict[str, Any], shares: list[float]) -> None:
    """Values of a grid exactly, others to their last digit, gaps as gaps."""
    declared = column(**law, nullable=True)
    low, high = declared.bounds
    assert low is not None and high is not None
    values = low + (high - low) * np.array(shares) ** (8 if declared.scale == "log" else 1)
    if declared.digits is None:
        values = np.rint(values / declared.grid) * declared.grid
    whole = declared.kind == "integer"
    wanted = (values.astype(int) if whole else values.clip(low, high)).tolist()
    given = pa.array([*wanted, None], pa.int64() if whole else pa.float64())
    found = back(codec_of(declared), pa.table({"a": given})).column(0).to_pylist()
    assert found.pop() is None
    for before, after in zip(wanted, found, strict=True):
        assert after == pytest.approx(before, abs=unit(declared, before))


@settings(max_examples=60, deadline=None)
@given(LAWS, st.integers(2, 64), st.integers(0, 2**32 - 1))
def test_bins_lie_between_values_and_even_draws_fall_evenly(law: dict[str, Any], bins: int, seed: int) -> None:
    declared = column(**law)
    codec = codec_of(declared)
    field = codec.spec.fields[0]
    inner = cuts(field, bins)
    assert len(inner) < bins and all(a < b for a, b in zip((0.0, *inner), (*inner, 1.0), strict=True))
    if declared.edges or declared.kind == "integer":
        assert set(inner) <= set(field.cuts) or not field.cuts
    x = torch.special.ndtri(torch.rand(4000, 1, dtype=torch.float64)).float().numpy()
    codes, domain = discretised(codec.spec, x, bins)
    assert domain == (len(inner) + 1,) and codes.min() >= 0 and codes.max() < domain[0]


EDGES = st.lists(st.integers(1, 49), min_size=1, max_size=12, unique=True).map(sorted)


@settings(max_examples=80, deadline=None)
@given(EDGES, st.sampled_from([("integer", None, 1), ("numeric", 0.25, 4), ("numeric", 0.01, 100)]))
def test_a_value_on_an_edge_is_the_first_of_its_bin(edges: list[int], grid: tuple[str, float | None, int]) -> None:
    """For every value of the grid, whether the column is a staircase or a line."""
    kind, step, times = grid
    codec = codec_of(column(kind=kind, step=step, minimum=0, maximum=50, edges=edges))
    values = np.arange(50 * times + 1) / times
    x = codec.encode(pa.table({"a": values.astype(int) if kind == "integer" else values}))["x"]
    codes, domain = discretised(codec.spec, x, 64)
    assert domain == (len(edges) + 1,)
    assert codes[:, 0].tolist() == np.searchsorted(edges, values, side="right").tolist()


def test_a_staircase_has_a_bin_for_each_value_and_dithering_stays_inside() -> None:
    codec = codec_of(column(kind="integer", minimum=3, maximum=17))
    values = np.repeat(np.arange(3, 18), 50)
    for rng in (None, np.random.default_rng(0)):
        codes, domain = discretised(codec.spec, codec.encode(pa.table({"a": values}), rng)["x"], 32)
        assert domain == (15,) and (codes[:, 0] == values - 3).all()


def test_as_much_of_the_law_lies_between_two_edges_as_between_any_others() -> None:
    codec = codec_of(column(minimum=0, maximum=1000, digits=4, edges=[1, 10, 100]))
    assert codec.spec.fields[0].cuts == pytest.approx((0.25, 0.5, 0.75), abs=2e-3)
    assert [codec.quantiles["a"].cdf(v) for v in (1.0, 10.0, 100.0)] == pytest.approx([0.25, 0.5, 0.75], abs=2e-3)


def test_a_log_scale_spreads_decades_evenly() -> None:
    codec = codec_of(column(minimum=1e-3, maximum=1e3, digits=4, scale="log"))
    assert [codec.quantiles["a"].cdf(10.0**k) for k in (-2, -1, 0, 1, 2)] == pytest.approx(
        [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6], abs=2e-3
    )


def test_nothing_of_a_declared_codec_is_estimated() -> None:
    """Nor of the one read back; a fitted one, written and read, still says what it took."""
    columns = (column(minimum=1, maximum=9, digits=3, scale="log"), Column(name="b", kind="boolean", nullable=True))
    codec = codec_of(*columns, conditions=("b",))
    assert codec.estimated == {} == TableCodec.from_json(codec.to_json()).estimated
    assert TableCodec.from_json(codec.to_json()).to_json() == codec.to_json()
    table = pa.table({"a": np.linspace(1, 9, 500), "b": [True, None] * 250})
    fitted = TableCodec.fit(Schema(columns=columns), table, ("b",))
    assert set(TableCodec.from_json(fitted.to_json()).estimated) == {"a", "b"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": "log", "minimum": 0, "maximum": 9, "digits": 3}, "minimum above 0"),
        ({"scale": "log", "minimum": 1, "digits": 3}, "needs a maximum"),
        ({"scale": "log", "minimum": 1, "maximum": 9, "digits": 3, "edges": [2]}, "not both"),
        ({"minimum": 0, "maximum": 9, "digits": 3, "edges": [2, 2]}, "edges rise"),
        ({"minimum": 0, "maximum": 9, "digits": 3, "edges": [0, 4]}, "edges rise"),
        ({"digits": 3, "edges": [4]}, "edges rise"),
        ({"outside": "clip"}, "needs a minimum or a maximum"),
        ({"kind": "boolean", "outside": "clip"}, "no bounds"),
        ({"kind": "categorical", "categories": ["x"], "edges": [1]}, "no bounds"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        column(**given)


def test_a_number_without_bounds_is_named_with_the_line_to_add() -> None:
    with pytest.raises(DataError, match="none may be taken") as caught:
        codec_of(column(name="mass", digits=3, minimum=0))
    assert "mass" in str(caught.value) and "maximum: ..." in caught.value.remedy


def test_dates_have_edges_too() -> None:
    given = {"minimum": "2000-01-01", "maximum": "2020-01-01", "step": 3600, "edges": ["2010-01-01"]}
    codec = codec_of(column(kind="datetime", **given))
    when = pa.array([np.datetime64("2009-12-31T23:00:00", "us"), np.datetime64("2010-01-01T00:00:00", "us")])
    codes, domain = discretised(codec.spec, codec.encode(pa.table({"a": when}))["x"], 32)
    assert domain == (2,) and codes[:, 0].tolist() == [0, 1]


# readers


def test_values_outside_are_refused_or_put_on_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,n,d\n-3.5,7,1990-01-01\n,,\n99,-7,2030-05-05\n4,2,2005-01-01\n")
    refusing = {"minimum": 0, "maximum": 10}
    dates = {"minimum": "2000-01-01", "maximum": "2020-01-01", "step": 86400}
    schema = Schema.from_yaml(
        Schema(
            columns=(
                column(**refusing, digits=3, nullable=True, outside="clip"),
                Column(name="n", kind="integer", minimum=-2.5, maximum=5.5, nullable=True, outside="clip"),
                Column(name="d", kind="datetime", **dates, nullable=True, outside="clip"),
            )
        ).to_yaml()
    )
    found = read_table(path, schema).to_pydict()
    assert found["a"] == [0, None, 10, 4] and found["n"] == [5, None, -2, 2]
    assert [d and d.year for d in found["d"]] == [2000, None, 2020, 2005]
    with pytest.raises(DataError, match="out of bounds"):
        read_table(path, Schema(columns=(column(**refusing, digits=3, nullable=True),), ignore=("n", "d")))


def test_a_clipped_row_does_not_depend_on_any_other(tmp_path: Path) -> None:
    schema = Schema(columns=(column(minimum=0, maximum=10, digits=3, outside="clip"),))
    values = [-1.0, 5.0, 1e9, 10.0]
    (tmp_path / "t.csv").write_text("a\n" + "\n".join(map(str, values)))
    whole = read_table(tmp_path / "t.csv", schema)["a"].to_pylist()
    for value, clipped in zip(values, whole, strict=True):
        (tmp_path / "one.csv").write_text(f"a\n{value}")
        assert read_table(tmp_path / "one.csv", schema)["a"].to_pylist() == [clipped]


def test_schemas_without_the_new_keys_keep_their_digest() -> None:
    plain = Schema.from_yaml((EXAMPLES / "mp_transport.yaml").read_text())
    assert plain.digest == "sha256:cbc4240ef22056e4f45c52ef59a29950be5a41670a76d0a4aa1e7ffe784514f3"
    declared = column(minimum=1, maximum=9, digits=3)
    digests = {
        Schema(columns=(declared.model_copy(update=change),)).digest
        for change in ({}, {"scale": "log"}, {"edges": (2.0,)}, {"outside": "clip"})
    }
    assert len(digests) == 4


# the example


def test_the_private_schema_of_the_example_takes_nothing_from_its_rows(tmp_path: Path) -> None:
    schema = Schema.from_yaml((EXAMPLES / "mp_transport_private.yaml").read_text())
    data = ingest(EXAMPLES / "mp_transport.csv.gz", schema, tmp_path, "transport-private")
    codec = TableCodec.declared(data.schema)
    assert data.rows == 47737 and codec.estimated == {}
    counts = Exact(codec.spec, codec.encode(data.table())["x"], 32)
    for i, place in enumerate(places(codec.spec, 32)):
        filled = counts.measure((i,), 1.0)
        assert filled.sum() == data.rows and (filled > 0.002 * data.rows).sum() >= min(4, len(filled)), place.column
