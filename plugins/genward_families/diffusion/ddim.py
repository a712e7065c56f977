"""Diffusion over mixed tables, sampled deterministically in a few steps inside one graph.

    x_t = a(t) x + s(t) e,   a = cos(pi t / 2), s = sin(pi t / 2)
    the network predicts v = a e - s x, so that x = a x_t - s v and e = s x_t + a v

Training: Ho et al. 2020 (arXiv:2006.11239) with v-prediction (Salimans and Ho 2022, arXiv:2202.00512). Sampling: DDIM
(Song et al. 2021, arXiv:2010.02502), or its second-order multistep form (Lu et al. 2022, DPM-Solver++,
arXiv:2211.01095), which costs the same number of network calls. One-hots are continuous values in between; the codec's
decoder takes the largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from genward.family import Family, FamilyConfig, Graph, NoiseSpec, Objective, Optimiser, Phase, Record, Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genward_families.diffusion.network import Denoiser


class DiffusionConfig(FamilyConfig):
    """Settings of the diffusion."""

    hidden: int = Field(192, ge=8, le=4096, description="width of the network")
    blocks: int = Field(3, ge=1, le=32, description="residual blocks")
    steps: int = Field(20, ge=2, le=1000, description="network calls a sample takes")
    sampler: Literal["multistep", "ddim"] = Field("multistep", description="second order, or plain DDIM")
    lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate")
    draws: int = Field(1, ge=1, le=16, description="noise draws a record and step (noise multiplicity)")


class Denoising(Objective):
    """Mean squared error of v, over fields and noise draws, at uniform times."""

    def __init__(self, width: int, config: DiffusionConfig) -> None:
        self.noise = [NoiseSpec("e", (config.draws, width)), NoiseSpec("t", (config.draws,), "uniform")]
        self.optimiser = Optimiser(lr=config.lr, weight_decay=1e-4, warmup=0.02)

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        errors = [
            network(record["x"], record.get("c"), noise["e"][:, k], noise["t"][:, k])
            for k in range(noise["t"].shape[1])
        ]
        total: Tensor = sum(errors[1:], start=errors[0]) / len(errors)
        return total


class TableDiffusion(Family):
    """The quality default for tables."""

    name = "diffusion"
    reference = "Song, Meng, Ermon 2021, arXiv:2010.02502"
    Config = DiffusionConfig

    def build(self, spec: Spec, config: Any) -> nn.Module:
        from genward_families.diffusion.network import Denoiser

        return Denoiser(spec, config.hidden, config.blocks)

    def phases(self, network: nn.Module, config: Any) -> Sequence[Phase]:
        return [Phase([Denoising(_width(network), config)])]

    def graphs(self, network: nn.Module, config: Any) -> Mapping[str, Graph]:
        from genward_families.diffusion.network import Sampler

        denoiser: Any = network
        noise = [NoiseSpec("e", (_width(network),))]
        steps = Sampler(denoiser, config.steps, config.sampler)
        one = Sampler(denoiser, 1, config.sampler)
        return {"sample": Graph(steps, noise=noise, gate="chain", step=one)}


def _width(network: nn.Module) -> int:
    denoiser: Denoiser = network  # type: ignore[assignment]
    return denoiser.width
