"""Pruning on the transport table: `python -m benchmarks.pruning [--seconds 75] [--recovery 60] [--only NAME ...]`.

Three networks are trained and made cheaper by the policy `pruning`, by the recipe that its search chooses: the shipped
diffusion, asked for a fourth of its price; a wide autoencoder (hidden 512), asked for an eighth; and the shipped one,
which is small, asked for an eighth too, and then, when no network meets that, for two thirds. Prices are
least CPU times of one thread for noise and graph at n = 1024, in one run; `graph` is without noise. Beside them stand
plain int8 of the trained network and magnitude pruning of four fifths of its weights. Then a release is served, pages
of 1,024 rows are asked over HTTP, and the price that was sealed is set beside the metered one and beside all CPU time
of the server's processes. Writes benchmarks/results/pruning.json and a plot of each front.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from genward import noise
from genward.api import Platform
from genward.candidate import Candidate
from genward.client import HttpClient
from genward.costs import report
from genward.engine import Program, choose_block
from genward.errors import CheckFailed
from genward.export import Exported, export_graph, parity
from genward.progress import Lines
from genward.table import Table
from genward_policies.pruning import Pruning, cost
from genward_policies.pruning.front import Point, as_plot
from genward_policies.pruning.points import points
from genward_policies.pruning.quality import relative_loss
from genward_policies.pruning.quantise import zeroed
from genward_policies.pruning.search import quantised

DATA = Path(__file__).parents[1] / "examples" / "data"
RESULT = Path(__file__).parent / "results" / "pruning.json"
PER_HOUR, BATCH, SPARSE = 0.04, 1024, 0.8
PAGES, WARM = 40, 4
MODEST = 1.5  # times cheaper: asked for when the first wish was refused


@dataclass(frozen=True)
class Subject:
    """A network to train, how much cheaper it must become, and for how long it trains against the others."""

    family: str
    config: Mapping[str, Any]
    wanted: float
    longer: float = 1.0


SUBJECTS = {
    "diffusion": Subject("diffusion", {}, 4.0),
    "vae wide": Subject("vae", {"hidden": 512}, 8.0, 2.0),
    "vae": Subject("vae", {}, 8.0),
}


def trained(platform: Platform, subject: Subject, seconds: float) -> Candidate:
    """A candidate with its held-out rows in hand."""
    dataset = platform.dataset("transport")
    given = {"max_cpu_seconds": seconds * subject.longer, "target": "S_p", "device": "cpu", "progress": Lines()}
    candidate = platform.train("transport", family=subject.family, config=subject.config, **given)
    return replace(candidate, test=candidate.recipe.split(dataset)[1])


def seconds_of(candidate: Candidate, exported: Exported, data: bytes | None = None) -> dict[str, float]:
    """CPU seconds of a row: noise and graph, and the graph alone."""
    data = exported.data if data is None else data
    rows = np.arange(BATCH, dtype=np.uint64)
    program = Program(data, exported.meta)
    feeds = noise.draw(exported.graph.noise, cost.key("cost"), rows)
    graph = cost.least(lambda: program.session.run(program.outputs, feeds)) / BATCH
    return {"whole": cost.seconds_per_row(data, exported.meta, candidate.codec, BATCH), "graph": graph}


def sealed(candidate: Candidate, compressed: Any) -> Candidate:
    """The child as the release pipeline would seal it."""
    exported = export_graph(candidate.family, compressed.network, compressed.config, candidate.codec)
    parity(exported)
    if compressed.quantise is not None:
        exported = replace(exported, data=compressed.quantise(exported.data))
    table = Table(None, 1, choose_block(exported.data, exported.meta))
    return replace(candidate, config=compressed.config, exported=exported, table=table, parent="sha256:parent")


def policy_for(price: float, recovery: float) -> Pruning:
    given = {"price_per_vcpu_hour": PER_HOUR, "target": {"cost_per_million_rows": price, "batch": BATCH}}
    return Pruning(Pruning.Config(**given, recovery_cpu_seconds=recovery), None)  # type: ignore[arg-type]


def pruned(name: str, subject: Subject, candidate: Candidate, recovery: float) -> dict[str, Any]:
    """One subject through the policy; when nothing meets the price, the nearest that the search has named."""
    parent = export_graph(candidate.family, candidate.network(), candidate.config, candidate.codec)
    before = seconds_of(candidate, parent)
    wanted = cost.price(before["whole"], PER_HOUR) / subject.wanted
    found: dict[str, Any] = {"subject": name, "asked": subject.wanted, "parent": before, "refused": ""}
    began = time.process_time()
    policy = policy_for(wanted, recovery)
    try:
        compressed = policy.compress(candidate, Lines())
    except CheckFailed as refusal:
        found["refused"] = str(refusal)
        nearest = float(str(refusal.remedy).split(" to ")[1].split()[0])
        wanted = max(1.25 * nearest, cost.price(before["whole"], PER_HOUR) / MODEST)
        policy = policy_for(wanted, recovery)
        compressed = policy.compress(candidate, Lines())
    child = sealed(candidate, compressed)
    evidence = list(policy.measure(child))
    verdict = policy.gate(evidence)
    found |= {"cpu_seconds": time.process_time() - began, "released": verdict.allow, "reasons": list(verdict.reasons)}
    found |= _figures(before, seconds_of(child, child.exported), {item.claim: item for item in evidence})
    plan = json.loads((candidate.folder / "pruning.json").read_bytes())
    front = points(child, policy.config, plan, parent.data, evidence) + beside(candidate, parent, before["whole"])
    picture = RESULT.with_name(f"pruning_{name.replace(' ', '_')}.png")
    picture.write_bytes(as_plot(front, wanted, policy.config.floor.relative_quality_loss_hi95))
    return {**found, "recipe": plan["chosen"]["recipe"], "points": [asdict(p) for p in front]}


def _figures(before: Mapping[str, float], after: Mapping[str, float], claims: Mapping[str, Any]) -> dict[str, Any]:
    loss, drop = claims["pruning.relative_quality_loss"], claims["pruning.tstr_drop"]
    return {
        "child": after,
        "cheaper": {key: before[key] / after[key] for key in before},
        "loss": [loss.value, loss.low, loss.high],
        "tstr_drop": drop.value,
        "probes": claims["pruning.latency_probes"].value,
        "trainings": claims["pruning.trainings"].value,
        "different_pages": claims["pruning.different_pages"].value,
    }


def beside(candidate: Candidate, parent: Exported, seconds: float) -> list[Point]:
    """Plain int8 of the trained network, and magnitude pruning of it, judged as the release is."""
    config = candidate.family.unrolled(candidate.config)
    flat = export_graph(candidate.family, candidate.network(), config, candidate.codec)
    graphs = {
        "int8": quantised(candidate, flat.data, flat.graph.noise, "static"),
        "magnitude": zeroed(flat.data, SPARSE),
    }
    real = cost.joined(candidate.codec, candidate.test)
    mine = cost.made(parent.data, parent.meta, candidate.codec, cost.key("judge"), 20_000)
    found = []
    for kind, data in graphs.items():
        taken = cost.seconds_per_row(data, flat.meta, candidate.codec, BATCH)
        loss = relative_loss(real, mine, cost.made(data, flat.meta, candidate.codec, cost.key("judge"), 20_000))
        label = f"{kind}: {seconds / taken:.2f} x"
        judged = {"loss": loss.value, "low": loss.low, "high": loss.high}
        found.append(Point(label, kind, taken, cost.price(taken, PER_HOUR), len(data), **judged))
    return found


# through the endpoint


def endpoint(platform: Platform, candidate: Candidate, base: str, price: float, recovery: float) -> dict[str, Any]:
    """Release under the policy, serve, ask for pages of new rows, and compare prices."""
    text = base + (
        f"\npruning: {{price_per_vcpu_hour: {PER_HOUR}, target: {{cost_per_million_rows: {price}, batch: {BATCH}}}, "
        f"floor: {{relative_quality_loss_hi95: 1.0, tstr_drop: 1.0}}, recovery_cpu_seconds: {recovery}}}\n"
    )
    digest = platform.propose_policy(text)
    platform.approve_policy(digest)
    platform.activate_policy(digest)
    options = {"slots": None, "grant": ["bench"], "evaluate_rows": 2000, "progress": Lines()}
    released = platform.release(candidate.id, "bench", **options)
    key = platform.create_key("bench", ["consumer"])
    with served(platform.state.folder) as (url, server):
        client = HttpClient(url, key)
        for _ in range(WARM):
            client.generate(released.reference, n=BATCH, format="arrow")
        began = busy(server)
        for _ in range(PAGES):
            client.generate(released.reference, n=BATCH, format="arrow")
        spent = busy(server) - began
    told = report(platform, released.reference)
    whole = cost.price(spent / (PAGES * BATCH), PER_HOUR)
    return {**told, "server_per_million_rows": whole, "predicted_to_server": told["predicted_per_million_rows"] / whole}


@contextmanager
def served(state: Path) -> Iterator[tuple[str, int]]:
    """`genward serve` on a free port: its address and process id."""
    command = [sys.executable, "-m", "genward.cli", "--state", str(state), "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout or ():
            if "http://" in line:
                yield line[line.index("http://") :].split()[0], process.pid
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait(60)


def busy(process: int) -> float:
    """CPU seconds of a process and of all that descend from it."""
    stats = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        stats[int(entry.parent.name)] = (int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    family, grown = {process}, True
    while grown:
        more = {pid for pid, (parent, _) in stats.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return sum(stats[pid][1] for pid in family if pid in stats)


def show(rows: list[dict[str, Any]], ends: list[dict[str, Any]]) -> None:
    print("\n| network | recipe | cheaper | graph alone | loss [95 %] | tstr drop | probes | trainings | released |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        value, low, high = (f"{100 * x:.1f}" for x in row["loss"])
        cheaper = [f"{row['cheaper'][k]:.1f} x" for k in ("whole", "graph")]
        effort = [f"{row['probes']:.0f}", f"{row['trainings']:.0f}", "yes" if row["released"] else "no"]
        loss = f"{value} % [{low}, {high}]"
        print("|", " | ".join([row["subject"], row["recipe"], *cheaper, loss, f"{row['tstr_drop']:.3f}", *effort]), "|")
    for row in rows:
        for point in row["points"]:
            if point["kind"] in ("int8", "magnitude"):
                print(f"{row['subject']}, {point['name']} cheaper, loss {100 * point['loss']:.1f} %")
        if row["refused"]:
            print(f"{row['subject']}, asked for {row['asked']:g} x: {row['refused']}")
        if row["reasons"]:
            print(f"{row['subject']}: {'; '.join(row['reasons'])}")
    for end in ends:
        names = ("predicted_per_million_rows", "measured_per_million_computed_rows", "server_per_million_rows")
        prices = ", ".join(f"{name} {end[name]:.3g}" for name in names)
        ratios = f"to metered {end['predicted_to_measured']:.3f}, to the whole server {end['predicted_to_server']:.3f}"
        print(f"endpoint of {end['subject']}: {prices}; predicted {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=75.0, help="CPU seconds of a training")
    parser.add_argument("--recovery", type=float, default=60.0, help="CPU seconds of the distillation")
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--json", type=Path, default=RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    RESULT.parent.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        platform, _ = Platform.init(Path(folder) / "s", tenant="bench", single_operator=True)
        platform.add_dataset(DATA / "mp_transport.csv.gz", schema=DATA / "mp_transport.yaml", name="transport")
        base = platform.policy_text()
        for name in chosen.only:
            candidate = trained(platform, SUBJECTS[name], chosen.seconds)
            rows.append(pruned(name, SUBJECTS[name], candidate, chosen.recovery))
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "points"}), flush=True)
            if name != "vae wide":
                price = 1.1 * cost.price(rows[-1]["child"]["whole"], PER_HOUR)
                ends.append({"subject": name, **endpoint(platform, candidate, base, price, 10.0)})
        platform.close()
    show(rows, ends)
    result = {"load_average": os.getloadavg(), "recovery": chosen.recovery, "rows": rows, "endpoint": ends}
    chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
