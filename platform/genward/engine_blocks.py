"""Where computed blocks are kept: a dense array for a small pool, else the most recently used within a byte budget.

Each block is computed once even when two threads want it at the same moment.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genward.engine_session import Stop
from genward.errors import DeadlineExceeded

Key = tuple[bytes, int]  # key of the noise, index of the block


class Block(NamedTuple):
    """Rows of one block as the graph gave them: numbers (B, P) float64, codes (B, Q) int32."""

    numbers: NDArray[np.float64]
    codes: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + self.codes.nbytes


class Once:
    """Runs a computation once for a key; whoever else wants it meanwhile waits for its result to be kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Key, threading.Event] = {}

    def get(self, key: Key, kept: Callable[[], Block | None], compute: Callable[[], Block], stop: Stop | None) -> Block:
        """What is kept, or what `compute` gives (which must keep it); DeadlineExceeded while waiting."""
        while True:
            with self._lock:
                if (found := kept()) is not None:
                    return found
                waiting = self._running.get(key)
                if waiting is None:
                    mine = self._running[key] = threading.Event()
                    break
            if not waiting.wait(None if stop is None else max(stop.left, 0)):
                raise DeadlineExceeded(
                    "the time for this request is up", remedy="try again, the rows are being computed"
                )
        try:
            return compute()
        finally:
            with self._lock:
                del self._running[key]
            mine.set()


class Dense:
    """All blocks of a small pool, in two arrays that fill block by block; a page is one look-up."""

    def __init__(self, blocks: int, block: int, numbers: int, codes: int) -> None:
        self.block = block
        self._numbers = np.empty((blocks * block, numbers), dtype=np.float64)
        self._codes = np.empty((blocks * block, codes), dtype=np.int32)
        self._done = np.zeros(blocks, dtype=bool)
        self.full = False

    def __len__(self) -> int:
        return len(self._done)

    def missing(self, indices: NDArray[np.int64]) -> list[int]:
        done = self._done[indices]
        return [] if done.all() else np.unique(indices[~done]).tolist()

    def get(self, index: int) -> Block | None:
        part = slice(index * self.block, (index + 1) * self.block)
        return Block(self._numbers[part], self._codes[part]) if self._done[index] else None

    def put(self, index: int, block: Block) -> None:
        part = slice(index * self.block, (index + 1) * self.block)
        self._numbers[part], self._codes[part] = block
        self._done[index] = True  # last: a reader that sees it sees the rows
        self.full = bool(self._done.all())

    def take(self, rows: NDArray[np.int64]) -> Block:
        return Block(self._numbers.take(rows, axis=0), self._codes.take(rows, axis=0))


class Recent:
    """The most recently used blocks of any key, within `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Key, Block] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        return self._bytes

    def __contains__(self, key: Key) -> bool:
        return key in self._blocks

    def get(self, key: Key) -> Block | None:
        with self._lock:
            if (found := self._blocks.get(key)) is not None:
                self._blocks.move_to_end(key)
            return found

    def put(self, key: Key, block: Block) -> None:
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = block
                self._bytes += block.nbytes
            while self._bytes > self.limit:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes
