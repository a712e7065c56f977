"""Which counts to ask for, at what price, and when to stop.

After AIM (McKenna et al. 2022, arXiv:2201.12677, algorithm 2): columns first; then rounds of choosing the tables that
the model gets most wrong, measuring them and fitting; the price rises when answers no longer tell more than their own
noise. Different from it: columns are measured fine and grouped by what was seen; a round takes several tables at once,
so that the model is fitted less often.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from genward_families.marginal.estimate import Counts, Estimate, Fields
from genward_families.marginal.grouping import grouped, smoothed

if TYPE_CHECKING:
    from genward.contracts import Progress
    from genward.family import Mechanism
    from genward_families.marginal.mixture import MarginalsConfig
    from genward_families.marginal.network import Mixture

_ENOUGH = 1e3  # rho that an unprotected training pretends to have: noise of half a count
_COLUMNS, _CHOOSING = 0.1, 0.1  # shares of rho: of columns in the whole, of choosing in a round
_PRICES = 160  # tables that the first price would buy
_TYPICAL = 40  # tables that are measured in the end, more or less
_AT_ONCE = 4  # tables a round
_DEARER = 4.0  # the price's factor when answers tell no more than noise: half the deviation
_FEWEST = 6  # groups of a number that are kept however few rows there are
_MEAN = math.sqrt(2 / math.pi)  # |noise| of a count, in standard deviations


class Learning:
    """One training: what is left to spend, what a table costs, and the estimate so far."""

    def __init__(self, network: Mixture, mechanism: Mechanism, config: MarginalsConfig, progress: Progress) -> None:
        self.network, self.mechanism, self.config, self.progress = network, mechanism, config, progress
        self.rho = self.left = min(mechanism.rho, _ENOUGH)
        self.columns = _COLUMNS if len(network.places) > 1 else 1.0
        self.price = (1 - self.columns) * self.rho / _PRICES

    def run(self) -> None:
        """Ask, fit, and leave the network's parameters set."""
        self.progress.start("measure and fit", 100)
        self.estimate = self._columns()
        self.estimate.fit(2 * self.config.steps)
        tables, last = self._tables(), False
        while tables and not last:
            last = self._is_last()
            chosen = self._round(tables, self._count_of(last))
            if math.isinf(self.mechanism.rho):  # an exact answer is never better the second time
                tables = [table for table in tables if table not in chosen]
            self.progress.update(100 * (1 - self.left / self.rho), f"{len(self.estimate.seen)} tables")
        self.estimate.fit(self.config.last)
        self.progress.finish(f"{len(self.estimate.seen)} tables")

    # columns

    def _columns(self) -> Estimate:
        """Measure each column, group its values, and begin with their product."""
        places = self.network.places
        each = self.columns * self.rho / len(places)
        variance = 0.5 / each
        counts = [self.mechanism.measure((i,), each) for i in range(len(places))]
        self.left -= self.columns * self.rho
        sizes = [found.size for found in counts]
        total = max(1.0, float(np.average([found.sum() for found in counts], weights=1 / np.array(sizes))))
        smooth = [smoothed(place, found, math.sqrt(variance)) for place, found in zip(places, counts, strict=True)]
        groups = [
            grouped(place, found, self._most(place.is_choice, total))
            for place, found in zip(places, smooth, strict=True)
        ]
        return self._begun(counts, smooth, groups, variance, total)

    def _most(self, is_choice: bool, total: float) -> int:
        """How many groups of a column the noise of a table lets one tell apart."""
        sigma = math.sqrt(0.5 * _TYPICAL / ((1 - _COLUMNS) * (1 - _CHOOSING) * self.rho))
        wanted = round(math.sqrt(self.config.detail * total / sigma))
        return self.config.bins if is_choice else int(np.clip(wanted, min(_FEWEST, self.config.bins), self.config.bins))

    def _begun(
        self, counts: list[Counts], smooth: list[Counts], groups: list[np.ndarray], variance: float, total: float
    ) -> Estimate:
        for i, (values, which) in enumerate(zip(smooth, groups, strict=True)):
            self.network.regroup(i, which, values)
            self.mechanism.merge(i, which.tolist())
        shares = [np.bincount(which, values) / values.sum() for values, which in zip(smooth, groups, strict=True)]
        self.network.begin([np.log(share) for share in shares])
        self.domain = [len(share) for share in shares]
        estimate = Estimate(self.network, self.domain, total, self.config.lr)
        for i, (found, which) in enumerate(zip(counts, groups, strict=True)):
            sizes = np.bincount(which).astype(np.float64)
            estimate.add((i,), np.bincount(which, found).astype(np.float64), variance * sizes)
        return estimate

    # tables

    def _tables(self) -> list[Fields]:
        """Pairs and triples that are not too large."""
        fields = range(len(self.domain))
        every = itertools.chain(itertools.combinations(fields, 2), itertools.combinations(fields, 3))
        return [table for table in every if math.prod(self.domain[field] for field in table) <= self.config.cells]

    def _is_last(self) -> bool:
        """Whether what is left would not pay for another round after this one."""
        return self.left < 3 * _AT_ONCE * self.price

    def _count_of(self, last: bool) -> int:
        """How many tables this round measures; the last one's price is what is left, shared."""
        if not last:
            return _AT_ONCE
        count = max(1, min(_AT_ONCE, int(self.left / self.price)))
        self.price = self.left / count
        return count

    def _round(self, tables: list[Fields], count: int) -> list[Fields]:
        """Choose, measure, fit; then see whether the answers told more than noise would. Returns what was measured."""
        choice, measure = _CHOOSING * self.price, (1 - _CHOOSING) * self.price
        sigma = math.sqrt(0.5 / measure)
        before = dict(zip(tables, self.estimate.expected(tables), strict=True))
        chosen = self._chosen(before, count, choice, sigma)
        for table in chosen:
            self.estimate.add(table, self.mechanism.measure(table, measure), sigma**2)
        self.left = max(0.0, self.left - len(chosen) * self.price)
        self.estimate.fit(self.config.steps)
        after = self.estimate.expected(chosen)
        moved = [
            np.abs(found - before[table]).sum() - _noise(found, sigma)
            for table, found in zip(chosen, after, strict=True)
        ]
        if np.median(moved) <= 0:
            self.price *= _DEARER
        return chosen

    def _chosen(self, before: dict[Fields, Counts], count: int, price: float, sigma: float) -> list[Fields]:
        """Tables that are most wrong beyond the noise that measuring them would bring."""
        pool = list(before)
        chosen: list[Fields] = []
        while pool and len(chosen) < count:
            expected = [before[table] for table in pool]
            penalties = [_noise(counts, sigma) for counts in expected]
            chosen.append(pool.pop(self.mechanism.select(pool, expected, penalties, price)))
        return chosen


def _noise(counts: Counts, sigma: float) -> float:
    """What noise alone adds to the L1 distance of a table."""
    return _MEAN * sigma * counts.size
