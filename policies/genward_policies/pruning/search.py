"""Latency first: which network meets the price is found on untrained ones, since shapes alone decide what they cost.

Rungs go from the trained network down, least pruning first: eight-bit weights, then fewer sampler steps to about half
of the choices there are, then channels and steps in turn. The cheapest rung is measured, then the ladder is halved, so
that a handful of measurements finds the first rung that meets the price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from genward import noise
from genward.contracts import Progress
from genward.errors import CheckFailed
from genward.export import Exported, export_graph
from genward.family import NoiseSpec
from genward_policies.pruning import cost
from genward_policies.pruning.config import PROBES, PruningConfig
from genward_policies.pruning.quantise import Feeds, quantise, widths

if TYPE_CHECKING:
    from genward.candidate import Candidate

RUNGS = 17  # the parent and what four halvings can tell apart
MARGIN = 0.97  # of the price: what the search plans for, so that the release's own measurement meets it
_CALIBRATION, _ROWS = 8, 256  # feeds of generated noise, and rows of each

Int8 = Literal["static", "dynamic"] | None


@dataclass(frozen=True)
class Rung:
    """One recipe: a configuration of the family, and eight-bit weights or not."""

    config: Any
    int8: Int8 = None


@dataclass(frozen=True)
class Probe:
    """What a rung costs: CPU seconds of a row, and bytes; the shapes of its matrices are what a release must have."""

    rung: Rung
    seconds: float
    size: int
    widths: list[list[int]] = field(repr=False)


@dataclass
class Found:
    """What a search knows in the end. `chosen` is the parent's own probe when that meets the price already."""

    probes: list[Probe]
    chosen: Probe
    note: str = ""  # why eight-bit weights were left out, if they were


def ladder(candidate: Candidate, config: PruningConfig) -> list[Rung]:
    """The recipes that a policy allows, least pruning first; the first one is the trained network."""
    family, given = candidate.family, candidate.config
    thin = list(family.thinner(given)) if "structured" in config.allow else []
    quick = list(family.quicker(given, True)) if "steps" in config.allow else []
    half = (len(quick) + 1) // 2

    def rung(recipe: Any) -> Rung:
        return Rung(family.unrolled(recipe) if config.int8 else recipe, config.int8)

    rungs = [Rung(given), *([rung(given)] if config.int8 else []), *(rung(c) for c in quick[:half])]
    narrow, at = given, half - 1
    for thinner, faster in zip_longest(thin, quick[half:]):
        for step in (thinner, faster):
            if step is None:
                continue
            narrow, at = (step, at) if step is thinner else (narrow, at + 1)
            both = family.quicker(narrow, True)[at] if at >= 0 and quick else narrow
            rungs.append(rung(both))
    return _spread(rungs, RUNGS)


def _spread(rungs: list[Rung], most: int) -> list[Rung]:
    """At most so many rungs, both ends among them."""
    if len(rungs) <= most:
        return rungs
    return [rungs[i] for i in np.unique(np.linspace(0, len(rungs) - 1, most).round().astype(int))]


class Search:
    """One search; `limit` is the price in CPU seconds of a row."""

    def __init__(self, candidate: Candidate, config: PruningConfig, progress: Progress) -> None:
        self.candidate, self.config, self.progress = candidate, config, progress
        self.limit = config.target.cost_per_million_rows / cost.price(1.0, config.price_per_vcpu_hour)
        self.probes: list[Probe] = []
        self.note = ""

    def run(self, parent: Exported) -> Found:
        """The least pruning that meets the price; CheckFailed, with nothing trained, names the nearest there is."""
        self.progress.start("search by latency", PROBES)
        first = self._measured(Rung(self.candidate.config), parent.data, parent.meta)
        if first.seconds <= self.limit:
            self.progress.finish("the trained network meets the price")
            return Found(self.probes, first, "the trained network meets the price as it is")
        rungs = ladder(self.candidate, self.config)
        chosen = self._float(self._halved(rungs))
        self.progress.finish(f"{len(self.probes)} measurements, {first.seconds / chosen.seconds:.1f} x cheaper")
        left_out = self.config.int8 is not None and chosen.rung.int8 is None
        return Found(self.probes, chosen, self.note if left_out else "")

    def _halved(self, rungs: Sequence[Rung]) -> Probe:
        """The first rung that meets the price, the last one being measured first."""
        if len(rungs) < 2:
            raise self._unmet()
        low, high, best = 0, len(rungs) - 1, self.probe(rungs[-1])
        if best.seconds > MARGIN * self.limit:
            raise self._unmet()
        while high - low > 1 and len(self.probes) < PROBES - 1:
            middle = (low + high) // 2
            found = self.probe(rungs[middle])
            low, high, best = (low, middle, found) if found.seconds <= MARGIN * self.limit else (middle, high, best)
        return best

    def _float(self, best: Probe) -> Probe:
        """The same network in float32, where that is as cheap: narrow layers gain nothing by eight bits."""
        if best.rung.int8 is None or len(self.probes) >= PROBES:
            return best
        plain = self.probe(replace(best.rung, int8=None))
        return plain if plain.seconds <= min(MARGIN * self.limit, 1.03 * best.seconds) else best

    def _unmet(self) -> CheckFailed:
        nearest = min(self.probes, key=lambda probe: probe.seconds)
        least, per_hour = cost.price(nearest.seconds, self.config.price_per_vcpu_hour), self.config.price_per_vcpu_hour
        where = f"{self.note}; " if self.note else ""
        return CheckFailed(
            f"no network meets {self.config.target.cost_per_million_rows:.3g} a million rows: the nearest costs "
            f"{least:.3g} ({1e6 * nearest.seconds:.2f} us a row at {per_hour:g} an hour): {described(nearest.rung)}",
            where=f"{where}pruning.target".lstrip(),
            remedy=f"set cost_per_million_rows to {least / MARGIN:.2g} or more, or allow more techniques",
        )

    def probe(self, rung: Rung) -> Probe:
        """Measure an untrained network of a recipe; without eight bits where its graph does not take them."""
        torch.manual_seed(0)
        network = self.candidate.family.build(self.candidate.codec.spec, rung.config)
        exported = export_graph(self.candidate.family, network, rung.config, self.candidate.codec)
        data = exported.data
        if rung.int8:
            try:
                data = quantised(self.candidate, exported.data, exported.graph.noise, rung.int8)
            except CheckFailed as error:
                self.note, rung = str(error), replace(rung, int8=None)
        return self._measured(rung, data, exported.meta)

    def _measured(self, rung: Rung, data: bytes, meta: Any) -> Probe:
        seconds = cost.seconds_per_row(data, meta, self.candidate.codec, self.config.target.batch)
        self.probes.append(Probe(rung, seconds, len(data), widths(data)))
        self.progress.update(len(self.probes), f"{1e6 * seconds:.2f} us a row")
        return self.probes[-1]


def quantised(
    candidate: Candidate, data: bytes, specs: Sequence[NoiseSpec], kind: Literal["static", "dynamic"]
) -> bytes:
    """A graph with eight-bit weights, its scales from generated noise."""
    return quantise(data, kind, feeds(candidate, specs))


def feeds(candidate: Candidate, specs: Sequence[NoiseSpec]) -> Feeds:
    """Inputs of generated noise, and conditions in the codec's shares."""
    secret, found = cost.key("calibration"), []
    for start in range(0, _CALIBRATION * _ROWS, _ROWS):
        rows = np.arange(start, start + _ROWS, dtype=np.uint64)
        given = cost.conditions(candidate.codec, secret, rows)
        found.append({**noise.draw(specs, secret, rows), **({} if given is None else {"condition": given})})
    return found


def described(rung: Rung) -> str:
    """A recipe in a few words: what differs is what matters, so all numbers of its configuration are told."""
    parts = [f"{k} {v}" for k, v in rung.config.model_dump().items() if isinstance(v, int) and not isinstance(v, bool)]
    return ", ".join([*parts, f"int8 {rung.int8}" if rung.int8 else "float32"])
