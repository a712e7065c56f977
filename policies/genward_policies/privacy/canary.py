"""Canaries that ride along in a private training, and what they prove about it.

A canary is a record whose loss is L theta_j, theta_j a parameter of its own: its clipped gradient is C in one place.
Half of them, by fair coins, are among the records; sampler, clipping and noise are the run's own. A canary's score is
the likelihood ratio of "in" to "out" of what the optimiser got for theta_j, step by step; were sigma, C or q not what
they are claimed to be, it would still be a score. Who can tell from scores which were in bounds epsilon from below.

An audit refutes, it never proves: it sees sampler, clipping, noise and step count, not the module (the conformance test
does) and not whether batches are drawn independently (they are by construction).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special, stats
from torch import Tensor, nn

from genward.errors import UsageError
from genward.family import NoiseSpec, Objective, Record
from genward_policies.privacy.engine import Ghost, Name, Vmap
from genward_policies.privacy.randomness import Randomness

_LOUD = 1e3  # gradient norm of a canary, over C: clipping is what tames it
_SHARES = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.8)  # of canaries that are guessed; each pays for its look
_MOST = 200.0  # epsilon beyond which nobody asks
_FEWEST = 2


class _Scalars(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.theta = nn.Embedding(count, 1)
        nn.init.zeros_(self.theta.weight)


class _Dirac(Objective):
    """loss of canary j = L theta_j."""

    noise: Sequence[NoiseSpec] = ()

    def __init__(self, loudness: float) -> None:
        self.loudness = loudness

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        scalars: Any = network
        found: Tensor = self.loudness * scalars.theta(record["j"])[:, 0]
        return found


class Canaries:
    """`count` canaries; those that the coins put in are `among` the records of a run."""

    def __init__(
        self,
        count: int,
        sigma: float,
        clip: float,
        q: float,
        engine: Name,
        randomness: Randomness,
        device: torch.device,
    ) -> None:
        self._count, self._sigma, self._clip, self._device = count, sigma, clip, device
        self._odds = (math.log1p(-q) if q < 1 else -math.inf, math.log(q))  # of being left out, of being in a batch
        self.inserted: NDArray[np.bool_] = randomness.coins(count)
        self.scores: NDArray[np.float64] = np.zeros(count)
        if count:
            scalars = _Scalars(count).to(device)
            self._engine = (Ghost if engine == "ghost" else Vmap)(scalars, _Dirac(_LOUD * clip))

    def __len__(self) -> int:
        return self._count

    @property
    def among(self) -> int:
        """How many are among the records."""
        return int(self.inserted.sum())

    def clipped(self, which: NDArray[np.int64]) -> Tensor:
        """Sum of clipped gradients, (count,), of the canaries in a batch: `which` counts those that are in."""
        if not len(which):
            return torch.zeros(self._count, device=self._device)
        j = torch.from_numpy(np.flatnonzero(self.inserted)[which]).to(self._device)
        return self._engine.clipped({"j": j}, {}, 0.0, self._clip)

    def hear(self, released: Tensor) -> None:
        """Add to each score what the noised sum for its theta, (count,), says: a canary that is in is in a batch with
        probability q, and then its sum is C larger."""
        heard = released.double().cpu().numpy() / self._clip
        self.scores += np.logaddexp(self._odds[0], self._odds[1] + (heard - 0.5) / self._sigma**2)

    def state_dict(self) -> dict[str, Any]:
        """Coins and scores so far; neither tells of a record."""
        return {"inserted": torch.from_numpy(self.inserted.copy()), "scores": torch.from_numpy(self.scores.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the coins and scores of a checkpoint."""
        self.inserted, self.scores = state["inserted"].numpy().copy(), state["scores"].numpy().copy()


@dataclass(frozen=True, slots=True)
class CanaryAudit:
    """What canaries prove at `confidence`: lower bounds of epsilon at the delta asked, and an estimate.

    one_run: holds whatever the mechanism is. gdp: holds for mechanisms with a Gaussian trade-off curve, which many
    steps together have; tighter. estimate: what epsilon looks like, no bound. m: canaries, in and out.
    """

    one_run: float
    gdp: float
    estimate: float
    m: int
    confidence: float = 0.95

    def accuses(self, epsilon: float) -> bool:
        """Whether a claimed epsilon is refuted."""
        return not (self.one_run <= epsilon and self.gdp <= epsilon)


def audit(
    inserted: NDArray[np.bool_], scores: NDArray[np.float64], delta: float, confidence: float = 0.95
) -> CanaryAudit:
    """Audit one run.

    Args:
        inserted: which canaries were among the records, (m,).
        scores: larger where a canary was in, (m,).
        delta: of the claim.

    The largest scores are guessed in, the smallest out, at several numbers of guesses, each at a share of the error
    allowed (Bonferroni). Raises UsageError for scores that are no audit.
    """
    inserted, scores = np.asarray(inserted, dtype=bool), np.asarray(scores, dtype=np.float64)
    _check(inserted, scores, delta, confidence)
    m, error = len(scores), 1.0 - confidence
    guesses = [_guessed(inserted, scores, max(2, 2 * round(share * m / 2))) for share in _SHARES]
    one_run = max(_largest(partial(_unlikely, m, *g, delta, error / len(_SHARES))) for g in guesses)
    each = error / (len(_SHARES) + 2)
    mu = max(_largest(partial(_impossible, m, *g, each), 40.0) for g in guesses)
    for chosen_on in (0, 1):
        mu = max(mu, _parted(inserted, scores, chosen_on, each))
    return CanaryAudit(one_run, gaussian_epsilon(mu, delta), _estimate(inserted, scores, delta), m, confidence)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at delta of a mu-Gaussian mechanism (Dong, Roth, Su 2022, arXiv:1905.02383, corollary 2.13)."""
    if mu <= 0:
        return 0.0

    def excess(epsilon: float) -> float:
        one = stats.norm.logcdf(-epsilon / mu + mu / 2)
        two = epsilon + stats.norm.logcdf(-epsilon / mu - mu / 2)
        return float(np.exp(one) - np.exp(two)) - delta

    most = mu * mu / 2 + mu * 40.0
    return float(optimize.brentq(excess, 0.0, most)) if excess(0.0) > 0 else 0.0


def _guessed(inserted: NDArray[np.bool_], scores: NDArray[np.float64], guesses: int) -> tuple[int, int]:
    """(guesses, right ones): half of them the largest scores as in, half the smallest as out."""
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return 2 * half, int(inserted[order[-half:]].sum() + (~inserted[order[:half]]).sum())


def _unlikely(m: int, guesses: int, right: int, delta: float, error: float, epsilon: float) -> bool:
    """Whether so many right guesses are less likely than `error` for every (epsilon, delta)-DP mechanism.

    Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run", arXiv:2305.08846, theorem 5.2.
    """
    luck = stats.binom(guesses, 1.0 / (1.0 + math.exp(-epsilon)))
    beta = float(luck.sf(right - 1))
    i = np.arange(1, right + 1)
    alpha = float(np.max((luck.sf(right - i - 1) - beta) / i, initial=0.0))
    return beta + 2.0 * m * delta * alpha <= error


def _impossible(m: int, guesses: int, right: int, error: float, mu: float) -> bool:
    """Whether so many right guesses are less likely than `error` for every mechanism with a mu-Gaussian trade-off.

    Mahloujifar, Melis, Chaudhuri 2024, "Auditing f-differential privacy in one run", arXiv:2410.22235, algorithm 3.
    """
    r, h = error * right / m, error * (guesses - right) / m
    for i in range(right - 1, -1, -1):
        grown = max(h, _normal_cdf(_normal_quantile(r) - mu))
        if grown == h:
            break
        r, h = min(1.0, r + i / (guesses - i) * (grown - h)), grown
    return r + h > guesses / m


def _parted(inserted: NDArray[np.bool_], scores: NDArray[np.float64], chosen_on: int, error: float) -> float:
    """Lower bound of mu from one threshold: chosen on every second canary, tried on the others (Nasr et al. 2023,
    arXiv:2302.07956). Needs scores that are independent of each other, as those of canaries with a theta each are."""
    half = np.arange(len(scores)) % 2 == chosen_on
    cuts = np.unique(np.quantile(scores[half], np.linspace(0.02, 0.98, 49)))
    if not all(part.any() for side in (half, ~half) for part in (inserted[side], ~inserted[side])):
        return 0.0
    found = [_apart(inserted[half], scores[half], cut, error) for cut in cuts]
    return _apart(inserted[~half], scores[~half], float(cuts[int(np.argmax(found))]), error)


def _apart(inserted: NDArray[np.bool_], scores: NDArray[np.float64], cut: float, error: float) -> float:
    """Lower bound of mu by a threshold: both rates of errors at most their Clopper-Pearson bounds."""
    missed = _rate_at_most(int((scores[inserted] < cut).sum()), int(inserted.sum()), error / 2)
    false = _rate_at_most(int((scores[~inserted] >= cut).sum()), int((~inserted).sum()), error / 2)
    return -float(special.ndtri(missed)) - float(special.ndtri(false))


def _rate_at_most(events: int, trials: int, error: float) -> float:
    return 1.0 if events >= trials else float(special.betaincinv(events + 1, trials - events, 1.0 - error))


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def _normal_quantile(p: float) -> float:
    return float(special.ndtri(p))


def _largest(refuted: Callable[[float], bool], most: float = _MOST) -> float:
    """The largest value that is refuted, 0 where none is; what refutes a value refutes every smaller one."""
    low, high = 0.0, 0.25
    if not refuted(low):
        return 0.0
    while refuted(high):
        low, high = high, 2.0 * high
        if high > most:
            return low
    while high - low > 1e-3 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _estimate(inserted: NDArray[np.bool_], scores: NDArray[np.float64], delta: float) -> float:
    """Epsilon of the Gaussian mechanism that scores look like (after Andrew et al. 2023, arXiv:2302.03098)."""
    there, away = scores[inserted], scores[~inserted]
    spread = math.sqrt((there.var(ddof=1) + away.var(ddof=1)) / 2)
    apart = abs(float(there.mean() - away.mean()))
    if spread == 0:
        return math.inf if apart else 0.0
    mu = apart / spread
    return gaussian_epsilon(mu, delta)


def _check(inserted: NDArray[np.bool_], scores: NDArray[np.float64], delta: float, confidence: float) -> None:
    if inserted.shape != scores.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise UsageError("an audit needs a finite score for each canary")
    if min(inserted.sum(), (~inserted).sum()) < _FEWEST:
        raise UsageError(f"{len(scores)} canaries are too few for an audit", remedy="let 100 or more ride along")
    if not (0 < delta < 1 and 0 < confidence < 1):
        raise UsageError(f"delta {delta}, confidence {confidence}", remedy="give both between 0 and 1")
