"""Measures on cases whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from genward.contracts import Evidence, Silent
from genward.data.schema import Column, Schema
from genward.errors import CheckFailed, DataError
from genward.evaluate import CLAIMS, Settings, evaluate, plots

QUICK = Settings(rows=1500, near=600, resamples=60)
Tables = tuple[pa.Table, pa.Table, pa.Table]
EMPTY = {"gone": pa.float64(), "lost": pa.string(), "no": pa.bool_()}


def judged(sides: Tables, schema: Schema, target: str | None = "y", settings: Settings = QUICK) -> dict[str, Evidence]:
    return {e.claim: e for e in evaluate(*sides, schema, target, Silent(), settings)}


def shuffle(source: pa.Table) -> pa.Table:
    rng = np.random.default_rng(4)
    return pa.table({n: source[n].take(rng.permutation(source.num_rows)) for n in source.column_names})


@pytest.fixture(scope="module")
def real(tables: Tables, schema: Schema) -> dict[str, Evidence]:
    return judged(tables, schema)


@pytest.fixture(scope="module")
def shuffled(tables: Tables, schema: Schema) -> dict[str, Evidence]:
    return judged((tables[0], tables[1], shuffle(tables[2])), schema)


@pytest.fixture(scope="module")
def memoriser(tables: Tables, schema: Schema) -> dict[str, Evidence]:
    """Training rows with a whiff of noise: no copy, and nothing new."""
    made = tables[0]
    for name in ("x", "y", "low", "high"):  # each with noise of its own
        noise = 1e-2 * np.random.default_rng(sum(map(ord, name))).normal(size=made.num_rows)
        values = pa.compute.add(made[name], pa.array(noise))
        made = made.set_column(made.column_names.index(name), name, values)
    return judged((tables[0], tables[1], made), schema)


def test_every_claim_is_there_in_order_with_size_interval_method_and_reference(real: dict[str, Evidence]) -> None:
    assert tuple(real) == CLAIMS
    for e in real.values():
        assert e.value is not None and e.low is not None and e.high is not None and e.reference is not None, e.claim
        assert e.low <= e.value <= e.high, e.claim
        assert e.n > 0 and "interval" in e.method, e.claim


def test_real_rows_are_as_good_as_real_rows(real: dict[str, Evidence]) -> None:
    """Each interval, or a small margin around it, holds the reference."""
    for claim in ("c2st", "one_way", "pairs", "correlations", "coverage", "precision", "novelty"):
        e = real[claim]
        assert e.low is not None and e.high is not None and e.reference is not None
        assert e.low - 0.03 <= e.reference <= e.high + 0.03, claim
    assert real["tstr_drop"].value == pytest.approx(0.0, abs=0.05)
    assert real["nearest_is_training"].value == pytest.approx(0.5, abs=0.06)
    assert real["exact_copies"].value == real["held_out_overlap"].value == 0.0


def test_shuffled_columns_are_found_out_though_each_is_right(
    real: dict[str, Evidence], shuffled: dict[str, Evidence]
) -> None:
    def value(found: dict[str, Evidence], claim: str) -> float:
        return float(found[claim].value or 0.0)

    assert value(shuffled, "c2st") > 0.85 and value(shuffled, "tstr") < 0.2 and value(shuffled, "tstr_drop") > 0.7
    assert value(shuffled, "one_way") == pytest.approx(value(real, "one_way"), abs=1e-9)
    pairs, low = shuffled["pairs"], shuffled["pairs"].low
    assert low is not None and pairs.reference is not None and low > pairs.reference
    assert [pairs.extra["worst"][0][i] for i in (0, 1)] == ["low", "high"]
    assert value(shuffled, "correlations") > 0.1
    assert value(shuffled, "precision") < 0.95 < value(real, "precision")


def test_a_memoriser_is_no_copy_and_still_found(real: dict[str, Evidence], memoriser: dict[str, Evidence]) -> None:
    assert memoriser["exact_copies"].value == 0.0
    for claim, less in (("novelty", True), ("nearest_is_training", False)):
        found, honest = memoriser[claim], real[claim]
        assert None not in (found.low, found.high, honest.low, honest.high)
        assert found.high < honest.low if less else found.low > honest.high  # type: ignore[operator]
    assert memoriser["c2st"].value == pytest.approx(0.5, abs=0.08)  # which is why it is measured


def test_a_model_that_forgot_a_group_lowers_coverage_and_not_precision(tables: Tables, schema: Schema) -> None:
    made = tables[2].filter(pa.compute.not_equal(tables[2]["group"], "c"))
    found = judged((tables[0], tables[1], made), schema)
    assert found["coverage"].value is not None and found["coverage"].value < 0.8
    assert found["precision"].value is not None and found["precision"].value > 0.9


def test_copies_of_training_rows_are_counted_gaps_and_last_bits_included(tables: Tables, schema: Schema) -> None:
    """Half are copies, of which each number was computed anew and differs in its last bit."""
    copied = tables[0].slice(0, 600)
    copied = copied.set_column(2, "y", pa.array(np.nextafter(copied["y"].to_numpy(), np.inf)))
    found = judged((tables[0], tables[1], pa.concat_tables([copied, tables[2].slice(0, 600)])), schema)
    assert found["exact_copies"].value == pytest.approx(0.5) and found["exact_copies"].extra["rows"] == 600
    assert found["exact_copies"].reference == 0.0 and found["exact_copies"].extra["beyond_chance"]


@pytest.mark.parametrize("grid", [{"step": 0.1}, {}])
def test_a_value_on_a_grid_is_the_same_however_it_was_computed(grid: dict[str, float]) -> None:
    column = Column(name="v", kind="numeric", **grid)  # type: ignore[arg-type]
    read, computed = np.arange(1, 400) / 10, np.arange(1, 400) * 0.1
    assert (read != computed).any()
    sides = tuple(pa.table({"v": side}) for side in (read[:300], -read[:50], computed[:300]))
    found = judged(sides, Schema(columns=(column,)), None)  # type: ignore[arg-type]
    assert found["exact_copies"].value == 1.0


def test_a_copy_rounded_to_its_digits_is_a_copy() -> None:
    raw = np.random.default_rng(6).lognormal(0, 3, 500)
    made = np.array([float(f"{value:.4g}") for value in raw])
    assert (raw != made).all()
    sides = (pa.table({"v": raw}), pa.table({"v": raw[:50] + 1e3}), pa.table({"v": made}))
    found = judged(sides, Schema(columns=(Column(name="v", kind="numeric", digits=4),)), None)["exact_copies"]
    assert found.value == 1.0


def test_repeated_rows_of_a_table_of_few_values_are_no_excess() -> None:
    rng = np.random.default_rng(8)
    sides = tuple(pa.table({"a": rng.integers(0, 4, n), "b": rng.integers(0, 4, n)}) for n in (400, 200, 400))
    found = judged(sides, Schema.infer(sides[0]), None)  # type: ignore[arg-type]
    assert found["exact_copies"].value == 1.0 and found["exact_copies"].reference == 1.0
    assert not found["exact_copies"].extra["beyond_chance"]
    assert found["held_out_overlap"].value == 1.0 and not found["held_out_overlap"].extra["beyond_repeats"]


@pytest.mark.parametrize("stolen", [12, 600])
def test_held_out_rows_that_were_trained_on_are_refused_or_named(tables: Tables, schema: Schema, stolen: int) -> None:
    train = pa.concat_tables([tables[0], tables[1].slice(0, stolen)])
    with pytest.raises(CheckFailed, match=f"{stolen} of 600 held-out rows are training rows"):
        judged((train, tables[1], tables[2]), schema)
    found = judged((train, tables[1], tables[2]), schema, settings=replace(QUICK, overlap="name"))["held_out_overlap"]
    assert found.value == stolen / 600 and "MORE THAN REPEATED ROWS EXPLAIN" in found.method
    assert found.extra["beyond_repeats"]


def test_rules_of_the_schema_are_counted_by_rule(tables: Tables, schema: Schema) -> None:
    text = "columns:\n" + "".join(
        f"  - {{name: {n}, kind: numeric, nullable: true, maximum: 20}}\n" for n in ("x", "y", "low", "high")
    )
    text += "  - {name: group, kind: categorical, categories: [a, b, c]}\nrules: [{below: low, above: high}]\n"
    text += "sums: [{columns: [low, high], total: 5, tolerance: 100}]\n"
    ruled = Schema.from_yaml(text)
    assert Schema.from_yaml(ruled.to_yaml()) == ruled
    made = tables[2].rename_columns(["x", "group", "y", "high", "low"])
    made = made.set_column(2, "y", pa.array(np.r_[np.full(12, 21.0), np.zeros(1188)]))
    found = judged((tables[0], tables[1], made), ruled, None)["rules_violated"]
    assert found.value is not None and found.value > 0.99 and found.reference == 0.0
    assert found.extra["by"]["low <= high"]["value"] > 0.99 and found.extra["by"]["y <= 20"]["value"] == 0.01
    assert set(found.extra["by"]) == {"low <= high", "y <= 20"}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("{below: a, above: a}", "two number columns"),
        ("{below: a, above: c}", "two number columns"),
        ("{below: a, above: z}", "two number columns"),
        ("{below: a, above: t}", "one is a time"),
        ("{below: a, abov: b}", "did you mean 'above'"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(rule: str, said: str) -> None:
    columns = (
        "[{name: a, kind: numeric}, {name: b, kind: integer}, {name: c, kind: boolean}, {name: t, kind: datetime}]"
    )
    with pytest.raises(DataError, match=said):
        Schema.from_yaml(f"columns: {columns}\nrules: [{rule}]")


def test_data_that_break_a_rule_are_no_data_to_learn_from(tables: Tables) -> None:
    columns = tuple(Column(name=n, kind="numeric") for n in ("low", "high"))
    ruled = Schema.model_validate({"columns": columns, "rules": [{"below": "high", "above": "low"}]})
    (found,) = [f for f in ruled.check(tables[0].select(["low", "high"])) if f.level == "error"]
    assert "high is above low" in found.message and found.where == "high"


def test_a_schema_without_rules_keeps_the_digest_it_had() -> None:
    plain = Schema(columns=(Column(name="a", kind="numeric"),))
    assert plain.digest == "sha256:7ebc6c49fea5edf8669cd8cf25e78a98791c5a1de3e4aad77cff1a8be1c2ec89"
    two = "columns: [{name: a, kind: numeric}, {name: b, kind: numeric}]"
    ruled = f"{two}\nrules: [{{below: a, above: b}}]"
    assert Schema.from_yaml(two).digest != Schema.from_yaml(ruled).digest


def test_a_categorical_target_is_judged_by_accuracy_beyond_guessing(tables: Tables, schema: Schema) -> None:
    found = judged(tables, schema, "group")
    assert found["tstr"].extra["score"] == "accuracy" and found["tstr"].value is not None and found["tstr"].value > 0.8
    assert found["tstr"].extra["guessing"] == pytest.approx(1 / 3, abs=0.05)


def test_a_rare_class_that_is_never_predicted_is_a_whole_drop() -> None:
    """Accuracy hardly moves; what is known beyond guessing is gone."""
    rng = np.random.default_rng(3)

    def side(n: int, rate: float) -> pa.Table:
        rare = rng.random(n) < 0.06
        return pa.table({"x": np.where(rare & (rng.random(n) < rate), 3, 0) + rng.normal(size=n) / 3, "rare": rare})

    sides = (side(2000, 1), side(1000, 1), side(2000, 0))
    found = judged(sides, Schema.infer(sides[0]), "rare")
    assert found["tstr"].value is not None and found["tstr"].value > 0.9
    assert found["tstr_drop"].value is not None and found["tstr_drop"].value > 0.9


def test_a_target_that_nobody_can_predict_measures_nothing(tables: Tables, schema: Schema) -> None:
    noise = [t.append_column("noise", pa.array(np.random.default_rng(i).normal(size=t.num_rows)))
             for i, t in enumerate(tables)]  # fmt: skip
    found = judged(tuple(noise), Schema.infer(noise[0]), "noise")  # type: ignore[arg-type]
    assert found["tstr_drop"].value is None and "no better than guessing" in found["tstr_drop"].method


def test_without_a_target_usefulness_is_not_measured_and_says_so(tables: Tables, schema: Schema) -> None:
    found = judged(tables, schema, None)
    assert found["tstr"].value is None and "no target column" in found["tstr"].method


def test_a_column_that_collapsed_shows_by_its_name(tables: Tables, schema: Schema) -> None:
    made = tables[2].set_column(0, "x", pa.array(np.zeros(tables[2].num_rows)))
    by = judged((tables[0], tables[1], made), schema)["one_way"].extra["by"]
    assert by["x"]["low"] > 0.4 and by["y"]["high"] < 0.15


def test_without_training_rows_nothing_is_said_of_memory(tables: Tables, schema: Schema) -> None:
    found = {e.claim: e for e in evaluate(None, tables[1], tables[2], schema, "y", Silent(), QUICK)}
    for claim in ("exact_copies", "novelty", "nearest_is_training", "held_out_overlap"):
        assert found[claim].value is None and "no training rows" in found[claim].method
    assert found["c2st"].value == pytest.approx(0.5, abs=0.08) and found["c2st"].reference is not None


def test_marginals_are_drawn(tmp_path: Path, tables: Tables) -> None:
    """A column's name is no formula."""
    made, held = (part.rename_columns([r"$\\nonsense", "group", "y", "l", "h"]) for part in tables[1:])
    plots(made, held, Schema.infer(held), tmp_path / "marginals.png")
    assert (tmp_path / "marginals.png").read_bytes().startswith(b"\x89PNG")


# what is empty, constant or few


def with_empty(source: pa.Table) -> pa.Table:
    """Three more columns, of each kind, without a single value."""
    for name, kind in EMPTY.items():
        source = source.append_column(name, pa.nulls(source.num_rows, kind))
    return source


def schema_with_empty(schema: Schema) -> Schema:
    lost = Column(name="lost", kind="categorical", categories=("p", "q"), nullable=True)
    more = (Column(name="gone", kind="numeric", nullable=True), lost, Column(name="no", kind="boolean", nullable=True))
    return schema.model_copy(update={"columns": (*schema.columns, *more)})


def test_columns_without_a_value_change_no_judgement(
    tmp_path: Path, tables: Tables, schema: Schema, real: dict[str, Evidence]
) -> None:
    sides = tuple(with_empty(side) for side in tables)
    found = judged(sides, schema_with_empty(schema))  # type: ignore[arg-type]
    for claim in ("c2st", "tstr"):
        assert found[claim].value == pytest.approx(real[claim].value, abs=0.03)
    assert {found["one_way"].extra["by"][name]["value"] for name in EMPTY} == {0.0}
    assert found["nearest_is_training"].value == real["nearest_is_training"].value
    plots(sides[2], sides[1], schema_with_empty(schema), tmp_path / "marginals.png")


def test_values_in_a_column_that_has_none_are_found_out(tables: Tables, schema: Schema) -> None:
    train, test, made = (with_empty(side) for side in tables)
    made = made.set_column(made.column_names.index("gone"), "gone", pa.array(np.ones(made.num_rows)))
    found = judged((train, test, made), schema_with_empty(schema))
    assert found["c2st"].value == pytest.approx(1.0) and found["one_way"].extra["by"]["gone"]["value"] == 1.0
    assert found["precision"].value is not None and found["precision"].value < 0.1


@pytest.mark.parametrize("target", ["gone", "lost", "no"])
def test_a_target_without_a_value_is_not_measured(tables: Tables, schema: Schema, target: str) -> None:
    found = judged(tuple(with_empty(side) for side in tables), schema_with_empty(schema), target)["tstr"]  # type: ignore[arg-type]
    assert found.value is None and f"0 rows with {target}" in found.method


def test_constant_columns_alone_are_judged() -> None:
    side = pa.table({"a": pa.array([5.0] * 120), "b": pa.array(["x"] * 120)})
    columns = (Column(name="a", kind="numeric"), Column(name="b", kind="categorical", categories=("x", "y")))
    settings = replace(QUICK, overlap="name")
    found = judged((side, side, side), Schema(columns=columns), "b", settings)
    assert found["one_way"].value == 0.0 and found["c2st"].value == 0.5 and found["coverage"].value == 1.0
    assert found["correlations"].value is None and "one category" in found["tstr"].method


def test_twelve_held_out_rows_judge_and_their_intervals_say_what_that_is_worth(
    tables: Tables, schema: Schema, real: dict[str, Evidence]
) -> None:
    found = judged((tables[0], tables[1].slice(0, 12), tables[2]), schema)
    for claim in ("c2st", "one_way", "coverage"):
        few, many = found[claim], real[claim]
        assert None not in (few.value, few.low, few.high, many.low, many.high), claim
        assert few.low <= few.value <= few.high  # type: ignore[operator]
        assert few.high - few.low > 2 * (many.high - many.low), claim  # type: ignore[operator]
    assert found["c2st"].low < 0.5 < found["c2st"].high  # type: ignore[operator]
    assert "on 12 held-out" in found["c2st"].method
    assert found["tstr"].n == 12


def test_twelve_right_answers_of_twelve_are_no_certainty(tables: Tables, schema: Schema) -> None:
    sides = (tables[0], tables[1].slice(0, 12), tables[2])
    easy = [side.append_column("up", pa.compute.greater(side["y"], 1.0)) for side in sides]
    found = judged(tuple(easy), Schema.infer(easy[0]), "up")  # type: ignore[arg-type]
    assert found["tstr"].value == 1.0 and found["tstr"].low is not None and found["tstr"].low < 0.8
    assert found["tstr_drop"].value == 0.0 and found["tstr_drop"].high is not None and found["tstr_drop"].high > 0.3


def test_twelve_held_out_rows_find_rows_that_are_nothing_like_them(tables: Tables, schema: Schema) -> None:
    made = tables[2].set_column(2, "y", pa.array(np.full(1200, 40.0)))
    found = judged((tables[0], tables[1].slice(0, 12), made), schema)
    assert found["c2st"].low is not None and found["c2st"].low > 0.7
    assert found["tstr_drop"].low is not None and found["tstr_drop"].low > 0.5


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 3), (3, 2, 1), (60, 3, 60), (12, 12, 12), (200, 1, 400)])
def test_however_few_rows_there_are_each_claim_is_measured_or_says_why(
    tables: Tables, schema: Schema, sizes: tuple[int, int, int]
) -> None:
    sides = tuple(side.slice(0, n) for side, n in zip(tables, sizes, strict=True))
    for e in judged(sides, schema).values():  # type: ignore[arg-type]
        assert e.value is not None or e.method.startswith("not measured: "), e
        assert e.value is None or (e.low is not None and e.low <= e.value), e


@pytest.mark.parametrize("which", [0, 1, 2])
def test_no_rows_at_all_are_refused(tables: Tables, schema: Schema, which: int) -> None:
    sides = tuple(side.slice(0, 0) if i == which else side for i, side in enumerate(tables))
    with pytest.raises(DataError, match=r"there are no (training|held-out|synthetic) rows"):
        judged(sides, schema)  # type: ignore[arg-type]


def test_one_held_out_row_cannot_be_cut_in_two(tables: Tables, schema: Schema) -> None:
    with pytest.raises(DataError, match="no training rows"):
        evaluate(None, tables[1].slice(0, 1), tables[2], schema, None, Silent())
