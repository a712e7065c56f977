"""The p-value holds for every file; marked files show; nothing hangs on rows being independent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from genward_policies.watermark.exam import Exam
from genward_policies.watermark.marking import MarkKey, scores, uniforms
from genward_policies.watermark.power import Trial
from genward_policies.watermark.statistic import NORMAL, Counts, Weights, bound, needed

KEY, OTHER = MarkKey(b"0123456789abcdef"), MarkKey(b"fedcba9876543210")
KEYS = 20_000


def _files(trial: Trial, marked: Any) -> dict[str, Any]:
    """Files that no key of the decoys marked: plain, marked by another key, duplicated."""
    plain = trial.ground.columns(np.arange(800) * 4)
    three = {name: np.tile(values[:3], 500) for name, values in plain.items()}
    return {"plain": plain, "marked": marked(OTHER, 500), "three rows, each 500 times": three}


@pytest.mark.parametrize("name", ["plain", "marked", "three rows, each 500 times"])
def test_under_random_keys_z_is_standard_whatever_the_file_is(trial: Any, marked: Any, name: str) -> None:
    weights = Exam.of(trial.usual, _files(trial, marked)[name]).weights
    z = weights.decoys(KEYS, KEY)
    assert abs(z.mean()) < 4 / math.sqrt(KEYS)
    assert z.std() == pytest.approx(1.0, abs=4 * math.sqrt(0.5 / KEYS))
    for level in (1e-2, 1e-3):
        above = int((z >= NORMAL.inv_cdf(1 - level)).sum())
        assert above <= KEYS * level + 3.3 * math.sqrt(KEYS * level)
        assert (z >= needed(level)).mean() <= level


def test_the_variance_is_that_of_the_weights(trial: Any, marked: Any) -> None:
    """S by hand, cell by cell, over keys of their own."""
    weights = Exam.of(trial.usual, marked(KEY, 60)).weights
    rng = np.random.default_rng(0)
    keys = [MarkKey(rng.bytes(16)) for _ in range(400)]
    totals = [
        sum(w * u for w, u in zip(weights.weights, uniforms(weights.cells, key)[:, 0], strict=True)) for key in keys
    ]
    assert np.std(totals) == pytest.approx(weights.deviation, rel=0.12)
    assert totals[0] == pytest.approx(weights.total(keys[0]))


def test_a_marked_file_shows_under_its_key_and_no_other(trial: Any, marked: Any) -> None:
    weights = Exam.of(trial.usual, marked(KEY, 400)).weights
    assert weights.z(KEY) > 8
    assert abs(weights.z(OTHER)) < 4.5


def test_weights_of_a_hash_add_up_to_nothing_and_rare_cells_keep_theirs() -> None:
    usual = Counts(np.array([1, 2, 3], np.uint64), np.array([50.0, 49.95, 0.05]), 100)
    weights = Weights.of(Counts(np.array([1, 7], np.uint64), np.array([6.0, 4.0]), 10), usual)
    assert dict(zip(weights.cells.tolist(), weights.weights.tolist(), strict=True)) == pytest.approx(
        {1: 6 - 5, 7: 4, 2: -4.995}
    )  # cell 3: less than a tenth of a row was expected


def test_what_is_expected_of_a_marked_file_is_what_is_found(trial: Any, marked: Any) -> None:
    found, told = [], []
    for seed in range(12):
        key = MarkKey(np.random.default_rng(seed).bytes(16))
        exam = Exam.of(trial.usual, marked(key, 500, seed))
        found.append(exam.weights.z(key))
        told.append(exam.lift(key).expected(exam.weights))
    assert np.mean(found) == pytest.approx(np.mean(told), rel=0.08)


def test_the_share_of_marked_rows_is_told(trial: Any, marked: Any) -> None:
    plain = trial.ground.columns(np.arange(3000, 5000) * 4)
    half = {name: np.concatenate([marked(KEY, 1000)[name], plain[name][:1000]]) for name in plain}
    for file, share in ((half, 0.5), (marked(KEY, 2000), 1.0), (plain, 0.0)):
        exam = Exam.of(trial.usual, file)
        middle, low, high = exam.lift(KEY).share(exam.weights, KEY)
        assert middle == pytest.approx(share, abs=0.12)
        assert low <= share <= high


def test_the_bound_is_never_below_the_normal_tail() -> None:
    for z in (0.0, 1.0, 2.5, 5.257):
        assert bound(z) >= 1 - NORMAL.cdf(z)
    assert bound(-3) == 1
    assert bound(needed(1e-6)) == pytest.approx(1e-6)


def test_scores_add_up_what_the_statistic_counts(trial: Any) -> None:
    cells = trial.usual.cells[:50]
    by_hand = sum(uniforms(np.ascontiguousarray(cells[:, t]), KEY)[:, 0] + 0.5 for t in range(cells.shape[1]))
    assert scores(cells, [KEY]) * 2.0**-32 == pytest.approx(by_hand, abs=1e-7)


def test_several_keys_add_up_by_their_weights(trial: Any) -> None:
    cells = trial.usual.cells[:50]
    both = scores(cells, [MarkKey(KEY.secret, 3), OTHER])
    assert np.array_equal(both, 3 * scores(cells, [KEY]) + scores(cells, [OTHER]))


def test_scores_are_these_for_ever() -> None:
    """Receipts replay only if the same cells score the same."""
    cells = np.array([[1, 2 << 48 | 5], [3, 2 << 48 | 6]], dtype=np.uint64)
    assert scores(cells, [KEY]).tolist() == GOLDEN
    assert KEY.id == GOLDEN_ID


GOLDEN = [1898820740.0, 3726482582.0]
GOLDEN_ID = "adb9f1f81cbe2633"
