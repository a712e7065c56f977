"""What a row costs: CPU seconds of one thread, measured as the least of several runs, times a price."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genward import noise
from genward.data.codec import TableCodec
from genward.engine import Program
from genward.table import Cell

RUNS, LONGEST = 9, 2.0  # runs at most, and the CPU seconds after which there are enough of them
PAGES, WARM = 24, 3
_MILLION, _HOUR = 1e6, 3600.0


def price(seconds: float, per_hour: float) -> float:
    """Price of a million rows that take so many CPU seconds each."""
    return seconds * _MILLION * per_hour / _HOUR


def seconds_per_row(graph: bytes, meta: Mapping[str, Any], codec: TableCodec, batch: int) -> float:
    """CPU seconds of a row, noise and graph, `batch` rows at a time in onnxruntime on one thread."""
    program = Program(graph, meta)
    rows = np.arange(batch, dtype=np.uint64)
    given = conditions(codec, key("cost"), rows)
    return least(lambda: program.run(key("cost"), rows, given)) / batch


def least(run: Callable[[], object]) -> float:
    """CPU seconds of this thread, the least of some runs after one to warm up."""
    run()
    taken: list[float] = []
    while len(taken) < RUNS and (len(taken) < 3 or sum(taken) < LONGEST):
        began = time.thread_time()
        run()
        taken.append(time.thread_time() - began)
    return min(taken)


def typical(run: Callable[[], object]) -> float:
    """CPU seconds of this thread, the median of some runs after a few to warm up."""
    taken: list[float] = []
    while len(taken) < PAGES and (len(taken) < WARM + 3 or sum(taken) < LONGEST):
        began = time.thread_time()
        run()
        taken.append(time.thread_time() - began)
    return float(np.median(taken[WARM:]))


def key(label: str) -> bytes:
    """A public noise key: nothing of a pool is given away, and no two uses meet the same noise."""
    return hashlib.sha256(f"genward pruning {label}".encode()).digest()[:16]


def conditions(codec: TableCodec, secret: bytes, rows: NDArray[np.uint64]) -> NDArray[np.float32] | None:
    """Given fields (n, condition_width) in the codec's own shares; None without conditions."""
    if not codec.spec.condition_width:
        return None
    uniforms = noise.uniform(secret, rows, noise.WITHIN, (len(codec.spec.given),))
    return codec.condition((Cell(),), np.zeros(len(rows), dtype=np.intp), uniforms)


def made(
    graph: bytes, meta: Mapping[str, Any], codec: TableCodec, secret: bytes, rows: int, block: int = 1024
) -> NDArray[np.float32]:
    """Encoded rows (rows, width + condition_width) that a graph makes with a key, after decoding."""
    return encoded(graph, meta, codec, [(secret, rows)], block)[0]


def encoded(
    graph: bytes, meta: Mapping[str, Any], codec: TableCodec, wanted: Sequence[tuple[bytes, int]], block: int = 1024
) -> list[NDArray[np.float32]]:
    """`made` for several keys with one session."""
    program = Program(graph, meta)
    return [_encoded(program, codec, secret, rows, block) for secret, rows in wanted]


def _encoded(program: Program, codec: TableCodec, secret: bytes, rows: int, block: int) -> NDArray[np.float32]:
    parts = []
    for start in range(0, rows, block):
        places = np.arange(start, start + block, dtype=np.uint64)  # whole blocks, as the engine runs them
        found = program.run(secret, places, conditions(codec, secret, places))
        import pyarrow as pa

        parts.append(joined(codec, pa.Table.from_batches([codec.decode(found.numbers, found.codes)])))
    return np.concatenate(parts)[:rows]


def joined(codec: TableCodec, table: Any) -> NDArray[np.float32]:
    """A table's records (n, width + condition_width), atoms at the middle of their intervals."""
    record = codec.encode(table)
    return np.concatenate([record[name] for name in ("x", "c") if name in record], axis=1)
