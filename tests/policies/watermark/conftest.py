"""A generator of a test's own: a mixed table whose columns depend on each other, drawn by numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from genward_policies.watermark.config import WatermarkConfig
from genward_policies.watermark.exam import Columns
from genward_policies.watermark.power import Ground, Trial

WORDS = 5


def draw(n: int, seed: int) -> Columns:
    """Eight numbers, one of them with gaps and one with an atom, and a choice of five."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, 4))
    mixed = base @ np.array([[1, 0.5, 0, 0.2], [0, 1, 0.3, 0], [0, 0, 1, 0.8], [0, 0, 0, 0.6]])
    numbers = np.exp(np.column_stack([base, mixed + 0.3 * rng.normal(size=(n, 4))]))
    numbers[rng.random(n) < 0.1, 6] = np.nan
    numbers[rng.random(n) < 0.3, 7] = 298.15
    codes = np.clip(np.floor(base[:, 0] + rng.normal(size=n) + 2), -1, WORDS - 1).astype(np.int32)
    return {**{f"x{i}": numbers[:, i] for i in range(8)}, "phase": codes}


@pytest.fixture(scope="session")
def drawn() -> Callable[..., Columns]:
    return draw


@pytest.fixture(scope="session")
def ground() -> Ground:
    return Ground(draw(10_000, 1), draw(4 * 6000, 2), 4)


@pytest.fixture(scope="session")
def trial(ground: Ground) -> Trial:
    return Trial(ground, ground.scheme(16, 64, 2, WatermarkConfig()))


@pytest.fixture(scope="session")
def marked(trial: Trial) -> Callable[..., Any]:
    """marked(key, rows, seed): a file of marked rows."""

    def make(key: Any, rows: int, seed: int = 0) -> Columns:
        return trial.ground.columns(np.random.default_rng(seed).permutation(trial.chosen(key))[:rows])

    return make
