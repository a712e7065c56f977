"""One Gaussian with a full covariance over the encoded record: the smallest generator that keeps correlations.

x = m + L z,    z ~ N(0, I),    trained by maximum likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from genward.family import Family, FamilyConfig, Graph, NoiseSpec, Objective, Optimiser, Phase, Record, Spec

if TYPE_CHECKING:
    from torch import Tensor, nn


class GaussianConfig(FamilyConfig):
    floor: float = Field(0.05, gt=0, description="smallest standard deviation, in encoded units")


class Likelihood(Objective):
    optimiser = Optimiser(lr=0.02)

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        return network.surprise(record["x"])  # type: ignore[no-any-return, operator]


class Gaussian(Family):
    """Multivariate normal (Bishop, Pattern Recognition and Machine Learning, section 2.3)."""

    name = "gaussian"
    reference = "Bishop 2006, section 2.3"
    Config = GaussianConfig

    def build(self, spec: Spec, config: Any) -> nn.Module:
        from genward_example.network import GaussianNetwork

        return GaussianNetwork(spec.width, config.floor)

    def phases(self, network: nn.Module, config: Any) -> Sequence[Phase]:
        return [Phase([Likelihood()])]

    def graphs(self, network: nn.Module, config: Any) -> Mapping[str, Graph]:
        width = int(network.mean.shape[0])  # type: ignore[index, union-attr]
        return {"sample": Graph(network, noise=[NoiseSpec("z", (width,))], conditions=False)}
