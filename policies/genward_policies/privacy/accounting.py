"""What privacy costs: events as plain JSON, three accountants over them, and noise calibrated to a budget.

Neighbours differ by one unit more or less. Noise is calibrated by Renyi divergences, which never flatter; the epsilon
that is told is Opacus' PRV upper bound (Gopi et al. 2021, arXiv:2106.02848), confirmed by Google's privacy loss
distributions (`dp-accounting`), which share no code with it: they agree within 0.02 or there is no answer.

The exponential mechanism is accounted as a Gaussian that tells more. With quality of sensitivity D and weights
exp(epsilon q / 2D), its privacy loss lies in an interval [t - epsilon, t] (Dong, Durfee and Rogers 2020,
arXiv:1909.13830, "bounded range"). Every such pair of laws can be made from the two-point pair at the interval's ends
(q, p = q e^t), whose trade-off curve is two straight lines that meet at (q, 1 - p); a Gaussian mechanism of mean mu
has a convex curve, so it lies below both lines once it lies below that point: mu = Phi^-1(p) - Phi^-1(q), largest at
t = epsilon / 2. So an exponential mechanism is mu-GDP with mu = 2 Phi^-1(1 / (1 + exp(-epsilon / 2))), and adaptive
compositions of Gaussians and exponential mechanisms are no worse than Gaussians alone (Dong, Roth and Su 2019,
arXiv:1905.02383, theorem 3.2).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from genward.errors import CheckFailed, IntegrityError

Event = Mapping[str, Any]  # {"type": name of a dp_accounting event, ...its fields}
Parts = tuple[tuple[float, float, int], ...]  # (sampling probability, noise multiplier, times), sorted
NOTHING: Event = {"type": "NoOpDpEvent"}
AGREEMENT = 0.02  # how far PRV and PLD may be apart
_NORMAL = NormalDist()
_FINE, _COARSE = 1e-4, 1e-3  # grids of privacy loss distributions; each rounds up, the coarse one by less than 0.01
_LARGEST = 1e6  # noise multiplier


# events


def gaussian(sigma: float) -> Event:
    """Gaussian noise of `sigma` times the sensitivity."""
    return {"type": "GaussianDpEvent", "noise_multiplier": sigma}


def exponential(epsilon: float) -> Event:
    """A choice by the exponential mechanism."""
    return {"type": "ExponentialMechanism", "epsilon": epsilon}


def sampled(q: float, sigma: float, steps: int) -> Event:
    """So many steps of Gaussian noise over Poisson samples."""
    one: Event = {"type": "PoissonSampledDpEvent", "sampling_probability": q, "event": gaussian(sigma)}
    return {"type": "SelfComposedDpEvent", "count": steps, "event": one} if steps else NOTHING


def repeated(event: Event, times: int) -> Event:
    """The same event so many times."""
    return event if times == 1 else {"type": "SelfComposedDpEvent", "count": times, "event": event}


def together(events: Iterable[Event]) -> Event:
    """All of them, one after the other, each knowing what the ones before said."""
    listed = [event for event in events if event["type"] != "NoOpDpEvent"]
    return {"type": "ComposedDpEvent", "events": listed} if len(listed) > 1 else (listed or [NOTHING])[0]


def parts(event: Event) -> Parts:
    """Poisson-sampled Gaussians that tell at least what an event tells; unsampled ones are one.

    Raises IntegrityError for an event that no accountant here knows: what cannot be counted is not passed over.
    """
    counted: dict[tuple[float, float], int] = {}
    squares = 0.0
    for q, sigma, times in _walk(event, 1):
        if q == 1.0:
            squares += times / sigma**2
        else:
            counted[q, sigma] = counted.get((q, sigma), 0) + times
    found = [(q, sigma, times) for (q, sigma), times in counted.items()]
    return tuple(sorted(found + ([(1.0, squares**-0.5, 1)] if squares else [])))


def _walk(event: Event, times: int) -> Iterable[tuple[float, float, int]]:
    try:
        kind = event["type"]
        if kind == "NoOpDpEvent":
            return
        if kind == "ComposedDpEvent":
            for one in event["events"]:
                yield from _walk(one, times)
        elif kind == "SelfComposedDpEvent":
            yield from _walk(event["event"], times * _positive(event["count"], whole=True))
        elif kind == "GaussianDpEvent":
            yield 1.0, float(_positive(event["noise_multiplier"])), times
        elif kind == "ExponentialMechanism":
            yield 1.0, 1 / mu_of_choice(_positive(event["epsilon"])), times
        elif kind == "PoissonSampledDpEvent" and event["event"]["type"] == "GaussianDpEvent":
            q, sigma = _positive(event["sampling_probability"]), _positive(event["event"]["noise_multiplier"])
            yield min(float(q), 1.0), float(sigma), times
        else:
            raise IntegrityError(f"nobody can account for {kind!r}", where="ledger")
    except (KeyError, TypeError, AttributeError):
        raise IntegrityError("not an event of differential privacy", where="ledger") from None


def _positive(value: Any, whole: bool = False) -> Any:
    if isinstance(value, bool) or not 0 < value < math.inf or (whole and int(value) != value):
        raise IntegrityError(f"an event has {value!r} where a number above 0 belongs", where="ledger")
    return int(value) if whole else value


# Gaussians and choices in one currency: rho = mu^2 / 2


def mu_of_choice(epsilon: float) -> float:
    """The mean of the Gaussian mechanism that an exponential mechanism is no worse than; see the module."""
    return float(2 * _NORMAL.inv_cdf(1 / (1 + math.exp(-epsilon / 2))))


def choice_for(rho: float) -> float:
    """Epsilon of the exponential mechanism that costs `rho`."""
    from scipy.special import log_ndtr

    x = math.sqrt(rho / 2)
    return float(2 * (log_ndtr(x) - log_ndtr(-x)))


def sigma_for(rho: float) -> float:
    """Noise, in units of sensitivity, of a Gaussian that costs `rho`: rho = 1 / (2 sigma^2)."""
    return float((2 * rho) ** -0.5)


# accountants


def rdp(event: Event, delta: float) -> float:
    """Epsilon by Renyi divergences: quick and never too low."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    with _quiet():
        for q, sigma, times in parts(event):
            one = GaussianDpEvent(sigma)
            accountant.compose(one if q == 1.0 else PoissonSampledDpEvent(q, one), times)
        return float(accountant.get_epsilon(delta))


def prv(event: Event, delta: float) -> float:
    """Epsilon's upper bound by Opacus' PRV accountant."""
    return _prv(parts(event), delta) if parts(event) else 0.0


def pld(event: Event, delta: float) -> float:
    """Epsilon by Google's privacy loss distributions, rounded up."""
    return float(_pld(parts(event), _FINE).get_epsilon_for_delta(delta)) if parts(event) else 0.0


def total(event: Event, delta: float) -> float:
    """As `pld`, for what a data set has spent over many trainings: on a coarser grid, rounded up too."""
    return float(_pld(parts(event), _COARSE).get_epsilon_for_delta(delta)) if parts(event) else 0.0


def advantage(event: Event) -> float:
    """How much more often than a coin, out of 1, a perfect attacker is right who asks whether a unit was there: the
    total variation between the outputs with it and without, halved."""
    return float(_pld(parts(event), _FINE).get_delta_for_epsilon(0.0)) / 2 if parts(event) else 0.0


@lru_cache(256)
def _prv(listed: Parts, delta: float) -> float:
    import numpy as np
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(sigma, q, times) for q, sigma, times in listed]
    with _quiet(), np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # log(1 - q) at q = 1
        rough = float(accountant.get_epsilon(delta))
        return rough if rough > 0.5 else float(accountant.get_epsilon(delta, eps_error=0.002))


@lru_cache(256)
def _pld(listed: Parts, grid: float) -> Any:
    """The distribution of a composition; its beginnings are remembered, so that a ledger grows cheaply."""
    last = _one_pld(*listed[-1], grid)
    return _pld(listed[:-1], grid).compose(last) if len(listed) > 1 else last


@lru_cache(256)
def _one_pld(q: float, sigma: float, times: int, grid: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as distributions

    sampling = {} if q == 1.0 else {"sampling_prob": q}
    one = distributions.from_gaussian_mechanism(sigma, value_discretization_interval=grid, **sampling)
    return one if times == 1 else one.self_compose(times)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hints about orders that are of no use; what they leave out only makes epsilon larger."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Cost:
    """Epsilon of one event by two accountants that share no code."""

    prv: float
    pld: float

    @property
    def epsilon(self) -> float:
        """What is told: the larger one."""
        return max(self.prv, self.pld)

    @property
    def agree(self) -> bool:
        return abs(self.prv - self.pld) <= AGREEMENT


def cost(event: Event, delta: float) -> Cost:
    """Epsilon by both; the caller refuses when they do not agree."""
    return Cost(prv(event, delta), pld(event, delta))


# calibration


def noise_for(q: float, steps: int, epsilon: float, delta: float, aside: Event = NOTHING) -> float:
    """The least noise multiplier with which so many steps, and what is set aside, cost no more than epsilon.

    Raises CheckFailed when no noise does, or when the accountants do not agree about it.
    """

    def whole(sigma: float) -> Event:
        return together([sampled(q, sigma, steps), aside])

    sigma = _least(lambda s: rdp(whole(s), delta) <= epsilon)
    return _confirmed(sigma, whole, epsilon, delta)


def rho_for(epsilon: float, delta: float) -> float:
    """The largest rho of Gaussians that cost no more than epsilon, by the exact curve (Balle and Wang 2018,
    arXiv:1805.06530, theorem 8), a hair less so that both accountants agree to it."""
    sigma = _least(lambda s: _delta_of(epsilon, 1 / s) <= delta)
    return 0.5 / _confirmed(sigma, gaussian, epsilon, delta) ** 2


def _delta_of(epsilon: float, mu: float) -> float:
    """Delta of a Gaussian mechanism of mean mu at epsilon."""
    lower = _NORMAL.cdf(-epsilon / mu - mu / 2)
    return _NORMAL.cdf(-epsilon / mu + mu / 2) - (math.exp(min(epsilon, 700.0)) * lower if lower else 0.0)


def _least(enough: Callable[[float], bool]) -> float:
    """The least noise, to one part in 10,000, that is enough."""
    low, high = 0.05, 0.1
    while not enough(high):
        low, high = high, high * 2
        if high > _LARGEST:
            raise CheckFailed(
                "no noise is large enough for so small an epsilon", remedy="raise privacy.epsilon, or train fewer steps"
            )
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _confirmed(sigma: float, event: Callable[[float], Event], epsilon: float, delta: float) -> float:
    """At least `sigma`, with a little more noise until both accountants stay below epsilon."""
    for _ in range(60):
        found = cost(event(sigma), delta)
        if not found.agree:
            break
        if found.epsilon <= epsilon:
            return sigma
        sigma *= 1.0 + max(0.0005, 0.5 * (found.epsilon / epsilon - 1))
    raise CheckFailed(
        f"two accountants do not agree: {found.prv:.4f} (PRV) and {found.pld:.4f} (PLD)",
        remedy="choose another epsilon, or fewer steps",
    )
