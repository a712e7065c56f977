"""How long it takes to verify a log, how much memory, and how many files a proof reads.

    python -m benchmarks.audit_verify [--entries 1000000] [--proof-entries 10000000]

Verification runs in a process of its own, whose memory (with its workers') is sampled; the
bare pass hashes the same bundle files with SHA-256 in one stream.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from genward_audit import entries as e
from genward_audit.checkpoint import Checkpoint
from genward_audit.merkle import fold
from genward_audit.note import Signer, sign
from genward_audit.policy import Policy
from genward_audit.reader import LogFolder
from genward_audit.tiles import ENTRIES, TILE_WIDTH, encode_entries, pieces_of, subtree_root, tile_at
from genward_audit.verify import verify_receipt

SIGNER = Signer("bench.example/log", Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
START = 1_790_000_000.0
DIGEST = "sha256:" + "5c" * 32


def stories(count: int) -> Iterator[bytes]:
    """A writer's start, then grants and settles of plausible size, about 330 bytes each."""
    yield e.stamp(e.start_entry(0), START)
    common = {"tenant": "acme", "actor": "k1", "model": DIGEST, "policy": DIGEST}
    plan = {"start": 12345, "n": 100, "k": 2}
    grant = e.stamp(e.encode("grant", request="R" * 36, plan=plan, **common), START)
    out = {"rows": 100, "digest": DIGEST}
    settle = e.stamp(e.encode("settle", request="R" * 36, status="served", out=out, grant=0, **common), START)
    settle_head, settle_tail = settle.split(b'"grant":0')
    for index in range(1, count):
        request = b"%036d" % ((index + 1) // 2)
        if index % 2:
            yield grant.replace(b"R" * 36, request)
        else:
            yield (settle_head + b'"grant":%d' % (index - 1) + settle_tail).replace(b"R" * 36, request)


def build(folder: Path, entries: Iterator[bytes], size: int) -> int:
    """Write a log bundle by bundle in flat memory; gives the bytes of its bundles."""
    rows: list[bytearray] = [bytearray() for _ in range(5)]
    closed = [0] * 5
    total = 0

    def put(level: int, data: bytes) -> None:
        path = folder / tile_at(level, closed[level] if level >= 0 else closed[0], size).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def push(level: int, one: bytes) -> None:
        rows[level] += one
        if len(rows[level]) == TILE_WIDTH * 32:
            put(level, rows[level])
            root = subtree_root(bytes(rows[level]))
            closed[level] += 1
            rows[level].clear()
            push(level + 1, root)

    batch: list[bytes] = []
    for index, entry in enumerate(entries, 1):
        batch.append(entry)
        if len(batch) == TILE_WIDTH or index == size:
            data = encode_entries(batch)
            total += len(data)
            put(ENTRIES, data)
            for one in batch:
                push(0, sha256(b"\x00" + one).digest())
            batch.clear()
    for level, row in enumerate(rows):
        if row:
            put(level, row)
    root = fold(piece for row in reversed(rows) for piece in pieces_of(bytes(row)))
    (folder / "checkpoint").write_bytes(sign(Checkpoint(SIGNER.name, size, root).marshal(), SIGNER))
    return total


def resident(root: int) -> int:
    """Bytes resident in a process and all its descendants, from /proc."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(stat.parent.name)], pages[int(stat.parent.name)] = int(fields[1]), int(fields[21])
    family, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return sum(pages.get(pid, 0) for pid in family) * os.sysconf("SC_PAGE_SIZE")


def verify_apart(folder: Path, workers: int) -> dict[str, Any]:
    """Verify in another process; gives its report and the peak of its family's resident memory."""
    words = ["verify", str(folder), "--vkey", SIGNER.verifier.vkey, "--json", "--max-age", "1e12"]
    code = "from genward_audit.cli import app; app()"
    command = [sys.executable, "-c", code, *words, "--workers", str(workers)]
    begun, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)
        output = process.stdout.read() if process.stdout else b""
    report = json.loads(output)
    verdicts = [report[name]["state"] for name in ("integrity", "completeness", "freshness")]
    return {"seconds": round(time.monotonic() - begun, 2), "peak_mb": round(peak / 1e6), "verdicts": verdicts}


def bare_pass(folder: Path) -> float:
    """Seconds of one SHA-256 over all bundle files."""
    begun, digest = time.monotonic(), sha256()
    for path in sorted((folder / "tile/entries").rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return time.monotonic() - begun


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.monotonic()
    result = work()
    return time.monotonic() - begun, result


def measure_verify(folder: Path, count: int) -> dict[str, Any]:
    seconds, size = timed(lambda: build(folder, stories(count), count))
    bare = statistics.median(bare_pass(folder) for _ in range(3))
    result: dict[str, Any] = {"entries": count, "bytes": size, "build_s": round(seconds, 1), "bare_s": round(bare, 3)}
    for workers in (1, 2):
        result[f"workers_{workers}"] = one = verify_apart(folder, workers)
        one["ratio_to_bare"] = round(one["seconds"] / bare, 2)
    return result


def measure_proof(folder: Path, count: int) -> dict[str, Any]:
    seconds, _ = timed(lambda: build(folder, (b"entry %d" % index for index in range(count)), count))
    policy, files, times = Policy.of(SIGNER.verifier.vkey), [], []
    for index in (0, 1, count // 3, count // 2, count - 2, count - 1):
        log = LogFolder(folder)
        spent, proof = timed(lambda log=log, index=index: log.proof(index))  # type: ignore[misc]
        verify_receipt(proof, b"entry %d" % index, policy)
        files.append(log.files_read)
        times.append(spent * 1000)
    held = sum(path.is_file() for path in folder.rglob("*"))
    plain = {"files": held, "files_read_most": max(files), "proof_ms_median": round(statistics.median(times), 2)}
    return {"entries": count, "build_s": round(seconds, 1)} | plain


def report(verify: dict[str, Any], proof: dict[str, Any]) -> str:
    """The figures in words, each beside its bound."""
    lines = [
        f"{verify['entries']:,} entries, {verify['bytes'] / 1e6:.0f} MB; bare SHA-256 pass {verify['bare_s']:.2f} s"
    ]
    for workers in (1, 2):
        one = verify[f"workers_{workers}"]
        lines.append(
            f"  verify, {workers} process(es): {one['seconds']:.1f} s, {one['ratio_to_bare']:.1f}x the bare pass, "
            f"peak {one['peak_mb']} MB (wanted: at most 300); {', '.join(one['verdicts'])}"
        )
    lines.append(
        f"inclusion proof, {proof['entries']:,} entries: {proof['files_read_most']} files read at most, of "
        f"{proof['files']:,}, in {proof['proof_ms_median']:.1f} ms"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--proof-entries", type=int, default=10_000_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = {"verify": measure_verify(Path(name, "verify"), chosen.entries)}
        result["proof"] = measure_proof(Path(name, "proof"), chosen.proof_entries)
    print(report(**result))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "audit_verify.json").write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
