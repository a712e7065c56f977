"""What a bundle says of itself: evidence, model card, bill of materials, provenance, approvals.

What nobody measured is written as "not measured", what nobody said as "not stated"; nothing is left blank.
Formats: CycloneDX 1.7 (ECMA-424); in-toto Statement v1 with SLSA provenance v1 predicates in DSSE envelopes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from itertools import pairwise
from typing import Any, cast

from genward import oms
from genward.contracts import Evidence, KeyProvider
from genward.errors import IntegrityError, UsageError
from genward.keys import key_id, public_pem
from genward.strictjson import canonical, parse

NOT_MEASURED = "not measured"
NOT_STATED = "not stated"
PROVENANCE = "provenance.jsonl"
STEPS = ("data", "train", "export", "evaluate", "seal")
PROMISED = ("epsilon", "watermark", "extraction", "pruning")  # what a release must speak of, measured or not
LIBRARIES = ("genward", "numpy", "onnx", "onnxruntime", "onnxscript", "pyarrow", "scikit-learn", "torch")
_PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
_APPROVAL_TYPE = "urn:genward:approval:v1"
_LIMIT = 16 << 20
_MAYBE = ("value", "low", "high", "reference")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """A data set as its users must cite it. `digest` is hex SHA-256; `rows` is rounded, as in the manifest."""

    name: str
    digest: str
    rows: int
    licence: str = NOT_STATED
    origin: str = NOT_STATED
    citation: str = NOT_STATED


@dataclass(frozen=True)
class Library:
    """An installed distribution; `record` is the hex SHA-256 of its RECORD, which holds the hash of its every file."""

    name: str
    version: str
    licence: str = NOT_STATED
    record: str = NOT_MEASURED


@dataclass(frozen=True)
class About:
    """What card and bill of materials tell of a model apart from measurements. `created` is ISO 8601 in UTC."""

    name: str
    family: str
    reference: str
    created: str
    dataset: Source
    config: Mapping[str, Any] = field(default_factory=dict)
    modality: str = "table"
    outputs: Sequence[str] = ()
    conditions: Sequence[str] = ()
    description: str = NOT_STATED
    intended_use: str = NOT_STATED
    limits: str = NOT_STATED
    licence: str = NOT_STATED


@dataclass(frozen=True)
class Step:
    """One step of a release: `output` and `inputs` are SHA-256 (hex or "sha256:" and hex) of what it made and used.

    `private` is set for training under differential privacy: no seed of it is ever written down, since whoever knows
    the noise can take it away.
    """

    name: str
    output: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    started: str = NOT_STATED
    finished: str = NOT_STATED
    private: bool = False


@dataclass(frozen=True)
class Approval:
    """Somebody's word for one bundle at one stage; `signer` is the id of the key that proves it."""

    bundle: str
    approver: str
    stage: str
    at: str
    evidence: Mapping[str, str]
    signer: str


def evidence_json(evidence: Iterable[Evidence]) -> bytes:
    """`evidence.json`: claims in their order, each with method, sample size and 95 % interval."""
    return canonical([_written(item) for item in evidence])


def read_evidence(data: bytes) -> tuple[Evidence, ...]:
    """Read `evidence.json` back; IntegrityError if it is not that."""
    listed = parse(data, "evidence.json", _LIMIT)
    if not isinstance(listed, list):
        raise _bad("not a list of claims", "evidence.json")
    return tuple(_evidence(item) for item in listed)


def card(about: About, evidence: Sequence[Evidence], promised: Sequence[str] = PROMISED) -> dict[str, Any]:
    """The model card. A promised topic that no claim speaks of is added as not measured."""
    told = {item.claim for item in evidence}
    silent = [topic for topic in promised if not any(topic in claim for claim in told)]
    unmeasured = [Evidence(topic, None, "no policy of this release measured it") for topic in silent]
    claims = [_written(item) for item in [*evidence, *unmeasured]]
    stated = _filled({**asdict(about), "outputs": list(about.outputs), "conditions": list(about.conditions)})
    return {"format": "genward.card/1", **cast("dict[str, Any]", stated), "claims": claims}


def card_markdown(document: Mapping[str, Any]) -> str:
    """`card.md`: the card for people."""
    head = [f"# {document['name']}", "", str(document["description"]), ""]
    facts = [
        ("Family", f"{document['family']} ({document['reference']})"),
        ("Made", document["created"]),
        ("Gives", ", ".join(document["outputs"]) or NOT_STATED),
        ("Conditions", ", ".join(document["conditions"]) or "none"),
        ("Intended use", document["intended_use"]),
        ("Limits", document["limits"]),
        ("Licence", document["licence"]),
        ("Data", "{name}, about {rows} rows, {licence}".format(**document["dataset"])),
        ("Data's source", "{origin}; {citation}".format(**document["dataset"])),
    ]
    table = ["", "| claim | value | 95 % interval | real against real | n | method |", "|---|---|---|---|---|---|"]
    rows = [f"| {' | '.join(_cells(claim))} |" for claim in document["claims"]]
    return "\n".join([*head, *(f"- {name}: {value}" for name, value in facts), *table, *rows, ""])


def libraries(names: Iterable[str] = LIBRARIES) -> tuple[Library, ...]:
    """The installed ones of these distributions, with version, licence and digest."""
    found = {name: _library(name) for name in names}
    return tuple(library for library in found.values() if library)


def bom(
    about: About, files: Mapping[str, bytes], evidence: Sequence[Evidence], used: Sequence[Library] | None = None
) -> dict[str, Any]:
    """The CycloneDX 1.7 bill of materials: the model with its card, its graph files, its data, its libraries."""
    graphs = {name: data for name, data in files.items() if name.endswith(".onnx")}
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": about.name,
        "description": about.description,
        "licenses": _licences(about.licence),
        "modelCard": _model_card(about, evidence),
        "components": [_file(name, data) for name, data in graphs.items()],
    }
    parts = [_data(about.dataset), *(_library_component(item) for item in (libraries() if used is None else used))]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {"timestamp": about.created, "component": model},
        "components": parts,
        "dependencies": [{"ref": "model", "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def provenance(steps: Sequence[Step], keys: KeyProvider) -> bytes:
    """`provenance.jsonl`: one signed line a step. UsageError unless the steps are the known ones, in order, in a chain.

    Each step after the first must name the output of the one before among its inputs.
    """
    problem = _chain_problem([(step.name, _sha256(step.output), _digests(step.inputs)) for step in steps])
    if problem:
        raise UsageError(problem, where=PROVENANCE, remedy="give every step, in order, with its inputs")
    return b"".join(canonical(oms.sign_envelope(canonical(_statement(step)), keys)) + b"\n" for step in steps)


def verify_provenance(
    data: bytes, trusted: Sequence[bytes], files: Mapping[str, bytes] | None = None
) -> tuple[Step, ...]:
    """Check every line's signature and the chain; with the bundle's files also that it ends in them.

    `files` is the bundle's payload: exported graph and evidence must be among them, and the seal be over all of them.
    Raises IntegrityError that names the step.
    """
    steps = tuple(_read_step(line, trusted) for line in data.splitlines())
    problem = _chain_problem([(step.name, step.output, set(step.inputs.values())) for step in steps])
    if problem:
        raise _bad(problem, PROVENANCE)
    if files is not None:
        _ends_in(steps, files)
    return steps


def payload_digest(files: Mapping[str, bytes]) -> str:
    """Hex SHA-256 over names and digests of a bundle's payload but its provenance: what the step "seal" puts out."""
    named = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != PROVENANCE}
    return hashlib.sha256(canonical(named)).hexdigest()


def approve(bundle: str, approver: str, stage: str, at: str, evidence: Mapping[str, str], keys: KeyProvider) -> bytes:
    """A signed approval of a bundle (by its "sha256:..." digest); `evidence` names digests of what was looked at."""
    predicate = {"approver": approver, "stage": stage, "at": at, "evidence": dict(evidence)}
    if not all((approver, stage, at)):
        raise UsageError("an approval needs approver, stage and time")
    return canonical(oms.sign_envelope(canonical(_envelope_body("bundle", bundle, _APPROVAL_TYPE, predicate)), keys))


def read_approval(data: bytes, bundle: str, trusted: Sequence[bytes]) -> Approval:
    """Check an approval of this bundle by a trusted key; IntegrityError if it is of another, or by a stranger.

    Four eyes are two approvals with different approvers and signers; who may approve is the registry's to say.
    """
    statement, signer = _open_statement(data, trusted, _APPROVAL_TYPE)
    output, predicate = _subject(statement), statement["predicate"]
    names = {"approver", "stage", "at"}
    if not isinstance(predicate, dict) or predicate.keys() != names | {"evidence"}:
        raise _bad("not an approval", "approval")
    texts = [predicate[name] for name in names]
    if not all(isinstance(text, str) for text in texts) or not isinstance(predicate["evidence"], dict):
        raise _bad("not an approval", "approval")
    if output != _sha256(bundle):
        raise _bad("it approves another bundle", "approval")
    return Approval(f"sha256:{output}", signer=signer, **predicate)


def _written(item: Evidence) -> dict[str, Any]:
    if not item.claim or not item.method:
        raise UsageError("a claim needs its name and its method", where=item.claim)
    found = {one.name: getattr(item, one.name) for one in fields(Evidence)}
    for name in _MAYBE:
        found[name] = NOT_MEASURED if found[name] is None else float(found[name])
        if found[name] != NOT_MEASURED and not math.isfinite(found[name]):
            raise UsageError(f"{name} is {found[name]}", where=item.claim, remedy="leave out what cannot be measured")
    return found | {"n": int(item.n), "extra": dict(item.extra)}


def _evidence(item: Any) -> Evidence:
    names = {one.name for one in fields(Evidence)}
    if not isinstance(item, dict) or item.keys() != names:
        raise _bad("a claim must have exactly the keys of one", "evidence.json")
    values: dict[str, Any] = {
        name: None if name in _MAYBE and item[name] == NOT_MEASURED else item[name] for name in names
    }
    numbers = [values[name] for name in _MAYBE if values[name] is not None] + [values["n"]]
    texts = [values[name] for name in ("claim", "method", "unit")]
    right = all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers)
    if not right or not all(isinstance(v, str) for v in texts) or not isinstance(values["extra"], dict):
        raise _bad("a claim with a value of the wrong kind", "evidence.json")
    return Evidence(**values)


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _filled(item) for name, item in value.items()}
    return NOT_STATED if value is None or value == "" else value


def _cells(claim: Mapping[str, Any]) -> list[str]:
    interval = (
        NOT_MEASURED if NOT_MEASURED in (claim["low"], claim["high"]) else f"{claim['low']:.4g} to {claim['high']:.4g}"
    )
    values = [claim[name] if isinstance(claim[name], str) else f"{claim[name]:.4g}" for name in ("value", "reference")]
    shown = [
        claim["claim"],
        f"{values[0]} {claim['unit']}".strip(),
        interval,
        values[1],
        str(claim["n"]),
        claim["method"],
    ]
    return [text.replace("|", "\\|").replace("\n", " ") for text in shown]


def _library(name: str) -> Library | None:
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    record = found.read_text("RECORD")
    digest = hashlib.sha256(record.encode()).hexdigest() if record else NOT_MEASURED
    said = str(found.metadata.json.get("license_expression") or found.metadata.json.get("license") or "")
    return Library(name, found.version, said.strip().splitlines()[0][:80] if said.strip() else NOT_STATED, digest)


def _licences(licence: str) -> list[dict[str, Any]]:
    return [{"license": {"name": licence or NOT_STATED}}]


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}] if _HEX.fullmatch(digest) else []


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"genward:{name}", "value": str(value)} for name, value in values.items()]


def _file(name: str, data: bytes) -> dict[str, Any]:
    hashes = _hashes(hashlib.sha256(data).hexdigest())
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "mime-type": "application/octet-stream",
        "hashes": hashes,
    }


def _data(source: Source) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": "dataset",
        "name": source.name,
        "hashes": _hashes(_sha256(source.digest)),
        "licenses": _licences(source.licence),
        "data": [{"type": "dataset", "name": source.name, "description": f"about {source.rows} rows"}],
        "properties": _properties({"origin": source.origin, "citation": source.citation}),
    }


def _library_component(library: Library) -> dict[str, Any]:
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', library.name).lower()}@{library.version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": library.name,
        "version": library.version,
        "purl": purl,
        "licenses": _licences(library.licence),
        "hashes": _hashes(library.record),
        "properties": _properties({"hashed": "the distribution's RECORD" if _hashes(library.record) else NOT_MEASURED}),
    }


def _model_card(about: About, evidence: Sequence[Evidence]) -> dict[str, Any]:
    claims = card(about, evidence)["claims"]
    parameters = {
        "approach": {"type": "unsupervised"},
        "task": f"{about.modality} generation",
        "architectureFamily": about.family,
        "modelArchitecture": about.reference or NOT_STATED,
        "datasets": [{"ref": "dataset"}],
        "inputs": [{"format": f"condition: {name}"} for name in about.conditions],
        "outputs": [{"format": name} for name in about.outputs],
    }
    considerations = {"useCases": [about.intended_use], "technicalLimitations": [about.limits]}
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": [_metric(claim) for claim in claims]},
        "considerations": considerations,
        "properties": _properties({f"config:{name}": value for name, value in about.config.items()}),
    }


def _metric(claim: Mapping[str, Any]) -> dict[str, Any]:
    bounds = {"lowerBound": str(claim["low"]), "upperBound": str(claim["high"])}
    return {
        "type": claim["claim"],
        "value": str(claim["value"]),
        "slice": claim["method"],
        "confidenceInterval": bounds,
    }


def _statement(step: Step) -> dict[str, Any]:
    inputs = [{"name": name, "digest": {"sha256": _sha256(value)}} for name, value in step.inputs.items()]
    definition = {
        "buildType": f"urn:genward:step:{step.name}:v1",
        "externalParameters": _without_seeds(step.parameters) if step.private else dict(step.parameters),
        "internalParameters": {"private": step.private},
        "resolvedDependencies": inputs,
    }
    run = {
        "builder": {"id": "urn:genward:release"},
        "metadata": {"startedOn": step.started, "finishedOn": step.finished},
    }
    run["metadata"] = {name: text for name, text in run["metadata"].items() if text != NOT_STATED}  # must be times
    predicate = {"buildDefinition": definition, "runDetails": run}
    return _envelope_body(step.name, step.output, _PROVENANCE_TYPE, predicate)


def _envelope_body(name: str, digest: str, kind: str, predicate: Mapping[str, Any]) -> dict[str, Any]:
    subject = [{"name": name, "digest": {"sha256": _sha256(digest)}}]
    return {"_type": oms.STATEMENT_TYPE, "subject": subject, "predicateType": kind, "predicate": predicate}


def _without_seeds(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {name: _without_seeds(item) for name, item in value.items() if "seed" not in str(name).lower()}
        return kept | ({"seeds": "withheld"} if len(kept) < len(value) else {})
    return [_without_seeds(item) for item in value] if isinstance(value, list | tuple) else value


def _chain_problem(steps: Sequence[tuple[str, str, set[str]]]) -> str:
    if tuple(name for name, _, _ in steps) != STEPS:
        return f"the steps must be {', '.join(STEPS)}, each once"
    for (before, made, _), (name, _, used) in pairwise(steps):
        if made not in used:
            return f"step {name!r} did not use what {before!r} made"
    return ""


def _ends_in(steps: Sequence[Step], files: Mapping[str, bytes]) -> None:
    present = {hashlib.sha256(data).hexdigest() for data in files.values()}
    outputs = {step.name: step.output for step in steps}
    for name in ("export", "evaluate"):
        if outputs[name] not in present:
            raise _bad(f"what step {name!r} made is not in the bundle", PROVENANCE)
    if outputs["seal"] != payload_digest(files):
        raise _bad("step 'seal' was over other files", PROVENANCE)


def _open_statement(line: bytes, trusted: Sequence[bytes], kind: str) -> tuple[dict[str, Any], str]:
    """An in-toto statement of this predicate type, proven by a trusted key, and that key's id."""
    payload, value = oms.open_envelope(parse(line, kind, _LIMIT))
    signer = _signer(oms.pae(payload), value, trusted)
    statement = parse(payload, kind, _LIMIT)
    names = {"_type", "subject", "predicateType", "predicate"}
    if not isinstance(statement, dict) or statement.keys() != names or statement["_type"] != oms.STATEMENT_TYPE:
        raise _bad("not an in-toto statement", kind)
    if statement["predicateType"] != kind:
        raise _bad("a statement of another kind", kind)
    return statement, signer


def _signer(message: bytes, value: bytes, trusted: Sequence[bytes]) -> str:
    for pem in map(public_pem, trusted):
        try:
            oms.verify_bytes(message, value, pem)
        except IntegrityError:
            continue
        return key_id(pem)
    raise _bad("no trusted key made this signature", "signature")


def _read_step(line: bytes, trusted: Sequence[bytes]) -> Step:
    statement, _ = _open_statement(line, trusted, _PROVENANCE_TYPE)
    try:
        definition, run = (statement["predicate"][name] for name in ("buildDefinition", "runDetails"))
        started, finished = (str(run["metadata"].get(name, NOT_STATED)) for name in ("startedOn", "finishedOn"))
        inputs = {item["name"]: _sha256(item["digest"]["sha256"]) for item in definition["resolvedDependencies"]}
        private = definition["internalParameters"]["private"] is True
        name, output = statement["subject"][0]["name"], _subject(statement)
        return Step(name, output, inputs, dict(definition["externalParameters"]), started, finished, private)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, UsageError):
        raise _bad("not a provenance statement", PROVENANCE) from None


def _subject(statement: Mapping[str, Any]) -> str:
    try:
        (subject,) = statement["subject"]
        return _sha256(subject["digest"]["sha256"])
    except (KeyError, TypeError, ValueError, UsageError):
        raise _bad("there must be one subject with a SHA-256", "subject") from None


def _digests(values: Mapping[str, str]) -> set[str]:
    return {_sha256(value) for value in values.values()}


def _sha256(digest: Any) -> str:
    """The hex part of a SHA-256 digest, given with or without its prefix; UsageError if it is none."""
    text = str(digest).removeprefix("sha256:")
    if not _HEX.fullmatch(text):
        raise UsageError(f"not a SHA-256 digest: {text[:80]!r}")
    return text


def _bad(what: str, where: str) -> IntegrityError:
    return IntegrityError(what, where=where, remedy="do not use it; get it again from its source")
