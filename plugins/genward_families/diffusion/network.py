"""The torch modules of the diffusion family."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genward.family import Spec
from genward_families.backbones.table import Layout, Tower, joined

FREQUENCIES = 16
_NOISY = -5.0  # log(a / s) of the first network call; the last one's is the opposite


class Denoiser(nn.Module):
    """Predicts v from x_t, the time and the condition. Called with clean records it gives the loss."""

    def __init__(self, spec: Spec, hidden: int, blocks: int) -> None:
        super().__init__()
        self.width, self.given = spec.width, spec.condition_width
        self.layout = Layout(spec)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.tower = Tower(spec.width + spec.condition_width, spec.width, hidden, blocks, context=hidden)
        self.register_buffer("frequencies", 2 * math.pi * torch.arange(1, FREQUENCIES + 1) / 2)

    frequencies: Tensor

    def forward(self, x: Tensor, c: Tensor | None, e: Tensor, t: Tensor) -> Tensor:
        """Loss (B,) of records x (B, width) with noise e (B, width) at times t (B,); draws may be an axis behind B."""
        clean = self.centred(x)
        a, s = torch.cos(t * math.pi / 2)[..., None], torch.sin(t * math.pi / 2)[..., None]
        v = self.predict(a * clean + s * e, t, c)
        return ((v - (a * e - s * clean)) ** 2).mean(dim=-1)

    def predict(self, noisy: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        """v of noisy records (B, width) at times (B,), or (1,) for all; draws may be an axis behind B."""
        angles = t[..., None] * self.frequencies
        context = self.time(torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1))
        found: Tensor = self.tower(joined(noisy, c), nn.functional.silu(context))
        return found

    def centred(self, x: Tensor) -> Tensor:
        """One-hots from 0, 1 to -1, 1, about the size of the numbers."""
        return x + self.layout.hot * (x - 1)

    def uncentred(self, x: Tensor) -> Tensor:
        return x + self.layout.hot * (1 - x) / 2


class Sampler(nn.Module):
    """e (B, width) and the condition -> encoded rows (B, width), in `steps` network calls, in one Loop of the graph or,
    unrolled, one after the other.

    Calls are even in log(a / s) (arXiv:2211.01095, section 5): near-dependent columns need many at little noise. Each
    step is x <- A x + B ((1 + C) x0 - C x0 of the step before); C is 0 for DDIM.
    """

    def __init__(
        self, denoiser: Denoiser, steps: int, method: Literal["multistep", "ddim"], unrolled: bool = False
    ) -> None:
        super().__init__()
        self.denoiser, self.steps, self.unrolled = denoiser, steps, unrolled
        table = _coefficients(steps, method)
        for name, column in zip(("times", "alphas", "sigmas", "keeps", "moves", "backs"), table.T, strict=True):
            self.register_buffer(name, column.contiguous(), persistent=False)

    times: Tensor
    alphas: Tensor
    sigmas: Tensor
    keeps: Tensor
    moves: Tensor
    backs: Tensor

    def forward(self, e: Tensor, c: Tensor | None = None) -> Tensor:
        start = torch.zeros((), dtype=torch.int64)
        if torch.compiler.is_exporting() and self.steps > 1 and not self.unrolled:
            _, x, _ = self._looped(start, e, c)
        else:
            x, before = e, torch.zeros_like(e)
            for i in range(self.steps):
                x, before = self._step(start + i, x, before, c)
        return self.denoiser.uncentred(x)

    def _looped(self, start: Tensor, e: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        from torch._higher_order_ops import while_loop as looped

        while_loop: Any = looped

        def going(i: Tensor, x: Tensor, before: Tensor) -> Tensor:
            return i < self.steps

        def step(i: Tensor, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return i + 1, *self._step(i, x, before, c)

        found: tuple[Tensor, Tensor, Tensor] = while_loop(going, step, (start, e.clone(), torch.zeros_like(e)))
        return found

    def _step(self, i: Tensor, x: Tensor, before: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        at = i.reshape(1)
        t, a, s = (self._pick(table, at) for table in (self.times, self.alphas, self.sigmas))
        keep, move, back = (self._pick(table, at) for table in (self.keeps, self.moves, self.backs))
        clean = a * x - s * self.denoiser.predict(x, t, c)  # one time for all rows: its part is computed once
        return keep * x + move * ((1 + back) * clean - back * before), clean

    @staticmethod
    def _pick(table: Tensor, at: Tensor) -> Tensor:
        return torch.index_select(table, 0, at)


def _coefficients(steps: int, method: str) -> Tensor:
    """(steps, 6): time, a, s, A, B, C of each step; the last one goes to the clean record itself."""
    lam = torch.linspace(_NOISY, -_NOISY, steps, dtype=torch.float64)
    times = torch.atan(torch.exp(-lam)) * 2 / math.pi
    a, s = torch.cos(times * math.pi / 2), torch.sin(times * math.pi / 2)
    keep, move, back = torch.zeros(steps), torch.ones(steps), torch.zeros(steps)
    for i in range(steps - 1):
        keep[i] = s[i + 1] / s[i]
        move[i] = a[i + 1] - s[i + 1] * a[i] / s[i]
        if method == "multistep" and i > 0:
            back[i] = 0.5 * (lam[i + 1] - lam[i]) / (lam[i] - lam[i - 1])
    return torch.stack([times, a, s, keep.double(), move.double(), back.double()], dim=1).float()
