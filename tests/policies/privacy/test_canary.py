"""Canaries: the bounds are right, correct mechanisms are not accused, each broken one is caught."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from genward.errors import GenwardError, UsageError
from genward.family import NoiseSpec, Objective, Optimiser, Record
from genward_policies.privacy import canary, engine
from genward_policies.privacy.accounting import noise_for
from genward_policies.privacy.canary import CanaryAudit, audit, gaussian_epsilon
from genward_policies.privacy.randomness import Randomness
from genward_policies.privacy.turn import Constants, PrivateTurn

DELTA, CLAIMED = 1e-5, 3.0
Scores = tuple[NDArray[np.bool_], NDArray[np.float64]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: a second thread waits more than it works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# the mathematics


def simulated(mu: float, m: int, seed: int) -> Scores:
    """Scores of a mechanism that is exactly mu-Gaussian."""
    draws = np.random.default_rng(seed)
    inserted = draws.random(m) < 0.5
    return inserted, draws.normal(size=m) + mu * inserted


def test_guesses_that_are_all_right_give_the_bound_in_closed_form() -> None:
    """With m guesses right of m and delta 0: epsilon = logit(error^(1/m)), here for eight numbers of guesses."""
    m = 1000
    inserted = np.arange(m) % 2 == 0
    found = audit(inserted, inserted.astype(float), 1e-300)
    accuracy = (0.05 / 8) ** (1 / 800)
    assert found.one_run == pytest.approx(math.log(accuracy / (1 - accuracy)), rel=2e-3)
    assert found.estimate == math.inf


@pytest.mark.parametrize(
    ("m", "guesses", "right", "one_run", "gdp"),
    [(2000, 200, 180, 1.7936769, 2.6577891), (2000, 700, 500, 0.7753461, 1.2548162),
     (2000, 100, 100, 3.4376452, 5.0957642), (4000, 400, 371, 2.2176693, 3.2230759)],
)  # fmt: skip
def test_bounds_equal_another_implementation(m: int, guesses: int, right: int, one_run: float, gdp: float) -> None:
    """Golden values of jax-privacy 2.0.0 (`_epsilon_one_run`, `_epsilon_one_run_fdp`) at 95 % and delta 1e-5."""
    given = (m, guesses, right)
    assert canary._largest(partial(canary._unlikely, *given, DELTA, 0.05)) == pytest.approx(one_run, abs=4e-3)
    mu = canary._largest(partial(canary._impossible, *given, 0.05), 40.0)
    assert gaussian_epsilon(mu, DELTA) == pytest.approx(gdp, abs=8e-3)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
def test_a_gaussian_mechanism_is_never_accused_of_more_than_it_does(epsilon: float) -> None:
    """Both are lower bounds at 95 %; Bonferroni makes a miss rarer still."""
    mu = _mu(epsilon)
    found = [audit(*simulated(mu, 1000, seed), DELTA) for seed in range(12)]
    assert sum(one.accuses(epsilon) for one in found) <= 1
    assert np.mean([one.estimate for one in found]) == pytest.approx(epsilon, rel=0.15)
    assert epsilon < 3 or np.mean([one.gdp for one in found]) > 0.3 * epsilon


def _mu(epsilon: float) -> float:
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, DELTA) < epsilon else (low, middle)
    return low


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 4.0, 30.0])
def test_epsilon_of_a_gaussian_against_numerical_integration(mu: float) -> None:
    epsilon = gaussian_epsilon(mu, DELTA)
    x = np.linspace(-12, mu + 12, 2_000_001)
    excess = np.clip(stats.norm.pdf(x, mu) - np.exp(epsilon + stats.norm.logpdf(x)), 0, None)
    assert float(excess.sum() * (x[1] - x[0])) == pytest.approx(DELTA, rel=1e-3)
    assert gaussian_epsilon(0.0, DELTA) == 0.0


def test_scores_that_tell_nothing_prove_nothing() -> None:
    draws = np.random.default_rng(5)
    found = audit(draws.random(2000) < 0.5, draws.normal(size=2000), DELTA)
    assert found.one_run < 0.2
    assert found.gdp < 0.3
    assert audit(np.arange(400) % 2 == 0, np.zeros(400), DELTA).estimate == 0.0
    assert CanaryAudit(math.nan, 0.0, 0.0, 10).accuses(3.0), "what cannot be compared is no acquittal"


@pytest.mark.parametrize(
    ("inserted", "scores", "delta", "confidence"),
    [([True] * 50, [0.0] * 50, DELTA, 0.95), ([True, False] * 50, [0.0] * 99, DELTA, 0.95),
     ([True, False] * 50, [math.nan] * 100, DELTA, 0.95), ([True, False] * 50, [0.0] * 100, 0.0, 0.95),
     ([True, False] * 50, [0.0] * 100, DELTA, 1.0), ([], [], DELTA, 0.95)],
)  # fmt: skip
def test_what_is_no_audit_is_refused(inserted: Any, scores: Any, delta: float, confidence: float) -> None:
    with pytest.raises(UsageError):
        audit(np.array(inserted, dtype=bool), np.array(scores), delta, confidence)


# real runs, whole and broken


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 4))


class Fit(Objective):
    noise: Sequence[NoiseSpec] = (NoiseSpec("e", (4,)),)
    optimiser = Optimiser(lr=0.01)

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        body = network.get_submodule("body")
        found: Tensor = (body(record["x"] + 0.1 * noise["e"]) - record["x"]).square().sum(dim=1)
        return found


ROWS, Q, STEPS = 1000, 0.05, 200


class Scaled(Randomness):
    """Noise of another size, which may shrink as training goes on."""

    def __init__(self, factor: float, decay: float = 1.0) -> None:
        super().__init__()
        self.factor, self.decay = factor, decay

    def normal(self, shape: int | Sequence[int] = ()) -> NDArray[np.float64]:
        self.factor *= self.decay
        return self.factor * super().normal(shape)


class Thrice(Randomness):
    """Each record of a batch three times."""

    def poisson_batch(self, n: int, q: float) -> NDArray[np.int64]:
        return np.repeat(super().poisson_batch(n, q), 3)


class Seeded(Randomness):
    """Randomness from a key that somebody wrote into a manifest."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        super().__init__()

    def _stream(self) -> CipherContext:
        return Cipher(algorithms.AES(self.key), modes.CTR(self.key)).encryptor()


@dataclass(frozen=True)
class Ran:
    turn: PrivateTurn
    audit: CanaryAudit

    @property
    def caught_by(self) -> set[str]:
        found = {"audit"} if self.audit.accuses(CLAIMED) else set()
        return found | (set() if self.turn.telemetry.sound else {"telemetry"})


def ride(randomness: Randomness, sabotage: Callable[[], None] = lambda: None) -> Ran:
    """A whole private training on real code, accounted for `STEPS` steps, and its audit."""
    constants = Constants(noise_for(Q, STEPS, CLAIMED, DELTA), 0.8, Q, ROWS * Q, STEPS)
    records = {"x": torch.from_numpy(np.random.default_rng(1).normal(size=(ROWS, 4)).astype(np.float32))}
    turn = PrivateTurn(Net(), Fit(), records, constants, randomness, "cpu", lambda taken: None, "ghost")
    sabotage()
    for step in range(STEPS):
        turn.take(step, STEPS)
    return Ran(turn, audit(*turn.scores, DELTA))


def unclipped(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """No clipping: a canary's gradient is a thousand times C."""
    return ride(Randomness(), lambda: monkeypatch.setattr(engine, "shares", lambda norms, clip: torch.ones_like(norms)))


def scheduled(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """A scheduler lowers the C of the noise, and the C of clipping stays: Opacus' ghost with ExponentialGradClip."""
    return ride(Scaled(1.0, 0.99))


def raised(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """A scheduler raises the C of clipping, and the noise stays."""
    honest, calls = engine.shares, [0]

    def shares(norms: Tensor, clip: float) -> Tensor:
        calls[0] += 1
        return honest(norms, clip * 1.005 ** calls[0])

    return ride(Randomness(), lambda: monkeypatch.setattr(engine, "shares", shares))


def known(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Whoever knows the seed draws the noise again and takes it off the scores."""
    key = Randomness().uniform((2,)).tobytes()
    heard: list[Tensor] = []
    honest = canary.Canaries.hear
    monkeypatch.setattr(canary.Canaries, "hear", lambda self, got: (heard.append(got.double()), honest(self, got))[1])
    ran, twin = ride(Seeded(key)), Seeded(key)
    inserted, _ = ran.turn.scores
    assert np.array_equal(twin.coins(len(inserted)), inserted)
    width, constants, found = ran.turn.telemetry.width, ran.turn._constants, np.zeros(len(inserted))
    for got in heard:
        twin.poisson_batch(ROWS + int(inserted.sum()), Q)
        noise = twin.normal((width,))[-len(inserted) :]
        found += got.numpy() - constants.sigma * constants.clip * noise
    return Ran(ran.turn, audit(inserted, found, DELTA))


BROKEN: Mapping[str, tuple[Callable[[pytest.MonkeyPatch], Ran], set[str]]] = {
    "no noise": (lambda patch: ride(Scaled(0.0)), {"audit", "telemetry"}),
    "noise / 5": (lambda patch: ride(Scaled(0.2)), {"audit", "telemetry"}),
    "noise / 2": (lambda patch: ride(Scaled(0.5)), {"telemetry"}),
    "no clipping": (unclipped, {"audit"}),
    "records three times": (lambda patch: ride(Thrice()), {"audit"}),
    "noise scheduled": (scheduled, {"telemetry"}),
    "clipping scheduled": (raised, {"audit"}),
    "seed known": (known, {"audit"}),
}


def test_a_correct_training_is_not_accused_and_the_audit_says_something() -> None:
    began = time.process_time()
    ran = ride(Randomness())
    assert time.process_time() - began < 20
    assert not ran.caught_by
    assert ran.turn.engine == "ghost"
    assert ran.audit.m == 2000
    assert 0.2 < ran.audit.one_run < CLAIMED
    assert ran.audit.one_run < ran.audit.gdp < CLAIMED
    assert ran.audit.estimate == pytest.approx(CLAIMED, rel=0.45)


@pytest.mark.parametrize("repeat", range(2))
@pytest.mark.parametrize("name", BROKEN)
def test_a_mechanism_broken_on_purpose_is_caught(name: str, repeat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what must see it, at least."""
    run, by = BROKEN[name]
    assert by <= run(monkeypatch).caught_by


@pytest.mark.soak
@pytest.mark.parametrize("name", ["correct", *BROKEN])
def test_twenty_of_each(name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[..., None]) -> None:
    """A correct run is never accused in twenty, a broken one is caught in nineteen at least."""
    found = []
    for _ in range(20):
        with monkeypatch.context() as patch:
            found.append(BROKEN[name][0](patch) if name in BROKEN else ride(Randomness()))
    caught = sum(bool(ran.caught_by) for ran in found)
    record_property("caught", caught)
    mean = {
        part: float(np.mean([getattr(ran.audit, part) for ran in found])) for part in ("one_run", "gdp", "estimate")
    }
    noise = float(np.mean([ran.turn.telemetry.mean for ran in found]))
    by = {part: sum(part in ran.caught_by for ran in found) for part in ("audit", "telemetry")}
    print(f"{name:22} caught {caught:2} of 20 {by}, mean {mean}, noise {noise:.4f}")
    assert caught == 0 if name == "correct" else caught >= 19


def test_canaries_go_on_after_a_checkpoint() -> None:
    """Coins and scores are in the checkpoint, so that the audit of a resumed run covers all of it."""
    constants = Constants(1.0, 0.8, 0.2, 40, 20, 300)
    records = {"x": torch.zeros(200, 4)}

    def begun() -> PrivateTurn:
        return PrivateTurn(Net(), Fit(), records, constants, Randomness(), "cpu", lambda taken: None)

    first, second = begun(), begun()
    for step in range(10):
        first.take(step, 20)
    second.load_state_dict(first.state_dict())
    assert np.array_equal(first.scores[0], second.scores[0])
    heard = second.scores[1].copy()
    second.take(10, 20)
    assert not np.array_equal(heard, second.scores[1])
    assert np.array_equal(heard, first.scores[1]), "a checkpoint is a copy"


def test_too_few_canaries_end_in_an_error_of_ours() -> None:
    with pytest.raises(GenwardError, match="too few"):
        audit(np.array([True]), np.array([1.0]), DELTA)
