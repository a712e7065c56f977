"""The release pipeline: candidate -> compress -> export -> parity -> evaluate -> gate -> seal -> register.

A release is whole or it is not there: the version is reserved unseen, the sealed folder appears by one rename, the
audit entry is durable, and only then does the registry show it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from genward import attest
from genward.candidate import NETWORK
from genward.contracts import Compressed, Evidence, KeyProvider, Progress, Shape
from genward.errors import CheckFailed

if TYPE_CHECKING:
    from genward.candidate import Candidate
    from genward.data.codec import TableCodec
    from genward.data.dataset import Dataset
    from genward.engine import Engine
    from genward.export import Exported
    from genward.policyset import PolicySet
    from genward.table import Table

# Golden blocks and evaluation rows are drawn with this key, which everybody knows: nothing of a pool is given away.
PUBLIC_KEY = hashlib.sha256(b"genward public test key").digest()[:16]


@dataclass(frozen=True)
class Plan:
    """How the candidate becomes a release. `slots` None: no pool, rows 0, 1, 2, ... under the tenant's own key.
    `parent` is the digest of the release that this one is a cheaper form of; with one, `compress` has its say."""

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
    files: Mapping[str, bytes] = field(default_factory=dict)  # what policies attached


def build(candidate: Candidate, dataset: Dataset, policies: PolicySet, plan: Plan, progress: Progress) -> Built:
    """Run every stage before sealing; CheckFailed names the gate that refused."""
    from genward.engine import choose_block
    from genward.evaluate.stage import judge

    table = _table(candidate, dataset, plan)  # a plan that makes no sense is refused before anything slow
    cheaper = _cheaper(candidate, dataset, policies, plan, progress)
    candidate = replace(candidate, config=cheaper.config)
    exported, parity = export_checked(candidate, cheaper.network, progress)
    if cheaper.quantise is not None:
        exported = replace(exported, data=cheaper.quantise(exported.data))
    table = replace(table, block=choose_block(exported.data, exported.meta))
    engine = public_engine(candidate, exported, table)
    measured = with_samples(candidate, dataset, engine, plan, progress)
    measured = replace(measured, exported=exported, table=table, parent=plan.parent)
    shape = policies.shape(shown(measured), progress)
    measured = replace(measured, table=shaped(table, shape, exported), sealed=shape.files)
    engine = public_engine(candidate, exported, measured.table)
    quality = judge(measured, progress)
    evidence = [*parity, *cheaper.evidence, *shape.evidence, *quality, *policies.measure(shown(measured))]
    require(policies, evidence)
    files = _apart(shape.files, policies.attach(shown(measured), evidence))
    return Built(measured, exported, measured.table, evidence, engine.golden(PUBLIC_KEY), engine.fingerprint, files)


def shaped(table: Table, shape: Shape, exported: Exported) -> Table:
    """The planned table with what policies seal into it: never more slots than were planned."""
    from genward.engine import choose_block

    most = shape.most_slots
    if most is not None and (table.slots is None or most < table.slots):
        table = replace(table, slots=most, segments=())
    if shape.candidates is None or shape.candidates == table.candidates:
        return table
    block = choose_block(exported.data, exported.meta, shape.candidates)
    return replace(table, candidates=shape.candidates, block=block)


def _apart(files: Mapping[str, bytes], more: Mapping[str, bytes]) -> dict[str, bytes]:
    if twice := files.keys() & more.keys():
        raise CheckFailed(f"two policies bring a file {min(twice)!r}", remedy="leave one of them out of the document")
    return {**files, **more}


def _cheaper(candidate: Candidate, dataset: Dataset, policies: PolicySet, plan: Plan, progress: Progress) -> Compressed:
    """What `compress` makes of a candidate; of a release without a parent, the trained network as it is."""
    if not plan.parent:
        return Compressed(candidate.network(), candidate.config)
    _, test = candidate.recipe.split(dataset)
    found = policies.compress(shown(replace(candidate, test=test)), progress)
    return found or Compressed(candidate.network(), candidate.config)


def shown(candidate: Candidate) -> Candidate:
    """What policies are shown of a candidate: of a protected one no real row."""
    return replace(candidate, train=None, test=None) if candidate.recipe.protected else candidate


def require(policies: PolicySet, evidence: Sequence[Evidence]) -> None:
    """Raise CheckFailed unless every gate of the active policy opens."""
    verdict = policies.gate(evidence)
    if not verdict.allow:
        raise CheckFailed(
            f"the release is refused: {'; '.join(verdict.reasons)}",
            remedy="train longer or another family, or have the policy changed",
        )


def export_checked(candidate: Candidate, network: Any, progress: Progress) -> tuple[Exported, list[Evidence]]:
    """The graph of a network, and evidence that it does what the network does."""
    from genward.export import export_graph, parity

    progress.start("export to ONNX", 2)
    exported = export_graph(candidate.family, network, candidate.config, candidate.codec)
    progress.update(1, "comparing onnxruntime with torch")
    report = parity(exported)
    progress.finish(f"parity on {report.n} rows")
    return exported, report.evidence()


def _table(candidate: Candidate, dataset: Dataset, plan: Plan) -> Table:
    """The release's slots and cells; its block is chosen when the graph is there."""
    from genward.table import Table

    if plan.cells and candidate.recipe.protected:
        raise CheckFailed("shares of cells would be taken from protected rows", remedy="release without --cell")
    train, _ = candidate.recipe.split(dataset)
    cells = candidate.codec.cells(plan.cells, train) if plan.cells else ()
    return Table(plan.slots, 1, 1, tuple(cells))


def public_engine(candidate: Candidate, exported: Exported, table: Table) -> Engine:
    """An engine without a pool, under the key that everybody knows."""
    from genward.engine import Engine

    open_table = replace(table, slots=None, segments=())
    return Engine(exported.data, candidate.codec, open_table, exported.meta, pool_key=PUBLIC_KEY)


def with_samples(candidate: Candidate, dataset: Dataset, engine: Engine, plan: Plan, progress: Progress) -> Candidate:
    """The candidate with its train, held-out and generated rows beside it; how many protected rows there are does not
    show in how many are generated."""
    train, test = candidate.recipe.split(dataset)
    known = plan.evaluate_rows if candidate.recipe.protected else train.num_rows
    made = public_rows(candidate.codec, engine, min(plan.evaluate_rows, max(known, 1000)), progress)
    return replace(candidate, train=train, test=test, synthetic=made)


def public_rows(codec: TableCodec, engine: Engine, n: int, progress: Progress) -> Any:
    """The first n rows under the engine's key, a pyarrow table."""
    import pyarrow as pa

    progress.start("generate rows", n)
    parts = []
    for start in range(0, n, 2048):
        rows = engine.candidates(np.arange(start, min(start + 2048, n), dtype=np.int64))
        parts.append(codec.decode(rows.numbers, rows.codes))
        progress.update(start)
    progress.finish(f"{n} rows")
    return pa.Table.from_batches(parts)


# What goes into the bundle


def bundle_parts(
    built: Built, plan: Plan, dataset: Dataset, owner: Any, policy: str, keys: KeyProvider
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """(payload files, manifest without `format` and `files`) of a bundle."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    source = attest.Source(dataset.name, _identity(built.candidate, dataset, keys), rounded(dataset.rows))
    about = _about(built, plan, dataset, source, created)
    files = {**built.files, "generator.onnx": built.exported.data, "codec.json": built.candidate.codec.to_json()}
    files["evidence.json"] = attest.evidence_json(built.evidence)
    files["card.json"] = json.dumps(attest.card(about, built.evidence), indent=2, sort_keys=True).encode()
    files["bom.cdx.json"] = json.dumps(attest.bom(about, files, built.evidence), indent=2, sort_keys=True).encode()
    files["provenance.jsonl"] = attest.provenance(_steps(built, dataset, source.digest, files), keys)
    return files, _manifest(built, plan, source, owner, policy, created)


def _identity(candidate: Candidate, dataset: Dataset, keys: KeyProvider) -> str:
    """The data set's digest, hex; of protected rows a keyed one, since a bare digest confirms a guess at a record."""
    digest = dataset.digest.removeprefix("sha256:")
    if not candidate.recipe.protected:
        return digest
    return hmac.new(keys.derive("dataset", 32), digest.encode(), hashlib.sha256).hexdigest()


def _about(built: Built, plan: Plan, dataset: Dataset, source: attest.Source, created: str) -> attest.About:
    candidate = built.candidate
    return attest.About(
        name=plan.name,
        family=candidate.family.name,
        reference=candidate.family.reference,
        created=created,
        dataset=source,
        config=candidate.config.model_dump(mode="json"),
        outputs=dataset.schema.names,
        conditions=candidate.recipe.conditions,
    )


def _manifest(built: Built, plan: Plan, source: attest.Source, owner: Any, policy: str, created: str) -> dict[str, Any]:
    candidate = built.candidate
    family = {"name": candidate.family.name, "config": candidate.config.model_dump(mode="json")}
    return {
        "name": plan.name,
        "family": {**family, "distribution": owner.distribution, "version": owner.version},
        "codec": "codec.json",
        "dataset": {"digest": source.digest, "rows": source.rows, "name": source.name},
        "graphs": {"sample": {"file": "generator.onnx", **built.exported.meta}},
        "table": built.table.to_json(),
        "golden": list(built.golden),
        "runtime": {**built.runtime, "opset": built.exported.meta["opset"]},
        "policy": policy,
        "created": created,
        "parent": plan.parent,
    }


def _steps(built: Built, dataset: Dataset, data: str, files: Mapping[str, bytes]) -> list[attest.Step]:
    """data -> train -> export -> evaluate -> seal, each naming what the one before made."""
    network = _sha256((built.candidate.folder / NETWORK).read_bytes())
    graph, evidence = _sha256(files["generator.onnx"]), _sha256(files["evidence.json"])
    recipe = built.candidate.recipe
    told = asdict(recipe) | {"conditions": list(recipe.conditions), "dataset": data}
    if recipe.protected:
        del told["seed"]
    return [
        attest.Step("data", data, {"schema": dataset.schema.digest}),
        attest.Step("train", network, {"data": data}, told, private=recipe.protected),
        attest.Step("export", graph, {"network": network}),
        attest.Step("evaluate", evidence, {"graph": graph}),
        attest.Step("seal", attest.payload_digest(files), {"evidence": evidence}),
    ]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def rounded(rows: int) -> int:
    """Two significant digits: an exact count can tell whether one record was in."""
    if rows < 100:
        return rows
    unit = 10 ** (len(str(rows)) - 2)
    return int(round(rows / unit) * unit)
