"""The engine: rows of a release, from blocks that are always run whole and kept.

Row i is slot i mod B of block i div B. A block is run in one call (driver "single") or step by step (driver
"stepped"), in a session with one thread, with noise keyed by row; so a row's bytes depend on the bundle, the key and i
alone, never on the request, the batch, the thread or the worker.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genward import noise
from genward.contracts import Rows
from genward.engine_blocks import Block, Dense, Once, Recent
from genward.engine_session import CPU, Session, Stop, fingerprint, stopping
from genward.errors import CheckFailed, IntegrityError, UsageError
from genward.family import NoiseSpec
from genward.graphcheck import check_graph
from genward.meter import count_computed
from genward.table import LARGEST, Cell, Table

if TYPE_CHECKING:
    from genward.data.codec import TableCodec

Score = Callable[[Rows], NDArray[np.float64]]
BLOCKS = (16, 32, 64, 128, 256, 512, 1024)  # sizes a release may choose between, before rounding to whole slots
LATENCY = 0.03  # seconds that computing one block may take, so that a small page stays quick
SAMPLE = 32  # rows of a golden block that are stored for other runtimes


class Engine:
    """Computes and keeps rows. Thread-safe.

    Args:
        graph: verified bytes of the "sample" graph.
        codec: the release's codec; names its columns and encodes conditions.
        table: slots, candidates, block size, cells.
        graph_meta: what `export_graph` said of the graph (noise, condition, outputs, loops, driver).
        pool_key: 16 bytes, label pool/<bundle digest>; without a pool every call names the tenant's own.
        providers: execution providers by preference; the first is demanded.
        cache_bytes: most memory that computed blocks may take.
    """

    def __init__(
        self,
        graph: bytes,
        codec: TableCodec,
        table: Table,
        graph_meta: Mapping[str, Any],
        *,
        pool_key: bytes,
        providers: Sequence[str] = (CPU,),
        cache_bytes: int = 256 << 20,
    ) -> None:
        self.table, self.codec, self._key = table, codec, pool_key
        self._program = Program(graph, graph_meta, providers)
        self.provider = self._program.session.provider
        self.fingerprint = fingerprint(self.provider)
        self._given = len(codec.spec.given)
        self._once, self._recent = Once(), Recent(cache_bytes)
        self._dense = self._small(cache_bytes)

    def _small(self, limit: int) -> Dense | None:
        if self.table.slots is None:
            return None
        numbers, codes = len(self.codec.number_columns), len(self.codec.code_columns)
        blocks = -(-self.table.slots // self.table.slots_per_block)
        fits = blocks * self.table.block * (8 * numbers + 4 * codes) <= limit
        return Dense(blocks, self.table.block, numbers, codes) if fits else None

    # Rows of slots

    def candidates(self, slots: NDArray[np.int64], deadline: float | None = None, key: bytes | None = None) -> Rows:
        """All k candidates of each slot, (n * k,) rows, a slot's candidates side by side.

        Args:
            slots: (n,) places, in any order.
            deadline: seconds of time.monotonic() at which computing stops with DeadlineExceeded.
            key: the tenant's own key, for a table without a pool.
        """
        slots = np.asarray(slots, dtype=np.int64)
        self._check(slots)
        k = self.table.candidates
        rows = slots if k == 1 else (slots[:, None] * k + np.arange(k)).reshape(-1)
        block = self._gather(rows, deadline, self._key if key is None else key)
        return Rows(block.numbers, block.codes, slots if k == 1 else np.repeat(slots, k))

    def rows(
        self,
        slots: NDArray[np.int64],
        score: Score | None = None,
        deadline: float | None = None,
        key: bytes | None = None,
    ) -> Rows:
        """One row for each slot, (n,): the candidate with the highest score, the first without scores."""
        found, k = self.candidates(slots, deadline, key), self.table.candidates
        if k == 1:
            return found
        best = np.zeros(len(slots), dtype=np.intp) if score is None else score(found).reshape(-1, k).argmax(axis=1)
        places = np.arange(len(slots)) * k + best
        return Rows(found.numbers.take(places, axis=0), found.codes.take(places, axis=0), found.slots.take(places))

    def stream(self, start: int, count: int, deadline: float | None = None, key: bytes | None = None) -> Iterator[Rows]:
        """Candidates of consecutive slots, a block at a time; keeps nothing, so memory is flat at any count."""
        key, per, k = self._key if key is None else key, self.table.slots_per_block, self.table.candidates
        with stopping(deadline) as stop:
            for index in range(start // per, -(-(start + count) // per) if count else 0):
                slots = np.arange(max(start, index * per), min(start + count, (index + 1) * per), dtype=np.int64)
                self._check(slots)
                part = slice((slots[0] - index * per) * k, (slots[-1] + 1 - index * per) * k)
                block = self._compute(key, index, stop)
                yield Rows(block.numbers[part], block.codes[part], slots if k == 1 else np.repeat(slots, k))

    def cached(self, slots: NDArray[np.int64], key: bytes | None = None) -> bool:
        """Whether `candidates` would compute nothing."""
        indices = np.asarray(slots, dtype=np.int64) // self.table.slots_per_block
        if self._dense is not None and self._own(key):
            return not self._dense.missing(indices)
        key = self._key if key is None else key
        return all((key, index) in self._recent for index in np.unique(indices).tolist())

    @property
    def complete(self) -> bool:
        """Whether every row of the pool has been computed."""
        return self._dense is not None and self._dense.full

    def prewarm(self, limit: int | None = None, deadline: float | None = None) -> int:
        """Compute the first blocks of the pool, up to `limit` rows; how many blocks are there afterwards."""
        if self._dense is None:
            return 0
        blocks = len(self._dense) if limit is None else min(len(self._dense), limit // self.table.block)
        with stopping(deadline) as stop:
            for index in range(blocks):
                self._block(self._key, index, stop)
        return blocks

    def _check(self, slots: NDArray[np.int64]) -> None:
        most = LARGEST if self.table.slots is None else self.table.slots
        if len(slots) and np.maximum.reduce(slots.view(np.uint64)) >= most:  # a negative one is larger than any
            raise UsageError(f"the table has slots 0 to {self.table.slots}", where="slots")

    def _own(self, key: bytes | None) -> bool:
        return key is None or key == self._key

    def _gather(self, rows: NDArray[np.int64], deadline: float | None, key: bytes) -> Block:
        indices = rows // self.table.block
        if self._dense is not None and self._own(key):
            if missing := [] if self._dense.full else self._dense.missing(indices):
                with stopping(deadline) as stop:
                    for index in missing:
                        self._block(key, index, stop)
            return self._dense.take(rows)
        with stopping(deadline) as stop:
            return self._collect(rows, indices, key, stop)

    def _collect(self, rows: NDArray[np.int64], indices: NDArray[np.int64], key: bytes, stop: Stop | None) -> Block:
        """Rows from blocks one after the other, so that a request may be larger than the cache."""
        out = self._empty(len(rows))
        order = np.argsort(indices, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(indices[order])) + 1) if len(rows) else []
        for places in groups:
            index = int(indices[places[0]])
            block, inner = self._block(key, index, stop), rows[places] - index * self.table.block
            out.numbers[places], out.codes[places] = block.numbers[inner], block.codes[inner]
        return out

    def _empty(self, rows: int) -> Block:
        numbers, codes = len(self.codec.number_columns), len(self.codec.code_columns)
        return Block(np.empty((rows, numbers)), np.empty((rows, codes), dtype=np.int32))

    # Blocks

    def _block(self, key: bytes, index: int, stop: Stop | None) -> Block:
        dense = self._dense if self._own(key) else None

        def kept() -> Block | None:
            return self._recent.get((key, index)) if dense is None else dense.get(index)

        def compute() -> Block:
            block = self._compute(key, index, stop)
            self._recent.put((key, index), block) if dense is None else dense.put(index, block)
            return block

        return kept() or self._once.get((key, index), kept, compute, stop)

    def _compute(self, key: bytes, index: int, stop: Stop | None = None) -> Block:
        first = index * self.table.block
        rows = np.arange(first, first + self.table.block, dtype=np.uint64)
        block = self._program.run(key, rows, self._condition(key, rows), stop)
        count_computed(len(rows))
        wanted = (len(rows), len(self.codec.number_columns)), (len(rows), len(self.codec.code_columns))
        if (block.numbers.shape, block.codes.shape) != wanted:
            raise CheckFailed(
                f"the graph gives {block.numbers.shape} and {block.codes.shape}, the codec wants {wanted}"
            )
        return block

    def _condition(self, key: bytes, rows: NDArray[np.uint64]) -> NDArray[np.float32] | None:
        if not self._program.condition:
            return None
        ids = self.table.cell_of(rows // np.uint64(self.table.candidates), key)
        uniforms = noise.uniform(key, rows, noise.WITHIN, (max(self._given, 1),))
        return self.codec.condition(self.table.cells or (Cell(),), ids, uniforms)

    # Golden blocks

    def golden(self, key: bytes, blocks: Sequence[int] = (0, 1)) -> list[dict[str, Any]]:
        """Whole blocks drawn with a public key: first row, digest of all rows, and the first rows themselves."""
        return [_golden(index * self.table.block, self._compute(key, index)) for index in blocks]

    def check_golden(self, golden: Sequence[Mapping[str, Any]], runtime: Mapping[str, Any], key: bytes) -> bool:
        """Compute golden blocks again. True: bit for bit, which is demanded on the same runtime fingerprint. False: on
        another runtime, equal within tolerance. Else IntegrityError."""
        same = all(runtime.get(name) == value for name, value in self.fingerprint.items())
        exact = True
        for entry in golden:
            block = self._compute(key, int(entry["start"]) // self.table.block)
            if digest(block.numbers, block.codes) == entry["sha256"]:
                continue
            exact = False
            if same or not _near(block, entry["sample"]):
                raise IntegrityError("a golden block is not what was sealed", where=f"row {entry['start']}")
        return exact


class Program:
    """A graph, what it wants, and how to run one block of it."""

    def __init__(self, graph: bytes, meta: Mapping[str, Any], providers: Sequence[str] = (CPU,)) -> None:
        check_graph(graph, loops=int(meta["loops"]), opset=int(meta["opset"]), meta=meta)
        self.session = Session(graph, providers)
        self.noise = _specs(meta["noise"])
        self.state = _specs(meta.get("state", ()))
        self.steps = int(meta.get("steps", 1))
        self.condition = bool(meta["condition"])
        self.outputs = ["numbers", "codes", *(f"next_{spec.name}" for spec in self.state)]

    def run(
        self, key: bytes, rows: NDArray[np.uint64], condition: NDArray[np.float32] | None, stop: Stop | None = None
    ) -> Block:
        """Rows of one block. Stepped: state in, state out; noise of a step is addressed by (row, noise, step)."""
        given: dict[str, NDArray[Any]] = {} if condition is None else {"condition": condition}
        state = noise.draw(self.state, key, rows, first=noise.STATE)
        for step in range(self.steps):
            count: dict[str, NDArray[Any]] = {"step": np.array([step], dtype=np.int64)} if self.state else {}
            feeds = {**noise.draw(self.noise, key, rows, step), **given, **state, **count}
            numbers, codes, *rest = self.session.run(self.outputs, feeds, stop)
            state = {spec.name: value for spec, value in zip(self.state, rest, strict=True)}
        return Block(numbers.astype(np.float64, copy=False), codes.astype(np.int32, copy=False))


def choose_block(graph: bytes, meta: Mapping[str, Any], candidates: int = 1, budget: float = LATENCY) -> int:
    """Block size by measured cost: the smallest within a tenth of the cheapest rows that keeps a block quick."""
    program = Program(graph, meta)
    costs = {}
    for size in BLOCKS:
        size = -(-size // candidates) * candidates
        costs[size] = _seconds(program, meta, size)
        if costs[size] > budget and len(costs) > 1:
            del costs[size]
            break
    best = min(seconds / size for size, seconds in costs.items())
    return min(size for size, seconds in costs.items() if seconds / size <= 1.1 * best)


def _seconds(program: Program, meta: Mapping[str, Any], size: int) -> float:
    """Seconds of one block, the least of three after one to warm up."""
    rows = np.arange(size, dtype=np.uint64)
    condition = np.zeros((size, int(meta["condition"])), dtype=np.float32) if meta["condition"] else None
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        program.run(bytes(16), rows, condition)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def digest(numbers: NDArray[np.float64], codes: NDArray[np.int32]) -> str:
    """SHA-256 of rows: numbers as little-endian float64 with one NaN, then codes as little-endian int32."""
    clean = np.where(np.isnan(numbers), np.nan, numbers).astype("<f8")
    return hashlib.sha256(clean.tobytes() + np.ascontiguousarray(codes, dtype="<i4").tobytes()).hexdigest()


def _specs(items: Sequence[Mapping[str, Any]]) -> tuple[NoiseSpec, ...]:
    return tuple(NoiseSpec(x["name"], tuple(x["shape"]), x["law"]) for x in items)


def _golden(start: int, block: Block) -> dict[str, Any]:
    numbers = [[None if x != x else x for x in row] for row in block.numbers[:SAMPLE].tolist()]
    sample = {"numbers": numbers, "codes": block.codes[:SAMPLE].tolist()}
    return {"start": start, "sha256": digest(block.numbers, block.codes), "sample": sample}


def _near(block: Block, sample: Mapping[str, Any]) -> bool:
    """Another runtime: at most one stored value in fifty may differ by more than 1e-3 of its column's spread."""
    numbers = np.array(sample["numbers"], dtype=np.float64).reshape(-1, block.numbers.shape[1])
    codes = np.array(sample["codes"], dtype=np.int32).reshape(-1, block.codes.shape[1])
    found = block.numbers[: len(numbers)]
    spread = np.nanmax(np.abs(numbers), axis=0, initial=1e-12) if numbers.size else 1.0
    close = (np.abs(found - numbers) <= 1e-3 * spread) | (np.isnan(found) & np.isnan(numbers))
    agree = np.concatenate([close.reshape(-1), (block.codes[: len(codes)] == codes).reshape(-1)])
    return bool(len(agree) == 0 or agree.mean() >= 0.98)
