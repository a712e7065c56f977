"""A small family of one linear layer, to test the loop itself, and records for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genward.family import Family, FamilyConfig, Field, Graph, NoiseSpec, Objective, Optimiser, Phase, Record, Spec

WIDTH = 4


class LinearConfig(FamilyConfig):
    lr: float = 0.05


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)


class Fit(Objective):
    """|f(x + e) - x|^2 for one of the two layers."""

    noise = (NoiseSpec("e", (WIDTH,)),)

    def __init__(self, layer: str, lr: float) -> None:
        self.trains = (layer,)
        self.optimiser = Optimiser(lr=lr, schedule="constant")

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        layer = network.get_submodule(self.trains[0])
        frozen = [m for name, m in network.named_children() if name not in self.trains]
        if torch.is_grad_enabled() and (not layer.training or any(m.training for m in frozen)):
            raise RuntimeError("only what an objective trains is in train()")
        found: Tensor = ((layer(record["x"] + 0.1 * noise["e"]) - record["x"]) ** 2).mean(dim=1)
        return found


class LinearFamily(Family):
    name = "linear"
    Config = LinearConfig

    def build(self, spec: Spec, config: Any) -> nn.Module:
        return Linear()

    def phases(self, network: nn.Module, config: Any) -> Sequence[Phase]:
        return [Phase([Fit("first", config.lr)]), Phase([Fit("second", config.lr), Fit("first", config.lr)])]

    def graphs(self, network: nn.Module, config: Any) -> Mapping[str, Graph]:
        return {}


@pytest.fixture
def linear() -> Family:
    return LinearFamily()


@pytest.fixture
def linear_spec() -> Spec:
    return Spec("table", tuple(Field(f"c{i}", "number", i, 1) for i in range(WIDTH)))


@pytest.fixture
def records() -> Callable[[int], dict[str, Any]]:
    def make(rows: int) -> dict[str, Any]:
        return {"x": np.random.default_rng(3).normal(size=(rows, WIDTH)).astype(np.float32)}

    return make
