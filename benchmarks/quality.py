"""Quality of the table families on real materials data: `python -m benchmarks.quality [--seconds 75] [--seeds 3]`.

Each family trains for the same CPU seconds on one thread, on four fifths of a table; held-out rows judge it. The split
is one and the same; a seed moves training and sampling. Sampling runs the exported graph in onnxruntime on one thread.
`--with-sdv VENV` adds SDV's TVAE and CTGAN from an environment of their own (`pip install sdv==2.0.0 pyarrow` there),
with the epochs that the same CPU seconds hold. Measures and their references are those of `genward.evaluate`. Writes
benchmarks/results/quality.json: every run, and over the seeds each figure's mean and 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import t as student

from genward.contracts import Evidence
from genward.data.codec import TableCodec
from genward.data.readers import read_table
from genward.data.schema import Schema
from genward.evaluate import evaluate, plots
from genward.export import Exported, export_graph
from genward.family import NoiseSpec
from genward.noise import draw
from genward.plugins import Plugins
from genward.progress import Lines
from genward.train import TrainOptions, train

ROOT = Path(__file__).parents[1] / "examples" / "data"
TABLES = {"mp_transport": ("mp_transport.csv.gz", "S_p"), "mpea_alloys": ("mpea_alloys.csv", "PROPERTY: YS (MPa)")}
RESULT = Path(__file__).parent / "results" / "quality.json"
BLOCK = 1024
TARGETS = {  # claim -> (limit, whether more is better)
    "mp_transport diffusion": {"c2st": (0.70, False), "tstr_share": (0.98, True), "one_way": (0.04, False)},
    "mp_transport vae": {"c2st": (0.85, False), "rows_per_second": (200_000, True)},
    "mpea_alloys vae": {"c2st": (0.80, False)},
    "mpea_alloys diffusion": {"c2st": (0.80, False)},
}
_PEER = """
import random, sys, time, numpy as np, pandas as pd, torch
from sdv.metadata import Metadata
from sdv.single_table import CTGANSynthesizer, TVAESynthesizer
source, target, name, seconds, rows, seed = sys.argv[1:]
torch.set_num_threads(1); random.seed(int(seed)); np.random.seed(int(seed)); torch.manual_seed(int(seed))
table = {"t": pd.read_parquet(source)}
kind = {"tvae": TVAESynthesizer, "ctgan": CTGANSynthesizer}[name]
def fitted(epochs):
    model = kind(Metadata.detect_from_dataframes(table), epochs=epochs, enable_gpu=False)
    began = time.process_time(); model.fit(table)
    return model, time.process_time() - began
few, more = fitted(2)[1], fitted(12)[1]  # its own preparation of the table takes longer than some epochs
each = max((more - few) / 10, more / 100)
epochs = max(1, min(300, int((float(seconds) - (more - 12 * each)) / each)))  # 300 is its default
model, spent = fitted(epochs)
began = time.process_time(); made = model.sample(int(rows)); done = time.process_time() - began
(made["t"] if isinstance(made, dict) else made).to_parquet(target)
print(epochs, spent, int(rows) / done)
"""


def load(name: str) -> tuple[Schema, pa.Table, pa.Table]:
    """(schema, four fifths for training, one fifth held out)."""
    file, _ = TABLES[name]
    schema = Schema.from_yaml((ROOT / f"{name}.yaml").read_text())
    table = read_table(ROOT / file, schema)
    order = np.random.default_rng(0).permutation(table.num_rows)
    cut = table.num_rows // 5
    return schema, table.take(order[cut:]), table.take(order[:cut])


def sample(exported: Exported, codec: TableCodec, rows: int, seed: int) -> tuple[pa.Table, float]:
    """Rows from the exported graph in blocks, and how many a second without decoding to Arrow (best block)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(exported.data, options, providers=["CPUExecutionProvider"])
    specs = [NoiseSpec(s["name"], tuple(s["shape"]), s["law"]) for s in exported.meta["noise"]]
    batches, quickest = [], np.inf
    for start in range(0, rows, BLOCK):
        began = time.thread_time()
        noise = draw(specs, seed.to_bytes(16, "big"), np.arange(start, start + BLOCK, dtype=np.uint64))
        numbers, codes = session.run(None, noise)
        quickest = min(quickest, time.thread_time() - began)
        batches.append(codec.decode(numbers, codes))
    return pa.Table.from_batches(batches).slice(0, rows), BLOCK / quickest


def ours(name: str, family_name: str, seed: int, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A family trained in the budget."""
    schema, real, held = load(name)
    codec = TableCodec.fit(schema, real)
    family = Plugins.load(["genward"]).family(family_name)()
    config = family.Config(**chosen.given.get("config", {}))
    given = {"seed": seed, "max_cpu_seconds": chosen.seconds, "device": "cpu", **chosen.given.get("options", {})}
    began = time.process_time()
    records = codec.encode(real, np.random.default_rng(seed))
    trained = train(family, config, codec.spec, records, folder, TrainOptions(**given), Lines())
    spent = time.process_time() - began
    exported = export_graph(family, trained.network, config, codec)
    made, rate = sample(exported, codec, max(2 * held.num_rows, 3000), seed)
    plots(made, held, schema, folder / "marginals.png")
    found = evaluate(real, held, made, schema, TABLES[name][1], Lines())
    steps = int(trained.history["steps"][-1]["step"])
    return row(name, family_name, seed, spent, rate, found) | {"steps": steps}


def peer(name: str, kind: str, seed: int, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """SDV in its own environment, on the same rows, with as many epochs as the budget holds."""
    schema, real, held = load(name)
    source, target = folder / "real.parquet", folder / "made.parquet"
    pq.write_table(real, source)
    given = [source, target, kind, chosen.seconds, 2 * held.num_rows, seed]
    command = [str(chosen.with_sdv / "bin" / "python"), "-c", _PEER, *map(str, given)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    epochs, spent, rate = (float(x) for x in printed.split()[-3:])
    made = pq.read_table(target).select(schema.names).cast(real.schema, safe=False)
    found = evaluate(real, held, made, schema, TABLES[name][1], Lines())
    return row(name, f"sdv {kind}", seed, spent, rate, found) | {"epochs": int(epochs)}


def row(
    table: str, generator: str, seed: int, spent: float, rate: float | None, found: Sequence[Evidence]
) -> dict[str, Any]:
    """One run's figures; null is what was not measured."""
    keys = ("value", "n", "low", "high", "reference")
    figures = {e.claim: {key: getattr(e, key) for key in keys} for e in found}
    about = {"table": table, "generator": generator, "seed": seed, "cpu_seconds": spent, "rows_per_second": rate}
    return {**about, **figures}


def shuffled(name: str) -> dict[str, Any]:
    """The floor: each column's true values, in an order of its own."""
    schema, real, held = load(name)
    rng = np.random.default_rng(5)
    made = pa.table({n: real[n].take(rng.permutation(real.num_rows)) for n in schema.names})
    found = evaluate(real, held, made.slice(0, 2 * held.num_rows), schema, TABLES[name][1], Lines())
    return row(name, "columns shuffled", 5, 0.0, None, found)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each figure of each generator over its seeds: mean, 95 % interval, least and most, and the target if any."""
    found = []
    for table, generator in dict.fromkeys((r["table"], r["generator"]) for r in rows):
        runs = [r for r in rows if (r["table"], r["generator"]) == (table, generator)]
        for claim, values in _claims(runs).items():
            target = TARGETS.get(f"{table} {generator}", {}).get(claim)
            about = {"table": table, "generator": generator, "claim": claim, "seeds": len(values)}
            found.append({**about, **_over_seeds(values), **_judged(values, target)})
    return found


def _claims(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Values over the runs; `tstr_share` is that of a model trained on as many real rows."""
    claims = {c: [r[c]["value"] for r in runs] for c in runs[0] if isinstance(runs[0][c], dict)}
    claims |= {c: [r[c] for r in runs] for c in ("cpu_seconds", "rows_per_second")}
    if all(r["tstr"]["value"] is not None for r in runs):
        claims["tstr_share"] = [r["tstr"]["value"] / r["tstr"]["reference"] for r in runs]
    return {claim: values for claim, values in claims.items() if None not in values}


def _over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    mean = float(np.mean(values))
    half = None
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "least": min(values), "most": max(values)}


def _judged(values: Sequence[float], target: tuple[float, bool] | None) -> dict[str, Any]:
    """The target, and whether the mean and every single seed meet it."""
    if target is None:
        return {}
    limit, more = target
    met = [value >= limit if more else value <= limit for value in (float(np.mean(values)), *values)]
    return {"target": f"{'>=' if more else '<='} {limit:g}", "met": met[0], "met_by_every_seed": all(met)}


def show(found: Sequence[Mapping[str, Any]]) -> None:
    """The summary as a Markdown table."""
    print(
        "\n| table | generator | figure | mean [95 %] | least to most | target | met |\n|---|---|---|---|---|---|---|"
    )
    for f in found:
        digits = ",.0f" if abs(f["mean"]) >= 100 else ".3f"
        mean, low, high, least, most = (
            "-" if f[k] is None else format(f[k], digits) for k in ("mean", "low", "high", "least", "most")
        )
        met = {True: "yes", False: "no", None: ""}[f.get("met")]
        cells = (f["table"], f["generator"], f["claim"], f"{mean} [{low}, {high}]", f"{least} to {most}")
        print("|", " | ".join((*cells, f.get("target", ""), met)), "|")


def measure(chosen: argparse.Namespace, name: str, folder: Path) -> list[dict[str, Any]]:
    """The floor, then every generator and seed, on one table."""
    rows = [shuffled(name)]
    for seed in range(chosen.seeds):
        rows += [ours(name, f, seed, chosen, folder / f"{f}{seed}") for f in chosen.families]
        if chosen.with_sdv:
            rows += [peer(name, kind, seed, chosen, folder) for kind in ("tvae", "ctgan")]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=75.0, help="CPU seconds of training")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each generator")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--families", nargs="*", default=["vae", "diffusion"])
    parser.add_argument("--given", type=json.loads, default={}, help='{"config": {...}, "options": {...}}')
    parser.add_argument("--with-sdv", type=Path, metavar="VENV", help="also SDV, from this environment")
    parser.add_argument("--json", type=Path, default=RESULT, help="write the figures here")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in chosen.tables:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(chosen, name, Path(folder))
    found = summary(rows)
    show(found)
    result = {"seconds": chosen.seconds, "load_average": os.getloadavg(), "summary": found, "runs": rows}
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
