"""Usefulness of private tables: `python -m benchmarks.private_utility [--tables fair] [--seeds 3]`.

A family is trained through the platform, under a policy of each epsilon, on three quarters of a table; a linear model
and gradient boosting are then trained on as many synthetic rows and judged by AUC on the real quarter that nothing saw.
The better of the two counts, as it does for the same two trained on the real rows; `drop` is the difference. A seed
moves split, training and sampling; noise is the operating system's. Each training is a process of its own, on one
thread: its CPU seconds, and its largest resident memory, libraries included.

`--with-peer VENV` (often) adds the generators that an environment has: `dpmm` (MST, AIM, PrivBayes) or
`smartnoise-synth` (the mechanisms of `mbi`: MST, AIM). They get the same discretised columns, the whole epsilon, and
1,000 CPU seconds.

Schemas are public: codes of the questionnaire, bounds and scales from general knowledge. The tables of `statsmodels`
and `plotnine` come out of their wheels, which are put into `--data DIR` where they are not there yet.
Writes benchmarks/results/private_utility.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import t as student

from genward.data.codec import TableCodec
from genward.data.schema import Column, Schema
from genward.fitting import discretised, places

RESULT = Path(__file__).parent / "results" / "private_utility.json"
WHEELS = ("statsmodels==0.15.0", "plotnine==0.15.9")
HELD_OUT, PEER_BINS, PEER_SECONDS = 0.25, 32, 1000
POLICY = """
apiVersion: genward/v1
kind: Policy
name: bench
access: {{roles: {{generate: [administrator], read: [administrator], audit: [auditor]}}}}
quota: {{rows: {{per_request: 1000000}}}}
privacy: {{epsilon: {epsilon}, delta: {delta}, budget: {{dataset: 100000}}}}
quality: {{}}
"""
DROPS = {("fair", 1.0): 0.05, ("fair", 3.0): 0.05, ("breast_cancer", 1.0): 0.08, ("breast_cancer", 3.0): 0.06}
MARGIN, CPU_SECONDS, MEGABYTES = 0.01, 90.0, 1000.0
_PEER = """
import random, resource, sys, time, numpy as np, pandas as pd
source, target, kind, epsilon, delta, rows, seed = sys.argv[1:]
given = np.load(source); codes, domain = given["codes"], given["domain"]
random.seed(int(seed)); np.random.seed(int(seed))
names = [f"c{i}" for i in range(codes.shape[1])]
package, method = kind.split()
if package == "dpmm":
    from dpmm.pipelines.aim import AIMPipeline
    from dpmm.pipelines.mst import MSTPipeline
    from dpmm.pipelines.priv_bayes import PrivBayesPipeline
    known = {"aim": AIMPipeline, "mst": MSTPipeline, "privbayes": PrivBayesPipeline}
    model = known[method](epsilon=float(epsilon), delta=float(delta), disable_processing=True, n_jobs=1)
    began = time.process_time()
    model.fit(pd.DataFrame(codes, columns=names), domain=dict(zip(names, map(int, domain))), random_state=int(seed))
    spent = time.process_time() - began
    made = model.generate(n_records=int(rows), random_state=int(seed))
else:
    from snsynth.aim import AIMSynthesizer
    from snsynth.mst import MSTSynthesizer
    model = {"aim": AIMSynthesizer, "mst": MSTSynthesizer}[method](epsilon=float(epsilon), delta=float(delta))
    began = time.process_time()
    model.fit(pd.DataFrame(codes.astype(str), columns=names), categorical_columns=names, preprocessor_eps=0.0)
    spent = time.process_time() - began
    made = model.sample(int(rows))
np.save(target, made[names].to_numpy().astype(np.int32))
print(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
KINDS = {"dpmm": ("dpmm mst", "dpmm privbayes", "dpmm aim"), "snsynth": ("smartnoise mst", "smartnoise aim")}


# Tables


@dataclass(frozen=True)
class Table:
    """A table in public terms: how to get its rows, its schema, what is predicted, and delta."""

    rows: Callable[[Path], Iterator[dict[str, Any]]]
    schema: Schema
    target: str
    delta: float


def number(name: str, low: float, high: float, **given: Any) -> Column:
    """A number that is clipped to public bounds."""
    kind = "numeric" if given.keys() & {"step", "digits"} else "integer"
    return Column(name=name, kind=kind, minimum=low, maximum=high, outside="clip", **given)


def choice(name: str, values: str) -> Column:
    return Column(name=name, kind="categorical", categories=tuple(values.split()))


def wheels(folder: Path) -> Path:
    """Where the tables' packages lie unpacked; fetched once."""
    if not (folder / "plotnine").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *WHEELS]
        subprocess.run(command, check=True)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fair(folder: Path) -> Iterator[dict[str, Any]]:
    for row in read(wheels(folder) / "statsmodels/datasets/fair/fair.csv"):
        affair = float(row.pop("affairs")) > 0
        yield {name: f"{float(value):g}" for name, value in row.items()} | {"affair": affair}


def breast_cancer(folder: Path) -> Iterator[dict[str, Any]]:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    names = [name.removeprefix("mean ") for name in data.feature_names[:10]]
    for values, benign in zip(data.data, data.target, strict=True):
        yield dict(zip(names, values.tolist(), strict=False)) | {"benign": bool(benign)}


def diamonds(folder: Path) -> Iterator[dict[str, Any]]:
    for row in read(wheels(folder) / "plotnine/data/diamonds.csv"):
        yield {**{k: v for k, v in row.items() if k != "cut"}, "ideal": row["cut"] == "Ideal"}


FAIR = Schema(
    columns=(  # the questionnaire's codes, as statsmodels documents them
        choice("rate_marriage", "1 2 3 4 5"), choice("age", "17.5 22 27 32 37 42"),
        choice("yrs_married", "0.5 2.5 6 9 13 16.5 23"), choice("children", "0 1 2 3 4 5.5"),
        choice("religious", "1 2 3 4"), choice("educ", "9 12 14 16 17 20"),
        choice("occupation", "1 2 3 4 5 6"), choice("occupation_husb", "1 2 3 4 5 6"),
        Column(name="affair", kind="boolean"),
    )
)  # fmt: skip
CANCER = Schema(
    columns=(  # micrometres and what is made of them; nuclei of cells have radii up to some 30
        number("radius", 4, 40, digits=4), number("texture", 4, 50, digits=4), number("perimeter", 25, 250, digits=4),
        number("area", 50, 5000, digits=4, scale="log"), number("smoothness", 0, 0.25, digits=4),
        number("compactness", 0, 0.5, digits=4), number("concavity", 0, 0.5, digits=4),
        number("concave points", 0, 0.25, digits=4), number("symmetry", 0.05, 0.4, digits=4),
        number("fractal dimension", 0.03, 0.12, digits=4), Column(name="benign", kind="boolean"),
    )
)  # fmt: skip
DIAMONDS = Schema(
    columns=(  # carats, dollars, millimetres, and per cent of the width; proportions that a cutter can sell
        number("carat", 0.2, 5.1, step=0.01, scale="log"), choice("color", "D E F G H I J"),
        choice("clarity", "I1 SI2 SI1 VS2 VS1 VVS2 VVS1 IF"), number("depth", 50, 75, step=0.1),
        number("table", 50, 75, step=0.1), number("price", 300, 20000, scale="log"), number("x", 3.5, 11, step=0.01),
        number("y", 3.5, 11, step=0.01), number("z", 2, 7, step=0.01), Column(name="ideal", kind="boolean"),
    )
)  # fmt: skip
TABLES = {
    "fair": Table(fair, FAIR, "affair", 1e-4),
    "breast_cancer": Table(breast_cancer, CANCER, "benign", 1e-3),
    "diamonds": Table(diamonds, DIAMONDS, "ideal", 1e-5),
}


# Training, in a process of its own


def child(given: Mapping[str, Any]) -> dict[str, Any]:
    """Train one private candidate through the platform and leave synthetic rows."""
    from benchmarks.quality import sample
    from genward.api import Platform
    from genward.export import export_graph

    torch.set_num_threads(1)
    platform = Platform.open(Path(given["state"]))
    began = time.process_time()
    candidate = platform.train(
        given["table"], family=given["family"], seed=given["seed"], held_out=HELD_OUT, target=given["target"],
        config=given["config"], **given["options"],
    )  # fmt: skip
    spent = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = json.loads((candidate.folder / "privacy.json").read_text())
    exported = export_graph(candidate.family, candidate.network(), candidate.config, candidate.codec)
    made, rate = sample(exported, candidate.codec, given["rows"], given["seed"])
    pq.write_table(made, given["made"])
    return {"cpu_seconds": spent, "megabytes": memory, "rows_per_second": rate, "told": _told(told)}


def _told(evidence: Mapping[str, Any]) -> dict[str, Any]:
    return {key: evidence[key] for key in evidence if key.startswith("eps") or key in ("delta", "rho")}


class Bench:
    """One table in a state folder: real rows split by seed, and what each generator makes of them."""

    def __init__(self, name: str, folder: Path, data: Path) -> None:
        from genward.api import Platform

        self.name, self.folder, self.table = name, folder, TABLES[name]
        source, schema = folder / f"{name}.csv", folder / f"{name}.yaml"
        rows = list(self.table.rows(data))
        with source.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.table.schema.names)
            writer.writeheader()
            writer.writerows(rows)
        schema.write_text(self.table.schema.to_yaml())
        self.platform, _ = Platform.init(folder / "state", tenant="bench", single_operator=True)
        self.data = self.platform.add_dataset(source, schema=schema, name=name)
        self.codec = TableCodec.declared(self.table.schema)

    def adopt(self, epsilon: float) -> None:
        digest = self.platform.propose_policy(POLICY.format(epsilon=epsilon, delta=self.table.delta))
        self.platform.approve_policy(digest)
        self.platform.activate_policy(digest)

    def ours(self, family: str, epsilon: float, seed: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """A family under the policy."""
        real, held = self.data.split(seed, HELD_OUT)
        self.adopt(epsilon)
        made = self.folder / "made.parquet"
        about = {"state": str(self.folder / "state"), "table": self.name, "family": family, "seed": seed}
        about |= {"target": self.table.target, "rows": real.num_rows, "made": str(made), "config": {}, "options": {}}
        command = [sys.executable, "-m", "benchmarks.private_utility", "--child", json.dumps(about | dict(given))]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return json.loads(printed.splitlines()[-1]) | self.judged(real, held, pq.read_table(made))

    def peer(self, python: Path, kind: str, epsilon: float, seed: int) -> dict[str, Any]:
        """A peer, on the same rows cut into bins; it gives bins back, in which rows lie evenly."""
        real, held = self.data.split(seed, HELD_OUT)
        source, target = self.folder / "codes.npz", self.folder / "made.npy"
        codes, domain = discretised(self.codec.spec, self.codec.encode(real)["x"], PEER_BINS)
        np.savez(source, codes=codes, domain=np.array(domain))
        given = [source, target, kind, epsilon, self.table.delta, real.num_rows, seed]
        command = [str(python), "-c", _PEER, *map(str, given)]
        limit = (PEER_SECONDS, PEER_SECONDS)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, limit),
        )  # fmt: skip
        if done.returncode:
            return {"cpu_seconds": None, "drop": None, "error": (done.stderr.splitlines() or ["out of time"])[-1][:200]}
        spent, memory = (float(x) for x in done.stdout.split()[-2:])
        made = self.decoded(np.load(target), seed)
        return {"cpu_seconds": spent, "megabytes": memory} | self.judged(real, held, made)

    def decoded(self, codes: np.ndarray[Any, Any], seed: int) -> pa.Table:
        """Rows at even places of their bins."""
        rng, x = np.random.default_rng(seed), np.zeros((len(codes), self.codec.spec.width), dtype=np.float32)
        for i, place in enumerate(places(self.codec.spec, PEER_BINS)):
            if place.is_choice:
                x[np.arange(len(codes)), place.start + codes[:, i]] = 1
                continue
            ends = np.array([0.0, *place.cuts, 1.0])
            share = ends[codes[:, i]] + np.diff(ends)[codes[:, i]] * rng.random(len(codes))
            x[:, place.start] = torch.special.ndtri(torch.from_numpy(share.clip(1e-9, 1 - 1e-9))).numpy()
        numbers, found = self.codec.decoder()(torch.from_numpy(x))
        return pa.Table.from_batches([self.codec.decode(numbers.numpy(), found.numpy())])

    def judged(self, real: pa.Table, held: pa.Table, made: pa.Table) -> dict[str, Any]:
        """AUC by model, of synthetic and of real rows; total variation of columns and pairs against held-out rows."""
        scores, reference = (auc(rows, held, self.table) for rows in (made, real))
        found = {"linear": scores[0], "boosted": scores[1], "real": max(reference)}
        return found | {"drop": max(reference) - max(scores), **self.variation(made, held)}

    def variation(self, made: pa.Table, held: pa.Table) -> dict[str, float]:
        from itertools import combinations

        from genward.fitting import counted

        sides = [discretised(self.codec.spec, self.codec.encode(rows)["x"], PEER_BINS) for rows in (made, held)]
        domain = sides[0][1]
        found = {}
        for order in (1, 2):
            tables = list(combinations(range(len(domain)), order))
            shares = [[counted(codes, domain, t) / len(codes) for t in tables] for codes, _ in sides]
            found[f"tv{order}"] = float(np.mean([np.abs(a - b).sum() / 2 for a, b in zip(*shares, strict=True)]))
        return found


def features(table: pa.Table, schema: Schema, target: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Numbers as they are, codes that are numbers as those, other categories by their place."""
    columns = []
    for column in schema.columns:
        values = table[column.name].to_pylist()
        if column.kind == "categorical":
            numeric = all(word.replace(".", "").isdigit() for word in column.categories)
            known = {word: float(word) if numeric else float(i) for i, word in enumerate(column.categories)}
            values = [known[value] for value in values]
        columns.append(np.array(values, dtype=float))
    at = schema.names.index(target)
    return np.stack(columns[:at] + columns[at + 1 :], 1), columns[at].astype(int)


def auc(rows: pa.Table, held: pa.Table, table: Table) -> tuple[float, float]:
    """(linear, boosted) on held-out real rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = features(rows, table.schema, table.target)
    test, truth = features(held, table.schema, table.target)
    if len(set(y.tolist())) < 2:
        return 0.5, 0.5
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        HistGradientBoostingClassifier(random_state=0),
    )
    linear, boosted = (float(roc_auc_score(truth, m.fit(x, y).predict_proba(test)[:, 1])) for m in models)
    return linear, boosted


# All of it


def measure(name: str, chosen: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    bench = Bench(name, folder, chosen.data)
    for seed in range(chosen.seeds):
        for epsilon in chosen.epsilons:
            about = {"table": name, "epsilon": epsilon, "seed": seed}
            for family in chosen.families:
                given = chosen.given if family == "marginals" else {}
                yield {**about, "generator": family, **bench.ours(family, epsilon, seed, given)}
            for venv in chosen.with_peer:
                for kind in _kinds(venv, chosen.peers):
                    yield {**about, "generator": kind, **bench.peer(venv / "bin" / "python", kind, epsilon, seed)}


def _kinds(venv: Path, wanted: Sequence[str]) -> list[str]:
    """Generators that an environment has."""
    there = [p for p in KINDS if any((venv / "lib").glob(f"python*/site-packages/{p}"))]
    return [kind for package in there for kind in KINDS[package] if not wanted or kind in wanted]


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each generator at each epsilon over the seeds: mean drop with its 95 % interval (Student's t), and the rest."""
    found = []
    for key in dict.fromkeys((r["table"], r["epsilon"], r["generator"]) for r in rows):
        runs = [r for r in rows if (r["table"], r["epsilon"], r["generator"]) == key]
        about = {**dict(zip(("table", "epsilon", "generator"), key, strict=True)), "seeds": len(runs)}
        if any(r["drop"] is None for r in runs):
            found.append({**about, "drop": None, "error": next(r["error"] for r in runs if r["drop"] is None)})
            continue
        means = {k: float(np.mean([r[k] for r in runs])) for k in ("real", "linear", "boosted", "tv1", "tv2")}
        worst = {k: max(r[k] for r in runs) for k in ("cpu_seconds", "megabytes")}
        found.append({**about, **means, **worst, **_interval([r["drop"] for r in runs])})
    return [{**f, **_target(f, found)} for f in found]


def _interval(values: Sequence[float]) -> dict[str, Any]:
    mean, low, high = float(np.mean(values)), None, None
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
        low, high = mean - half, mean + half
    return {"drop": mean, "low": low, "high": high}


def _target(mine: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest drop allowed to `marginals`: a number, or the best peer's and a hundredth."""
    if mine["generator"] != "marginals":
        return {}
    peers = [
        f["drop"]
        for f in found
        if f["generator"].split()[0] in ("dpmm", "smartnoise")
        and f["drop"] is not None
        and (f["table"], f["epsilon"]) == (mine["table"], mine["epsilon"])
    ]
    limit = DROPS.get((mine["table"], mine["epsilon"]), min(peers) + MARGIN if peers else None)
    if limit is None:
        return {}
    cheap = mine["cpu_seconds"] <= CPU_SECONDS and mine["megabytes"] <= MEGABYTES
    return {"limit": limit, "met": mine["drop"] <= limit and cheap}


def show(found: Sequence[Mapping[str, Any]]) -> None:
    heads = ("table", "epsilon", "generator", "drop [95 %]", "limit", "met", "real", "linear", "boosted", "TV1 / TV2")
    print(f"\n| {' | '.join((*heads, 'CPU s', 'MB'))} |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for f in found:
        head = f"| {f['table']} | {f['epsilon']:g} | {f['generator']} |"
        if f["drop"] is None:
            print(head, f"did not finish: {f['error']} |" + " |" * 8)
            continue
        reach = "" if f["low"] is None else f" [{f['low']:.3f}, {f['high']:.3f}]"
        limit = f"{f['limit']:.3f} | {'yes' if f['met'] else 'no'}" if "limit" in f else " | "
        cells = [f"{f['drop']:.3f}{reach}", limit, *(f"{f[k]:.3f}" for k in ("real", "linear", "boosted"))]
        print(head, " | ".join([*cells, f"{f['tv1']:.3f} / {f['tv2']:.3f}", f"{f['cpu_seconds']:.0f}"]), end="")
        print(f" | {f['megabytes']:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 3.0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each generator")
    parser.add_argument("--families", nargs="*", default=["marginals", "diffusion"])
    parser.add_argument("--given", type=json.loads, default={}, help='{"config": {...}}, of marginals')
    parser.add_argument("--with-peer", type=Path, action="append", default=[], metavar="VENV")
    parser.add_argument("--peers", nargs="*", default=[], help="only these, for example 'dpmm mst'")
    parser.add_argument("--data", type=Path, default=Path.home() / ".cache" / "genward-bench", metavar="DIR")
    parser.add_argument("--json", type=Path, default=RESULT, help="write the figures here")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(child(chosen.child)))
        return
    rows: list[dict[str, Any]] = []
    for name in chosen.tables:
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(name, chosen, Path(folder)):
                print(json.dumps({k: row[k] for k in row if k != "told"}), file=sys.stderr, flush=True)
                rows.append(row)
    found = summary(rows)
    show(found)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"load_average": os.getloadavg(), "summary": found, "runs": rows}
    chosen.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
