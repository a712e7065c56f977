"""Claims a bundle makes: never blank, valid by the public schema, signed step by step in one chain."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from referencing import Registry, Resource

from genward import attest, oms
from genward.attest import About, Library, Source, Step
from genward.contracts import Evidence
from genward.errors import IntegrityError, UsageError
from genward.keys import LocalKeys
from genward.strictjson import canonical

EVIDENCE = (
    Evidence("c2st", 0.61, "gradient boosting, 5 folds", 9000, 0.59, 0.63, reference=0.5, extra={"folds": 5}),
    Evidence("epsilon", None, "no privacy policy is active"),
)
SOURCE = Source("transport", "ab" * 32, 48_000, "CC-BY-4.0", "https://example.org/data", "Ricci et al. 2017")
ABOUT = About("alloys", "vae", "arXiv:1312.6114", "2026-11-24T12:00:00Z", SOURCE, {"width": 64}, outputs=("density",))
FILES = {"generator.onnx": b"onnx", "evidence.json": attest.evidence_json(EVIDENCE), "codec.json": b"{}"}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> LocalKeys:
    return LocalKeys.create(tmp_path_factory.mktemp("attest") / "keys")


def steps(private: bool = False) -> list[Step]:
    data, network = SOURCE.digest, _sha(b"network")
    graph, evidence = _sha(FILES["generator.onnx"]), _sha(FILES["evidence.json"])
    training = {"config": {"width": 64}, "options": {"seed": 12345, "noise_seeds": [67890]}}
    return [
        Step("data", f"sha256:{data}", parameters={"name": "transport"}),
        Step("train", network, {"data": data}, training, "2026-11-24T11:00:00Z", "2026-11-24T11:01:00Z", private),
        Step("export", graph, {"network": network}, {"opset": 20}),
        Step("evaluate", evidence, {"graph": graph, "data": data}),
        Step("seal", attest.payload_digest(FILES), {"evidence": evidence, "graph": graph}),
    ]


def test_evidence_is_written_without_blanks_and_read_back() -> None:
    data = attest.evidence_json(EVIDENCE)
    assert attest.read_evidence(data) == EVIDENCE
    written = json.loads(data)
    assert (written[1]["value"], written[0]["low"]) == ("not measured", 0.59)
    assert not any(value is None for item in written for value in item.values())


@pytest.mark.parametrize(
    "wrong",
    [
        replace(EVIDENCE[0], value=float("nan")),
        replace(EVIDENCE[0], high=float("inf")),
        Evidence("", 1.0, "m"),
        Evidence("claim", 1.0, ""),
    ],
)
def test_a_claim_that_says_nothing_is_refused(wrong: Evidence) -> None:
    with pytest.raises(UsageError):
        attest.evidence_json([wrong])


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
numbers = st.floats(allow_nan=False, allow_infinity=False)
claims = st.builds(
    Evidence,
    texts,
    st.none() | numbers,
    texts,
    st.integers(0, 10**9),
    st.none() | numbers,
    st.none() | numbers,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | numbers,
    st.dictionaries(texts, numbers, max_size=2),
)


@settings(max_examples=50, deadline=None)
@given(evidence=st.lists(claims, max_size=4))
def test_any_evidence_round_trips(evidence: list[Evidence]) -> None:
    assert attest.read_evidence(attest.evidence_json(evidence)) == tuple(evidence)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_edit_of_evidence_raises_anything_but_our_error(data: st.DataObject) -> None:
    listed = json.loads(attest.evidence_json(EVIDENCE))
    place = data.draw(st.sampled_from(sorted(listed[0])))
    listed[0][place] = data.draw(st.none() | st.booleans() | st.text(max_size=3) | st.lists(st.integers(), max_size=1))
    with contextlib.suppress(IntegrityError):
        attest.read_evidence(json.dumps(listed).encode())
    with pytest.raises(IntegrityError):
        attest.read_evidence(data.draw(st.binary(max_size=30)))


def test_the_card_leaves_nothing_blank_and_names_what_was_promised() -> None:
    document = attest.card(ABOUT, EVIDENCE)
    told = {claim["claim"]: claim["value"] for claim in document["claims"]}
    assert told == {
        "c2st": 0.61,
        "epsilon": "not measured",
        "watermark": "not measured",
        "extraction": "not measured",
        "pruning": "not measured",
    }
    assert document["limits"] == "not stated"
    assert attest.card(replace(ABOUT, reference=""), ())["reference"] == "not stated"
    assert '""' not in json.dumps({**document, "claims": []})
    canonical(document)


def test_the_card_reads_as_markdown() -> None:
    text = attest.card_markdown(attest.card(ABOUT, [replace(EVIDENCE[0], method="a | b"), EVIDENCE[1]]))
    assert "| c2st | 0.61 | 0.59 to 0.63 | 0.5 | 9000 | a \\| b |" in text
    assert "| epsilon | not measured | not measured | not measured | 0 | no privacy policy is active |" in text
    assert "CC-BY-4.0" in text
    assert "Ricci et al. 2017" in text


def _cyclonedx() -> jsonschema.Draft7Validator:
    folder = resources.files("cyclonedx.schema") / "_res"
    read = {
        name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text())
        for name in ("bom-1.7", "spdx", "jsf-0.82", "cryptography-defs")
    }
    base = "http://cyclonedx.org/schema/"
    registry: Registry[Any] = Registry().with_resources(
        [(f"{base}{name}.SNAPSHOT.schema.json", Resource.from_contents(schema)) for name, schema in read.items()]
        + [(f"{base}{name}.schema.json", Resource.from_contents(schema)) for name, schema in read.items()]
    )
    checker = jsonschema.Draft7Validator.FORMAT_CHECKER
    return jsonschema.Draft7Validator(read["bom-1.7"], registry=registry, format_checker=checker)


def test_the_bill_of_materials_is_valid_cyclonedx_1_7() -> None:
    document = attest.bom(ABOUT, FILES, EVIDENCE)
    validator = _cyclonedx()
    validator.validate(document)
    assert not validator.is_valid({**document, "components": [{"name": "typeless"}]})
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["components"][0]["hashes"] == [{"alg": "SHA-256", "content": _sha(b"onnx")}]
    metrics = {item["type"]: item for item in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["c2st"]["confidenceInterval"] == {"lowerBound": "0.59", "upperBound": "0.63"}
    assert metrics["watermark"]["value"] == "not measured"
    canonical(document)


def test_libraries_and_data_carry_hash_and_licence() -> None:
    document = attest.bom(ABOUT, FILES, EVIDENCE)
    parts = {part["name"]: part for part in document["components"]}
    assert parts["transport"]["hashes"][0]["content"] == SOURCE.digest
    assert parts["transport"]["licenses"] == [{"license": {"name": "CC-BY-4.0"}}]
    assert {"numpy", "onnxruntime"} <= parts.keys()
    assert parts["numpy"]["version"]
    assert parts["numpy"]["hashes"][0]["alg"] == "SHA-256"
    assert all(part["licenses"][0]["license"]["name"] for part in parts.values())
    assert attest.libraries(["no-such-distribution"]) == ()


def test_what_is_not_known_of_a_library_is_said() -> None:
    document = attest.bom(ABOUT, FILES, (), [Library("in_house.Lib", "1")])
    _cyclonedx().validate(document)
    part = document["components"][1]
    assert (part["purl"], part["hashes"]) == ("pkg:pypi/in-house-lib@1", [])
    assert part["licenses"] == [{"license": {"name": "not stated"}}]
    assert part["properties"] == [{"name": "genward:hashed", "value": "not measured"}]


def test_provenance_is_one_signed_slsa_line_a_step_and_verifies(keys: LocalKeys) -> None:
    data = attest.provenance(steps(), keys)
    found = attest.verify_provenance(data, keys.trusted(), {**FILES, attest.PROVENANCE: data})
    assert [step.name for step in found] == list(attest.STEPS)
    assert found[1] == steps()[1]
    for line in data.splitlines():
        statement = json.loads(base64.b64decode(json.loads(line)["payload"]))
        assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
        assert statement["predicate"]["buildDefinition"]["buildType"]
        assert statement["predicate"]["runDetails"]["builder"]["id"]


def test_no_seed_of_a_private_training_is_written(keys: LocalKeys) -> None:
    for private in (True, False):
        lines = attest.provenance(steps(private), keys).splitlines()
        written = b"".join(base64.b64decode(json.loads(line)["payload"]) for line in lines)
        assert (b"12345" in written) is (b"67890" in written) is not private
        assert (b"withheld" in written) is private


@pytest.mark.parametrize("order", [[], [0, 1, 2, 3], [1, 0, 2, 3, 4], [0, 1, 2, 3, 4, 4], [0, 1, 1, 3, 4]])
def test_a_step_left_out_doubled_or_moved_is_refused(keys: LocalKeys, order: list[int]) -> None:
    lines = attest.provenance(steps(), keys).splitlines()
    with pytest.raises(IntegrityError, match="steps must be"):
        attest.verify_provenance(b"\n".join(lines[at] for at in order), keys.trusted())
    with pytest.raises(UsageError):
        attest.provenance([steps()[at] for at in order], keys)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_broken_chain_is_refused(keys: LocalKeys, at: int) -> None:
    broken = steps()
    broken[at] = replace(broken[at], inputs={"other": "cd" * 32})
    with pytest.raises(UsageError, match="did not use"):
        attest.provenance(broken, keys)


def test_true_lines_of_another_release_do_not_join(keys: LocalKeys) -> None:
    other = [replace(step, output="ef" * 32) if step.name == "train" else step for step in steps()]
    other[2] = replace(other[2], inputs={"network": "ef" * 32})
    ours, theirs = attest.provenance(steps(), keys).splitlines(), attest.provenance(other, keys).splitlines()
    with pytest.raises(IntegrityError, match="did not use"):
        attest.verify_provenance(b"\n".join([*ours[:1], theirs[1], *ours[2:]]), keys.trusted())


@pytest.mark.parametrize("name", sorted(FILES))
def test_provenance_must_end_in_the_bundles_files(keys: LocalKeys, name: str) -> None:
    data = attest.provenance(steps(), keys)
    with pytest.raises(IntegrityError, match="step"):
        attest.verify_provenance(data, keys.trusted(), {**FILES, name: b"other"})


def test_provenance_of_a_stranger_or_changed_is_refused(keys: LocalKeys, tmp_path: Path) -> None:
    data = attest.provenance(steps(), keys)
    stranger = LocalKeys.create(tmp_path / "stranger")
    with pytest.raises(IntegrityError, match="no trusted key"):
        attest.verify_provenance(data, stranger.trusted())
    for at in range(0, len(data), 53):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with contextlib.suppress(IntegrityError):
            assert attest.verify_provenance(changed, keys.trusted()) == attest.verify_provenance(data, keys.trusted())


values = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.lists(st.none(), max_size=2)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_well_signed_statement_raises_anything_but_our_error(keys: LocalKeys, data: st.DataObject) -> None:
    line = attest.provenance(steps(), keys).splitlines()[1]
    statement = json.loads(base64.b64decode(json.loads(line)["payload"]))
    target: Any = statement
    for _ in range(data.draw(st.integers(0, 4))):
        inner = target.values() if isinstance(target, dict) else target
        if children := [value for value in inner if isinstance(value, dict | list) and value]:
            target = data.draw(st.sampled_from(children))
    target[data.draw(st.sampled_from(list(target) if isinstance(target, dict) else [0]))] = data.draw(values)
    forged = canonical(oms.sign_envelope(canonical(statement), keys))
    with pytest.raises(IntegrityError):
        attest.verify_provenance(forged, keys.trusted())
    with pytest.raises(IntegrityError):
        attest.read_approval(forged, SOURCE.digest, keys.trusted())


def test_an_approval_is_of_one_bundle_by_a_known_key(keys: LocalKeys, tmp_path: Path) -> None:
    bundle, second = "sha256:" + "12" * 32, LocalKeys.create(tmp_path / "second")
    looked_at = {"evidence.json": _sha(FILES["evidence.json"])}
    data = attest.approve(bundle, "anna", "production", "2026-11-24T12:30:00Z", looked_at, second)
    found = attest.read_approval(data, bundle, [*keys.trusted(), second.bundle_public_pem()])
    assert (found.bundle, found.approver, found.stage, dict(found.evidence)) == (
        bundle,
        "anna",
        "production",
        looked_at,
    )
    assert found.signer == oms.key_id(second.bundle_public_pem())
    with pytest.raises(IntegrityError, match="another bundle"):
        attest.read_approval(data, "sha256:" + "34" * 32, second.trusted())
    with pytest.raises(IntegrityError, match="no trusted key"):
        attest.read_approval(data, bundle, keys.trusted())
    with pytest.raises(UsageError):
        attest.approve(bundle, "", "production", "now", {}, second)
    with pytest.raises(UsageError):
        attest.approve("sha256:1", "anna", "production", "now", {}, second)


def test_a_provenance_line_is_no_approval(keys: LocalKeys) -> None:
    line = attest.provenance(steps(), keys).splitlines()[0]
    with pytest.raises(IntegrityError, match="another kind"):
        attest.read_approval(line, SOURCE.digest, keys.trusted())
