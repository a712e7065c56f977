"""One objective trained privately: this class alone holds sampler, clipping, noise and optimiser.

    batch ~ Poisson(q) over records and canaries
    g     = sum over the batch of gradients clipped to C, plus N(0, (sigma C)^2 I)
    step  = AdamW on g / B, B the expected batch

Abadi et al. 2016 (arXiv:1607.00133). An empty batch is noise and a step like any other. Nothing of what it sees leaves:
no loss, no gradient norm, no size of a batch. What it tells is the network, and figures of the noise itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genward.errors import CheckFailed, DataError, IntegrityError, UsageError
from genward.family import Objective, Record
from genward.turns import adamw, learning_rate
from genward_policies.privacy.canary import Canaries
from genward_policies.privacy.conformance import drawn, like, refuse_objective
from genward_policies.privacy.engine import Engine, Name, choose, picked, set_modes, trained
from genward_policies.privacy.randomness import Randomness

_TRIAL = 256  # records of the batch on which engines are tried, at most


@dataclass(frozen=True, slots=True)
class Constants:
    """What a private training is accounted for; all of it public, none of it made from the data.

    sigma: noise multiplier. clip: C, the largest norm of a record's gradient. q: how likely each record is in a batch.
    batch: the expected batch, by which sums are divided. steps: planned, of this objective. canaries: scalar ones.
    """

    sigma: float
    clip: float
    q: float
    batch: float
    steps: int
    canaries: int = 2000

    def __post_init__(self) -> None:
        for name in ("sigma", "clip", "q", "batch", "steps"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UsageError(f"{name} is {value}", remedy="give a number above 0")
        if self.q > 1 or self.canaries < 0:
            raise UsageError(f"q is {self.q}, canaries {self.canaries}", remedy="q is at most 1, canaries at least 0")

    @property
    def contract(self) -> str:
        """SHA-256 of them all; a checkpoint carries it, and goes on under no other."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Standard deviation of the noise in what the optimiser got, over the claimed sigma C: over the run, and of the
    steps with least and most. `values` is how many numbers were measured, `width` how many a step."""

    mean: float
    least: float
    most: float
    values: int
    width: int

    @property
    def sound(self) -> bool:
        """Whether the measured noise is the claimed one, within six standard errors."""
        if self.values == 0:
            return False
        return all(
            abs(ratio - 1.0) <= 6.0 / math.sqrt(2.0 * count) + 1e-4
            for ratio, count in ((self.mean, self.values), (self.least, self.width), (self.most, self.width))
        )


class PrivateTurn:
    """An objective that reads data, trained under differential privacy. Implements genward.family.Turn.

    Args:
        network: the whole network; `objective.trains` names the sub-modules that move.
        records: encoded records, all of the same length; they are read here and nowhere else.
        constants: what the accountant was told.
        randomness: source of batches, noise and canaries.
        before: called with the number of steps already taken, ahead of each; raises when no further step is paid for.
        engine: "auto" takes ghost clipping where it agrees with per-record gradients and is quicker.
        trial: public records to try engines on; without any, random ones of the records' shapes.

    Raises CheckFailed for an objective that cannot be private.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        records: Mapping[str, Tensor],
        constants: Constants,
        randomness: Randomness,
        device: torch.device | str,
        before: Callable[[int], None],
        engine: Literal["auto"] | Name = "auto",
        trial: Record | None = None,
    ) -> None:
        refuse_objective(network, objective)
        self._network, self._objective, self._device = network, objective, torch.device(device)
        self._records = _checked(records, self._device)
        self._constants, self._contract = constants, constants.contract
        self._randomness, self._before = randomness, before
        self._generator = torch.Generator(self._device).manual_seed(int.from_bytes(os.urandom(7)))
        self._parameters = list(trained(network, objective).values())
        self._optimiser = adamw(objective.optimiser, self._parameters)
        self._engine = self._choose(engine, trial)
        c = constants
        self._canaries = Canaries(c.canaries, c.sigma, c.clip, c.q, self._engine.name, randomness, self._device)
        self._taken = 0
        self._measured: list[float] = []

    def take(self, step: int, steps: int) -> None:
        """One private step; `step` of `steps` is where the schedule stands."""
        self._allowed()
        self._before(self._taken)
        self._taken += 1
        set_modes(self._network, self._objective)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self._objective.optimiser, step, steps)
        released = self._noised(self._clipped_sum(step / steps))
        cut = len(released) - len(self._canaries)
        self._canaries.hear(released[cut:] * self._constants.batch)
        self._move(released[:cut])

    @property
    def engine(self) -> Name:
        """Which engine computes gradients."""
        return self._engine.name

    @property
    def telemetry(self) -> Telemetry:
        """The noise as measured."""
        width = sum(p.numel() for p in self._parameters) + len(self._canaries)
        if not self._measured:
            return Telemetry(math.nan, math.nan, math.nan, 0, width)
        ratios = np.array(self._measured)
        mean = float(np.sqrt(np.mean(ratios**2)))
        return Telemetry(mean, float(ratios.min()), float(ratios.max()), width * len(ratios), width)

    @property
    def scores(self) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """(whether each canary was among the records, its score): what `canary.audit` takes."""
        return self._canaries.inserted, self._canaries.scores

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: no randomness, which it draws anew."""
        return {
            "optimiser": self._optimiser.state_dict(),
            "contract": self._contract,
            "taken": self._taken,
            "canaries": self._canaries.state_dict(),
            "measured": list(self._measured),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint stood; IntegrityError when it was made under other constants."""
        if state.get("contract") != self._contract:
            raise IntegrityError(
                "the checkpoint was made under another sigma, C, q, batch or number of steps",
                where=type(self._objective).__name__,
                remedy="train anew: this run's accounting does not hold for it",
            )
        self._optimiser.load_state_dict(state["optimiser"])
        self._canaries.load_state_dict(state["canaries"])
        self._taken, self._measured = int(state["taken"]), [float(ratio) for ratio in state["measured"]]

    # a step

    def _allowed(self) -> None:
        if self._constants.contract != self._contract:
            raise IntegrityError(
                "the constants of a private training moved", remedy="no schedule of C, sigma or q is allowed"
            )
        if self._taken >= self._constants.steps:
            raise CheckFailed(
                f"all {self._constants.steps} planned steps are taken", remedy="begin another training, charged anew"
            )

    def _clipped_sum(self, progress: float) -> Tensor:
        """Flat sum of clipped gradients of a fresh batch, canaries last; float64."""
        rows = len(next(iter(self._records.values())))
        index = self._randomness.poisson_batch(rows + self._canaries.among, self._constants.q)
        ours = torch.from_numpy(index[index < rows]).to(self._device)
        clip, noise = self._constants.clip, self._draw(len(ours))
        if len(ours):
            found = self._engine.clipped(picked(self._records, ours), noise, progress, clip)
        else:
            found = torch.zeros(sum(p.numel() for p in self._parameters), device=self._device)
        return torch.cat([found, self._canaries.clipped(index[index >= rows] - rows)]).double()

    def _noised(self, clean: Tensor) -> Tensor:
        """What the optimiser gets: noise added in float64, divided by the expected batch, cast to float32."""
        claimed = self._constants.sigma * self._constants.clip
        noise = torch.from_numpy(self._randomness.normal((len(clean),))).to(self._device)
        released = noise.mul_(claimed).add_(clean).div_(self._constants.batch).float()
        added = noise.copy_(released).mul_(self._constants.batch).sub_(clean)
        self._measured.append(float(added.norm()) / (math.sqrt(len(clean)) * claimed))
        return released

    def _move(self, released: Tensor) -> None:
        at = 0
        for p in self._parameters:
            p.grad = released[at : at + p.numel()].view_as(p).to(p.dtype)
            at += p.numel()
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def _draw(self, rows: int) -> dict[str, Tensor]:
        """The objective's own noise, a draw a record: no part of the protection."""
        return drawn(self._objective.noise, rows, self._generator, self._device)

    def _choose(self, wanted: Literal["auto"] | Name, trial: Record | None) -> Engine:
        size = max(2, min(_TRIAL, round(self._constants.batch)))
        public = like(self._records, size) if trial is None else trial
        record = {name: part[:size].to(self._device) for name, part in public.items()}
        noise = self._draw(len(next(iter(record.values()))))
        return choose(self._network, self._objective, record, noise, wanted)


def _checked(records: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    sizes = {len(part) for part in records.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError(f"records of lengths {sorted(sizes)}", remedy="give records, one in every part")
    return {name: part.to(device) for name, part in records.items()}
