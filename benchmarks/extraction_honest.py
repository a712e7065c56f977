"""What a pool costs who is honest: rows of many pools, each seen by a tenant's own walk, against rows without a pool.

Everything but keys is held: the release, the held-out rows, the engine. Up to the pool's size rows of a pool and rows
without one follow one law, so that the ratio of mean distances is 1 but for an error in the walk or the keys; this
tells with how much certainty. Intervals are bootstraps over draws, the two sides by themselves: they share no noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genward.data.codec import TableCodec
from genward.data.distance import Space, encoded, frechet
from genward.engine import Engine
from genward.table import Table, Walk
from genward_policies.pruning.quality import usefulness

RESAMPLES = 4000
FRECHET_MOST, TSTR_MOST = 1.03, 0.015
_PIECE = 4096
_FREE, _POOLED = 0, 1  # sides, in keys


class Case(NamedTuple):
    """A customer who takes n rows of a tenant's walk, of which he may hold `reach`; None for all."""

    n: int
    reach: int | None
    draws: int  # judged by distance,
    learnt: int  # and the first ones also by usefulness


@dataclass(frozen=True)
class Judge:
    """Judges rows of one release against real held-out ones."""

    engine: Engine  # without a pool: which key it draws under is said with each call
    codec: TableCodec
    real: NDArray[Any]
    target: slice
    number: bool

    def rows(self, slots: NDArray[np.int64], key: bytes) -> NDArray[np.float32]:
        """Encoded rows of places under a key, (n, width)."""
        distinct, back = np.unique(slots, return_inverse=True)
        parts = []
        for at in range(0, len(distinct), _PIECE):
            found = self.engine.candidates(distinct[at : at + _PIECE], key=key)
            parts.append(self.codec.decode(found.numbers, found.codes))
        return encoded(self.codec, pa.Table.from_batches(parts))[back]

    def case(self, slots: int, case: Case) -> dict[str, Any]:
        """The ratio of mean distances and the difference of mean usefulness, with their intervals."""
        table = Table(slots, 1, self.engine.table.block)

        def free(i: int) -> NDArray[np.float32]:
            return self.rows(np.arange(case.n, dtype=np.int64), _key(_FREE, case.n, i))

        def pooled(i: int) -> NDArray[np.float32]:
            pool = _key(_POOLED, case.n, i)
            walk = Walk(table, _key(_POOLED + 1, case.n, i), pool, reach=case.reach)
            return self.rows(walk.slots(0, case.n), pool)

        distances, useful = zip(*(self._judged(side, case) for side in (free, pooled)), strict=True)
        return {"n": case.n, "slots": slots, "reach": case.reach, **_told(distances, useful)}

    def _judged(self, draw: Callable[[int], NDArray[Any]], case: Case) -> tuple[NDArray[Any], NDArray[Any]]:
        """Distances (draws,) and usefulness (learnt,) of draws."""
        space = Space.fit(self.real)
        real, distances, useful = space.normal(self.real), [], []
        for i in range(case.draws):
            rows = draw(i)
            distances.append(frechet(space.normal(rows), real))
            if i < case.learnt:
                useful.append(usefulness(rows, self.real, self.target, self.number))
        return np.array(distances), np.array(useful)


def _key(*words: int) -> bytes:
    return b"".join(word.to_bytes(4, "big") for word in words).rjust(16, b"\0")


def _told(distances: Any, useful: Any) -> dict[str, Any]:
    """`*_draws`: how many a side. `spread`: of one draw's distance, over the mean; what a single pair would tell."""
    (free, pooled), (worth, less) = distances, useful
    return {
        "frechet_ratio": _with_interval(pooled, free, lambda one, two: one / two),
        "tstr_loss": _with_interval(worth, less, lambda one, two: one - two),
        "frechet": [float(free.mean()), float(pooled.mean())],
        "tstr": [float(worth.mean()), float(less.mean())],
        "spread": [float(side.std(ddof=1) / side.mean()) for side in (free, pooled)],
        "frechet_draws": len(free),
        "tstr_draws": len(worth),
    }


def _with_interval(one: NDArray[Any], two: NDArray[Any], of: Callable[[Any, Any], Any]) -> list[float]:
    """[value, low, high] of a function of two means: 95 % of resamples, each side drawn by itself."""
    rng = np.random.default_rng(0)
    means = [side[rng.integers(len(side), size=(RESAMPLES, len(side)))].mean(axis=1) for side in (one, two)]
    low, high = np.quantile(of(*means), [0.025, 0.975])
    return [float(of(one.mean(), two.mean())), float(low), float(high)]


def cases(slots: int, share: int, scale: float = 1.0) -> list[Case]:
    """n within the pool, all of it and beyond it; then the same tenant under his share of it."""
    sizes = ((1000, None, 1200, 40), (slots, None, 500, 16), (10_000, None, 40, 6), (share, share, 200, 16))
    sizes = (*sizes, (1000, share, 80, 8), (slots, share, 40, 6))
    return [Case(n, reach, *(max(4, int(scale * k)) for k in counts)) for n, reach, *counts in sizes]


def line(found: dict[str, Any]) -> str:
    """One case for people."""
    ratio, loss = found["frechet_ratio"], found["tstr_loss"]
    who = f"n = {found['n']}, pool {found['slots']}, share {found['reach'] or 'all'}"
    told = f"Frechet {ratio[0]:.3f}x [{ratio[1]:.3f}, {ratio[2]:.3f}] ({found['frechet_draws']} draws)"
    return f"{who}: {told}; TSTR loss {loss[0]:.4f} [{loss[1]:.4f}, {loss[2]:.4f}] ({found['tstr_draws']} draws)"
