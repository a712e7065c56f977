"""Quality of the table families on real materials data: `python benchmarks/quality.py [--seconds 75] [--json FILE]`.

Each family trains for the same CPU seconds on one thread, on four fifths of a table; held-out rows judge it. Sampling
runs the exported graph in onnxruntime on one thread. `--with-sdv VENV` adds SDV's TVAE and CTGAN from an environment
of their own (`pip install sdv==2.0.0` there). Measures and their references are those of `genward.evaluate`.
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
BLOCK = 1024
_PEER = """
import sys, time, pandas as pd
from sdv.metadata import Metadata
from sdv.single_table import CTGANSynthesizer, TVAESynthesizer
source, target, name, epochs, rows = sys.argv[1:]
table = pd.read_parquet(source)
kind = {"tvae": TVAESynthesizer, "ctgan": CTGANSynthesizer}[name]
model = kind(Metadata.detect_from_dataframe(table), epochs=int(epochs), cuda=False)
began = time.process_time(); model.fit(table); fitted = time.process_time()
made = model.sample(int(rows)); done = time.process_time()
made.to_parquet(target)
print(fitted - began, int(rows) / (done - fitted))
"""


def load(name: str) -> tuple[Schema, pa.Table, pa.Table]:
    """(schema, four fifths for training, one fifth held out)."""
    file, _ = TABLES[name]
    schema = Schema.from_yaml((ROOT / f"{name}.yaml").read_text())
    table = read_table(ROOT / file, schema)
    order = np.random.default_rng(0).permutation(table.num_rows)
    cut = table.num_rows // 5
    return schema, table.take(order[cut:]), table.take(order[:cut])


def sample(exported: Exported, codec: TableCodec, rows: int) -> tuple[pa.Table, float]:
    """Rows from the exported graph in blocks, and how many a second without decoding to Arrow (best block)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(exported.data, options, providers=["CPUExecutionProvider"])
    specs = [NoiseSpec(s["name"], tuple(s["shape"]), s["law"]) for s in exported.meta["noise"]]
    batches, quickest = [], np.inf
    for start in range(0, rows, BLOCK):
        began = time.thread_time()
        noise = draw(specs, bytes(16), np.arange(start, start + BLOCK, dtype=np.uint64))
        numbers, codes = session.run(None, noise)
        quickest = min(quickest, time.thread_time() - began)
        batches.append(codec.decode(numbers, codes))
    return pa.Table.from_batches(batches).slice(0, rows), BLOCK / quickest


def ours(name: str, family_name: str, seconds: float, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    schema, real, held = load(name)
    codec = TableCodec.fit(schema, real)
    family = Plugins.load(["genward"]).family(family_name)()
    config = family.Config(**given.get("config", {}))
    began = time.process_time()
    options = TrainOptions(max_cpu_seconds=seconds, device="cpu", **given.get("options", {}))
    records = codec.encode(real, np.random.default_rng(1))
    trained = train(family, config, codec.spec, records, folder, options, Lines())
    spent = time.process_time() - began
    exported = export_graph(family, trained.network, config, codec)
    made, rate = sample(exported, codec, max(2 * held.num_rows, 3000))
    plots(made, held, schema, folder / "marginals.png")
    found = evaluate(real, held, made, schema, TABLES[name][1], Lines())
    return row(name, family_name, spent, rate, found)


def peer(venv: Path, name: str, kind: str, epochs: int, folder: Path) -> dict[str, Any]:
    """SDV in its own environment, on the same rows."""
    schema, real, held = load(name)
    source, target = folder / "real.parquet", folder / "made.parquet"
    pq.write_table(real, source)
    command = [str(venv / "bin" / "python"), "-c", _PEER, str(source), str(target), kind, str(epochs)]
    printed = subprocess.run([*command, str(2 * held.num_rows)], check=True, capture_output=True, text=True).stdout
    spent, rate = (float(x) for x in printed.split()[-2:])
    made = pq.read_table(target).select(schema.names).cast(real.schema, safe=False)
    found = evaluate(real, held, made, schema, TABLES[name][1], Lines())
    return row(name, f"sdv {kind}, {epochs} epochs", spent, rate, found)


def row(table: str, generator: str, spent: float, rate: float, found: Sequence[Evidence]) -> dict[str, Any]:
    figures = {e.claim: {"value": e.value, "low": e.low, "high": e.high, "reference": e.reference} for e in found}
    return {"table": table, "generator": generator, "cpu_seconds": spent, "rows_per_second": rate, **figures}


def shuffled(name: str) -> dict[str, Any]:
    """The floor: each column's true values, in an order of its own."""
    schema, real, held = load(name)
    rng = np.random.default_rng(5)
    made = pa.table({n: real[n].take(rng.permutation(real.num_rows)) for n in schema.names})
    found = evaluate(real, held, made.slice(0, 2 * held.num_rows), schema, TABLES[name][1], Lines())
    return row(name, "columns shuffled", 0.0, float("nan"), found)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    print(
        f"\n{'table':<13} {'generator':<22} {'fit CPU s':>9} {'C2ST':>17} {'TSTR / real':>15} {'1-way / real':>13} "
        "rows/s"
    )
    for r in rows:
        c2st, tstr, way = r["c2st"], r["tstr"], r["one_way"]
        judged = f"{c2st['value']:.3f} [{c2st['low']:.2f}-{c2st['high']:.2f}]"
        useful = "-" if tstr["value"] is None else f"{tstr['value']:.3f} / {tstr['reference']:.3f}"
        near = f"{way['value']:.3f} / {way['reference']:.3f}"
        print(
            f"{r['table']:<13} {r['generator']:<22} {r['cpu_seconds']:>9.1f} {judged:>17} {useful:>15} {near:>13} "
            f"{r['rows_per_second']:,.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=75.0, help="CPU seconds of training")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--families", nargs="+", default=["vae", "diffusion"])
    parser.add_argument("--given", type=json.loads, default={}, help='{"config": {...}, "options": {...}}')
    parser.add_argument("--with-sdv", type=Path, metavar="VENV", help="also SDV, from this environment")
    parser.add_argument("--epochs", type=int, default=60, help="of SDV")
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in chosen.tables:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(shuffled(name))
            rows += [ours(name, f, chosen.seconds, chosen.given, Path(folder) / f) for f in chosen.families]
            if chosen.with_sdv:
                rows += [peer(chosen.with_sdv, name, kind, chosen.epochs, Path(folder)) for kind in ("tvae", "ctgan")]
    show(rows)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
