"""Accounting: against published values, against the mechanisms themselves, and never below the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from genward.errors import CheckFailed, IntegrityError
from genward_policies.privacy import accounting as a

DELTA = 1e-5


@pytest.mark.parametrize(
    ("sigma", "q", "steps", "delta", "expected"),
    [(1.0, 0.01, 1000, 1e-5, 1.83), (5.0, 0.05, 2000, 1e-5, 1.80), (0.8, 0.004, 2000, 1e-6, None)],
)
def test_prv_and_pld_agree_and_rdp_is_never_below_them(
    sigma: float, q: float, steps: int, delta: float, expected: float | None
) -> None:
    event = a.sampled(q, sigma, steps)
    cost = a.cost(event, delta)
    assert cost.agree
    assert a.rdp(event, delta) >= cost.pld
    if expected is not None:
        assert cost.prv == pytest.approx(expected, abs=0.02)
    assert cost.pld <= a.total(event, delta) + 1e-9 <= cost.pld + 0.02 + 1e-9


def test_the_coarse_total_is_above_the_fine_one_for_several_runs_and_below_their_sum() -> None:
    events = [a.sampled(0.01, 1 + i / 100, 300) for i in range(6)]
    total = a.total(a.together(events), DELTA)
    assert 0 <= total - a.pld(a.together(events), DELTA) < 0.02
    assert total < 0.75 * sum(a.pld(event, DELTA) for event in events)


@pytest.mark.parametrize(("q", "steps", "epsilon"), [(0.05, 300, 3.0), (0.25, 40, 1.0), (1.0, 5, 0.5)])
def test_noise_is_calibrated_so_that_no_accountant_is_above_epsilon(q: float, steps: int, epsilon: float) -> None:
    aside = a.gaussian(a.sigma_for(0.05 * a.rho_for(epsilon, DELTA)))
    sigma = a.noise_for(q, steps, epsilon, DELTA, aside)
    spent = a.together([a.sampled(q, sigma, steps), aside])
    cost = a.cost(spent, DELTA)
    assert cost.agree
    assert cost.epsilon <= epsilon
    assert a.rdp(spent, DELTA) <= epsilon
    assert a.rdp(a.together([a.sampled(q, sigma * 0.99, steps), aside]), DELTA) > epsilon * 0.999


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 8.0])
def test_rho_of_a_budget_is_used_up_but_never_passed(epsilon: float) -> None:
    cost = a.cost(a.gaussian(a.sigma_for(a.rho_for(epsilon, DELTA))), DELTA)
    assert 0.97 * epsilon - 0.002 <= cost.pld <= cost.epsilon <= epsilon


def test_no_noise_is_enough_for_next_to_no_epsilon() -> None:
    with pytest.raises(CheckFailed, match="no noise is large enough"):
        a.noise_for(1.0, 10**9, 1e-7, 1e-12)


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 1.0, 3.0, 10.0])
def test_an_exponential_mechanism_costs_at_least_what_it_tells(epsilon: float) -> None:
    """Of every two-point pair of bounded range, and of exponential mechanisms themselves: the Gaussian's delta is never
    below theirs, at any epsilon."""
    mu = a.mu_of_choice(epsilon)
    for t in np.linspace(0, epsilon, 41):
        q = (math.exp(-t) - math.exp(-epsilon)) / (1 - math.exp(-epsilon))
        _below_gaussian(np.array([q * math.exp(t), 1 - q * math.exp(t)]), np.array([q, 1 - q]), mu)
    rng = np.random.default_rng(1)
    for _ in range(30):
        quality = rng.normal(size=6) * 3
        near = quality + rng.uniform(-1, 1, size=6)  # a unit moves each quality by at most 1
        p, other = (np.exp(epsilon * x / 2) / np.exp(epsilon * x / 2).sum() for x in (quality, near))
        _below_gaussian(p, other, mu)


def _below_gaussian(p: np.ndarray, q: np.ndarray, mu: float) -> None:
    for e in np.linspace(-4, 4, 33):
        told = np.maximum(p - math.exp(e) * q, 0).sum()
        assert told <= a._delta_of(e, mu) + 1e-9


def test_rho_and_choices_convert_into_each_other_and_imply_zcdp() -> None:
    for epsilon in (0.05, 0.5, 2.0):
        rho = a.mu_of_choice(epsilon) ** 2 / 2
        assert a.choice_for(rho) == pytest.approx(epsilon)
        assert rho >= epsilon**2 / 8  # what an exponential mechanism costs in zCDP
    assert a.choice_for(1e5) > a.choice_for(1e3) > 0
    assert a.sigma_for(0.5) == 1.0


def test_events_compose_to_the_same_however_they_are_nested() -> None:
    flat = a.together([a.gaussian(2.0), a.gaussian(2.0), a.sampled(0.1, 1.5, 10), a.NOTHING])
    nested = a.together(
        [
            {"type": "SelfComposedDpEvent", "count": 2, "event": a.gaussian(2.0)},
            {"type": "SelfComposedDpEvent", "count": 2, "event": a.sampled(0.1, 1.5, 5)},
        ]
    )
    assert a.parts(flat) == a.parts(nested) == ((0.1, 1.5, 10), (1.0, pytest.approx(2 / math.sqrt(2)), 1))
    assert a.pld(a.NOTHING, DELTA) == a.prv(a.NOTHING, DELTA) == a.advantage(a.NOTHING) == 0.0
    assert a.total(a.together([]), DELTA) == 0.0


@pytest.mark.parametrize(
    "event",
    [
        {"type": "UnsupportedDpEvent"},
        {"type": "GaussianDpEvent", "noise_multiplier": 0},
        {"type": "GaussianDpEvent"},
        {"type": "SelfComposedDpEvent", "count": 1.5, "event": a.gaussian(1.0)},
        {"type": "PoissonSampledDpEvent", "sampling_probability": -1, "event": a.gaussian(1.0)},
        {"type": "PoissonSampledDpEvent", "sampling_probability": 0.5, "event": a.exponential(1.0)},
        {"type": "ExponentialMechanism", "epsilon": math.nan},
        {},
        [],
    ],
)
def test_an_event_that_cannot_be_counted_is_refused(event: object) -> None:
    with pytest.raises(IntegrityError):
        a.parts(event)  # type: ignore[arg-type]


def test_the_advantage_is_what_a_gaussian_test_has() -> None:
    from statistics import NormalDist

    assert a.advantage(a.gaussian(2.0)) == pytest.approx(NormalDist().cdf(0.25) - 0.5, abs=1e-4)
