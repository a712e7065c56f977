"""Exact rows stay exact: shuffled pages, computed again by a fresh process, must be the same bytes.

Run as a program it is that process: it reads a graph, a codec and pages of slots from a folder, computes the pages in
the order it was told, from several threads, and prints a digest of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genward.data.codec import TableCodec
from genward.engine import Engine, digest
from genward.errors import CheckFailed
from genward.table import Table

if TYPE_CHECKING:
    from genward.candidate import Candidate

PAGES, ROWS, BLOCKS, THREADS = 12, 200, 4, 3
_SECONDS = 300


@dataclass(frozen=True)
class Exactness:
    """How many of `pages` pages, of `rows` rows together, came back different."""

    different: int
    pages: int
    rows: int


def replayed(candidate: Candidate, secret: bytes) -> Exactness:
    """Compute pages here and in a fresh process, in other orders and from other threads; compare their bytes."""
    table = replace(candidate.table, slots=None, segments=())
    pages = _pages(table.slots_per_block)
    engine = _engine(candidate.exported.data, candidate.exported.meta, candidate.codec, table, secret)
    ours = [_page(engine, page) for page in pages]
    theirs = _elsewhere(candidate, table, secret, pages)
    return Exactness(sum(a != b for a, b in zip(ours, theirs, strict=True)), len(pages), sum(map(len, pages)))


def _pages(per_block: int) -> list[NDArray[np.int64]]:
    """Pages of slots drawn without order from the first blocks."""
    rng = np.random.default_rng(11)
    most = BLOCKS * per_block
    return [rng.permutation(most)[: min(ROWS, most)].astype(np.int64) for _ in range(PAGES)]


def _engine(graph: bytes, meta: Any, codec: TableCodec, table: Table, secret: bytes) -> Engine:
    return Engine(graph, codec, table, meta, pool_key=secret)


def _page(engine: Engine, slots: NDArray[np.int64]) -> str:
    rows = engine.candidates(slots)
    return digest(rows.numbers, rows.codes)


def _elsewhere(candidate: Candidate, table: Table, secret: bytes, pages: list[NDArray[np.int64]]) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "graph.onnx").write_bytes(candidate.exported.data)
        (folder / "codec.json").write_bytes(candidate.codec.to_json())
        told = {"meta": dict(candidate.exported.meta), "table": table.to_json(), "key": secret.hex()}
        (folder / "told.json").write_text(json.dumps({**told, "pages": [page.tolist() for page in pages]}))
        command = [sys.executable, "-m", "genward_policies.pruning.exact", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            said = " ".join(str(getattr(error, "stderr", "") or error).split())[-300:]
            raise CheckFailed(f"rows could not be computed by a fresh process: {said}", where="pruning.exact") from None
    found: list[str] = json.loads(done.stdout)
    return found


def _main(folder: Path) -> None:
    told = json.loads((folder / "told.json").read_bytes())
    codec = TableCodec.from_json((folder / "codec.json").read_bytes())
    table = Table.from_json(told["table"])
    engine = _engine((folder / "graph.onnx").read_bytes(), told["meta"], codec, table, bytes.fromhex(told["key"]))
    pages = [np.array(page, dtype=np.int64) for page in told["pages"]]
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(lambda page: _page(engine, page), pages[::-1]))
    print(json.dumps(found[::-1]))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
