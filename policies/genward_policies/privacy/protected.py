"""A training under differential privacy, from its plan to its evidence.

plan (public constants, noise calibrated) -> conformance -> reserve -> train -> commit -> audit -> evidence

Data is touched after the reservation only: the plan knows the rounded number of rows and no row, conformance and pace
are tried on random records. A run that is resumed draws new noise under a new reservation, and what the one before had
counted ahead stays charged.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from genward.data.codec import TableCodec
from genward.errors import CheckFailed, Conflict, IntegrityError
from genward.family import Mechanism, Protected, Training, Turn
from genward_policies.privacy import accounting as a
from genward_policies.privacy import evidence
from genward_policies.privacy.canary import CanaryAudit, audit
from genward_policies.privacy.config import PrivacyConfig
from genward_policies.privacy.conformance import Conformance, check, check_phase
from genward_policies.privacy.ledger import Ledger, Spending
from genward_policies.privacy.mechanism import PrivateMechanism, noisy_marginals
from genward_policies.privacy.pace import seconds_for_a_step
from genward_policies.privacy.randomness import Randomness
from genward_policies.privacy.turn import Constants, PrivateTurn, Telemetry

MARGINALS = "public_marginals.json"
BLOCK = 50  # steps that are counted ahead at once
_SHARES = 20  # of a mechanism's budget, counted ahead at once
_MOST_SAMPLED, _BATCH, _SMALLEST = 0.05, 1024, 16  # share of the rows in a batch, and the batch that is large enough
_KEPT = 0.95  # share of a time budget that is planned for
_log = logging.getLogger("genward.privacy")


@dataclass(frozen=True)
class Plan:
    """What is fixed, and public, before the first step. `private` counts steps that read data, by phase."""

    sigma: float
    clip: float
    q: float
    batch: int
    canaries: int
    steps: tuple[int, ...]
    private: tuple[int, ...]
    rho: float  # for noisy marginals, by which a release is judged

    def event(self, steps: int | None = None, marginals: bool = True) -> a.Event:
        """What so many private steps cost, all of them unless told."""
        taken = a.sampled(self.q, self.sigma, sum(self.private) if steps is None else steps)
        return a.together([taken, a.gaussian(a.sigma_for(self.rho)) if marginals and self.rho else a.NOTHING])

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> Plan:
        lists = {name: tuple(stated[name]) for name in ("steps", "private")}
        return cls(**{**stated, **lists})


def protect(training: Training, config: PrivacyConfig, ledger: Ledger) -> Protected:
    """Take a training over, or refuse it: nothing of the data has been touched when this raises."""
    _require_nothing_estimated(training)
    if training.family.bins(training.config):
        return Counted(training, config, ledger)
    _require_private_phases(training)
    return Stepped(training, config, ledger)


class _Protected(ABC):
    """What trainings by steps and by counts share: a reservation, and evidence in the end."""

    def __init__(self, training: Training, config: PrivacyConfig, ledger: Ledger) -> None:
        self.training, self.config, self.ledger = training, config, ledger
        self.randomness = Randomness()
        self.warnings: list[str] = []
        self.spending: Spending

    def _reserve(self, event: a.Event, claim: a.Event, **about: Any) -> Spending:
        t, c = self.training, self.config
        stated = {"claim": claim, "epsilon": c.epsilon, "delta": c.delta, "unit": c.unit, "rows": t.rows, **about}
        return self.ledger.reserve(t.run, t.dataset, t.lineage, event, c.budget.dataset, c.delta, stated)

    def _settle_earlier(self) -> list[Spending]:
        """What this run was charged with before it was resumed, all of it closed."""
        found = self.ledger.of_run(self.training.run)
        for spending in found:
            if spending.state == "reserved" and self.ledger.belongs_to_another(spending):
                remedy = "wait for it, or end it"
                raise Conflict("the training is running in another process", where=self.training.run, remedy=remedy)
        return [self.ledger.forfeit(s) if s.state == "reserved" else s for s in found]

    def _publish_marginals(self, rho: float) -> None:
        """Noisy one-way marginals of the records trained on; whoever judges the release compares with these."""
        if not rho:
            return
        codec = TableCodec.from_json((self.training.folder / "codec.json").read_bytes())
        x = self.training.records["x"]
        found = noisy_marginals(self.training.spec, codec, x, rho, self.randomness)
        evidence.write(self.training.folder / MARGINALS, found)

    def steps(self, phase: int) -> int:
        return 0

    def turn(self, phase: int, objective: int) -> Turn:
        raise CheckFailed(f"{self.training.family.name} trains by counts", remedy="it has no turns")

    def mechanism(self) -> Mechanism:
        raise CheckFailed(f"{self.training.family.name} trains by steps", remedy="it has no mechanism")

    @abstractmethod
    def finish(self) -> None:
        """Commit, and write what a release must tell."""


class Stepped(_Protected):
    """A family that trains by gradients."""

    def __init__(self, training: Training, config: PrivacyConfig, ledger: Ledger) -> None:
        super().__init__(training, config, ledger)
        if training.rows < config.min_n:
            self.warnings.append(
                f"{training.family.name} on about {training.rows} rows: below {config.min_n} a private deep model has "
                "learnt little in every experiment; `marginals` is made for so few rows"
            )
            _log.warning(self.warnings[-1])
        earlier = self._settle_earlier() if training.resumed else []
        self.conformance = self._conformance()
        self.plan = Plan.read(earlier[0].about["plan"]) if earlier else plan(training, config)
        self.before = self._before(earlier)
        self.left = sum(self.plan.private) - self.before
        claim, stated = self.plan.event(), asdict(self.plan)
        self.spending = self._reserve(self.plan.event(self.left), claim, kind="steps", plan=stated)
        self.taken, self.counted = 0, 0
        self.turns: list[PrivateTurn] = []

    @cached_property
    def _records(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(part).to(self.training.device) for name, part in self.training.records.items()}

    def steps(self, phase: int) -> int:
        return self.plan.steps[phase]

    def turn(self, phase: int, objective: int) -> Turn:
        p, found = self.plan, self.training.phases[phase].objectives[objective]
        constants = Constants(p.sigma, p.clip, p.q, p.batch, p.steps[phase] * found.repeats, p.canaries)
        given = (self.training.network, found, self._records, constants, self.randomness, self.training.device)
        self.turns.append(PrivateTurn(*given, self._ahead))
        return self.turns[-1]

    def _ahead(self, taken: int) -> None:
        """Ahead of each step: count it in the ledger, in blocks; refuse one that was not reserved."""
        if self.taken >= self.left:
            raise CheckFailed("every step that was reserved is taken", where=self.training.run, remedy="train anew")
        self.taken += 1
        if self.taken > self.counted:
            self.counted = min(self.counted + BLOCK, self.left)
            self.ledger.ahead(self.spending, self.plan.event(self.counted, marginals=False))

    def _before(self, earlier: list[Spending]) -> int:
        """Private steps that the checkpoint stands on; they are this run's, and were counted."""
        phase, step = _reached(self.training) if self.training.resumed else (0, 0)
        here = self.plan.private[phase] * step // self.plan.steps[phase] if phase < len(self.plan.steps) else 0
        done = sum(self.plan.private[:phase]) + here
        if done > sum(_steps_in(spending.event) for spending in earlier):
            raise IntegrityError(
                f"the checkpoint stands on {done} private steps, and the ledger knows of fewer",
                where=self.training.run,
                remedy="train anew; a checkpoint is resumed under the name it was made under",
            )
        return done

    def _conformance(self) -> list[Conformance]:
        t = self.training
        private = [o for phase in t.phases for o in phase.objectives if o.reads_data]
        return [check(t.network, o, None, t.spec, self.config.clip, device=t.device) for o in private]

    def finish(self) -> None:
        whole = self.plan.event(self.taken)
        self.ledger.ahead(self.spending, whole)
        self._publish_marginals(self.plan.rho)
        self.spending = self.ledger.commit(self.spending, whole)
        known = {"steps_done": self.before + self.taken, "engine": sorted({turn.engine for turn in self.turns})}
        told = {
            "conformance": [asdict(found) for found in self.conformance],
            "telemetry": [_telemetry(turn.telemetry) for turn in self.turns if turn.telemetry.values],
            "canary": [asdict(found) for found in self._canaries()],
        }
        evidence.conclude(self, self.plan.event(), asdict(self.plan) | known, told)

    def _canaries(self) -> list[CanaryAudit]:
        scored = [turn.scores for turn in self.turns if turn.telemetry.values]
        return [audit(inserted, scores, self.config.delta) for inserted, scores in scored if len(scores)]


class Counted(_Protected):
    """A family that trains by counts: rho of a Gaussian for all answers together."""

    def __init__(self, training: Training, config: PrivacyConfig, ledger: Ledger) -> None:
        super().__init__(training, config, ledger)
        if training.resumed:
            self._settle_earlier()
        whole = a.rho_for(config.epsilon, config.delta)
        self.aside = config.evaluation * whole
        self.rho = whole - self.aside
        self.answers: dict[str, tuple[a.Event, int]] = {}
        self.spent, self.counted = 0.0, 0.0
        event = a.gaussian(a.sigma_for(whole))
        self.spending = self._reserve(event, event, kind="counts", rho=self.rho, marginals=self.aside)

    def mechanism(self) -> Mechanism:
        t = self.training
        given = (t.spec, t.records["x"], t.family.bins(t.config), float(t.rows), self.rho, self.randomness)
        return PrivateMechanism(*given, self._spend)

    def _spend(self, rho: float, what: str) -> None:
        """Ahead of each answer: book it, and count it in the ledger, in shares of the budget."""
        choice = what.startswith("select")
        event = a.exponential(a.choice_for(rho)) if choice else a.gaussian(a.sigma_for(rho))
        self.spent += rho
        if self.spent > self.rho * (1 + 1e-9):
            raise CheckFailed("the mechanism's budget is spent", where=what, remedy="plan within `mechanism.rho`")
        if self.spent > self.counted:
            shares = math.ceil(_SHARES * self.spent / self.rho - 1e-9)
            self.counted = max(self.spent, self.rho * min(1.0, shares / _SHARES))
            self.ledger.ahead(self.spending, a.gaussian(a.sigma_for(self.counted)))
        kept = self.answers.get(repr(event), (event, 0))
        self.answers[repr(event)] = (event, kept[1] + 1)

    def finish(self) -> None:
        answers = [a.repeated(event, times) for event, times in self.answers.values()]
        whole = a.together([*answers, a.gaussian(a.sigma_for(self.aside)) if self.aside else a.NOTHING])
        self.ledger.ahead(self.spending, whole)
        self._publish_marginals(self.aside)
        self.spending = self.ledger.commit(self.spending, whole)
        known = {"rho": self.spent, "rho_marginals": self.aside, "answers": sum(n for _, n in self.answers.values())}
        evidence.conclude(self, whole, known, {})


# The plan


def plan(training: Training, config: PrivacyConfig) -> Plan:
    """Public constants, and the least noise with which the steps asked for cost no more than epsilon."""
    q, batch = _sampling(training.rows, config)
    steps = _steps(training, config, q, batch)
    repeats = [sum(o.repeats for o in phase.objectives if o.reads_data) for phase in training.phases]
    private = tuple(count * each for count, each in zip(steps, repeats, strict=True))
    rho = config.evaluation * a.rho_for(config.epsilon, config.delta) if config.evaluation else 0.0
    aside = a.gaussian(a.sigma_for(rho)) if rho else a.NOTHING
    sigma = a.noise_for(q, sum(private), config.epsilon, config.delta, aside)
    return Plan(sigma, config.clip, q, batch, config.canaries, steps, private, rho)


def _sampling(rows: int, config: PrivacyConfig) -> tuple[float, int]:
    """(q, expected batch) from the public number of rows."""
    batch = config.batch or max(_SMALLEST, min(round(_MOST_SAMPLED * rows), _BATCH))
    if batch > rows:
        remedy = "give more rows, set privacy.batch lower, or train `marginals`"
        raise CheckFailed(f"about {rows} rows are fewer than a batch of {batch}", where="privacy.batch", remedy=remedy)
    return batch / rows, batch


def _steps(training: Training, config: PrivacyConfig, q: float, batch: int) -> tuple[int, ...]:
    """Steps of each phase: as many as were asked for, as the time allows, or as the policy's epochs."""
    options, shares = training.options, [phase.share for phase in training.phases]
    if options.steps is not None:
        total = [options.steps * share / sum(shares) for share in shares]
    elif options.max_minutes is None and options.max_cpu_seconds is None:
        total = [config.epochs / q * share / sum(shares) for share in shares]
    else:
        total = [_KEPT * _affordable(training, phase, q, batch, config) * shares[phase] / sum(shares)
                 for phase in range(len(shares))]  # fmt: skip
    return tuple(max(1, round(count)) for count in total)


def _affordable(training: Training, phase: int, q: float, batch: int, config: PrivacyConfig) -> float:
    """Steps of a phase that fit into the whole time budget."""
    constants = Constants(1.0, config.clip, q, batch, 1 << 30, config.canaries)
    wall, cpu = seconds_for_a_step(training, phase, constants)
    options = training.options
    by_wall = math.inf if options.max_minutes is None else 60 * options.max_minutes / wall
    by_cpu = math.inf if options.max_cpu_seconds is None else options.max_cpu_seconds / cpu
    return min(by_wall, by_cpu)


# What cannot be private


def _require_nothing_estimated(training: Training) -> None:
    for column, what in training.estimated.items():
        raise CheckFailed(
            f"{', '.join(what)} would be estimated from protected rows",
            where=f"column {column!r}",
            remedy="declare it in the schema: minimum, maximum, categories",
        )


def _require_private_phases(training: Training) -> None:
    name = training.family.name
    if not any(o.reads_data for phase in training.phases for o in phase.objectives):
        raise CheckFailed("no objective reads data, so there is nothing to protect", where=name)
    for phase in training.phases:
        check_phase(phase, name)
        if training.spec.given and not all(o.reads_data for o in phase.objectives):
            what, remedy = (
                "an objective would see the conditions of protected rows, without noise",
                "use no --condition",
            )
            raise CheckFailed(what, where=name, remedy=remedy)


def _reached(training: Training) -> tuple[int, int]:
    """(phase, step) of the checkpoint; (0, 0) without one."""
    path = training.folder / "checkpoint.pt"
    if not path.is_file():
        return 0, 0
    phase, step, *_ = torch.load(path, weights_only=True, map_location="cpu")["at"]
    return int(phase), int(step)


def _steps_in(event: a.Event) -> int:
    """Sampled steps of an event."""
    if event["type"] == "ComposedDpEvent":
        return sum(_steps_in(one) for one in event["events"])
    return int(event["count"]) if event["type"] == "SelfComposedDpEvent" else 0


def _telemetry(found: Telemetry) -> dict[str, Any]:
    return {**asdict(found), "sound": found.sound}
