"""The portfolio of attacks on one candidate: delivered rows in, distances of copies out.

Everything is drawn under the public key, so that nothing of a pool is given away and anybody can do it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genward.attacker import Attacker, Rows, Target
from genward.contracts import Progress
from genward.data.distance import Floats, Space, encoded, frechet

if TYPE_CHECKING:
    from genward.data.codec import TableCodec
    from genward.engine import Engine

GRID = (100, 200, 400, 800, 1500, 3000)
USUAL = 4  # batches on which an attack of usual effort is run
COSTLY = (800, 3000)  # sizes at which attacks are run that train for a while
_PROBE, _BATCH = 1024, 2048
_DRAWING, _TRAINING = 0.3, 0.5  # shares of the budget
_SEED = 20_261_126
Normal = tuple[Floats, Floats]


@dataclass(frozen=True)
class Sizes:
    """How much is drawn: `reference` rows to compare with, and `repeats` batches of `batch` rows of which the first
    ones are delivered to a thief; copies are judged by `batch` rows."""

    reference: int = 20_000
    batch: int = 5_000
    repeats: int = 12
    grid: tuple[int, ...] = GRID

    @property
    def rows(self) -> int:
        return self.reference + self.repeats * self.batch

    def affordable(self, rows: int) -> Sizes:
        """The same in proportion, so that at most so many rows are drawn, and no fewer than the grid needs."""
        if rows >= self.rows:
            return self
        share = rows / self.rows
        batch = max(max(self.grid), int(self.batch * share))
        repeats = max(3, int(self.repeats * min(1.0, 2 * share)))
        return Sizes(max(4000, int(self.reference * share)), batch, repeats, self.grid)


SIZES = Sizes()


class Point(NamedTuple):
    """One attack on n rows: the copy's distance from fresh rows of the release, and from held-out real ones."""

    attacker: str
    n: int
    repeat: int
    fidelity: float
    accuracy: float | None


@dataclass(frozen=True)
class Measured:
    """What a calibration found. `own` is the distance of a batch of the release's own rows from the reference, by
    repeat; `own_real` that of its rows from held-out ones; both as the copies' distances are, uncorrected."""

    sizes: Sizes
    points: tuple[Point, ...]
    own: tuple[float, ...]
    own_real: tuple[float, ...] = ()
    held_out: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    cpu_seconds: float = 0.0


class Portfolio:
    """Runs every attacker on a release.

    Args:
        draw: encoded rows of the release, (start, count) -> (count, width); pure.
        target: what the thief knows.
        attackers: classes, by name.
        real: encoded held-out rows; None where nothing may be taken from them.
        seconds: CPU seconds that all of it may take.
    """

    def __init__(
        self,
        draw: Callable[[int, int], Rows],
        target: Target,
        attackers: Sequence[type[Attacker]],
        real: Rows | None,
        seconds: float,
        sizes: Sizes | None = None,
    ) -> None:
        self._draw, self._target, self._seconds, self._sizes = draw, target, seconds, sizes or SIZES
        self._skipped = {a.name: why for a in attackers if (why := a.cannot(target))}
        self._attackers = [a for a in attackers if a.name not in self._skipped]
        self._given_real = real

    def run(self, progress: Progress) -> Measured:
        """Draw, attack, measure."""
        began = time.process_time()
        sizes = self._sizes.affordable(self._affordable())
        progress.start("attack the candidate", len(sizes.grid) + 1)
        reference = self._draw(0, sizes.reference)
        batches = [self._draw(sizes.reference + i * sizes.batch, sizes.batch) for i in range(sizes.repeats)]
        self._space = Space.fit(reference)
        self._reference = self._space.normal(reference)
        self._real = None if self._given_real is None else self._space.normal(self._given_real)
        own = [self._distances(batch) for batch in batches]
        points: list[Point] = []
        for step, n in enumerate(sizes.grid, 1):
            progress.update(step, f"{n} rows delivered")
            points += self._attacked(n, batches, sizes)
        spent = time.process_time() - began
        progress.finish(f"{len(points)} copies judged")
        real = () if self._given_real is None else tuple(float(a) for _, a in own if a is not None)
        held_out = 0 if self._given_real is None else len(self._given_real)
        fidelity = tuple(f for f, _ in own)
        return Measured(sizes, tuple(points), fidelity, real, held_out, self._skipped, spent)

    def _affordable(self) -> int:
        """Rows that the drawing's share of the budget pays for."""
        began = time.process_time()
        self._draw(0, _PROBE)
        return int(_PROBE * self._seconds * _DRAWING / max(1e-6, time.process_time() - began))

    def _attacked(self, n: int, batches: Sequence[Rows], sizes: Sizes) -> list[Point]:
        """Every attack on the first n rows of batches, as many as its effort allows."""
        found = []
        for attacker in self._attackers:
            some = {"light": len(batches), "usual": USUAL, "costly": 1 if n in COSTLY else 0}[attacker.effort]
            found += [self._point(attacker, i, batch[:n], sizes) for i, batch in enumerate(batches[:some])]
        return found

    def _point(self, attacker: type[Attacker], repeat: int, rows: Rows, sizes: Sizes) -> Point:
        copy = attacker(self._budgeted(attacker))
        copy.fit(rows, seed=_SEED + repeat)
        fidelity, accuracy = self._distances(copy.sample(sizes.batch, seed=_SEED + repeat))
        return Point(attacker.name, len(rows), repeat, fidelity, accuracy)

    def _budgeted(self, attacker: type[Attacker]) -> Target:
        costly = sum(a.effort == "costly" for a in self._attackers)
        return replace(self._target, cpu_seconds=self._seconds * _TRAINING / max(1, costly * len(COSTLY)))

    def _distances(self, rows: Rows) -> tuple[float, float | None]:
        normal = self._space.normal(rows)
        real = None if self._real is None else frechet(normal, self._real)
        return frechet(normal, self._reference), real


def drawing(engine: Engine, codec: TableCodec) -> Callable[[int, int], Rows]:
    """Encoded rows of an engine without a pool."""

    def draw(start: int, count: int) -> NDArray[Any]:
        parts = []
        for at in range(start, start + count, _BATCH):
            rows = engine.candidates(np.arange(at, min(at + _BATCH, start + count), dtype=np.int64))
            parts.append(codec.decode(rows.numbers, rows.codes))
        return encoded(codec, pa.Table.from_batches(parts))

    return draw
