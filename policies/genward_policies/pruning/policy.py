"""The policy `pruning`: a price that releases must meet, and a floor under what meeting it may cost in quality."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from genward.contracts import Compressed, Evidence, Progress, Verdict
from genward.errors import CheckFailed
from genward.hookspecs import hookimpl
from genward.policy import Policy
from genward_policies.pruning import front
from genward_policies.pruning.config import PruningConfig, cuttable

if TYPE_CHECKING:
    from genward.candidate import Candidate
    from genward_policies.pruning.search import Found

PARENT, PLAN = "pruning_parent.onnx", "pruning.json"  # in the candidate's folder, between `compress` and `measure`


class Pruning(Policy):
    """Cuts, recovers and quantises until the price is met; then judges what will be sealed, whoever made it."""

    name = "pruning"
    Config = PruningConfig
    example: ClassVar[Mapping[str, Any]] = {"price_per_vcpu_hour": 0.04, "target": {"cost_per_million_rows": 4.0e-4}}

    @property
    def tariff(self) -> float:
        """Price of a CPU hour, by which requests are metered."""
        return float(self.config.price_per_vcpu_hour)

    # before the export

    @hookimpl
    def compress(self, candidate: Candidate, progress: Progress) -> Compressed | None:
        from genward.export import export_graph
        from genward_policies.pruning.search import Search

        if not cuttable(candidate):
            return None
        if candidate.train is not None:
            raise CheckFailed("rows that were trained on are within reach of the recovery", where="pruning")
        teacher = candidate.network()
        parent = export_graph(candidate.family, teacher, candidate.config, candidate.codec)
        (candidate.folder / PARENT).write_bytes(parent.data)
        found = Search(candidate, self.config, progress).run(parent)
        network, trainings = self._recovered(candidate, teacher, found, progress)
        plan = self._plan(found, dict(parent.meta), trainings)
        (candidate.folder / PLAN).write_text(json.dumps(plan, indent=1))
        rung = found.chosen.rung
        return Compressed(network, rung.config, self._quantiser(candidate, rung.config, network, rung.int8))

    def _recovered(self, candidate: Candidate, teacher: Any, found: Found, progress: Progress) -> tuple[Any, int]:
        """The network of the rung that was chosen, and how many trainings that took: none when nothing was cut."""
        from genward_policies.pruning.recover import recovered

        rung = found.chosen.rung
        if rung.config in (candidate.config, candidate.family.unrolled(candidate.config)):
            return teacher, 0
        seconds = self.config.recovery_cpu_seconds
        given = (candidate.family, teacher, candidate.config, rung.config, candidate.codec, seconds, progress)
        return recovered(*given), 1

    def _quantiser(self, candidate: Candidate, config: Any, network: Any, int8: Any) -> Any:
        """How to quantise the graph that the platform will export of a network."""
        if int8 is None:
            return None
        from genward_policies.pruning.search import quantised

        noise = candidate.family.graphs(network, config)["sample"].noise
        return lambda data: quantised(candidate, data, noise, int8)

    def _plan(self, found: Found, meta: Mapping[str, Any], trainings: int) -> dict[str, Any]:
        """What `measure` needs to judge, and `attach` to tell."""
        from genward_policies.pruning.search import described

        probes = [
            {"recipe": described(p.rung), "seconds": p.seconds, "size": p.size, "chosen": p is found.chosen}
            for p in found.probes
        ]
        best = found.chosen
        chosen = {"recipe": described(best.rung), "seconds": best.seconds, "widths": best.widths}
        return {"probes": probes, "chosen": chosen, "parent_meta": meta, "trainings": trainings, "note": found.note}

    # after the export, on what will be sealed

    @hookimpl
    def measure(self, candidate: Candidate) -> Sequence[Evidence]:
        from genward_policies.pruning.judge import Judge

        if not candidate.parent or not cuttable(candidate):
            return Judge(candidate, self.config).uncut()
        return Judge(candidate, self.config, _read(candidate)).child((candidate.folder / PARENT).read_bytes())

    @hookimpl
    def attach(self, candidate: Candidate, evidence: Sequence[Evidence]) -> Mapping[str, bytes]:
        if not candidate.parent or not cuttable(candidate):
            return {}
        from genward_policies.pruning.points import points as made

        parent = (candidate.folder / PARENT).read_bytes()
        points = made(candidate, self.config, _read(candidate), parent, evidence)
        target, floor = self.config.target.cost_per_million_rows, self.config.floor.relative_quality_loss_hi95
        return {
            front.JSON_FILE: front.as_json(points, target, floor),
            front.PLOT_FILE: front.as_plot(points, target, floor),
        }

    @hookimpl
    def gate(self, evidence: Sequence[Evidence]) -> Verdict:
        from genward_policies.pruning.gates import reasons

        found = reasons({item.claim: item for item in evidence}, self.config)
        return Verdict(not found, tuple(f"pruning: {reason}" for reason in found))


def _read(candidate: Candidate) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((candidate.folder / PLAN).read_bytes())
    return found
