"""The front of quality against price: what was measured on the way, as JSON and as a plot."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = "genward.pruning.front/1"
JSON_FILE, PLOT_FILE = "pruning_front.json", "pruning_front.png"


@dataclass(frozen=True)
class Point:
    """One network. `loss` is relative to the parent's distance, None where nobody trained or judged it; `estimated`
    says that the price follows from the parent's by the number of its steps."""

    name: str
    kind: str  # parent, probe, steps, int8, magnitude, released
    seconds: float
    price: float
    size: int
    loss: float | None = None
    low: float | None = None
    high: float | None = None
    estimated: bool = False


def best(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats in both quality and price, cheapest first."""
    judged = sorted((p for p in points if p.loss is not None), key=lambda p: (p.seconds, p.loss))
    found: list[Point] = []
    for point in judged:
        if not found or (point.loss or 0.0) < (found[-1].loss or 0.0):
            found.append(point)
    return found


def as_json(points: Sequence[Point], target: float, floor: float) -> bytes:
    """`pruning_front.json`."""
    front = [point.name for point in best(points)]
    told: dict[str, Any] = {"format": FORMAT, "target_cost_per_million_rows": target, "floor": floor, "front": front}
    return json.dumps({**told, "points": [asdict(p) for p in points]}, indent=1, sort_keys=True).encode()


def as_plot(points: Sequence[Point], target: float | None, floor: float) -> bytes:
    """`pruning_front.png`: price against loss; sizes are told in the legend, what nobody judged is a mark below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind in dict.fromkeys(point.kind for point in points):
        _series(axes, kind, [p for p in points if p.kind == kind])
    front = best(points)
    axes.plot([p.price for p in front], [100 * (p.loss or 0.0) for p in front], color="0.6", lw=0.8, zorder=0)
    if target is not None:
        axes.axvline(target, ls="--", color="tab:green", lw=1, label="price to meet")
    axes.axhline(100 * floor, ls="--", color="tab:red", lw=1, label="largest loss")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xlabel("price of a million rows (CPU of noise and graph)")
    axes.set_ylabel("relative quality loss, %")
    axes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _series(axes: Any, kind: str, points: Sequence[Point]) -> None:
    judged = [p for p in points if p.loss is not None]
    if not judged:
        axes.plot([p.price for p in points], [0.0] * len(points), "|", ms=12, color="0.5", label=f"{kind} (price only)")
        return
    sizes = f"{min(p.size for p in judged) / 1e3:.0f} to {max(p.size for p in judged) / 1e3:.0f} kB"
    losses = [100 * (p.loss or 0.0) for p in judged]
    below = [100 * ((p.loss or 0.0) - (p.low if p.low is not None else p.loss or 0.0)) for p in judged]
    above = [100 * ((p.high if p.high is not None else p.loss or 0.0) - (p.loss or 0.0)) for p in judged]
    label = f"{kind if len(judged) > 1 or kind == 'parent' else judged[0].name}, {sizes}"
    axes.errorbar([p.price for p in judged], losses, yerr=[below, above], fmt="o", ms=4, capsize=2, label=label)
