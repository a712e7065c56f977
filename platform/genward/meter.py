"""What requests cost: CPU seconds of the threads that made and encoded their rows, bytes, and a price.

A tariff, the price of a CPU hour, comes from the active policy; without one there is a cost and no price.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

_HOUR, _PICO = 3600.0, 1e12
_here = threading.local()


def computed() -> int:
    """How many rows this thread has computed, ever; a difference tells those of one piece of work."""
    found: int = getattr(_here, "rows", 0)
    return found


def count_computed(rows: int) -> None:
    """This thread computed rows, and did not find them in a cache."""
    _here.rows = computed() + rows


class Meter:
    """Adds up what one request takes: `with meter:` around work of one thread, which may not be nested."""

    def __init__(self) -> None:
        self.cpu, self.computed, self.bytes = 0.0, 0, 0

    def __enter__(self) -> None:
        self._begun = time.thread_time(), computed()

    def __exit__(self, *_: object) -> None:
        began, before = self._begun
        self.cpu += time.thread_time() - began
        self.computed += computed() - before

    def take(self, tariff: float | None) -> dict[str, int]:
        """The cost since the last call, whole numbers as the log has them: microseconds, and 1e-12 of the currency."""
        found = {"cpu_us": round(1e6 * self.cpu), "computed": self.computed, "bytes": self.bytes}
        if tariff is not None:
            found["price_pico"] = round(_PICO * self.cpu * tariff / _HOUR)
        self.cpu, self.computed, self.bytes = 0.0, 0, 0
        return found


@dataclass
class Costs:
    """Totals of a worker by tenant and model."""

    _totals: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, tenant: str, model: str, rows: int, cost: dict[str, int]) -> None:
        """One settled request, or one grant of a stream."""
        total = self._totals[tenant, model]
        total["rows"] += rows
        for name, value in cost.items():
            total[name] += value

    def lines(self) -> list[str]:
        """Prometheus text."""
        found = []
        for (tenant, model), total in sorted(self._totals.items()):
            labels = f'{{tenant="{tenant}",model="{model}"}}'
            found += [f"genward_cost_{name}{labels} {value}" for name, value in sorted(_plain(total).items())]
        return found


def _plain(total: Counter[str]) -> dict[str, Any]:
    """Base units: seconds, and the currency itself."""
    found: dict[str, Any] = {
        "cpu_seconds_total": total["cpu_us"] / 1e6,
        "rows_total": total["rows"],
        "computed_rows_total": total["computed"],
        "bytes_total": total["bytes"],
    }
    return found | ({"price_total": total["price_pico"] / _PICO} if "price_pico" in total else {})
