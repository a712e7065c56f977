"""A cheaper denoiser: channels cut, then taught by the trajectories of the one that was trained.

A student of fewer steps learns where several of the teacher's steps lead (progressive distillation, Salimans and Ho
2022, arXiv:2202.00512, section 3, in one go): at a state x_k of a fine trajectory its answer is the clean record for
which one DDIM step ends in x_(k+1). With as many steps it learns the teacher's own answer. Noise is all that is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genward.family import Distillation, NoiseSpec, Record
from genward_families.backbones.cutting import context_weights, copy_linear, cut_tower, heaviest
from genward_families.diffusion.network import Denoiser, Sampler

_EVALUATIONS = 256  # of the network, a step
_LEAST = 0.1  # of the mean weight


def cut(trained: Denoiser, smaller: Any) -> Denoiser:
    """Fill a narrower denoiser."""
    time: Any = trained.time
    narrow: Any = smaller.time
    first, last = time[0], time[2]
    hidden = narrow[0].out_features
    inner = heaviest(first.weight.norm(dim=1) * last.weight.norm(dim=0), hidden)
    context = heaviest(last.weight.norm(dim=1) * context_weights(trained.tower).sqrt(), hidden)
    copy_linear(first, narrow[0], inner)
    copy_linear(last, narrow[2], context, inner)
    cut_tower(trained.tower, smaller.tower, context=context)
    found: Denoiser = smaller.eval()
    return found


class Trajectories(Distillation):
    """Mean squared error of v over the student's steps, at states that the teacher went through.

    With a = cos and s = sin of an angle, an error of v moves the next state by the sine of the angle between the two,
    and the rest of the way keeps it about as large; steps weigh in that proportion, a tenth of the mean at least, so
    that those at little noise, which place near-dependent columns, are not forgotten.
    """

    def __init__(self, teacher: Denoiser, config: Any, smaller: Any) -> None:
        self.noise = [NoiseSpec("e", (teacher.width,))]
        fine = 1 if smaller.sampler == config.sampler else max(1, round((config.steps - 1) / (smaller.steps - 1)))
        self.batch = max(32, _EVALUATIONS // smaller.steps)
        self._every = fine
        self._teacher = Sampler(teacher, (smaller.steps - 1) * fine + 1, config.sampler)
        self._student = Sampler(teacher, smaller.steps, smaller.sampler)  # its table of coefficients only
        self._weights = _moved(self._student.sigmas)
        self._mapped = smaller.sampler != config.sampler

    def examples(self, noise: Record, condition: Tensor | None) -> Record:
        """States (N, steps, width) and the teacher's answers, v of the same shape."""
        with torch.no_grad():
            states, cleans = self._walked(noise["e"], condition)
            wanted = self._targets(states, cleans) if self._mapped else torch.stack(cleans, dim=1)
            x = torch.stack(states[: len(self._student.times)], dim=1)
            a, s = self._student.alphas[:, None], self._student.sigmas[:, None]
            found = {"x": x, "v": (a * x - wanted) / s}
        return found if condition is None else {**found, "c": condition}

    def _walked(self, e: Tensor, c: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """The states at which a student is asked, the last one clean, and the teacher's clean records there."""
        states, cleans = [], []
        x, before = e, torch.zeros_like(e)
        for i in range(self._teacher.steps):
            after, clean = self._teacher._step(torch.tensor(i), x, before, c)
            if i % self._every == 0:
                states.append(x)
                cleans.append(clean)
            x, before = after, clean
        return [*states, x], cleans

    def _targets(self, states: list[Tensor], cleans: list[Tensor]) -> Tensor:
        """The clean records (N, steps, width) for which one DDIM step ends in the next state."""
        keeps, moves = self._student.keeps, self._student.moves
        pairs = zip(states, states[1:], keeps, moves, strict=False)
        return torch.stack([(after - keep * x) / move for x, after, keep, move in pairs], dim=1)

    def loss(self, network: nn.Module, example: Record) -> Tensor:
        denoiser: Any = network
        rows, steps, width = example["x"].shape
        c = example["c"].repeat_interleave(steps, dim=0) if "c" in example else None
        v = denoiser.predict(example["x"].reshape(-1, width), self._student.times.repeat(rows), c)
        errors = ((v.reshape(rows, steps, width) - example["v"]) ** 2).mean(dim=2)
        found: Tensor = (errors * self._weights).mean(dim=1)
        return found


def _moved(sigmas: Tensor) -> Tensor:
    """Weights (steps,) of mean 1."""
    angles = torch.asin(sigmas)
    moved = torch.sin(angles - torch.cat([angles[1:], torch.zeros(1)]))
    kept = torch.clamp(moved / moved.mean(), min=_LEAST)
    return kept / kept.mean()
