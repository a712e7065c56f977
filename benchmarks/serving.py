"""Serving, governed against its anchors: `python benchmarks/serving.py [--quick] [--only NAME ...] [--folder DIR]`.

The server has one core and this client the other, all on 127.0.0.1. Governed and anchor are asked in turns, so that
their ratio is of one run; figures on a busy machine move together. The log's writer runs on the server's core too.
A VAE of the transport table is trained once (20 CPU seconds) and kept in DIR. Writes benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from serving_load import Load, Target, beside, run
from serving_state import SLOTS, Subject, prepare

from genward.respond import ARROW
from genward_audit.client import AuditClient

HERE = Path(__file__).parent
START_SECONDS = 60.0
CHUNK = 8192
Figures = dict[str, Any]


@dataclass
class Bench:
    """Servers under test and how long to ask them."""

    subject: Subject
    governed: int
    strict: int
    plain: int
    quick: bool
    processes: Mapping[str, Sequence[int]]  # of "governed", "strict", and the log's "writer"

    def ask(self, n: int, model: str = "pool:1", accept: str = "application/json") -> Target:
        headers = {"authorization": f"Bearer {self.subject.key}", "accept": accept}
        return Target(self.governed, f"/v1/models/{model}/generate", {"n": n}, headers)

    def anchor(self, n: int) -> Target:
        return Target(self.strict, "/v1/models/pool:1/generate", {"n": n})

    def turns(self, targets: Sequence[Target], connections: int, count: int, seconds: float) -> list[list[Load]]:
        """Each target in turn, some rounds; loads[target][round]."""
        loads: list[list[Load]] = [[] for _ in targets]
        for _ in range(self.rounds):
            for place, target in enumerate(targets):
                loads[place].append(run(target, connections, count, seconds))
        return loads

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 5

    def spent(self, name: str) -> float:
        """CPU seconds that a server, or the log's writer, has taken so far."""
        return sum(cpu_seconds(pid) for pid in self.processes[name])


def throughput(bench: Bench) -> Iterator[Figures]:
    """64 connections, governed over the strict anchor; the median of the rounds' ratios."""
    for n, count, least in ((1, 6000, 0.5), (100, 4000, 0.75), (10_000, 200, 0.75)):
        names = ("governed", "writer", "strict")
        before = {name: bench.spent(name) for name in names}
        ours, theirs = bench.turns([bench.ask(n), bench.anchor(n)], 64, count, 4.0)
        asked = {name: sum(len(x.taken) for x in (theirs if name == "strict" else ours)) for name in names}
        cpu = {name: 1e6 * (bench.spent(name) - before[name]) / asked[name] for name in names}
        ratio = statistics.median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))
        yield {
            "cpu_us": cpu, "cpu_ratio": cpu["strict"] / (cpu["governed"] + cpu["writer"]),
            "figure": f"requests/s at 64 connections, n = {n}", "ours": max(x.rate for x in ours),
            "anchor": max(x.rate for x in theirs), "value": ratio, "target": f">= {least}", "met": ratio >= least,
        }  # fmt: skip


def latency(bench: Bench) -> Iterator[Figures]:
    """p50 on one connection, less the anchor's and 1.5 bare fdatasync of the same round; the median round."""
    for n, count in ((1, 60), (100, 60), (10_000, 10)):
        rounds = []
        for _ in range(4 * bench.rounds):  # short ones: a disk is quick and slow by turns
            sync = fdatasync(Path(bench.subject.folder))
            rounds.append((sync, *(run(t, 1, count, 4.0).quantile(0.5) for t in (bench.ask(n), bench.anchor(n)))))
        sync, mine, other = (statistics.median(column) for column in zip(*rounds, strict=True))
        extra = statistics.median(a - b - 1.5 * s for s, a, b in rounds)
        yield {
            "figure": f"p50 ms on one connection, n = {n}; less anchor", "ours": mine, "anchor": other,
            "fdatasync_ms": sync, "value": extra, "target": "<= 0.6", "met": extra <= 0.6,
        }  # fmt: skip


def fdatasync(folder: Path) -> float:
    """p50 of appending 512 bytes and one bare fdatasync, milliseconds, on the disk of the log, for a tenth second."""
    taken: list[float] = []
    with (folder / "run" / "fdatasync.probe").open("ab", buffering=0) as file:
        while sum(taken) < 0.1:
            began = time.perf_counter()
            file.write(bytes(512))
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    Path(file.name).unlink()
    return 1000 * statistics.median(taken)


def user_visible(bench: Bench) -> Iterator[Figures]:
    """Against a default `@bentoml.api` that returns an ndarray."""
    n = 10_000
    plain = Target(bench.plain, "/generate", {"n": n})
    ours, theirs = bench.turns([bench.ask(n), plain], 1, 25, 6.0)
    ratio = statistics.median(a.quantile(0.5) / b.quantile(0.5) for a, b in zip(ours, theirs, strict=True))
    yield {
        "figure": "p50 ms, n = 10000, over @bentoml.api ndarray", "ours": min(x.quantile(0.5) for x in ours),
        "anchor": min(x.quantile(0.5) for x in theirs), "value": ratio, "target": "<= 0.35", "met": ratio <= 0.35,
    }  # fmt: skip


def stream(bench: Bench) -> Iterator[Figures]:
    """100,000 rows as Arrow with no pool, over bare onnxruntime + Arrow in chunks; and n = 1 beside such a stream."""
    bare = bare_stream(bench.subject)
    target = bench.ask(100_000, "open:1", ARROW)
    rounds = [(1000 * bare(), run(target, 1, 1, 30.0)) for _ in range(3 if bench.quick else 6)]
    ratio = statistics.median(load.quantile(0.5) / alone for alone, load in rounds)
    yield {
        "figure": "ms for 100,000 rows as Arrow, no pool", "ours": min(load.quantile(0.5) for _, load in rounds),
        "anchor": min(alone for alone, _ in rounds), "value": ratio, "target": "<= 1.25", "met": ratio <= 1.25,
    }  # fmt: skip
    idle = run(bench.ask(1), 1, 300, 4.0)
    small, busy = beside(bench.ask(1), target, 300, 6.0)
    ratio = small.quantile(0.5) / idle.quantile(0.5)
    yield {
        "figure": "p50 ms of n = 1 beside such streams, over idle", "ours": small.quantile(0.5),
        "anchor": idle.quantile(0.5), "value": ratio, "target": "<= 2", "met": ratio <= 2, "streams": len(busy.taken),
    }  # fmt: skip


def bare_stream(subject: Subject) -> Callable[[], float]:
    """Seconds of noise, onnxruntime and Arrow in chunks, in this process, with nothing of the service."""
    from genward.engine import Program
    from genward.noise import draw

    served = _served(subject, subject.open)
    graph, meta = served.bundle.graph("sample")
    program = Program(graph, meta)

    def once() -> float:
        began, sink = time.perf_counter(), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, served.codec.arrow) as writer:
            for start in range(0, 100_000, CHUNK):
                rows = np.arange(start, min(start + CHUNK, 100_000), dtype=np.uint64)
                found = program.session.run(program.outputs, draw(program.noise, bytes(16), rows), None)
                writer.write_batch(served.codec.decode(found[0].astype(np.float64), found[1].astype(np.int32)))
        sink.getvalue()
        return time.perf_counter() - began

    once()
    return once


def cache(bench: Bench) -> Iterator[Figures]:
    """A page of 10,000 rows in process: computed, and from the block cache."""
    engine = _served(bench.subject, bench.subject.pool).engine
    slots = np.random.default_rng(0).permutation(SLOTS)[:10_000].astype(np.int64)
    computed = 10_000 / _seconds(lambda: list(engine.stream(0, 10_000)))
    engine.prewarm()
    looked_up = 10_000 / _seconds(lambda: engine.rows(slots))
    yield {"figure": "rows/s of a page in the block cache, over computing", "ours": looked_up, "anchor": computed,
           "value": looked_up / computed, "target": ""}  # fmt: skip


def _seconds(act: Callable[[], object]) -> float:
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _served(subject: Subject, reference: str) -> Any:
    """A release opened in this process, as a server opens it."""
    from genward.api import Platform
    from genward.served import Shelf

    platform = Platform.open(Path(subject.folder))
    keys, state = platform.keys, platform.state
    return Shelf(state.bundles_dir, keys, keys.trusted(), state.config.providers).get(
        platform.registry.resolve(reference)
    )


def imports(_: Bench) -> Iterator[Figures]:
    """Seconds of `import genward`, and of what its first door costs, each in a fresh process."""
    for what, most in (("import genward", 0.3), ("from genward.api import Platform", 0.3)):
        command = [
            sys.executable,
            "-c",
            f"import time; t = time.perf_counter(); {what}; print(time.perf_counter() - t)",
        ]
        spent = min(float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(5))
        yield {"figure": f"s: {what}", "ours": spent, "value": spent, "target": f"<= {most}", "met": spent <= most}


# servers


@contextmanager
def started(
    words: Sequence[str], environment: Mapping[str, str], port: int, log: Path
) -> Iterator[subprocess.Popen[Any]]:
    """A server on the server's core, in a group of its own that is stopped at the end."""
    pinned = ["taskset", "-c", "0", *words] if _cores() > 1 else list(words)
    with log.open("ab") as out:
        process = subprocess.Popen(
            pinned, env={**os.environ, **environment}, cwd=HERE, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _wait(process, port, log)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait(process: subprocess.Popen[Any], port: int, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit(f"a server did not start: {log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else 1


def genward(subject: Subject, port: int) -> list[str]:
    return [sys.executable, "-m", "genward.cli", "--state", subject.folder, "serve", "--port", str(port)]


def anchor(name: str, port: int) -> list[str]:
    return [sys.executable, "-m", "bentoml", "serve", f"serving_anchor:{name}", "--port", str(port)]


def start_up(subject: Subject, folder: Path) -> Figures:
    """Seconds from the command to the first rows, and memory of the server's processes after them."""
    port = free_port()
    target = Target(port, "/v1/models/pool:1/generate", {"n": 1}, {"authorization": f"Bearer {subject.key}"})
    began = time.perf_counter()
    with started(genward(subject, port), {}, port, folder / "server.log") as process:
        first(target)
        spent = time.perf_counter() - began
        run(target, 8, 200, 5.0)
        memory = {f"{name} ({pid})": size for pid, name, size in _tree(process.pid)}
    worker = max(memory.values(), default=0.0)
    return {"figure": "s from `serve` to the first answered request", "ours": spent, "value": spent, "target": "",
            "rss_mib": memory, "worker_mib": worker}  # fmt: skip


def pinned_writer(subject: Subject) -> int:
    """The log's writer, moved to the server's core whoever started it."""
    client = AuditClient(Path(subject.folder) / "run", [])
    pid = int(client.stats()["pid"])
    client.close()
    for task in Path(f"/proc/{pid}/task").iterdir() if len(os.sched_getaffinity(pid)) > 1 else ():
        os.sched_setaffinity(int(task.name), {0})
    return pid


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first(target: Target) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            run(target, 1, 1, 10.0)
            return
        except ConnectionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _tree(root: int) -> list[tuple[int, str, float]]:
    """(process, what it runs, resident MiB) of a process and all below it."""
    parents, found = {}, []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            found.append((pid, " ".join(words[1:4])[:60], pages * os.sysconf("SC_PAGESIZE") / 2**20))
    return found


def warm(bench: Bench) -> None:
    """Every page of the pool once, on both sides."""
    run(bench.ask(10_000), 1, SLOTS // 10_000, 60.0)
    run(bench.anchor(10_000), 1, SLOTS // 10_000, 60.0)
    run(Target(bench.plain, "/generate", {"n": 10_000}), 1, SLOTS // 10_000, 60.0)


PARTS: Mapping[str, Callable[[Bench], Iterator[Figures]]] = {
    "throughput": throughput,
    "latency": latency,
    "plain": user_visible,
    "stream": stream,
    "cache": cache,
    "import": imports,
}


def measure(subject: Subject, folder: Path, parts: Sequence[str], quick: bool) -> list[Figures]:
    """Start all servers, ask them, stop them."""
    ports = [free_port() for _ in range(3)]
    environment = {
        "GENWARD_STATE": subject.folder,
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(folder / "bento"),
    }
    logs = [folder / f"{name}.log" for name in ("server", "strict", "plain")]
    with (
        started(genward(subject, ports[0]), {}, ports[0], logs[0]) as ours,
        started(anchor("Strict", ports[1]), environment, ports[1], logs[1]) as strict,
        started(anchor("Plain", ports[2]), environment, ports[2], logs[2]),
    ):
        writer = pinned_writer(subject)
        processes = {
            "governed": [pid for pid, _, _ in _tree(ours.pid) if pid != writer],
            "strict": [pid for pid, _, _ in _tree(strict.pid)],
            "writer": [writer],
        }
        bench = Bench(subject, ports[0], ports[1], ports[2], quick, processes)
        for target in (bench.ask(1), bench.anchor(1), Target(ports[2], "/generate", {"n": 1})):
            first(target)
        warm(bench)
        found = []
        for part in parts:
            for figure in PARTS[part](bench):
                show(figure)
                found.append(figure)
    return found


def show(figure: Figures) -> None:
    anchor_text = f"{figure['anchor']:12,.2f}" if "anchor" in figure else " " * 12
    verdict = "" if "met" not in figure else ("met" if figure["met"] else "NOT MET")
    print(
        f"{figure['figure']:<52}{figure['ours']:>12,.2f}{anchor_text}{figure['value']:>12,.3f} "
        f"{figure['target']:<9} {verdict}{_details(figure)}",
        flush=True,
    )


def _details(figure: Figures) -> str:
    if "fdatasync_ms" in figure:
        return f"  (fdatasync {figure['fdatasync_ms']:.2f} ms)"
    if "cpu_us" not in figure:
        return ""
    spent = ", ".join(f"{name} {value:.0f}" for name, value in figure["cpu_us"].items())
    return f"  (CPU us a request: {spent}; ratio {figure['cpu_ratio']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "start"], default=[*PARTS, "start"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "genward-serving")
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU seconds of training")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    subject = prepare(chosen.folder, chosen.seconds)
    if _cores() > 1:
        os.sched_setaffinity(0, {1})
    print(f"load average {os.getloadavg()[0]:.2f}\n{'figure':<52}{'ours':>12}{'anchor':>12}{'value':>12} target")
    found = []
    if "start" in chosen.only:
        found.append(start_up(subject, chosen.folder))
        show(found[0])
        print(f"    memory, MiB: {', '.join(f'{k} {v:.0f}' for k, v in found[0]['rss_mib'].items())}")
    parts = [part for part in PARTS if part in chosen.only]
    found += measure(subject, chosen.folder, parts, chosen.quick) if parts else []
    target = HERE / "results" / "serving.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"load_average": os.getloadavg(), "figures": found}, indent=1, default=float))


if __name__ == "__main__":
    main()
