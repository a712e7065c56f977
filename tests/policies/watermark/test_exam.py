"""What a file lacks, holds constant or was asked for does not hide its mark."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from genward.errors import CheckFailed
from genward_policies.watermark.attacks import attacked, rounded
from genward_policies.watermark.config import Power, WatermarkConfig
from genward_policies.watermark.exam import Exam
from genward_policies.watermark.gates import reasons
from genward_policies.watermark.marking import MarkKey
from genward_policies.watermark.power import LEAST, search

KEY = MarkKey(b"0123456789abcdef")


def test_the_order_of_columns_and_rows_says_nothing(trial: Any, marked: Any) -> None:
    file = marked(KEY, 300)
    turned = {name: file[name][::-1] for name in reversed(file)}
    assert Exam.of(trial.usual, turned).weights.z(KEY) == pytest.approx(Exam.of(trial.usual, file).weights.z(KEY))


def test_extra_columns_are_not_looked_at(trial: Any, marked: Any) -> None:
    file = marked(KEY, 300)
    more = {**file, "comment": np.arange(300.0)}
    assert Exam.of(trial.usual, more).weights.z(KEY) == Exam.of(trial.usual, file).weights.z(KEY)


def test_hashes_with_a_lost_column_are_left_out(trial: Any, marked: Any) -> None:
    less = {name: values for name, values in marked(KEY, 1000).items() if name not in ("x1", "x4")}
    lost = {trial.scheme.names.index(name) for name in ("x1", "x4")}
    exam = Exam.of(trial.usual, less)
    assert set(exam.hashes) == {t for t, columns in enumerate(trial.scheme.hashes) if not lost & set(columns)}
    assert exam.weights.z(KEY) > 5.5


def test_a_file_of_one_slice_is_held_against_rows_of_that_slice(trial: Any, marked: Any) -> None:
    """The rows of one category or of a range, chosen first and filtered then, show their mark as well as others do."""
    whole = marked(KEY, 6000)
    for keep in (whole["phase"] == 2, whole["x0"] > np.nanquantile(whole["x0"], 0.7)):
        some = {name: values[keep][:800] for name, values in whole.items()}
        exam = Exam.of(trial.usual, some)
        blunt = Exam(trial.usual, exam.hashes, Exam.of(trial.usual, whole).weights)
        against_all = blunt.usual.counts(exam.hashes)
        assert len(exam.usual.levels) < len(trial.usual.levels)
        assert against_all.rows == len(trial.usual.levels)
        assert exam.weights.z(KEY) > 7
        assert exam.weights.decoys(4000, MarkKey(b"x" * 16)).std() == pytest.approx(1, abs=0.06)


def test_a_hash_wholly_inside_constant_columns_is_left_out(trial: Any, marked: Any) -> None:
    file = marked(KEY, 400)
    columns = trial.scheme.hashes[0]
    for place in columns:
        name = trial.scheme.names[place]
        file = {**file, name: np.full(400, np.nan if file[name].dtype.kind == "f" else 1).astype(file[name].dtype)}
    assert 0 not in Exam.of(trial.usual, file).hashes


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_file_of_next_to_nothing_accuses_nobody(trial: Any, marked: Any, rows: int) -> None:
    file = {name: values[:rows] for name, values in marked(KEY, 10).items()}
    exam = Exam.of(trial.usual, file)
    assert exam.weights.z(KEY) < 5
    assert exam.lift(KEY).power(exam.weights, 1e-6) < 0.5 if exam.hashes else exam.weights.z(KEY) == 0


def test_one_row_a_million_times_is_constant_and_says_nothing(trial: Any, marked: Any) -> None:
    row = {name: np.repeat(values[:1], 1_000_000) for name, values in marked(KEY, 1).items()}
    exam = Exam.of(trial.usual, row)
    assert exam.hashes == ()
    assert exam.weights.z(KEY) == 0


def test_attacks_do_what_they_are_called(ground: Any, marked: Any) -> None:
    file, rng = marked(KEY, 2000), np.random.default_rng(0)
    assert rounded(np.array([0.0, -1234.5, 0.00987654, np.nan]), 3)[:3].tolist() == [0.0, -1230.0, 0.00988]
    assert attacked(file, "", ground.usual, rng) is file
    assert len(attacked(file, "columns-70%", ground.usual, rng)) == 7
    noisy = attacked(file, "noise-5%", ground.usual, rng)
    known = ~np.isnan(file["x6"])
    assert np.array_equal(np.isnan(noisy["x6"]), ~known)
    assert np.array_equal(noisy["phase"], file["phase"])
    ranks = [np.argsort(np.argsort(side["x0"])) / 2000 for side in (file, noisy)]
    assert 0.005 < np.abs(ranks[0] - ranks[1]).mean() < 0.02  # 0.05 x the normal density's mean x sqrt(2 / pi)
    half = attacked(file, "unmarked-50%", ground.usual, rng)
    assert 0.45 < (half["x0"] != file["x0"]).mean() < 0.55


def test_the_least_distorting_scheme_with_the_power_is_taken_and_passes_its_gate(ground: Any) -> None:
    config = WatermarkConfig(power=Power(rows=1000, under=("round-3", "columns-70%")))
    found = search(ground, config)
    evidence = {item.claim: item for item in found.evidence}
    assert found.scheme.candidates == 2
    assert evidence["watermark.power.columns-70%"].value >= LEAST
    assert evidence["watermark.power"].extra["recognised"] == evidence["watermark.power"].n
    assert 0.5 <= evidence["watermark.auc"].value <= 0.55
    gated = {**evidence, "watermark.false_positives.real": evidence["watermark.false_positives.unmarked"]}
    assert reasons(gated, config) == []
    assert "real" in reasons(evidence, config)[0]
    near, far = (replace(gated["watermark.false_positives.real"], value=v, n=10_000) for v in (0.0135, 0.0145))
    assert reasons(gated | {"watermark.false_positives.real": near}, config) == []
    assert "real rows: 0.0145" in reasons(gated | {"watermark.false_positives.real": far}, config)[0]
    assert reasons(gated, config.model_copy(update={"auc_max": 0.5001}))[0].startswith("AUC is")
    assert "other rows" in reasons(gated, config.model_copy(update={"power": Power(rows=300)}))[0]


def test_a_power_that_no_scheme_has_is_refused_with_the_nearest(ground: Any) -> None:
    with pytest.raises(CheckFailed, match=r"no scheme has power 0\.99 at 30 rows .* nearest: best of 2"):
        search(ground, WatermarkConfig(power=Power(rows=30, under=("noise-50%",))))
    with pytest.raises(CheckFailed, match="6000 are drawn"):
        search(ground, WatermarkConfig(power=Power(rows=9000)))
