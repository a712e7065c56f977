"""Durable appends: the log's writer against SQLite and against one fdatasync an entry, in one run.

    python -m benchmarks.audit_append [--seconds 4] [--folder DIR]

256 producers append through the socket. SQLite (WAL, synchronous FULL) commits batches as large as the writer's were in
a bare loop, and then stands in the log's place behind the same socket and producers, where it hashes nothing. A bare
file takes one fdatasync an entry; a lone producer's p50 stands beside a bare fdatasync's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genward_audit.client import AuditClient, connect
from genward_audit.keyfile import create_key
from genward_audit.segment import read_frames, segments
from genward_audit.writer import Options, Writer

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


def _database(path: Path, **options: Any) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, **options)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, entry BLOB)")
    return connection


def _insert(connection: sqlite3.Connection, entries: Sequence[bytes]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO entries (entry) VALUES (?)", [(entry,) for entry in entries])
    connection.execute("COMMIT")


def sqlite(folder: Path, seconds: float, batch: int) -> float:
    """Entries a second in transactions of `batch`."""
    connection = _database(folder / "sqlite.db")
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        _insert(connection, [ENTRY] * batch)
        done += batch
    rate = done / (time.perf_counter() - begun)
    connection.close()
    return rate


class SqliteLog:
    """What the writer needs of a sequencer, kept in SQLite: the same producers, socket and batches, another store."""

    succeeded, published = None, 0

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._db = _database(folder / "behind-socket.db", check_same_thread=False)

    def commit(self, entries: Sequence[bytes]) -> int:
        first, self.size = self.size, self.size + len(entries)
        _insert(self._db, entries)
        return first

    def newest(self) -> None: ...

    def snapshot(self) -> None: ...

    def close(self) -> None:
        self._db.close()


def serve_sqlite(folder: Path) -> None:
    """The writer's process with SQLite in the log's place; runs until it is terminated."""
    options = Options(folder, folder / "sqlite-run", folder / "key.pem", "bench.example/sqlite")

    async def run() -> None:
        await Writer(SqliteLog(folder), options).run()  # type: ignore[arg-type]

    options.run.mkdir()
    asyncio.run(run())


def sqlite_behind_socket(folder: Path, seconds: float) -> float:
    """Entries a second of the same producers when the writer's store is SQLite."""
    process = multiprocessing.get_context("spawn").Process(target=serve_sqlite, args=(folder,))
    process.start()
    while not (folder / "sqlite-run/audit.sock").exists():
        time.sleep(0.01)
    rate = asyncio.run(producers(AuditClient(folder / "sqlite-run", []), seconds, PRODUCERS))
    process.terminate()
    process.join()
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


def end(pid: int) -> None:
    """Stop a writer and wait until it has gone."""
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.02)


def measure(folder: Path, seconds: float) -> dict[str, float]:
    """Every figure of one run."""
    create_key(folder / "key.pem")
    client = connect(folder / "log", folder / "run", folder / "key.pem", "bench.example/log", linger=5)
    bare = fdatasync(folder, seconds)
    single = lone(client, seconds)
    many = asyncio.run(producers(client, seconds, PRODUCERS))
    batch = max(1, round(batch_size(folder / "log")))
    peer = sqlite(folder, seconds, batch)
    behind = sqlite_behind_socket(folder, seconds)
    pid = client.stats()["pid"]
    client.close()
    end(pid)
    one, wait = statistics.median(bare), statistics.median(single)
    return {
        "fdatasync_p50_ms": 1e3 * one,
        "appends_per_s_256": many,
        "batch": batch,
        "sqlite_same_batch_per_s": peer,
        "over_sqlite": many / peer,
        "sqlite_behind_socket_per_s": behind,
        "over_sqlite_behind_socket": many / behind,
        "over_one_fdatasync_each": many / (len(bare) / sum(bare)),
        "lone_p50_ms": 1e3 * wait,
        "lone_limit_ms": 1e3 * (1.5 * one + 0.3e-3),
    }


def report(found: dict[str, float]) -> str:
    """The figures in words, each beside its bound."""
    return "\n".join(
        [
            f"fdatasync of one entry, p50 {found['fdatasync_p50_ms']:.2f} ms",
            f"256 producers: {found['appends_per_s_256']:,.0f} durable appends a second, {found['batch']:.0f} a commit",
            f"  over SQLite WAL FULL with that batch ({found['sqlite_same_batch_per_s']:,.0f}/s): "
            f"{found['over_sqlite']:.2f}x (wanted: 1.2x)",
            f"  over SQLite in the log's place behind the same socket ({found['sqlite_behind_socket_per_s']:,.0f}/s): "
            f"{found['over_sqlite_behind_socket']:.2f}x",
            f"  over one fdatasync an entry: {found['over_one_fdatasync_each']:.0f}x",
            f"lone producer through the socket, p50 {found['lone_p50_ms']:.2f} ms "
            f"(wanted: at most {found['lone_limit_ms']:.2f}, 1.5 fdatasync + 0.3 ms)",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part")
    parser.add_argument("--folder", type=Path, help="where to write; decides which disk is measured")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        found = measure(Path(name), given.seconds)
    print(report(found))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "audit_append.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
