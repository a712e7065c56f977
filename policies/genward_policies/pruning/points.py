"""Points of the front for one release: what was probed, each number of steps without recovery, and the release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from genward.contracts import Evidence
from genward_policies.pruning import cost
from genward_policies.pruning.config import PruningConfig
from genward_policies.pruning.front import Point
from genward_policies.pruning.judge import reference
from genward_policies.pruning.quality import relative_loss
from genward_policies.pruning.torch_rows import made_by_torch

if TYPE_CHECKING:
    from genward.candidate import Candidate

ROWS = 6_000  # generated to judge each number of steps by


def points(
    candidate: Candidate, config: PruningConfig, plan: Mapping[str, Any], parent: bytes, evidence: Sequence[Evidence]
) -> list[Point]:
    """The parent first, the release last."""
    found = {item.claim: item for item in evidence}
    loss, paid = found["pruning.relative_quality_loss"], found["pruning.cost_per_million_rows"].extra
    first, per_hour = plan["probes"][0]["seconds"], config.price_per_vcpu_hour

    def point(name: str, kind: str, seconds: float, size: int, **more: Any) -> Point:
        return Point(name, kind, seconds, cost.price(seconds, per_hour), size, **more)

    probed = [point(p["recipe"], "probe", p["seconds"], p["size"]) for p in plan["probes"][1:]]
    steps = _steps(candidate, plan, parent) if "steps" in config.allow else []
    judged = {"loss": loss.value, "low": loss.low, "high": loss.high}
    size = len(candidate.exported.data)
    return [
        point("parent", "parent", first, len(parent), loss=0.0, low=0.0, high=0.0),
        *probed,
        *(replace(p, price=cost.price(p.seconds, per_hour)) for p in steps),
        point(plan["chosen"]["recipe"], "released", paid["seconds_per_row"], size, **judged),
    ]


def _steps(candidate: Candidate, plan: Mapping[str, Any], parent: bytes) -> list[Point]:
    """The trained network with fewer steps, as it is; times in proportion to what torch took."""
    config = candidate.family.Config(**candidate.recipe.config)
    quicker = candidate.family.quicker(config, False)
    if not quicker:
        return []
    network = replace(candidate, config=config).network()
    before, whole = made_by_torch(candidate, network, config, ROWS)
    real, found = reference(candidate, parent, plan["parent_meta"]), []
    for other in quicker:
        rows, taken = made_by_torch(candidate, network, other, ROWS)
        loss = relative_loss(real, before, rows)
        seconds = plan["probes"][0]["seconds"] * taken / whole
        name = f"{_difference(config, other)}, not recovered"
        judged = {"loss": loss.value, "low": loss.low, "high": loss.high}
        found.append(Point(name, "steps", seconds, 0.0, len(parent), estimated=True, **judged))
    return found


def _difference(old: Any, new: Any) -> str:
    before, after = old.model_dump(), new.model_dump()
    return ", ".join(f"{key} {after[key]}" for key in after if after[key] != before[key])
