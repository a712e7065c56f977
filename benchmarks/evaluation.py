"""What the judges are worth: `python -m benchmarks.evaluation [--seeds 20]`.

Real rows of the example table stand for synthetic ones, honest and broken on purpose, over many splits. Printed: how
often a 95 % interval holds the reference (honest rows), how often the shipped gate would refuse, and the CPU seconds
of a judgement of 20,000 rows by 11 columns with its report. Writes benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa

from genward.contracts import Evidence, Silent
from genward.data.readers import read_table
from genward.data.schema import Schema
from genward.evaluate import Settings, evaluate, sides_of
from genward.evaluate.drawing import document
from genward.evaluate.report import html
from genward_policies.quality import Quality, QualityConfig

ROOT = Path(__file__).parents[1] / "examples" / "data"
RESULT = Path(__file__).parent / "results" / "evaluation.json"
TARGET = "S_p"
CPU_LIMIT = 20.0  # seconds for 20,000 rows
SMALL = Settings(rows=3000, near=1000, resamples=100)
JUDGED = ("one_way", "pairs", "correlations", "c2st", "coverage", "precision", "novelty", "nearest_is_training", "tstr")
Made = Callable[[pa.Table, pa.Table, np.random.Generator], pa.Table]


def honest(train: pa.Table, other: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Rows of the same table that nobody trained on."""
    return other


def copies(train: pa.Table, other: pa.Table, rng: np.random.Generator) -> pa.Table:
    """One row in a hundred is a training row."""
    few = other.num_rows // 100
    return pa.concat_tables([train.slice(0, few), other.slice(few)])


def shuffled(train: pa.Table, other: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Each column right, and none hangs on another."""
    return pa.table({name: other[name].take(rng.permutation(other.num_rows)) for name in other.column_names})


def noisy(train: pa.Table, other: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Training rows, each number 0.1 % off."""
    rows = train.slice(0, other.num_rows)
    for i, name in enumerate(rows.column_names[1:], 1):
        factor = pa.array(1 + 1e-3 * rng.normal(size=rows.num_rows))
        rows = rows.set_column(i, name, pa.compute.multiply(rows[name], factor))
    return rows


MODELS: dict[str, tuple[Made, dict[str, Any]]] = {
    "honest": (honest, {}),
    "1 % copies": (copies, {}),
    "shuffled columns": (shuffled, {}),
    "training rows, 0.1 % off": (noisy, {"novelty_min": 0.5}),
}


def refused(found: list[Evidence], limits: dict[str, Any]) -> bool:
    """Whether the shipped limits, and these besides, refuse."""
    return not Quality(QualityConfig(**limits), None).gate(found).allow  # type: ignore[arg-type]


def one_seed(table: pa.Table, schema: Schema, seed: int) -> dict[str, Any]:
    """Every model on one split: refused, and for the honest one which intervals hold the reference."""
    rng = np.random.default_rng(seed)
    rows = table.take(rng.permutation(table.num_rows)[:15_000])
    train, test, other = rows.slice(0, 6000), rows.slice(6000, 3000), rows.slice(9000)
    told: dict[str, Any] = {"seed": seed, "refused": {}}
    for name, (make, limits) in MODELS.items():
        found = evaluate(train, test, make(train, other, rng), schema, TARGET, Silent(), SMALL)
        told["refused"][name] = refused(found, limits)
        if name == "honest":
            told["holds"] = {e.claim: _holds(e) for e in found if e.claim in JUDGED}
    return told


def _holds(item: Evidence) -> bool:
    low, high, real = item.low, item.high, item.reference
    return low is not None and high is not None and real is not None and low <= real <= high


def speed(table: pa.Table, schema: Schema) -> dict[str, float]:
    """CPU seconds of a judgement at a release's size, and of its report."""
    rows = table.take(np.random.default_rng(0).permutation(table.num_rows))
    sides = (rows.slice(9547, 18_000), rows.slice(0, 9547), rows.slice(27_547, 20_000))
    began = time.process_time()
    found = evaluate(*sides, schema, TARGET, Silent())
    judged = time.process_time() - began
    page = html(document(sides_of(*sides, schema), found, {}))
    return {"judgement": judged, "report": time.process_time() - began - judged, "report_bytes": float(len(page))}


def show(runs: list[dict[str, Any]], spent: dict[str, float]) -> None:
    """Shares over the seeds."""
    print(
        f"\n{len(runs)} splits of 6,000 training, 3,000 held-out and 6,000 other rows\n\n| rows | refused |\n|---|---|"
    )
    for name in MODELS:
        print(f"| {name} | {sum(run['refused'][name] for run in runs)} of {len(runs)} |")
    print("\n| claim | 95 % interval holds the reference (honest) |\n|---|---|")
    for claim in JUDGED:
        print(f"| {claim} | {sum(run['holds'][claim] for run in runs)} of {len(runs)} |")
    print(f"\n20,000 rows x 11 columns: {spent['judgement']:.1f} CPU s (limit {CPU_LIMIT:g})", end="")
    print(f", report {spent['report']:.1f} CPU s, {spent['report_bytes'] / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path, default=RESULT)
    chosen = parser.parse_args()
    schema = Schema.from_yaml((ROOT / "mp_transport.yaml").read_text())
    table = read_table(ROOT / "mp_transport.csv.gz", schema)
    spent = speed(table, schema)
    runs = [one_seed(table, schema, seed) for seed in range(chosen.seeds)]
    show(runs, spent)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps({"cpu_seconds": spent, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
