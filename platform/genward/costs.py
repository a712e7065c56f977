"""What a release costs: the price that was predicted and sealed, beside what requests were metered at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from genward.attest import read_evidence
from genward.errors import NotFound, UsageError

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.contracts import AuditSink, Evidence

PREDICTED = "endpoint_cost_per_million_rows"  # how the claim of whoever predicts a price ends
_MILLION, _PICO, _HOUR = 1e6, 1e12, 3600.0


def report(platform: Platform, reference: str, last: int = 10_000) -> dict[str, Any]:
    """Figures of one release, prices in the currency of the policy that named a tariff.

    A row that is computed is paid for once and may be served from the cache many times: both prices are told.
    `measured` is by computed row, over settled requests that computed at least as many rows as they served, and is
    what `predicted` speaks of.
    """
    if last < 1:
        raise UsageError(f"last is {last}", remedy="look at one entry or more")
    info = platform.registry.resolve(reference, retired=True)
    sealed = _predicted(platform, reference)
    everything, computing = _metered(platform.audit, f"{info.name}:{info.version}@{info.digest}", last)
    predicted = None if sealed is None else sealed.value
    per_hour = None if sealed is None else sealed.extra.get("price_per_vcpu_hour")
    measured = _price(computing, "computed", per_hour)
    ratio = predicted / measured if predicted is not None and measured else None
    return {
        "model": f"{info.name}:{info.version}",
        "predicted_per_million_rows": predicted,
        "measured_per_million_computed_rows": measured,
        "predicted_to_measured": ratio,
        "measured_per_million_served_rows": _price(everything, "rows", per_hour),
        "cpu_seconds": everything["cpu_us"] / 1e6,
        "price": everything["price_pico"] / _PICO,
        **{name: everything[name] for name in ("requests", "rows", "computed", "bytes")},
    }


def _predicted(platform: Platform, reference: str) -> Evidence | None:
    """The sealed claim; None when no policy made one."""
    from genward.bundle import Bundle

    bundle = Bundle.open(platform.bundle_folder(reference), platform.keys.trusted())
    found = [item for item in read_evidence(bundle.files["evidence.json"]) if item.claim.endswith(PREDICTED)]
    return found[0] if found else None


def _metered(audit: AuditSink, model: str, last: int) -> tuple[Counter[str], Counter[str]]:
    """Sums over settled requests of a model: of all, and of those that computed what they served."""
    everything: Counter[str] = Counter()
    computing: Counter[str] = Counter()
    for entry in _newest(audit, last):
        if entry.get("model") != model or entry["event"] != "settle" or "cost" not in entry:
            continue
        sums = {"requests": 1, "rows": entry["out"]["rows"], **entry["cost"]}
        everything.update(sums)
        if 0 < entry["out"]["rows"] <= entry["cost"]["computed"]:
            computing.update(sums)
    return everything, computing


def _newest(audit: AuditSink, last: int) -> Iterator[Mapping[str, Any]]:
    """The log's entries from the end, at most so many."""
    size = _size(audit)
    for index in range(size - 1, max(-1, size - 1 - last), -1):
        yield json.loads(audit.entry(index))


def _size(audit: AuditSink) -> int:
    """How many entries the log has: a place that is not there lies behind one that is."""
    low, high = 0, 1
    while _is_there(audit, high - 1):
        low, high = high, 2 * high
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _is_there(audit, middle - 1) else (low, middle)
    return low


def _is_there(audit: AuditSink, index: int) -> bool:
    try:
        audit.entry(index)
    except NotFound:
        return False
    return True


def _price(sums: Counter[str], rows: str, per_hour: float | None) -> float | None:
    """Of a million rows, at the tariff that was sealed: a policy's change of price does not change the comparison."""
    if not sums[rows] or per_hour is None:
        return None
    return sums["cpu_us"] / 1e6 / sums[rows] * _MILLION * per_hour / _HOUR
