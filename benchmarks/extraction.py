"""Figures of the policy `extraction`: `python benchmarks/extraction.py [--seconds 40] [--only curves honest]`.

Three real tables; on each a VAE of so many CPU seconds. Curves are fitted on 100 to 3,000 delivered rows and held
against copies of 10,000 and 20,000 other ones. Honest cost: distance to held-out rows and usefulness of rows from
pools of `max_risk.release: 0.8` over as many rows without a pool. Detection is on simulated traffic (`Traffic`). Writes
benchmarks/results/extraction.json. `perov5.csv` is read from ../shared/data; without it that table is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
from extraction_honest import Judge, cases, line

from genward.attacker import Target
from genward.candidate import Candidate, Recipe
from genward.contracts import Silent
from genward.data.codec import TableCodec
from genward.data.distance import Space, encoded, frechet
from genward.data.readers import read_table
from genward.data.schema import Schema
from genward.plugins import Plugins
from genward.table import Table, Walk
from genward_policies.extraction.calibrate import Portfolio, drawing
from genward_policies.extraction.profile import Profile, profile_of
from genward_policies.extraction.sketch import Places, Sketch
from genward_policies.extraction.suspicion import suspicion
from genward_policies.extraction.traffic import Traffic

EXAMPLES = Path(__file__).parents[1] / "examples" / "data"
SHARED = Path(__file__).parents[2] / "shared" / "data"
RESULT = Path(__file__).parent / "results" / "extraction.json"
TARGETS = {"transport": "S_p", "alloys": "PROPERTY: BCC/FCC/other", "perovskites": "heat"}
ELSEWHERE = 10_000_000  # where rows begin that no calibration has drawn
LONG = (10_000, 20_000)


def tables() -> dict[str, tuple[pa.Table, Schema]]:
    """The real tables, with their schemas."""
    found = {}
    for name, file in (("transport", "mp_transport.csv.gz"), ("alloys", "mpea_alloys.csv")):
        schema = Schema.from_yaml((EXAMPLES / f"{file.split('.')[0]}.yaml").read_text(), file)
        found[name] = read_table(EXAMPLES / file, schema), schema
    if (SHARED / "perov5.csv").is_file():
        table = perovskites()
        found["perovskites"] = table, Schema.infer(table)
    return found


def perovskites() -> pa.Table:
    """Elements of the formula beside its energies and gaps."""
    read = pc.read_csv(SHARED / "perov5.csv", parse_options=pc.ParseOptions(newlines_in_values=True))
    atoms = [re.findall(r"([A-Z][a-z]?)", str(formula)) for formula in read["formula"].to_pylist()]
    oxygen = [str("O" in found) for found in atoms]
    columns = {"heat": read["heat_all"], "heat_ref": read["heat_ref"], "gap": read["dir_gap"], "gap_i": read["ind_gap"]}
    return pa.table({**columns, "first": [a[0] for a in atoms], "second": [a[1] for a in atoms], "oxide": oxygen})


def release(name: str, table: pa.Table, schema: Schema, seconds: float, folder: Path) -> tuple[Any, Any, Any, Any]:
    """(candidate, engine without a pool, drawing of encoded rows, test) of a VAE trained for so long."""
    from genward.engine import choose_block
    from genward.release import export_checked, public_engine
    from genward.train import TrainOptions, train

    order = np.random.default_rng(0).permutation(table.num_rows)
    cut = int(0.8 * len(order))
    rows, test = table.take(order[:cut]), table.take(order[cut:])
    codec = TableCodec.fit(schema, rows)
    candidate = Candidate.create(folder / name, Recipe(name, "vae", "sha256:0"), Plugins.load(["genward"]), codec)
    options = TrainOptions(max_cpu_seconds=seconds, device="cpu")
    records = codec.encode(rows, np.random.default_rng(0))
    train(candidate.family, candidate.config, codec.spec, records, folder / name, options, Silent())
    exported, _ = export_checked(candidate, candidate.network(), Silent())
    engine = public_engine(candidate, exported, Table(None, 1, choose_block(exported.data, exported.meta)))
    return candidate, engine, drawing(engine, codec), test


def calibrated(candidate: Any, draw: Any, test: pa.Table) -> tuple[Profile, Target, float]:
    """(profile, what the thief knew, CPU seconds) of the default calibration."""
    target = Target(candidate.codec.spec, candidate.family, candidate.config)
    began = time.process_time()
    portfolio = Portfolio(draw, target, candidate_attackers(), encoded(candidate.codec, test), 60)
    profile = profile_of(portfolio.run(Silent()))
    return profile, target, time.process_time() - began


def curves(profile: Profile, target: Target, draw: Any) -> dict[str, Any]:
    """The fit against more rows than it has seen."""
    found: dict[str, Any] = {"fit": profile.fidelity.curve.__dict__}
    found["rows_at_risk"] = {str(r): profile.rows_at(r) for r in (0.5, 0.8, 0.95)}
    found["long"] = {str(n): long(profile, target, draw, n) for n in LONG}
    return found | {"colluders": colluders(profile.rows_at(0.8), profile.rows_at(0.5))}


def candidate_attackers() -> list[Any]:
    found = Plugins.load(["genward"]).attackers
    return [found[name] for name in sorted(found)]


def long(profile: Profile, target: Target, draw: Any, n: int, repeats: int = 6, judged: int = 20_000) -> dict[str, Any]:
    """The best cheap copy of n rows that the calibration never saw, against the fit: raw distances at 20,000 rows and
    corrected ones; above 1 the fit says that a copy is farther than it is."""
    space = Space.fit(draw(ELSEWHERE, 20_000))
    reference = space.normal(draw(ELSEWHERE, 100_000))
    starts = [ELSEWHERE + 200_000 + i * 40_000 for i in range(repeats)]
    own = float(np.mean([frechet(space.normal(draw(s + 20_000, judged)), reference) for s in starts]))
    by = {}
    for kind in candidate_attackers():
        if kind.effort != "costly" and not kind.cannot(target):
            copies = [kind(target) for _ in starts[: repeats if kind.effort == "light" else 2]]
            for copy, start in zip(copies, starts, strict=False):
                copy.fit(draw(start, n), seed=start)
            by[kind.name] = float(np.mean([frechet(space.normal(c.sample(judged, seed=9)), reference) for c in copies]))
    name = min(by, key=lambda key: by[key])
    measured, fitted = by[name], profile.fidelity.curve.at(n)
    return {
        "best": name,
        "corrected": {"measured": measured - own, "predicted": fitted, "ratio": fitted / (measured - own)},
        "raw": {"measured": measured, "predicted": fitted + own, "ratio": (fitted + own) / measured},
    }


def honest(name: str, candidate: Any, engine: Any, test: pa.Table, profile: Profile, scale: float) -> list[Any]:
    """What the default pool costs who takes rows of it, over who takes as many rows without one."""
    codec, slots, share = candidate.codec, profile.rows_at(0.8), profile.rows_at(0.5)
    judge = Judge(engine, codec, encoded(codec, test), *target_field(codec, TARGETS[name]))
    found = []
    for case in cases(slots, share, scale):
        found.append(judge.case(slots, case))
        print(name, line(found[-1]), flush=True)
    return found


def target_field(codec: TableCodec, name: str) -> tuple[slice, bool]:
    fields = [f for f in codec.spec.fields if f.column == name]
    number = fields[0].kind == "number"
    return slice(fields[0].start, fields[-1].start + fields[-1].width), number


def colluders(slots: int, share: int, accounts: int = 100, each: int = 500) -> dict[str, int]:
    """Distinct slots that accounts come to together, asking for so many rows each."""
    table, pool = Table(slots, 1, 1), bytes(16)
    walks = (Walk(table, i.to_bytes(16, "big"), pool, reach=share) for i in range(accounts))
    held = np.unique(np.concatenate([walk.slots(0, min(each, walk.length)) for walk in walks]))
    return {"asked": accounts * each, "distinct": len(held), "cap": slots, "share": share}


def detection(table: pa.Table, schema: Schema, streams: int) -> dict[str, Any]:
    """Share of streams flagged by 200 and by 1,000 queries, looked at every 25."""
    codec = TableCodec.fit(schema, table)
    traffic, places = Traffic(codec, table.slice(0, 1500)), Places(codec)
    counts = {
        "honest": 2 * streams,
        "bulk": streams,
        "uniform": streams,
        "sweep": streams,
        "active": streams,
        "slow": streams,
    }
    return {kind: flagged(traffic.kinds[kind], places, n) for kind, n in counts.items()}


def flagged(stream: Any, places: Places, streams: int) -> dict[str, float]:
    looks = []
    for seed in range(streams):
        sketch, seen = Sketch(), []
        for i, asked in enumerate(islice(stream(np.random.default_rng([seed, 77])), 1000), 1):
            sketch.add(places.of(asked))
            if i % 25 == 0:
                seen.append(suspicion(sketch) >= 1)
        looks.append(seen)
    found = np.array(looks)
    return {
        "by_200": float(found[:, :8].any(axis=1).mean()),
        "by_1000": float(found.any(axis=1).mean()),
        "streams": streams,
    }


def released(name: str, table: pa.Table, schema: Schema, options: argparse.Namespace) -> dict[str, Any]:
    """What is asked for of one table's release."""
    with tempfile.TemporaryDirectory() as folder:
        candidate, engine, draw, test = release(name, table, schema, options.seconds, Path(folder))
    profile, target, spent = calibrated(candidate, draw, test)
    found: dict[str, Any] = {"calibration_cpu_seconds": round(spent, 1)}
    if "curves" in options.only:
        found |= curves(profile, target, draw)
    if "honest" in options.only:
        found["honest"] = honest(name, candidate, engine, test, profile, options.draws)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="CPU seconds of each training")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--draws", type=float, default=1.0, help="draws of honest cost, over the usual number")
    parser.add_argument("--only", nargs="*", default=["curves", "honest", "detection"])
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    for name, (table, schema) in tables().items():
        if "detection" in options.only:
            results.setdefault("detection", {})[name] = detection(table, schema, options.streams)
            print(name, json.dumps(results["detection"][name]), flush=True)
        if {"curves", "honest"} & {*options.only}:
            found = released(name, table, schema, options)
            results.setdefault("curves", {}).setdefault(name, {}).update(found)
            print(name, json.dumps(found), flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
