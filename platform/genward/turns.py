"""One objective's optimiser step, and the optimiser and learning rate that every step shares, private or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from genward.family import Objective, Optimiser, Record


class OpenTurn:
    """An objective and its optimiser."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        self.network, self.objective = network, objective
        self.modules = [network.get_submodule(path) for path in objective.trains]
        self.parameters = list(_unique(self.modules))
        self.optimiser = adamw(objective.optimiser, self.parameters)

    def state_dict(self) -> dict[str, Any]:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state)

    def take(self, record: Record, noise: Record, step: int, steps: int, clip: float) -> float:
        """One optimiser step; returns the mean loss."""
        self.network.eval()
        for module in self.modules:
            module.train()
        seen = record if self.objective.reads_data else {name: part for name, part in record.items() if name == "c"}
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.objective.optimiser, step, steps)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.objective.loss(self.network, seen, noise, step / steps).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, clip)
        self.optimiser.step()
        return float(loss.detach())


def adamw(optimiser: Optimiser, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """The optimiser an objective asks for."""
    return torch.optim.AdamW(parameters, optimiser.lr, optimiser.betas, weight_decay=optimiser.weight_decay, fused=True)


def learning_rate(optimiser: Optimiser, step: int, steps: int) -> float:
    """Linear warm-up, then the schedule."""
    share = step / max(steps, 1)
    if share < optimiser.warmup:
        return optimiser.lr * (share / optimiser.warmup + 1e-3)
    if optimiser.schedule == "constant":
        return optimiser.lr
    left = (share - optimiser.warmup) / max(1e-9, 1 - optimiser.warmup)
    return optimiser.lr * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * left)))


def _unique(modules: Sequence[nn.Module]) -> Iterator[nn.Parameter]:
    seen: set[int] = set()
    for module in modules:
        for parameter in module.parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter
