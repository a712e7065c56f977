"""Every column's distribution as one picture, for benchmarks and notebooks; the report draws its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genward.data.schema import Schema
from genward.evaluate.sides import Floats, features


def plots(synthetic: pa.Table, real: pa.Table, schema: Schema, path: Path) -> None:
    """Every column's distribution, held-out real beside synthetic, as one PNG. Gaps are told in the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(4, len(schema.columns))
    down = -(-len(schema.columns) // across)
    figure = Figure(figsize=(3.2 * across, 2.4 * down), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    sides = [features(table, schema) for table in (real, synthetic)]
    for i, column in enumerate(schema.columns):
        _marginal(axes[i], column.name, column.is_number, sides[0][:, i], sides[1][:, i])
    for spare in axes[len(schema.columns) :]:
        spare.axis("off")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=100, format="png")


def _marginal(axes: Any, name: str, number: bool, real: Floats, made: Floats) -> None:
    """Histograms on shared edges; quantiles of the real values set them, so that heavy tails stay readable."""
    gaps = "/".join(f"{100 * float(np.isnan(side).mean()):.0f}" for side in (real, made))
    plain = name.replace("$", r"\$")  # a dollar would begin a formula, and a lone one fails
    axes.set_title(f"{plain}\n(gaps {gaps} %)", fontsize=7)
    axes.tick_params(labelsize=6)
    there = real[~np.isnan(real)]
    if not len(there):
        return
    low, high = np.quantile(there, [0.01, 0.99]) if number else (there.min() - 0.5, there.max() + 0.5)
    edges = np.linspace(low, high if high > low else low + 1, 41 if number else int(high - low) + 1)
    for label, side in (("real", there), ("synthetic", made[~np.isnan(made)])):
        weights = np.full(len(side), 1 / max(1, len(side)))
        axes.hist(side, bins=edges, weights=weights, alpha=0.5, label=label)
