"""Schemas: what they accept, what they refuse and how they say it."""

from __future__ import annotations

import datetime
import doctest
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward.data.schema import Column, Schema, SumGroup
from genward.errors import DataError, GenwardError, NotFound

ALLOYS = """
columns:
  - {name: hardness, kind: numeric, unit: HV, minimum: 0, maximum: 2000, step: 0.1, nullable: true}
  - {name: phase, kind: categorical, categories: [bcc, fcc, yes, 1]}
  - {name: made, kind: datetime, minimum: 2020-01-01, maximum: 2024-06-30, step: 60}
  - {name: fe, kind: numeric, minimum: 0, maximum: 100, step: 0.1}
  - {name: cr, kind: numeric, minimum: 0, maximum: 100, step: 0.1}
sums:
  - {columns: [fe, cr], total: 100}
ignore: [id]
"""


def test_yaml_comes_back_to_the_same_schema_and_digest() -> None:
    schema = Schema.from_yaml(ALLOYS)
    again = Schema.from_yaml(schema.to_yaml())
    assert again == schema
    assert again.digest == schema.digest
    assert schema.column("phase").categories == ("bcc", "fcc", "true", "1")
    assert schema.sums == (SumGroup(columns=("fe", "cr")),)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{name: a, kind: numeric, minimun: 0}", "did you mean 'minimum'"),
        ("{name: a, kind: numbers}", "numeric"),
        ("{name: a, kind: categorical}", "lists its categories"),
        ("{name: a, kind: categorical, categories: [x, x]}", "stands twice"),
        ("{name: a, kind: numeric, categories: [x]}", "only categorical"),
        ("{name: a, kind: boolean, step: 1}", "no bounds"),
        ("{name: a, kind: numeric, minimum: 2, maximum: 1}", "above maximum"),
        ("{name: a, kind: numeric, step: 1, digits: 3}", "not both"),
        ("{name: a, kind: numeric, digits: 9}", "more than the graph can hold"),
        ("{name: a, kind: numeric, minimum: 0, maximum: 1000, step: 1.0e-6}", "finer than the graph can hold"),
        ("{name: a, kind: datetime, minimum: 1990-01-01, maximum: 2024-01-01}", "finer than the graph can hold"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_column_and_a_remedy(line: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        Schema.from_yaml(f"columns:\n  - {line}\n", "alloys.yaml")
    assert said in str(caught.value)
    assert "alloys.yaml" in str(caught.value)


@given(st.text(max_size=80))
def test_any_text_is_a_schema_or_one_of_our_errors(text: str) -> None:
    try:
        Schema.from_yaml(text)
    except GenwardError as error:
        assert str(error)


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(NotFound, match="hardness"):
        Schema.from_yaml(ALLOYS).column("hardnes")


def test_a_guess_knows_kinds_grids_and_gaps_and_leaves_free_text_out() -> None:
    days = [datetime.datetime(2024, 1, 1 + i % 20) for i in range(200)]
    table = pa.table(
        {
            "id": [f"mp-{i}" for i in range(200)],
            "phase": ["fcc", "bcc"] * 100,
            "count": list(range(200)),
            "density": [None if i == 7 else i / 10 + 0.05 for i in range(200)],
            "sigma": [1.2345e-9 * 1.31**i for i in range(200)],
            "ok": [i % 3 == 0 for i in range(200)],
            "day": days,
            "same": [1.0] * 200,
        }
    )
    schema = Schema.infer(table)
    kinds = {column.name: column.kind for column in schema.columns}
    assert kinds == {
        "phase": "categorical",
        "count": "integer",
        "density": "numeric",
        "sigma": "numeric",
        "ok": "boolean",
        "day": "datetime",
    }
    assert schema.ignore == ("id", "same")
    assert schema.column("density").nullable
    assert schema.column("density").step == pytest.approx(0.01)
    assert schema.column("sigma").digits
    assert schema.column("day").step == 86400
    assert schema.check(table) == []


def test_one_row_and_constant_columns_and_wrong_sums_are_found() -> None:
    schema = Schema(
        columns=(Column(name="fe", kind="numeric", step=1), Column(name="cr", kind="numeric", step=1)),
        sums=(SumGroup(columns=("fe", "cr")),),
    )
    one = schema.check(pa.table({"fe": [40.0], "cr": [60.0]}))
    assert [finding.level for finding in one] == ["error", "warning", "warning"]
    off = schema.check(pa.table({"fe": [40.0, 50.0], "cr": [60.0, 60.0]}))
    assert any("do not add up to 100, first row 2" in f.message and f.level == "error" for f in off)
    assert any("same value" in f.message and f.where == "cr" for f in off)


def test_every_sample_of_the_page_does_what_it_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "data.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 15
