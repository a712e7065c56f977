"""The release pipeline: candidate -> compress -> export -> parity -> evaluate -> gate -> seal -> register.

A release is whole or it is not there: the version is reserved unseen, the sealed folder appears by one rename, the
audit entry is durable, and only then does the registry show it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from genward.contracts import Evidence, Progress
from genward.errors import CheckFailed

if TYPE_CHECKING:
    import pyarrow as pa

    from genward.candidate import Candidate
    from genward.data.dataset import Dataset
    from genward.engine import Engine
    from genward.export import Exported
    from genward.policyset import PolicySet
    from genward.table import Table

# Golden blocks and evaluation rows are drawn with this key, which everybody knows: nothing of a pool is given away.
PUBLIC_KEY = hashlib.sha256(b"genward public test key").digest()[:16]


@dataclass(frozen=True)
class Plan:
    """How the candidate becomes a release. `slots` None: no pool, rows 0, 1, 2, ... under the tenant's own key."""

    name: str
    slots: int | None = 100_000
    cells: Mapping[str, Sequence[float] | None] | None = None
    evaluate_rows: int = 20_000
    parent: str = ""


@dataclass(frozen=True)
class Built:
    """A candidate exported, measured and allowed: everything a bundle needs."""

    candidate: Candidate
    exported: Exported
    table: Table
    evidence: Sequence[Evidence]
    golden: Sequence[Mapping[str, Any]]
    runtime: Mapping[str, Any]


def build(candidate: Candidate, dataset: Dataset, policies: PolicySet, plan: Plan, progress: Progress) -> Built:
    """Run every stage before sealing; CheckFailed names the gate that refused."""
    network = policies.compress(candidate.network(), candidate)
    exported, parity = _export(candidate, network, progress)
    table = _table(candidate, dataset, exported, plan)
    engine = _engine(candidate, exported, table)
    measured = _with_samples(candidate, dataset, engine, plan, progress)
    evidence = [*parity, *_quality(measured, dataset, progress), *policies.measure(measured)]
    require(policies, evidence)
    return Built(measured, exported, table, evidence, engine.golden(PUBLIC_KEY), engine.fingerprint)


def require(policies: PolicySet, evidence: Sequence[Evidence]) -> None:
    """Raise CheckFailed unless every gate of the active policy opens."""
    verdict = policies.gate(evidence)
    if not verdict.allow:
        raise CheckFailed(
            f"the release is refused: {'; '.join(verdict.reasons)}",
            remedy="train longer or another family, or have the policy changed",
        )


def _export(candidate: Candidate, network: Any, progress: Progress) -> tuple[Exported, list[Evidence]]:
    from genward.export import export_graph, parity

    progress.start("export to ONNX", 2)
    exported = export_graph(candidate.family, network, candidate.config, candidate.codec)
    progress.update(1, "comparing onnxruntime with torch")
    report = parity(exported)
    progress.finish(f"parity on {report.n} rows")
    return exported, report.evidence()


def _table(candidate: Candidate, dataset: Dataset, exported: Exported, plan: Plan) -> Table:
    from genward.engine import choose_block
    from genward.table import Table

    train, _ = dataset.split(candidate.recipe.seed, candidate.recipe.held_out)
    cells = candidate.codec.cells(plan.cells, train) if plan.cells else ()
    return Table(plan.slots, 1, choose_block(exported.data, exported.meta), tuple(cells))


def _engine(candidate: Candidate, exported: Exported, table: Table) -> Engine:
    from genward.engine import Engine

    open_table = replace(table, slots=None, segments=())
    return Engine(exported.data, candidate.codec, open_table, exported.meta, pool_key=PUBLIC_KEY)


def _with_samples(
    candidate: Candidate, dataset: Dataset, engine: Engine, plan: Plan, progress: Progress
) -> Candidate:
    """The candidate with its train, held-out and generated rows beside it."""
    import pyarrow as pa

    train, test = dataset.split(candidate.recipe.seed, candidate.recipe.held_out)
    n = min(plan.evaluate_rows, max(train.num_rows, 1000))
    progress.start("generate rows", n)
    parts = []
    for start in range(0, n, 2048):
        rows = engine.candidates(np.arange(start, min(start + 2048, n), dtype=np.int64))
        parts.append(candidate.codec.decode(rows.numbers, rows.codes))
        progress.update(start)
    progress.finish(f"{n} rows")
    return replace(candidate, train=train, test=test, synthetic=pa.Table.from_batches(parts))


def _quality(candidate: Candidate, dataset: Dataset, progress: Progress) -> Sequence[Evidence]:
    from genward.evaluate import evaluate

    recipe = candidate.recipe
    return evaluate(candidate.train, candidate.test, candidate.synthetic, dataset.schema, recipe.target, progress)
