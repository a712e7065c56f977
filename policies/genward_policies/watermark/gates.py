"""What evidence must say before a release is let through. What is missing, or no number, refuses."""

from __future__ import annotations

from collections.abc import Mapping

from genward.contracts import Evidence
from genward_policies.watermark.config import WatermarkConfig
from genward_policies.watermark.power import LEAST

_CHANCE = 4.0  # standard deviations: a sound release is refused by chance once in 30,000


def reasons(found: Mapping[str, Evidence], config: WatermarkConfig) -> list[str]:
    """Why a release is refused; empty when it is not."""
    failed = []
    for attack in ("", *config.power.under):
        failed += _power(found.get(f"watermark.power.{attack}" if attack else "watermark.power"), attack, config)
    price = _value(found, "watermark.auc")
    if price is None:
        failed.append("what it costs was not measured")
    elif not price <= config.auc_max:
        failed.append(f"AUC is {price:.3f}, allowed is {config.auc_max:g}")
    return failed + _accused(found, "unmarked") + _accused(found, "real")


def _value(found: Mapping[str, Evidence], claim: str) -> float | None:
    return found[claim].value if claim in found else None


def _power(item: Evidence | None, attack: str, config: WatermarkConfig) -> list[str]:
    name = attack or "untouched"
    if item is None or item.value is None:
        return [f"power {name} was not measured"]
    if item.extra.get("rows") != config.power.rows or item.extra.get("at_fpr") != config.power.at_fpr:
        return [f"power {name} was measured at other rows, or at another level"]
    return [] if item.value >= LEAST else [f"power {name} is {item.value:.3f}, asked is {LEAST}"]


def _accused(found: Mapping[str, Evidence], kind: str) -> list[str]:
    """More accusations of the innocent than the level says, beyond chance."""
    item = found.get(f"watermark.false_positives.{kind}")
    if item is not None and item.withheld and kind == "real":
        return []
    if item is None or item.value is None or item.reference is None:
        return [f"false positives on {kind} rows were not measured"]
    beyond = item.reference + _CHANCE * (item.reference * (1 - item.reference) / max(item.n, 1)) ** 0.5
    return [f"false positives on {kind} rows: {item.value:.4f}"] if item.value > beyond else []
