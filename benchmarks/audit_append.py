"""Durable appends: the log's writer against SQLite and against one fdatasync an entry, in one run.

    python -m benchmarks.audit_append [--seconds 4] [--folder DIR]

256 producers append through the socket; SQLite (WAL, synchronous FULL) commits batches as large as the writer's were;
a bare file takes one fdatasync an entry. A lone producer's p50 stands beside a bare fdatasync's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from genward_audit.client import AuditClient, connect
from genward_audit.keyfile import create_key
from genward_audit.segment import read_frames, segments

ENTRY = b'{"act":"bench","event":"act","request":"0197c6b8-0000-7000-8000-000000000000","tenant":"acme","v":1}' * 3
PRODUCERS = 256


def fdatasync(folder: Path, seconds: float) -> list[float]:
    """Seconds of each write and fdatasync of one entry."""
    found = []
    handle = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        os.write(handle, ENTRY)
        os.fdatasync(handle)
        found.append(time.perf_counter() - begun)
    os.close(handle)
    return found


def sqlite(folder: Path, seconds: float, batch: int) -> float:
    """Entries a second in transactions of `batch`."""
    connection = sqlite3.connect(folder / "sqlite.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, entry BLOB)")
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO entries (entry) VALUES (?)", [(ENTRY,)] * batch)
        connection.execute("COMMIT")
        done += batch
    rate = done / (time.perf_counter() - begun)
    connection.close()
    return rate


async def producers(client: AuditClient, seconds: float, count: int) -> float:
    """Entries a second through the socket, `count` on their way at a time."""
    done, begun = 0, time.perf_counter()

    async def one() -> None:
        nonlocal done
        while time.perf_counter() - begun < seconds:
            await client.append_async(ENTRY, stamp=False)
            done += 1

    await asyncio.gather(*(one() for _ in range(count)))
    rate = done / (time.perf_counter() - begun)
    await client.detach()
    return rate


def lone(client: AuditClient, seconds: float) -> list[float]:
    """Seconds of each append of one blocking producer."""
    found = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        client.append(ENTRY, stamp=False)
        found.append(time.perf_counter() - begun)
    return found


def batch_size(log: Path) -> float:
    """Mean entries of a commit in the segments that are there."""
    sizes = [len(e) for path in segments(log / "wal") for _, e in read_frames(path.read_bytes(), str(path))[0]]
    return statistics.fmean(sizes[-500:]) if sizes else 1.0


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """Every figure of one run."""
    create_key(folder / "key.pem")
    client = connect(folder / "log", folder / "run", folder / "key.pem", "bench.example/log", linger=5)
    bare = fdatasync(folder, seconds)
    single = lone(client, seconds)
    many = asyncio.run(producers(client, seconds, PRODUCERS))
    batch = max(1, round(batch_size(folder / "log")))
    peer = sqlite(folder, seconds, batch)
    pid = client.stats()["pid"]
    client.close()
    os.kill(pid, signal.SIGTERM)
    one, wait = statistics.median(bare), statistics.median(single)
    return {
        "fdatasync_p50_ms": 1e3 * one,
        "appends_per_s_256": many,
        "batch": batch,
        "sqlite_same_batch_per_s": peer,
        "over_sqlite": many / peer,
        "over_one_fdatasync_each": many / (len(bare) / sum(bare)),
        "lone_p50_ms": 1e3 * wait,
        "lone_limit_ms": 1e3 * (1.5 * one + 0.3e-3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part")
    parser.add_argument("--folder", type=Path, help="where to write; decides which disk is measured")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        found = measure(Path(name), given.seconds)
    for key, value in found.items():
        print(f"{key:<26}{value:12.3f}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "audit_append.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
