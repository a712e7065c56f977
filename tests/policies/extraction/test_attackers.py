"""Attacks copy what they are given, each in its way; curves are fitted and read as risk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from genward import testing
from genward.attacker import Attacker, Rows, Target
from genward.contracts import Silent
from genward.data.distance import Space, encoded, frechet
from genward.errors import CheckFailed
from genward.plugins import Plugins
from genward.testing import small_codec, small_table
from genward_policies.extraction import curve as c
from genward_policies.extraction.calibrate import Measured, Point, Portfolio, Sizes
from genward_policies.extraction.profile import profile_of

NAMES = ("kde", "gmm", "gmm-by-class", "surrogate")


@pytest.mark.parametrize("name", NAMES)
def test_each_attack_passes_the_contract_suite(name: str) -> None:
    attackers = Plugins.load(["genward"]).attackers
    assert set(NAMES) <= set(attackers)
    assert testing.check(attackers[name]) == list(testing.ATTACKER_CHECKS)


def test_the_suite_refuses_an_attacker_that_is_none() -> None:
    class Lazy(Attacker):
        name = "lazy"

        def fit(self, rows: Rows, seed: int) -> None:
            self._rows = rows

        def sample(self, n: int, seed: int) -> Rows:
            return self._rows[:n]

    with pytest.raises(CheckFailed, match="seed"):
        testing.check(Lazy)
    with pytest.raises(CheckFailed, match="no Attacker"):
        testing.check(int)


def _target() -> Target:
    codec = small_codec()
    return Target(codec.spec, testing._Toy(), None, 1.0)


@pytest.mark.parametrize("name", ["kde", "gmm", "gmm-by-class"])
def test_more_rows_make_a_better_copy(name: str) -> None:
    rows = encoded(small_codec(), small_table(4000))
    space = Space.fit(rows)
    whole, kind = space.normal(rows), Plugins.load(["genward"]).attackers[name]
    found = []
    for n in (60, 2000):
        copy = kind(_target())
        copy.fit(rows[:n], seed=0)
        found.append(frechet(space.normal(copy.sample(3000, seed=0)), whole))
    assert found[1] < 0.5 * found[0]


def test_attacks_that_cannot_be_run_say_why() -> None:
    attackers = Plugins.load(["genward"]).attackers

    class Counting(testing._Toy):
        def bins(self, config: Any) -> int:
            return 8

    from genward.family import Spec

    assert "counts" in attackers["surrogate"].cannot(Target(_target().spec, Counting(), None))
    assert "classes" in attackers["gmm-by-class"].cannot(Target(Spec("table", ()), testing._Toy(), None))
    assert attackers["surrogate"].cannot(_target()) == ""


# curves


def test_a_curve_is_found_again() -> None:
    sizes = [100, 300, 1000, 3000]
    found = c.fit(sizes, [0.1 + 50 * n**-0.9 for n in sizes], 0.05, 1e9)
    assert found.alpha == pytest.approx(0.9, abs=0.03)
    assert found.at(10_000) == pytest.approx(0.1 + 50 * 10_000**-0.9, rel=0.05)


def test_a_and_b_are_never_negative() -> None:
    rising = c.fit([100, 300, 1000], [1.0, 2.0, 3.0], 0.1, 1e9)
    steep = c.fit([100, 300, 1000], [5.0, 0.1, 0.001], 0.1, 1e9)
    assert rising.a >= 0 and rising.b == 0
    assert steep.a == 0 and steep.b > 0


def test_who_keeps_the_rows_is_at_least_as_near_as_the_own_distance_says() -> None:
    curve = c.Curve(1.0, 0.0, 1.0, 100.0)
    assert curve.at(10) == 1.0
    assert curve.at(1000) == pytest.approx(0.1)


def test_risk_rises_from_nothing_to_one() -> None:
    risk = c.Risk(0.02, c.Curve(0.0, 100.0, 1.0, 100.0))
    values = [risk.at(n) for n in (1, 100, 101, 1000, 10_000, 10**9)]
    assert values == sorted(values)
    assert values[0] == values[1] == 0.0
    assert values[-1] == 1.0
    assert risk.between(1000) == (risk.at(1000), risk.at(1000))


@pytest.mark.parametrize("limit", [0.05, 0.3, 0.5, 0.8, 0.999])
def test_rows_at_a_risk_are_the_most_within_it(limit: float) -> None:
    risk = c.Risk(0.02, c.Curve(0.0, 100.0, 1.0, 100.0))
    rows = c.rows_at(risk.at, limit)
    assert risk.at(rows) <= limit < risk.at(rows + 1)


def test_no_number_of_rows_passes_a_risk_of_one() -> None:
    assert c.rows_at(c.Risk(0.02, c.Curve(0.0, 1.0, 1.0, 1.0)).at, 1.0) == c.LARGEST


def test_a_copy_that_is_perfect_from_the_start_is_all_risk() -> None:
    assert c.Risk(1.0, c.Curve(0.0, 0.001, 1.0, 0.001)).at(200) == 1.0


# calibration


def _draw(rng_seed: int = 0) -> Any:
    """Rows of a made-up release: twenty normals."""

    def draw(start: int, count: int) -> Rows:
        rng = np.random.default_rng([rng_seed, start])
        return rng.normal(size=(count, 20)).astype(np.float32)

    return draw


def _measured(sizes: Sizes, real: Rows | None = None) -> Measured:
    from genward.family import Spec

    attackers = Plugins.load(["genward"]).attackers
    target = Target(Spec("table", ()), testing._Toy(), None)
    return Portfolio(_draw(), target, [attackers["kde"], attackers["gmm"]], real, 60, sizes).run(Silent())


def test_risk_does_not_depend_on_how_many_rows_the_calibration_drew() -> None:
    """The formula uncorrected would move by a factor of the drawn rows; corrected, rows at a risk agree within 20 %."""
    grid = (100, 200, 400, 800)
    few, many = (profile_of(_measured(Sizes(r, b, 16, grid))) for r, b in ((4000, 1000), (16_000, 4000)))
    assert few.fidelity.floor == pytest.approx(many.fidelity.floor, rel=0.1)
    for limit in (0.3, 0.5):  # within the grid; beyond it the interval says what the curve is worth
        assert few.rows_at(limit) == pytest.approx(many.rows_at(limit), rel=0.2)


def test_the_curve_predicts_more_rows_than_it_was_fitted_to() -> None:
    """Fitted up to 800 rows; the copy of 8,000 rows of keeping them is within a factor 2 of it, and hardly nearer."""
    profile = profile_of(_measured(Sizes(20_000, 5000, 8, (100, 200, 400, 800))))
    draw, space = _draw(7), Space.fit(_draw()(0, 20_000))
    reference = space.normal(draw(1, 200_000))
    copies = [frechet(space.normal(draw(i, 8000)), reference) for i in range(2, 8)]
    truth = float(np.mean(copies)) - profile.fidelity.curve.own / 200_000
    assert 0.5 < profile.fidelity.curve.at(8000) / truth < 1.35


def test_without_real_rows_accuracy_is_not_told() -> None:
    measured = _measured(Sizes(4000, 1000, 3, (100, 300, 900)))
    profile = profile_of(measured, "protected")
    assert profile.accuracy is None
    assert all(point.accuracy is None for point in measured.points)
    told = {e.claim: e for e in profile.evidence()}
    assert told["extraction.accuracy"].value is None
    assert "protected" in told["extraction.accuracy"].method
    assert b'"own_real": []' in profile.to_json()


def test_with_real_rows_the_larger_risk_holds() -> None:
    profile = profile_of(_measured(Sizes(4000, 1000, 6, (100, 300, 900)), _draw(3)(0, 500)))
    assert profile.accuracy is not None
    for n in (150, 500, 2000):
        assert profile.risk(n) == max(profile.fidelity.at(n), profile.accuracy.at(n))
        low, high = profile.between(n)
        assert 0 <= low <= high <= 1


def test_an_accuracy_that_rows_do_not_change_is_not_counted() -> None:
    points = tuple(Point("kde", n, i, 100 / n, 5.0) for n in (100, 300, 900) for i in range(3))
    profile = profile_of(Measured(Sizes(4000, 1000, 3, (100, 300, 900)), points, (0.1,) * 3, (5.0,) * 3, 200))
    assert profile.accuracy is None
    assert "fidelity alone" in profile.note


def test_a_slow_release_is_calibrated_with_fewer_rows() -> None:
    sizes = Sizes(20_000, 5000, 12, (100, 3000))
    assert sizes.affordable(10**9) is sizes
    less = sizes.affordable(30_000)
    assert less.rows < sizes.rows
    assert less.batch >= 3000
    assert less.repeats >= 3
    assert less.reference >= 4000
