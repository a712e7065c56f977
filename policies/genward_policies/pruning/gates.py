"""What evidence must say before a release is let through. What is missing, or no number, refuses."""

from __future__ import annotations

from collections.abc import Mapping

from genward.contracts import Evidence
from genward_policies.pruning.config import PROBES, PruningConfig

LYING = 1.3  # times what the search measured: then it did not measure this network


def reasons(found: Mapping[str, Evidence], config: PruningConfig) -> list[str]:
    """Why a release is refused; empty when it is not."""
    form = _value(found, "pruning.form")
    if form is None:
        return ["it is not said whether this is a cheaper form"]
    failed = _limits(found, {"pruning.different_pages": 0.0})
    if form == 0.0:
        return failed
    floor = config.floor
    failed += _limits(
        found,
        {
            "pruning.cost_per_million_rows": config.target.cost_per_million_rows,
            "pruning.wrong_widths": 0.0,
            "pruning.training_rows_read": 0.0,
            "pruning.trainings": 1.0,
            "pruning.latency_probes": float(PROBES),
        },
    )
    return failed + _lost(found, floor.relative_quality_loss_hi95) + _useful(found, floor.tstr_drop) + _planned(found)


def _value(found: Mapping[str, Evidence], claim: str) -> float | None:
    return found[claim].value if claim in found else None


def _limits(found: Mapping[str, Evidence], limits: Mapping[str, float]) -> list[str]:
    failed = []
    for claim, most in limits.items():
        value = _value(found, claim)
        if value is None:
            failed.append(f"{claim} was not measured")
        elif not value <= most:
            failed.append(f"{claim} is {value:.4g}, allowed is {most:.4g}")
    return failed


def _lost(found: Mapping[str, Evidence], most: float) -> list[str]:
    item = found.get("pruning.relative_quality_loss")
    if item is None or item.value is None or item.high is None:
        return ["relative_quality_loss was not measured"]
    if not max(item.value, item.high) <= most:
        return [
            f"relative_quality_loss may be {item.high:.3f}, the floor is {most:g} (upper end of the 95 % interval; "
            f"measured is {item.value:.3f})"
        ]
    return []


def _useful(found: Mapping[str, Evidence], most: float) -> list[str]:
    item = found.get("pruning.tstr_drop")
    if item is not None and item.value is None and "no target" in item.method:
        return []
    return _limits(found, {"pruning.tstr_drop": most})


def _planned(found: Mapping[str, Evidence]) -> list[str]:
    """The release's own time against the search's."""
    told = found["pruning.cost_per_million_rows"].extra if "pruning.cost_per_million_rows" in found else {}
    planned, taken = told.get("planned_seconds"), told.get("seconds_per_row")
    if not (isinstance(planned, float) and isinstance(taken, float) and planned > 0):
        return ["what the search measured is not told"]
    return [f"a row takes {taken / planned:.2f} of what the search measured"] if taken > LYING * planned else []
