"""Tables learnt from noisy counts: select, measure, generate.

    ask for the counts of each column, then of the pairs and triples that the model gets most wrong,
    fit a mixture of products  p = sum_r w_r prod_i A_i[r, .]  to all answers,  draw rows from it

After AIM (McKenna, Mullins, Sheldon and Miklau 2022, arXiv:2201.12677), with a mixture in place of a graphical model:
its marginals are a matrix product whatever was measured, and it samples in one call. The family never sees a record,
only what a `Mechanism` answers: unprotected the counts, under a privacy policy counts with noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from genward.family import Family, FamilyConfig, Graph, Mechanism, NoiseSpec, Spec

if TYPE_CHECKING:
    from torch import nn

    from genward.contracts import Progress
    from genward_families.marginal.network import Mixture


class MarginalsConfig(FamilyConfig):
    """Settings of the mixture and of its fitting."""

    fine: int = Field(128, ge=2, le=1024, description="bins of a number, at most")
    bins: int = Field(32, ge=2, le=256, description="groups of a column's values, at most")
    detail: float = Field(10.0, gt=0, le=1e4, description="groups of a number: the root of detail x rows / noise")
    cells: int = Field(8000, ge=4, le=1 << 20, description="largest table that is asked for")
    components: int = Field(500, ge=1, le=8192, description="products in the mixture")
    steps: int = Field(60, ge=1, le=10_000, description="optimiser steps a round")
    last: int = Field(600, ge=1, le=100_000, description="optimiser steps in the end")
    lr: float = Field(0.05, gt=0, le=1, description="peak learning rate")


class Marginals(Family):
    """The default for private tables."""

    name = "marginals"
    reference = "McKenna, Mullins, Sheldon, Miklau 2022, arXiv:2201.12677"
    Config = MarginalsConfig

    def build(self, spec: Spec, config: Any) -> nn.Module:
        from genward_families.marginal.network import Mixture

        return Mixture(spec, config.fine, config.bins, config.components)

    def bins(self, config: Any) -> int:
        return int(config.fine)

    def fit(self, network: nn.Module, mechanism: Mechanism, config: Any, progress: Progress) -> None:
        from genward_families.marginal.learning import Learning

        mixture: Mixture = network  # type: ignore[assignment]
        Learning(mixture, mechanism, config, progress).run()

    def graphs(self, network: nn.Module, config: Any) -> Mapping[str, Graph]:
        from genward_families.marginal.network import Sampler

        mixture: Mixture = network  # type: ignore[assignment]
        each = (len(mixture.places),)
        noise = [NoiseSpec("component", (), "uniform")]
        noise += [NoiseSpec("group", each, "uniform"), NoiseSpec("place", each, "uniform")]
        return {"sample": Graph(Sampler(mixture), noise=noise)}
