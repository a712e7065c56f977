"""A variational autoencoder of mixed tables: one call, fast.

    z ~ N(0, I) through a flow prior,   numbers ~ N(mean(z), scale(z)),   categories by a Gumbel made from a uniform

Kingma and Welling 2014 (arXiv:1312.6114); the prior is a stack of affine couplings (Dinh et al. 2017, arXiv:1605.08803)
trained with the rest, so that samples come from where the encoder puts the records. Missing numbers carry no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

    from genward_families.vae.network import MixedVAE


class VAEConfig(FamilyConfig):
    """Settings of the autoencoder."""

    latent: int = Field(16, ge=1, le=512, description="latent dimensions")
    hidden: int = Field(128, ge=8, le=4096, description="width of encoder and decoder")
    blocks: int = Field(2, ge=1, le=32, description="residual blocks of each")
    couplings: int = Field(2, ge=0, le=32, description="affine couplings of the prior; 0 is a standard normal")
    beta: float = Field(1.0, gt=0, le=100, description="weight of the divergence from the prior")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the training in which beta rises from 0")
    lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate")


class Evidence(Objective):
    """The negative evidence lower bound, in nats a field."""

    def __init__(self, config: VAEConfig) -> None:
        self.config = config
        self.noise = [NoiseSpec("q", (config.latent,))]
        self.optimiser = Optimiser(lr=config.lr, weight_decay=1e-4, warmup=0.02)

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        weight = self.config.beta * min(1.0, progress / self.config.warmup if self.config.warmup else 1.0)
        found: Tensor = network(record["x"], record.get("c"), noise["q"], max(weight, 1e-3))
        return found


class TableVAE(Family):
    """The fast family for tables."""

    name = "vae"
    reference = "Kingma and Welling 2014, arXiv:1312.6114"
    Config = VAEConfig

    def build(self, spec: Spec, config: Any) -> nn.Module:
        from genward_families.vae.network import MixedVAE

        return MixedVAE(spec, config.latent, config.hidden, config.blocks, config.couplings)

    def phases(self, network: nn.Module, config: Any) -> Sequence[Phase]:
        return [Phase([Evidence(config)])]

    def graphs(self, network: nn.Module, config: Any) -> Mapping[str, Graph]:
        from genward_families.vae.network import Sampler

        vae: MixedVAE = network  # type: ignore[assignment]
        noise = [NoiseSpec("z", (vae.latent,))]
        if vae.layout.numbers:
            noise.append(NoiseSpec("e", (len(vae.layout.numbers),)))
        choices = sum(width for _, width in vae.layout.choices)
        if choices:
            noise.append(NoiseSpec("u", (choices,), "uniform"))
        return {"sample": Graph(Sampler(vae), noise=noise)}

    def thinner(self, config: Any) -> Sequence[Any]:
        """From half the width on, the decoder takes over what the couplings did: it is distilled from base to rows."""
        half = config.hidden / 2
        return [
            config.model_copy(update={"hidden": hidden, "couplings": config.couplings if hidden > half else 0})
            for hidden in narrower(config.hidden)
        ]

    def cut(self, network: nn.Module, spec: Spec, smaller: Any) -> nn.Module:
        from genward_families.vae.recover import cut

        trained: Any = network
        return cut(trained, self.build(spec, smaller))

    def distillation(self, teacher: nn.Module, config: Any, smaller: Any) -> Distillation:
        from genward_families.vae.recover import Answers

        trained: Any = teacher
        return Answers(trained)
