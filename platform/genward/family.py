"""The family contract: what a plugin author writes to add a kind of generator.

A family builds a network, says which losses train it and which graph samples from it. It never sees a loader,
an optimiser, a policy or a file. Nothing here imports torch; a family does, inside its own module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from genward.contracts import Progress

Record = Mapping[str, "Tensor"]


@dataclass(frozen=True, slots=True)
class NoiseSpec:
    """Noise per row, an explicit input of the graph. A Gumbel is made from a uniform in the graph.

    `shape` is without the row axis; `law` is standard normal, or uniform on (0, 1).
    """

    name: str
    shape: tuple[int, ...] = ()
    law: Literal["normal", "uniform"] = "normal"


@dataclass(frozen=True, slots=True)
class Field:
    """A run of `width` encoded values at `start`: one number (width 1), or a one-hot choice among `width`.

    `cuts` of a number are where it may be cut without cutting through a value, as shares in (0, 1) of the codec's law;
    none: anywhere.
    """

    column: str
    kind: Literal["number", "choice"]
    start: int
    width: int
    cuts: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """The shape of encoded records. `fields` are what the network generates, laid out from 0 to `width`;
    `given` are condition fields, laid out from 0 to `condition_width` in a second tensor.

    A record is {"x": (B, width) float32} and, with conditions, {"c": (B, condition_width) float32}.
    """

    modality: str
    fields: tuple[Field, ...]
    given: tuple[Field, ...] = ()

    @property
    def width(self) -> int:
        return sum(f.width for f in self.fields)

    @property
    def condition_width(self) -> int:
        return sum(f.width for f in self.given)


@dataclass(frozen=True, slots=True)
class Optimiser:
    """Adam with decoupled weight decay; `schedule` runs over the phase after `warmup` (share of its steps)."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = 0.01


class Objective(ABC):
    """One optimiser's loss. Plain and stateless, not an nn.Module: functional_call under vmap breaks otherwise."""

    trains: Sequence[str] = ("",)  # sub-module paths whose parameters move; the rest of the network runs in eval()
    reads_data: bool = True  # False: the loss gets conditions only, and differential privacy leaves it alone
    couples: bool = False  # True: the loss mixes records, so it can never be made private
    repeats: int = 1  # optimiser steps per turn (a GAN's n_critic)
    noise: Sequence[NoiseSpec] = ()
    optimiser: Optimiser = Optimiser()

    @abstractmethod
    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        """One loss per record, shape (B,). `progress` in [0, 1) is for warm-ups."""


@dataclass(frozen=True)
class Phase:
    """Objectives trained together, in turn; `share` of the run's time; `monitor` is the index of the objective whose
    held-out loss stops the phase early (None: run to the end)."""

    objectives: Sequence[Objective]
    share: float = 1.0
    statistics: Sequence[str] = ()  # sub-modules with a data-dependent initialisation, declared
    begin: Callable[[nn.Module, Record], None] | None = None  # run once with the first batch
    monitor: int | None = 0


class Mechanism(Protocol):
    """The only way in which a family that trains by `fit` learns about data: counts of discretised records.

    Fields follow the columns of the spec. A number has the family's `bins` (`genward.fitting.cuts`: even in probability
    under the codec's law, or fewer where it has few values), and one value more, the last, where it may be missing; a
    choice has its width. Unprotected, answers are exact
    and free; under a privacy policy each is noisy and paid for from `rho`, in zero-concentrated differential privacy
    (Bun and Steinke 2016, arXiv:1605.02065); asking beyond what is left raises CheckFailed.
    """

    @property
    def domain(self) -> Sequence[int]:
        """How many values each field has."""

    @property
    def rows(self) -> float:
        """How many records there are, a public figure."""

    @property
    def rho(self) -> float:
        """What is left to spend; infinite without protection."""

    def merge(self, field: int, groups: Sequence[int]) -> None:
        """From now on value v of a field counts as value `groups[v]`: few groups are disturbed less than many values.
        Free, since a record still has one value; `domain` follows."""

    def measure(self, fields: Sequence[int], rho: float) -> NDArray[np.float64]:
        """Counts of every combination of values of some fields, shape (domain[f] for f in fields), Gaussian noise."""

    def select(
        self,
        candidates: Sequence[Sequence[int]],
        expected: Sequence[NDArray[np.float64]],
        penalties: Sequence[float],
        rho: float,
    ) -> int:
        """The candidate whose counts differ most from what the model expects, by the exponential mechanism: quality is
        the L1 distance of counts to `expected[i]` less `penalties[i]`."""


class Turn(Protocol):
    """One objective's optimiser, owned by whoever protects it."""

    def take(self, step: int, steps: int) -> None:
        """One optimiser step; says nothing about the data."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Protected(Protocol):
    """A training that a policy took over: sampler, clipping, noise, optimiser, step count and budget are its own."""

    def steps(self, phase: int) -> int:
        """How many steps a phase takes, fixed before the first one."""

    def turn(self, phase: int, objective: int) -> Turn:
        """The turn of an objective that reads data."""

    def mechanism(self) -> Mechanism:
        """What a family that trains by `fit` is handed."""

    def finish(self) -> None:
        """Training is over: commit what was spent, write what a release must tell."""


@dataclass(frozen=True)
class Training:
    """A training about to begin, as the policy that may take it over sees it."""

    run: str  # the candidate's id
    dataset: str  # digest; spending is booked on it and on its lineage
    lineage: tuple[str, ...]  # digests of every data set it was made from
    rows: int  # of the records, a public and rounded figure
    estimated: Mapping[str, Sequence[str]]  # what the codec took from data, by column
    family: Family
    config: Any
    spec: Spec
    network: nn.Module
    phases: Sequence[Phase]
    records: Mapping[str, NDArray[np.float32]]
    folder: Path
    device: Any
    options: Any  # genward.train.TrainOptions
    resumed: bool = False


@dataclass(frozen=True)
class Graph:
    """A module to export. Its forward takes the noise tensors in order, then the condition (B, condition_width) if the
    spec has one, then states; it returns encoded rows (B, width), and new states when stepped."""

    module: nn.Module
    noise: Sequence[NoiseSpec] = ()
    conditions: bool = True  # takes the condition when the spec has one
    state: Sequence[NoiseSpec] = ()
    gate: Literal["step", "chain"] = "step"  # chain: an iterated sampler, gated on its 99.9th percentile
    step: nn.Module | None = None  # for gate "chain": one step of it, same inputs, gated on its maximum


class Distillation(ABC):
    """What a network that was cut learns from its teacher, which answers noise. Nothing of it reads data."""

    noise: Sequence[NoiseSpec] = ()  # what examples are made of, a row each
    batch: int = 512  # rows a step
    optimiser: Optimiser = Optimiser(lr=2e-3, warmup=0.02)

    @abstractmethod
    def examples(self, noise: Record, condition: Tensor | None) -> Record:
        """Examples of N rows of noise, tensors (N, ...), the teacher's answers among them."""

    @abstractmethod
    def loss(self, network: nn.Module, example: Record) -> Tensor:
        """How far a network is from its teacher, one loss per row, shape (B,)."""


class FamilyConfig(BaseModel):
    """Base of every family's configuration: units and ranges in the fields, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Family(ABC):
    """A kind of generator. Register the class from the `genward_families` hook."""

    name: ClassVar[str]
    modalities: ClassVar[tuple[str, ...]] = ("table",)
    reference: ClassVar[str] = ""  # the paper
    Config: ClassVar[type[FamilyConfig]] = FamilyConfig

    @abstractmethod
    def build(self, spec: Spec, config: Any) -> nn.Module:
        """A fresh network; the platform seeds torch before the call."""

    def phases(self, network: nn.Module, config: Any) -> Sequence[Phase]:
        """What trains it, in order; every family but one that trains by `fit` has some."""
        return ()

    def bins(self, config: Any) -> int:
        """Of a family that trains by `fit`: how many values a number is cut into. 0: it trains by `phases`."""
        return 0

    def fit(self, network: nn.Module, mechanism: Mechanism, config: Any, progress: Progress) -> None:
        """Train without gradients of records: ask the mechanism, then set the network's parameters."""
        raise TypeError(f"{self.name} trains by phases")

    @abstractmethod
    def graphs(self, network: nn.Module, config: Any) -> Mapping[str, Graph]:
        """What is exported: "sample"; optionally "density" and "to_noise"."""

    # Of a family whose network can be made cheaper; the others leave these as they are.

    def thinner(self, config: Any) -> Sequence[Any]:
        """Configurations of ever fewer channels, least cut first, without the given one. None: nothing can be cut."""
        return ()

    def quicker(self, config: Any, distilled: bool) -> Sequence[Any]:
        """Configurations of ever fewer sampler steps, most first, without the given one; for a network that will be
        distilled, or for the one that was trained."""
        return ()

    def can_be_cut(self, config: Any) -> bool:
        """Whether there is a network that can be made cheaper."""
        return bool(self.thinner(config) or self.quicker(config, True))

    def unrolled(self, config: Any) -> Any:
        """The same network with a sample graph without loops, so that each of its calls can be quantised."""
        return config

    def cut(self, network: nn.Module, spec: Spec, smaller: Any) -> nn.Module:
        """A new network of the configuration `smaller`, with those channels of a trained one that matter most."""
        raise TypeError(f"{self.name} cannot be cut")

    def distillation(self, teacher: nn.Module, config: Any, smaller: Any) -> Distillation:
        """How a network of the configuration `smaller` learns from a teacher of configuration `config`."""
        raise TypeError(f"{self.name} cannot be distilled")


@dataclass(frozen=True, slots=True)
class Trained:
    """What training left behind: the moving average adopted, in eval mode."""

    network: nn.Module
    history: Mapping[str, Any] = field(default_factory=dict)
