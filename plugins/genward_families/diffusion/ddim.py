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

from genward.family import (
    Distillation,
    Family,
    FamilyConfig,
    Graph,
    NoiseSpec,
    Objective,
    Optimiser,
    Phase,
    Record,
    Spec,
)
from genward_families.backbones import narrower

if TYPE_CHECKING:
    from torch import Tensor, nn

    from genward_families.diffusion.network import Denoiser

STEPS = (100, 50, 25, 16, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2)  # how many calls a quicker sampler may take


class DiffusionConfig(FamilyConfig):
    """Settings of the diffusion."""

    hidden: int = Field(192, ge=8, le=4096, description="width of the network")
    blocks: int = Field(3, ge=1, le=32, description="residual blocks")
    steps: int = Field(20, ge=2, le=1000, description="network calls a sample takes")
    sampler: Literal["multistep", "ddim"] = Field("multistep", description="second order, or plain DDIM")
    unrolled: bool = Field(False, description="no loop in the graph: every call a part of its own, to be quantised")
    lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate")
    draws: int = Field(1, ge=1, le=16, description="noise draws a record and step (noise multiplicity)")


class Denoising(Objective):
    """Mean squared error of v, over fields and noise draws, at uniform times."""

    def __init__(self, width: int, config: DiffusionConfig) -> None:
        self.noise = [NoiseSpec("e", (config.draws, width)), NoiseSpec("t", (config.draws,), "uniform")]
        self.optimiser = Optimiser(lr=config.lr, weight_decay=1e-4, warmup=0.02)

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        x, c, e, t = record["x"], record.get("c"), noise["e"], noise["t"]
        draws = t.shape[1]
        if draws == 1:
            found: Tensor = network(x, c, e[:, 0], t[:, 0])
            return found
        given = None if c is None else c[:, None].expand(-1, draws, -1)
        errors: Tensor = network(x[:, None], given, e, t)  # one call, so that hooks see each layer once
        return errors.mean(dim=1)


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
        steps = Sampler(denoiser, config.steps, config.sampler, config.unrolled)
        one = Sampler(denoiser, 1, config.sampler)
        return {"sample": Graph(steps, noise=noise, gate="chain", step=one)}

    def thinner(self, config: Any) -> Sequence[Any]:
        return [config.model_copy(update={"hidden": hidden}) for hidden in narrower(config.hidden)]

    def quicker(self, config: Any, distilled: bool) -> Sequence[Any]:
        """Distilled, a step is plain DDIM: the network itself learns where the teacher's finer steps lead."""
        sampler = "ddim" if distilled else config.sampler
        fewer = [steps for steps in STEPS if steps < config.steps]
        return [config.model_copy(update={"steps": steps, "sampler": sampler}) for steps in fewer]

    def unrolled(self, config: Any) -> Any:
        return config.model_copy(update={"unrolled": True})

    def cut(self, network: nn.Module, spec: Spec, smaller: Any) -> nn.Module:
        from genward_families.diffusion.recover import cut

        trained: Any = network
        return cut(trained, self.build(spec, smaller))

    def distillation(self, teacher: nn.Module, config: Any, smaller: Any) -> Distillation:
        from genward_families.diffusion.recover import Trajectories

        trained: Any = teacher
        return Trajectories(trained, config, smaller)


def _width(network: nn.Module) -> int:
    denoiser: Denoiser = network  # type: ignore[assignment]
    return denoiser.width
