"""What a quota costs: a reserve with a live lease and with a visit to the store, beside a bare UPDATE ... RETURNING.

    python -m benchmarks.quota [--seconds 2] [--processes 4]

SQLite (WAL, synchronous NORMAL, as the product opens it) and a real PostgreSQL on the same machine, in one run. A bare
loop does what a limit needs at the least: one conditional update that returns what is used. `admit` is the whole policy
(limits, lease, headers) and its settle. Percentiles in microseconds; then all processes at once on one limit, in
reserves a second; then what it costs to count the log's entries again after the store was lost.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from genward import record
from genward.contracts import Facts, Outcome, Principal, ReleaseInfo, Request
from genward.counters import Counters
from genward.limits import DAY, Window
from genward.policy import PolicyContext
from genward_policies.quota import Quota, QuotaConfig

NOON = 1_764_115_200 + 43_200.0
FACTS = Facts(Principal("acme", "k1"), NOON, "sha256:p", ReleaseInfo("alloys", 1, "sha256:0", ("acme",)))
LARGE = 1 << 50
PERIODS = ("minute", "day", "lifetime")
LIVE = {
    "1 limit": {"rows": {"per_key_day": LARGE}},
    "3 limits": {"rows": {"per_key_day": LARGE, "per_tenant_lifetime": LARGE}, "requests": {"per_key_minute": LARGE}},
    "18 limits": {
        what: {
            f"per_{who}_{time}": LARGE for who in ("key", "tenant", "model") for time in ("minute", "day", "lifetime")
        }
        for what in ("rows", "requests")
    },
}
BARE = "UPDATE bare SET used = used + 1 WHERE name = 'x' AND used + 1 <= 1125899906842624 RETURNING used"


def _percentiles(act: Callable[[int], Any], seconds: float) -> dict[str, float]:
    """Microseconds of an act that is repeated."""
    found, number, until = [], 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        act(number)
        found.append(time.perf_counter() - begun)
        number += 1
    p50, p99 = np.percentile(found, [50, 99])
    return {"n": number, "p50_us": round(1e6 * p50, 1), "p99_us": round(1e6 * p99, 1)}


def _policy(url: str, limits: dict[str, Any]) -> Quota:
    config = QuotaConfig.model_validate(limits)
    return Quota(config, PolicyContext(url, None, Path(), counters=Counters(url)))  # type: ignore[arg-type]


def _admission(policy: Quota, n: int) -> Callable[[int], None]:
    def act(number: int) -> None:
        verdict = policy.admit(Request(str(number), "generate", "alloys", n), FACTS)
        assert verdict.lease is not None
        policy.settle(verdict.lease, Outcome("served", n))

    return act


def _bare(url: str) -> Callable[[], Any]:
    """One conditional update, committed, on a connection of the driver's own."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=30)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return lambda: connection.execute(BARE).fetchone()
    import psycopg

    server = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True)
    return lambda: server.execute(BARE).fetchone()


def _prepare(url: str) -> None:
    counters = Counters(url)
    with counters.store.begin() as c:
        c.exec_driver_sql("CREATE TABLE IF NOT EXISTS bare (name TEXT PRIMARY KEY, used BIGINT)")
        c.exec_driver_sql("INSERT INTO bare VALUES ('x', 0)")
    counters.close()


def _alone(url: str, seconds: float) -> dict[str, Any]:
    """One process: live leases, visits to the store, the bare loop."""
    counters = Counters(url)
    window, bare = Window.at(DAY, NOON), _bare(url)
    visit = {"rows": {"per_key_lifetime": LARGE}}
    found = {f"admit, live lease, {name}": _percentiles(_admission(_policy(url, limits), 10), seconds)
             for name, limits in LIVE.items()}  # fmt: skip
    live = _percentiles(lambda _: counters.reserve("live", 1, LARGE, 1 << 40, window), seconds)
    store = _percentiles(lambda _: counters.reserve("store", 1, LARGE, 1, window), seconds)
    found |= {"reserve, live lease": live, "reserve, store visit": store}
    found["admit, store visit"] = _percentiles(_admission(_policy(url, visit), 10_001), seconds)
    found["bare UPDATE ... RETURNING"] = _percentiles(lambda _: bare(), seconds)
    return found


def _worker(url: str, chunk: int, seconds: float, out: Any) -> None:
    number = 0
    if chunk:
        counters = Counters(url)
        work: Callable[[], Any] = lambda: counters.reserve(f"together/{chunk}", 1, LARGE, chunk)  # noqa: E731
    else:
        work = _bare(url)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        work()
        number += 1
    out.put(number)


def _together(url: str, seconds: float, processes: int) -> dict[str, float]:
    """All processes at once on one limit: reserves a second."""
    context, found = multiprocessing.get_context("spawn"), {}
    for name, chunk in {"chunks of 10,000": 10_000, "a store visit each": 1, "bare UPDATE ... RETURNING": 0}.items():
        out = context.Queue()
        workers = [context.Process(target=_worker, args=(url, chunk, seconds, out)) for _ in range(processes)]
        for worker in workers:
            worker.start()
        found[name] = round(sum(out.get() for _ in workers) / seconds)
        for worker in workers:
            worker.join()
    return found


def _recount(entries: int) -> dict[str, float]:
    """A log of settles, counted by a store that knows nothing of it."""
    from genward_audit.client import connect
    from genward_audit.keyfile import create_key
    from genward_audit.reader import LogFolder
    from genward_services.compose import Log

    fields = {"tenant": "acme", "actor": "k1", "model": "alloys:1@sha256:0", "status": "served", "out": {"rows": 10}}
    with tempfile.TemporaryDirectory(prefix="gw", dir="/tmp") as name:
        folder = Path(name)
        create_key(folder / "log.pem")
        client = connect(folder / "log", folder / "run", folder / "log.pem", "bench.local/log", linger=1.0)
        log = Log(client, folder / "vkey", LogFolder(folder / "log"), "bench.local/log")
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(lambda n: log.append(record.entry("settle", request=str(n), **fields)), range(entries)))
        counters = Counters(f"sqlite:///{folder / 'counters.db'}")
        begun = time.perf_counter()
        read = counters.catch_up(log)
        spent = time.perf_counter() - begun
        assert counters.used("rows/key/k1") == 10 * entries
        counters.close()
        log.close()
        time.sleep(1.5)  # the writer leaves
    return {"entries": read, "us_an_entry": round(1e6 * spent / read, 1)}


@contextmanager
def _stores() -> Iterator[dict[str, str]]:
    """Addresses of both stores; PostgreSQL runs while they are used."""
    with tempfile.TemporaryDirectory(prefix="gwq", dir="/tmp") as name:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pgserver

            server = pgserver.get_server(Path(name) / "pg", cleanup_mode="delete")
        address = str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://")
        yield {"SQLite": f"sqlite:///{Path(name) / 'counters.db'}", "PostgreSQL": address}
        server.cleanup()


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--entries", type=int, default=20_000)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with _stores() as stores:
        for name, url in stores.items():
            _prepare(url)
            found[name] = {"alone": _alone(url, given.seconds)}
            found[name]["together"] = _together(url, given.seconds, given.processes)
            for what, figures in found[name]["alone"].items():
                print(f"{name:<11} {what:<32} p50 {figures['p50_us']:>8} us  p99 {figures['p99_us']:>8} us", flush=True)
            for what, rate in found[name]["together"].items():
                print(f"{name:<11} {given.processes} processes, {what:<25} {rate:>10,} /s", flush=True)
    found["recount"] = _recount(given.entries)
    print(f"counting the log again: {found['recount']['us_an_entry']} us an entry")
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / "quota.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
