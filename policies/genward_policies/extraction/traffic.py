"""Streams of conditions as customers and thieves send them, for red teams, tests and figures. All are simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from genward.contracts import Condition

if TYPE_CHECKING:
    import pyarrow as pa

    from genward.data.codec import TableCodec

Stream = Iterator[tuple[Condition, ...]]


class Traffic:
    """Makes streams for a release.

    Args:
        codec: the release's codec; names columns, ranges and categories.
        population: rows as customers know them (pyarrow table); their interests lie where these lie.
    """

    def __init__(self, codec: TableCodec, population: pa.Table) -> None:
        self._rows: list[dict[str, Any]] = population.to_pylist()
        self._ranges = {c.name: codec.quantiles[c.name].ends for c in codec.schema.columns if c.is_number}
        self._words = {c.name: list(c.categories) for c in codec.schema.columns if c.kind == "categorical"}
        self._names = [*self._ranges, *self._words]

    def honest(self, rng: np.random.Generator) -> Stream:
        """A customer: a few columns and a few rows interest him, most requests repeat an earlier one."""
        columns = self._some(rng, int(rng.integers(2, 5)))
        interests = [self._rows[i] for i in rng.integers(len(self._rows), size=int(rng.integers(3, 9)))]
        again, elsewhere = rng.uniform(0.4, 0.8), rng.uniform(0.05, 0.3)
        asked: list[tuple[Condition, ...]] = []
        while True:
            if asked and rng.random() < again:
                yield asked[int(rng.integers(len(asked)))]
                continue
            pool = self._rows if rng.random() < elsewhere else interests
            asked.append(self._about(pool[int(rng.integers(len(pool)))], columns, rng))
            yield asked[-1]

    def bulk(self, rng: np.random.Generator) -> Stream:
        """A customer who buys in bulk what the population is like; a thief who mimics him is the same stream."""
        while True:
            row = self._rows[int(rng.integers(len(self._rows)))]
            yield self._about(row, self._some(rng, int(rng.integers(1, 4))), rng)

    def uniform(self, rng: np.random.Generator) -> Stream:
        """Conditions drawn evenly over ranges and categories."""
        while True:
            yield tuple(self._at(name, rng.random(), rng) for name in self._some(rng, int(rng.integers(1, 4))))

    def sweep(self, rng: np.random.Generator) -> Stream:
        """A grid over two columns at a time, finer each time around; nothing is asked twice."""
        steps, asked = 4, set()
        while True:
            for _ in range(4):
                for conditions in self._grid(self._some(rng, 2), steps, rng):
                    if conditions not in asked:
                        asked.add(conditions)
                        yield conditions
            steps += 1

    def _grid(self, pair: list[str], steps: int, rng: np.random.Generator) -> Stream:
        for place in rng.permutation(steps**2):
            at = (place // steps + 0.5) / steps, (place % steps + 0.5) / steps
            yield tuple(self._at(name, share, rng) for name, share in zip(pair, at, strict=True))

    def active(self, rng: np.random.Generator) -> Stream:
        """Seeds, then small steps from what was asked before (JbDA-like, arXiv:1602.02697)."""
        seeds = list(islice(self.uniform(rng), 20))
        asked = [s for s in seeds if any(c.column in self._ranges for c in s)] or seeds
        yield from asked
        while True:
            asked.append(self._moved(asked[int(rng.integers(len(asked)))], rng))
            yield asked[-1]

    def slow(self, rng: np.random.Generator) -> Stream:
        """Low and slow: four requests of five are a customer's, the fifth sweeps."""
        cover, attack = self.honest(rng), self.sweep(rng)
        while True:
            yield next(attack if rng.random() < 0.2 else cover)

    @property
    def kinds(self) -> Mapping[str, Callable[[np.random.Generator], Stream]]:
        """Streams by name."""
        names = ("honest", "bulk", "uniform", "sweep", "active", "slow")
        return {name: getattr(self, name) for name in names}

    # parts

    def _some(self, rng: np.random.Generator, n: int) -> list[str]:
        return [self._names[i] for i in rng.permutation(len(self._names))[:n]]

    def _about(self, row: Mapping[str, Any], columns: list[str], rng: np.random.Generator) -> tuple[Condition, ...]:
        """Conditions that a row meets, on some of the columns; values as people write them, in two digits."""
        there = [name for name in columns if row[name] is not None] or [n for n in self._names if row[n] is not None]
        chosen = [there[i] for i in rng.permutation(len(there))[: int(rng.integers(1, 4))]]
        return tuple(self._met(name, row[name], rng) for name in chosen)

    def _met(self, name: str, value: Any, rng: np.random.Generator) -> Condition:
        if name in self._words:
            return Condition(name, "=", str(value))
        return Condition(name, ">=" if rng.random() < 0.5 else "<=", float(f"{float(value):.2g}"))

    def _at(self, name: str, share: float, rng: np.random.Generator) -> Condition:
        if name in self._words:
            words = self._words[name]
            return Condition(name, "=", words[int(share * len(words))])
        low, high = self._ranges[name]
        return Condition(name, ">=" if rng.random() < 0.5 else "<=", low + share * (high - low))

    def _moved(self, asked: tuple[Condition, ...], rng: np.random.Generator) -> tuple[Condition, ...]:
        """The same conditions with their numbers a little off."""
        return tuple(
            c
            if c.column in self._words
            else Condition(c.column, c.op, float(c.value) + 0.02 * rng.normal() * float(np.ptp(self._ranges[c.column])))  # type: ignore[arg-type]
            for c in asked
        )
