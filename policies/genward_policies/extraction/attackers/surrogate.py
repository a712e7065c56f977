"""The same family again, trained for a bounded time on the delivered rows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from genward.attacker import Attacker, Rows, Target

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 2048


class Surrogate(Attacker):
    """Trains what the release is made of."""

    name: ClassVar[str] = "surrogate"
    effort = "costly"

    @classmethod
    def cannot(cls, target: Target) -> str:
        return "the family learns from counts, not from rows" if target.family.bins(target.config) else ""

    def fit(self, rows: Rows, seed: int) -> None:
        from genward.contracts import Silent
        from genward.train import TrainOptions, train

        target, width = self.target, self.target.spec.width
        self._given = rows[:, width:]
        records = {"x": rows[:, :width]} | ({"c": self._given} if target.spec.condition_width else {})
        seconds = target.cpu_seconds
        options = TrainOptions(seed=seed, max_cpu_seconds=seconds, held_out=0.1, batch=128, device="cpu")
        with tempfile.TemporaryDirectory(prefix="genward-") as folder:
            trained = train(target.family, target.config, target.spec, records, Path(folder), options, Silent())
        self._graph: Any = target.family.graphs(trained.network.eval(), target.config)["sample"]

    def sample(self, n: int, seed: int) -> Rows:
        import torch

        rng = np.random.default_rng([seed, 3])
        given = self._given[rng.integers(len(self._given), size=n)]
        with torch.no_grad():
            parts = [self._made(given[at : at + _BATCH], at, rng.bytes(16)) for at in range(0, n, _BATCH)]
        return self.target.hardened(np.concatenate([np.concatenate(parts), given], axis=1))

    def _made(self, given: Rows, first: int, key: bytes) -> np.ndarray:
        """Generated fields of rows with these conditions."""
        import torch

        from genward import noise

        graph, places = self._graph, np.arange(first, first + len(given), dtype=np.uint64)
        drawn = [torch.from_numpy(v) for v in noise.draw(graph.noise, key, places).values()]
        condition = [torch.from_numpy(given)] if graph.conditions and given.shape[1] else []
        out: Tensor = graph.module(*drawn, *condition)
        found: np.ndarray = out.numpy()
        return found
