"""What has been measured, and a mixture of products fitted to all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genward_families.marginal.network import Mixture

Counts = NDArray[np.float64]
Fields = tuple[int, ...]


class Estimate:
    """A mixture, fitted by Adam to noisy counts: least squares, each count weighed by its precision."""

    def __init__(self, network: Mixture, domain: Sequence[int], total: float, rate: float) -> None:
        self.network, self.total, self.rate = network, total, rate
        self._slices = [slice(start, start + n) for start, n in zip(network.starts, domain, strict=False)]
        size = network.starts[-1]
        self._pairs = torch.zeros(size, size), torch.zeros(size, size)
        self._ones = torch.zeros(size), torch.zeros(size)
        self._triples: dict[Fields, tuple[Tensor, Tensor]] = {}
        self.seen: list[Fields] = []
        self._cells = 0

    def add(self, fields: Fields, counts: Counts, variance: Counts | float) -> None:
        """Take an answer in: of what was measured more than once the mean, weighed by precision."""
        self.seen.append(fields)
        y = torch.from_numpy(counts).float() / self.total
        w = torch.from_numpy(self.total**2 / np.broadcast_to(variance, counts.shape)).float()
        old_y, old_w = self._place(fields)
        self._cells += int((old_w == 0).sum())
        old_y.copy_((old_y * old_w + y * w) / (old_w + w))
        old_w += w

    def _place(self, fields: Fields) -> tuple[Tensor, Tensor]:
        at = [self._slices[field] for field in fields]
        if len(at) == 1:
            return self._ones[0][at[0]], self._ones[1][at[0]]
        if len(at) == 2:
            return self._pairs[0][at[0], at[1]], self._pairs[1][at[0], at[1]]
        shape = [part.stop - part.start for part in at]
        return self._triples.setdefault(fields, (torch.zeros(shape), torch.zeros(shape)))

    def fit(self, steps: int) -> float:
        """Adam with a cosine from the peak rate; returns half the mean squared error in deviations."""
        adam = torch.optim.Adam(self.network.parameters(), lr=self.rate, betas=(0.9, 0.99))
        loss = torch.zeros(())
        for step in range(steps):
            for group in adam.param_groups:
                group["lr"] = self.rate * (0.51 + 0.49 * math.cos(math.pi * step / steps))
            adam.zero_grad(set_to_none=True)
            loss = self._loss() / self._cells
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        return float(loss.detach())

    def _loss(self) -> Tensor:
        w, a = self.network.parts()
        weighted = a * w[:, None]
        loss = (self._pairs[1] * (weighted.T @ a - self._pairs[0]).square()).sum()
        loss = loss + (self._ones[1] * (weighted.sum(0) - self._ones[0]).square()).sum()
        for fields, (y, precision) in self._triples.items():
            loss = loss + (precision * (self._triple(weighted, a, fields) - y).square()).sum()
        return 0.5 * loss

    def _triple(self, weighted: Tensor, a: Tensor, fields: Fields) -> Tensor:
        i, j, k = (self._slices[field] for field in fields)
        two = (weighted[:, i, None] * a[:, None, j]).flatten(1)
        return (two.T @ a[:, k]).reshape([part.stop - part.start for part in (i, j, k)])

    @torch.no_grad()
    def expected(self, candidates: Sequence[Fields]) -> list[Counts]:
        """Counts that the mixture expects, of each candidate."""
        w, a = self.network.parts()
        weighted = a * w[:, None]
        pairs = weighted.T @ a
        tables = [
            pairs[self._slices[c[0]], self._slices[c[1]]] if len(c) == 2 else self._triple(weighted, a, c)
            for c in candidates
        ]
        return [table.double().numpy() * self.total for table in tables]
