"""The curve of a theft as a picture: how near copies come with the rows delivered, and the risk."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genward_policies.extraction.profile import Profile

_MARKS = "osv^Dx*"


def theft_curve(profile: Profile, limits: Mapping[str, int]) -> bytes:
    """PNG: distances of copies and risk, against delivered rows; `limits` are rows to mark, by what they are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _distances(left, profile)
    _risks(right, profile, limits)
    out = io.BytesIO()
    figure.savefig(out, dpi=100, format="png", metadata={"Software": None})
    return out.getvalue()


def _distances(axes: Any, profile: Profile) -> None:
    own = float(np.mean(profile.told["own"]))
    points: Sequence[Sequence[Any]] = profile.told["points"]
    for i, name in enumerate(profile.told["attackers_run"]):
        mine = [p for p in points if p[0] == name]
        sizes = sorted({p[1] for p in mine})
        means = [max(1e-6, float(np.mean([p[3] for p in mine if p[1] == n])) - own) for n in sizes]
        axes.plot(sizes, means, f"{_MARKS[i % len(_MARKS)]}-", label=name, markersize=4, linewidth=0.8)
    rows = np.geomspace(100, 30_000, 60)
    axes.plot(rows, [profile.fidelity.curve.at(n) for n in rows], "k--", label="fit", linewidth=0.8)
    axes.axhline(profile.fidelity.floor, color="grey", linewidth=0.6)
    axes.set(xscale="log", yscale="log", xlabel="rows delivered", ylabel="distance of the copy", title="How near")
    axes.legend(fontsize=6)


def _risks(axes: Any, profile: Profile, limits: Mapping[str, int]) -> None:
    rows, risk, low, high = np.array(profile.table()).T
    axes.fill_between(rows, low, high, alpha=0.3)
    axes.plot(rows, risk)
    for name, n in limits.items():
        axes.axvline(min(n, rows[-1]), linewidth=0.8, linestyle=":")
        axes.text(min(n, rows[-1]), 0.02, f"{name}: {n:,}", rotation=90, fontsize=6, ha="right")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="distinct rows held", ylabel="risk", title="Risk")
