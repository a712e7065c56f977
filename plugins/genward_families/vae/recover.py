"""A cheaper decoder: channels cut, then taught what the trained one makes of the same noise."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from genward.family import Distillation, NoiseSpec, Optimiser, Record
from genward_families.backbones.cutting import copy_linear, cut_tower, heaviest
from genward_families.vae.network import Coupling, MixedVAE


def cut(trained: MixedVAE, smaller: Any) -> MixedVAE:
    """Fill a narrower autoencoder. Of couplings that are left out the decoder learns the work; the encoder, which no
    sample needs, is cut and not taught again."""
    cut_tower(trained.encoder, smaller.encoder)
    cut_tower(trained.decoder, smaller.decoder)
    for old, new in zip(trained.prior, smaller.prior, strict=False):
        _cut_coupling(old, new)
    found: MixedVAE = smaller.eval()
    return found


def _cut_coupling(old: Any, new: Any) -> None:
    """Two hidden layers of one width."""
    layers = [old.net[i] for i in (0, 2, 4)]
    width = new.net[0].out_features
    one, two = (
        heaviest(before.weight.norm(dim=1) * after.weight.norm(dim=0), width) for before, after in pairwise(layers)
    )
    copy_linear(layers[0], new.net[0], one)
    copy_linear(layers[1], new.net[2], two, one)
    copy_linear(layers[2], new.net[4], None, two)


class Answers(Distillation):
    """Divergence of the student's distributions from the teacher's, field by field, at the same place of the base."""

    batch = 64  # many small steps: at the same time they come ten times nearer than batches of 512
    optimiser = Optimiser(lr=4e-3, warmup=0.02)

    def __init__(self, teacher: MixedVAE) -> None:
        self._teacher = teacher
        self.noise = [NoiseSpec("z", (teacher.latent,))]

    def examples(self, noise: Record, condition: Tensor | None) -> Record:
        with torch.no_grad():
            out, log_scale = _parts(self._teacher, noise["z"], condition)
        found = {"z": noise["z"], "out": out, "log_scale": log_scale}
        return found if condition is None else {**found, "c": condition}

    def loss(self, network: nn.Module, example: Record) -> Tensor:
        student: Any = network
        out, log_scale = _parts(student, example["z"], example.get("c"))
        total = torch.zeros_like(out[:, 0])
        numbers = student.layout.numbers
        if numbers:
            apart = example["out"][:, numbers] - out[:, numbers]
            total = total + _normals(apart, example["log_scale"], log_scale).sum(dim=1)
        for start, width in student.layout.choices:
            part = slice(start, start + width)
            theirs, mine = (torch.log_softmax(side[:, part], dim=1) for side in (example["out"], out))
            total = total + (theirs.exp() * (theirs - mine)).sum(dim=1)
        found: Tensor = total / student.width
        return found


def _parts(vae: Any, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    coupling: Coupling
    for coupling in vae.prior:
        z = coupling(z, c)
    found: tuple[Tensor, Tensor] = vae.parts(z, c)
    return found


def _normals(apart: Tensor, theirs: Tensor, mine: Tensor) -> Tensor:
    """KL divergence of normals whose means are `apart` and whose log-deviations are given."""
    found: Tensor = mine - theirs + 0.5 * (torch.exp(2 * (theirs - mine)) + (apart * torch.exp(-mine)) ** 2 - 1)
    return found
