"""Measures on cases whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from genward.contracts import Evidence, Silent
from genward.data.schema import Column, Schema
from genward.errors import DataError
from genward.evaluate import evaluate, plots

RNG = np.random.default_rng(11)


def table(rows: int) -> pa.Table:
    """y hangs on x and group; x has gaps."""
    x = RNG.normal(size=rows)
    group = RNG.integers(0, 3, rows)
    y = x**2 + group + 0.1 * RNG.normal(size=rows)
    names = np.array(["a", "b", "c"])[group]
    return pa.table({"x": pa.array(x, mask=RNG.random(rows) < 0.1), "group": pa.array(names), "y": pa.array(y)})


def shuffle(source: pa.Table) -> pa.Table:
    return pa.table({n: source[n].take(RNG.permutation(source.num_rows)) for n in source.column_names})


TRAIN, TEST, OTHER = table(1200), table(600), table(1200)
SCHEMA = Schema.infer(pa.concat_tables([TRAIN, TEST, OTHER]))


def measure(made: pa.Table, target: str | None = "y") -> dict[str, Evidence]:
    return {e.claim: e for e in evaluate(TRAIN, TEST, made, SCHEMA, target, Silent())}


@pytest.fixture(scope="module")
def real() -> dict[str, Evidence]:
    return measure(OTHER)


@pytest.fixture(scope="module")
def shuffled() -> dict[str, Evidence]:
    return measure(shuffle(OTHER))


def test_real_rows_cannot_be_told_from_real_rows(real: dict[str, Evidence]) -> None:
    assert real["c2st"].value == pytest.approx(0.5, abs=0.06)
    assert real["c2st"].reference == pytest.approx(0.5, abs=0.06)
    assert real["one_way"].value is not None and real["one_way"].value < 0.06


def test_a_model_from_real_rows_is_worth_the_reference(real: dict[str, Evidence]) -> None:
    assert real["tstr"].value == pytest.approx(real["tstr"].reference, abs=0.05)


def test_shuffled_columns_are_found_out_though_each_is_right(shuffled: dict[str, Evidence]) -> None:
    assert shuffled["c2st"].value is not None and shuffled["c2st"].value > 0.85
    assert shuffled["tstr"].value is not None and shuffled["tstr"].value < 0.2
    assert shuffled["one_way"].value is not None and shuffled["one_way"].value < 0.06


def test_every_claim_has_its_sample_size_and_interval(real: dict[str, Evidence]) -> None:
    for e in real.values():
        assert e.value is not None and e.low is not None and e.high is not None
        assert e.n > 0 and e.method and e.reference is not None
        assert e.low <= e.high


def test_copies_of_training_rows_are_counted() -> None:
    """Half copies, gaps included: half is what is counted, and neighbours lean to the training rows."""
    made = pa.concat_tables([TRAIN.slice(0, 600), OTHER.slice(0, 600)])
    found = measure(made)
    assert found["exact_copies"].value == pytest.approx(0.5)
    assert found["exact_copies"].reference == 0.0
    assert found["nearest_is_training"].value is not None and found["nearest_is_training"].value > 0.6


def test_new_rows_are_no_nearer_to_training_rows(real: dict[str, Evidence]) -> None:
    assert real["exact_copies"].value == 0.0
    assert real["nearest_is_training"].value == pytest.approx(0.5, abs=0.08)


def test_a_categorical_target_is_judged_by_accuracy() -> None:
    found = measure(OTHER, "group")["tstr"]
    assert "accuracy" in found.method and found.value is not None and found.value > 0.8


def test_without_a_target_usefulness_is_not_measured_and_says_so() -> None:
    found = measure(OTHER, None)["tstr"]
    assert found.value is None and "not measured" in found.method


def test_a_column_that_collapsed_shows_in_one_way() -> None:
    made = OTHER.set_column(0, "x", pa.array(np.zeros(OTHER.num_rows)))
    found = measure(made)["one_way"]
    assert found.extra["x"] > 0.4 and found.extra["y"] < 0.1


def test_marginals_are_drawn(tmp_path: Path) -> None:
    """A column's name is no formula."""
    made, real = (part.rename_columns([r"$\\nonsense", "group", "y"]) for part in (OTHER, TEST))
    plots(made, real, Schema.infer(real), tmp_path / "marginals.png")
    assert (tmp_path / "marginals.png").read_bytes().startswith(b"\x89PNG")


EMPTY = {"gone": pa.float64(), "lost": pa.string(), "no": pa.bool_()}


def with_empty(source: pa.Table) -> pa.Table:
    """Three more columns, of each kind, without a single value."""
    for name, kind in EMPTY.items():
        source = source.append_column(name, pa.nulls(source.num_rows, kind))
    return source


def schema_with_empty() -> Schema:
    lost = Column(name="lost", kind="categorical", categories=("p", "q"), nullable=True)
    more = (Column(name="gone", kind="numeric", nullable=True), lost, Column(name="no", kind="boolean", nullable=True))
    return SCHEMA.model_copy(update={"columns": (*SCHEMA.columns, *more)})


def test_columns_without_a_value_change_no_judgement(tmp_path: Path, real: dict[str, Evidence]) -> None:
    sides = [with_empty(side) for side in (TRAIN, TEST, OTHER)]
    found = {e.claim: e for e in evaluate(*sides, schema_with_empty(), "y", Silent())}
    assert found["c2st"].value == pytest.approx(real["c2st"].value, abs=0.03)
    assert found["tstr"].value == pytest.approx(real["tstr"].value, abs=0.03)
    assert {found["one_way"].extra[name] for name in EMPTY} == {0.0}
    assert found["nearest_is_training"].value == real["nearest_is_training"].value
    plots(sides[2], sides[1], schema_with_empty(), tmp_path / "marginals.png")


def test_values_in_a_column_that_has_none_are_found_out() -> None:
    train, test, made = (with_empty(side) for side in (TRAIN, TEST, OTHER))
    made = made.set_column(made.column_names.index("gone"), "gone", pa.array(np.ones(made.num_rows)))
    found = {e.claim: e for e in evaluate(train, test, made, schema_with_empty(), "y", Silent())}
    assert found["c2st"].value == pytest.approx(1.0) and found["one_way"].extra["gone"] == 1.0


@pytest.mark.parametrize("target", ["gone", "lost", "no"])
def test_a_target_without_a_value_is_not_measured(target: str) -> None:
    sides = [with_empty(side) for side in (TRAIN, TEST, OTHER)]
    found = {e.claim: e for e in evaluate(*sides, schema_with_empty(), target, Silent())}["tstr"]
    assert found.value is None and f"0 rows with {target}" in found.method


def test_twelve_held_out_rows_are_too_few_for_a_booster_and_it_is_said() -> None:
    """With so few rows it would not split once and call everything alike: .5, the best mark."""
    found = {e.claim: e for e in evaluate(TRAIN, TEST.slice(0, 12), OTHER, SCHEMA, "y", Silent())}
    for claim in ("c2st", "tstr"):
        assert found[claim].value is None and "not measured: 12 rows" in found[claim].method
    for claim in ("one_way", "exact_copies", "nearest_is_training"):
        value, low, high = found[claim].value, found[claim].low, found[claim].high
        assert value is not None and low is not None and high is not None and 0 <= low <= value <= high <= 1


@pytest.mark.parametrize("which", [0, 1, 2])
def test_no_rows_at_all_are_refused(which: int) -> None:
    sides = [side.slice(0, 0) if i == which else side for i, side in enumerate((TRAIN, TEST, OTHER))]
    with pytest.raises(DataError, match=r"there are no (training|held-out|synthetic) rows"):
        evaluate(*sides, SCHEMA, "y", Silent())
