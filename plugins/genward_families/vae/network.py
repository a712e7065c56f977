"""The torch modules of the table VAE."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genward.family import Spec
from genward_families.backbones.table import Layout, Tower, joined

_SMALLEST = -5.0  # log of the smallest standard deviation of a number
_BOUND = 2.0  # log of the largest stretch of one coupling


class Coupling(nn.Module):
    """Affine coupling of one half of z on the other (arXiv:1605.08803, section 3.2)."""

    def __init__(self, width: int, hidden: int, context: int, odd: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width + context, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 2 * width),
        )  # fmt: skip
        last = self.net[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.register_buffer("kept", ((torch.arange(width) % 2) == int(odd)).float())

    kept: Tensor

    def terms(self, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, stretch = self.net(joined(z * self.kept, c)).chunk(2, dim=1)
        free = 1 - self.kept
        return shift * free, torch.tanh(stretch / _BOUND) * _BOUND * free

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Base to latent."""
        shift, stretch = self.terms(z, c)
        return z * torch.exp(stretch) + shift

    def back(self, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latent to base, and the log-determinant (B,)."""
        shift, stretch = self.terms(z, c)
        return (z - shift) * torch.exp(-stretch), -stretch.sum(dim=1)


class MixedVAE(nn.Module):
    """Encoder, decoder and prior. Called with records it gives the loss."""

    def __init__(self, spec: Spec, latent: int, hidden: int, blocks: int, couplings: int) -> None:
        super().__init__()
        self.latent, self.layout = latent, Layout(spec)
        given = spec.condition_width
        self.encoder = Tower(spec.width + given, 2 * latent, hidden, blocks)
        self.decoder = Tower(latent + given, spec.width + len(self.layout.numbers), hidden, blocks)
        self.prior = nn.ModuleList(Coupling(latent, max(32, hidden // 3), given, i % 2 == 1) for i in range(couplings))
        self.width = spec.width

    def forward(self, x: Tensor, c: Tensor | None, q: Tensor, beta: float) -> Tensor:
        """Loss (B,) of records x (B, width) with posterior noise q (B, latent)."""
        mean, log_scale = self.encoder(joined(x, c)).chunk(2, dim=1)
        log_scale = torch.clamp(log_scale, -6.0, 3.0)
        z = mean + torch.exp(log_scale) * q
        posterior = -(0.5 * q * q + log_scale).sum(dim=1)
        return (self._surprise(x, z, c) + beta * (posterior + self._prior_surprise(z, c))) / self.width

    def _prior_surprise(self, z: Tensor, c: Tensor | None) -> Tensor:
        """-log p(z) (B,), without the constant that the posterior lacks too."""
        total = torch.zeros_like(z[:, 0])
        for coupling in reversed(self.prior):
            z, log_determinant = coupling.back(z, c)  # type: ignore[operator]
            total = total - log_determinant
        return total + 0.5 * (z * z).sum(dim=1)

    def _surprise(self, x: Tensor, z: Tensor, c: Tensor | None) -> Tensor:
        """-log p(x | z) (B,): normal for numbers that are there, categorical for choices."""
        out, log_scale = self.parts(z, c)
        numbers = self.layout.numbers
        total = torch.zeros_like(x[:, 0])
        if numbers:
            error = (x[:, numbers] - out[:, numbers]) * torch.exp(-log_scale)
            each = 0.5 * error * error + log_scale + 0.5 * math.log(2 * math.pi)
            total = total + (each * self.layout.present(x)).sum(dim=1)
        for start, width in self.layout.choices:
            logs = torch.log_softmax(out[:, start : start + width], dim=1)
            total = total - (logs * x[:, start : start + width]).sum(dim=1)
        return total

    def parts(self, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Means and logits (B, width), and the log-scales of numbers (B, numbers)."""
        out = self.decoder(joined(z, c))
        return out[:, : self.width], torch.clamp(out[:, self.width :], _SMALLEST, 2.0)


class Sampler(nn.Module):
    """z, e, u and the condition -> encoded rows (B, width); noise that no field needs is left out."""

    def __init__(self, vae: MixedVAE) -> None:
        super().__init__()
        self.vae = vae
        self.numbers, self.choices = vae.layout.numbers, vae.layout.choices

    def forward(self, z: Tensor, *rest: Tensor) -> Tensor:
        e = rest[0] if self.numbers else None
        u = rest[len(self.numbers) > 0] if self.choices else None
        c = rest[(len(self.numbers) > 0) + (len(self.choices) > 0) :]
        given = c[0] if c else None
        for coupling in self.vae.prior:
            z = coupling(z, given)
        out, log_scale = self.vae.parts(z, given)
        return self._drawn(out, log_scale, e, u)

    def _drawn(self, out: Tensor, log_scale: Tensor, e: Tensor | None, u: Tensor | None) -> Tensor:
        pieces: dict[int, Tensor] = {}
        if e is not None:
            values = out[:, self.numbers] + torch.exp(log_scale) * e
            pieces |= {start: values[:, i : i + 1] for i, start in enumerate(self.numbers)}
        at = 0
        for start, width in self.choices:
            if u is not None:
                gumbel = -torch.log(-torch.log(u[:, at : at + width]))
                pieces[start] = out[:, start : start + width] + gumbel
            at += width
        return torch.cat([pieces[start] for start in sorted(pieces)], dim=1)
