"""Generator families. One family a file; torch is imported only when a network is built."""

from __future__ import annotations

from collections.abc import Sequence

from genward.family import Family
from genward.hookspecs import hookimpl


@hookimpl
def genward_families() -> Sequence[type[Family]]:
    from genward_families.diffusion.ddim import TableDiffusion
    from genward_families.marginal.mixture import Marginals
    from genward_families.vae.mixed import TableVAE

    return [TableVAE, TableDiffusion, Marginals]
