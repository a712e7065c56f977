"""How long a private step takes, measured on random records, so that the plan of a training tells nothing of data."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn

from genward.family import Objective, Record, Training
from genward_policies.privacy.conformance import synthetic
from genward_policies.privacy.randomness import Randomness
from genward_policies.privacy.turn import Constants, PrivateTurn

_ROUNDS, _SECONDS = 30, 3.0  # at most; the first two rounds are not typical and do not count


def seconds_for_a_step(training: Training, phase: int, constants: Constants) -> tuple[float, float]:
    """(wall, CPU) seconds of one turn of every objective of a phase, on a throw-away copy of the network."""
    network = copy.deepcopy(training.network)
    rows = max(2, min(8 * int(constants.batch), 8192))
    q = min(1.0, constants.batch / rows)
    c = Constants(constants.sigma, constants.clip, q, constants.batch, constants.steps, constants.canaries)
    records, randomness = synthetic(training.spec, rows), Randomness()
    turns = [
        (
            o,
            PrivateTurn(network, o, records, c, randomness, training.device, lambda taken: None)
            if o.reads_data
            else None,
        )
        for o in training.phases[phase].objectives
    ]
    marks = [(time.monotonic(), time.process_time())]
    while len(marks) <= 3 or (len(marks) <= _ROUNDS and marks[-1][0] - marks[0][0] < _SECONDS):
        for objective, turn in turns:
            for _ in range(objective.repeats):
                _once(network, objective, turn, {n: p[: training.options.batch] for n, p in records.items()})
        marks.append((time.monotonic(), time.process_time()))
    skip = min(2, len(marks) - 2)
    wall, cpu = ((marks[-1][i] - marks[skip][i]) / (len(marks) - 1 - skip) for i in (0, 1))
    return max(wall, 1e-6), max(cpu, 1e-6)


def _once(network: nn.Module, objective: Objective, turn: PrivateTurn | None, record: Record) -> None:
    """A private step, or the gradients of one that reads no data."""
    if turn is not None:
        turn.take(0, 1)
        return
    rows, seen = len(record["x"]), {name: part for name, part in record.items() if name == "c"}
    noise = {spec.name: torch.rand((rows, *spec.shape)) for spec in objective.noise}
    loss = objective.loss(network, seen, noise, 0.0).mean()
    torch.autograd.backward(loss)
