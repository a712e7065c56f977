"""Model signatures: interoperable both ways, strict when read, and never an error that is not ours."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from referencing import Registry, Resource

from genward import oms
from genward.errors import IntegrityError
from genward.keys import LocalKeys
from genward.strictjson import canonical

VECTORS = Path(__file__).parents[2] / "../shared/vectors/oms"
needs_vectors = pytest.mark.skipif(not VECTORS.exists(), reason="the published vectors are not beside this checkout")
FILES: dict[str, bytes | str] = {"manifest.json": b"{}", "generator.onnx": bytes(5000), "deep/er/x.json": b"[1]"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> LocalKeys:
    return LocalKeys.create(tmp_path_factory.mktemp("oms") / "keys")


@pytest.fixture(scope="module")
def signature(keys: LocalKeys) -> bytes:
    return oms.sign(FILES, keys)


def _write(folder: Path) -> Path:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else b"")
    return folder


def _command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("model_signing")
    return subprocess.run([str(command), *map(str, args)], capture_output=True, text=True, check=False)


def test_what_we_sign_we_verify(keys: LocalKeys, signature: bytes) -> None:
    found = oms.verify(signature, FILES, keys.bundle_public_pem())
    assert sorted(found.digests) == sorted(FILES)


def test_the_public_command_accepts_what_we_sign(keys: LocalKeys, tmp_path: Path) -> None:
    folder = _write(tmp_path / "model")
    (folder / "bundle.oms.sig").write_bytes(oms.sign(FILES, keys))
    (tmp_path / "key.pub").write_bytes(keys.bundle_public_pem())
    args = ("verify", "key", folder, "--signature", folder / "bundle.oms.sig", "--public_key", tmp_path / "key.pub")
    accepted = _command(*args)
    assert accepted.returncode == 0, accepted.stderr
    (folder / "generator.onnx").write_bytes(b"changed")
    assert _command(*args).returncode == 1


def test_we_accept_what_the_public_command_signs(keys: LocalKeys, tmp_path: Path) -> None:
    folder = _write(tmp_path / "model")
    signed = tmp_path / "model.sig"
    made = _command("sign", "key", folder, "--signature", signed, "--private_key", keys.folder / "bundle.pem")
    assert made.returncode == 0, made.stderr
    oms.verify(signed.read_bytes(), FILES, keys.bundle_public_pem())
    with pytest.raises(IntegrityError, match="extra file"):  # although their statement says to ignore .git*
        oms.verify(signed.read_bytes(), {**FILES, ".git/config": b""}, keys.bundle_public_pem())


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_the_larger_curves_of_the_registry_verify_too(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    key = ec.generate_private_key(curve)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(private)
    folder = _write(tmp_path / "model")
    made = _command("sign", "key", folder, "--signature", tmp_path / "s", "--private_key", tmp_path / "key.pem")
    assert made.returncode == 0, made.stderr
    oms.verify((tmp_path / "s").read_bytes(), FILES, public)


def _validators() -> dict[str, jsonschema.Draft202012Validator]:
    schemas = [json.loads(path.read_bytes()) for path in sorted((VECTORS / "schemas").iterdir())]
    registry: Registry[Any] = Registry().with_resources(
        [(schema["$id"], Resource.from_contents(schema)) for schema in schemas]
    )
    return {schema["$id"]: jsonschema.Draft202012Validator(schema, registry=registry) for schema in schemas}


@needs_vectors
def test_our_output_meets_the_published_schemas(signature: bytes) -> None:
    validators = _validators()
    bundle = json.loads(signature)
    validators["https://model_signing/bundle/v1.0/schema"].validate(bundle)
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    validators["https://model_signing/statement/v1.0/schema"].validate(statement)
    assert statement["predicate"]["serialization"]["ignore_paths"] == []


@needs_vectors
def test_the_published_key_bundle_is_read() -> None:
    data = (VECTORS / "test-vectors/valid/key.bundle.json").read_bytes()
    _validators()["https://model_signing/bundle/v1.0/schema"].validate(json.loads(data))
    found = oms.parse_signature(data)
    assert set(found.digests) == {"signme-1", "signme-2"}
    with pytest.raises(IntegrityError, match="stranger"):
        oms.check(found, [_any_pem()])


@needs_vectors
def test_every_published_invalid_bundle_is_refused() -> None:
    """Certificates and keyless signatures are valid OMS, but not made with a key that we could trust."""
    for folder in ("invalid", "invalid-payload"):
        for path in sorted((VECTORS / "test-vectors" / folder).iterdir()):
            with pytest.raises(IntegrityError):
                oms.parse_signature(path.read_bytes())
    for name in ("certificate", "sigstore"):
        with pytest.raises(IntegrityError, match="not signed with a key"):
            oms.parse_signature((VECTORS / f"test-vectors/valid/{name}.bundle.json").read_bytes())


def _any_pem() -> bytes:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (FILES | {"manifest.json": b"{ }"}, "changed"),
        ({name: FILES[name] for name in list(FILES)[1:]}, "missing"),
        (FILES | {".gitattributes": b""}, "extra"),
        ({}, "missing"),
    ],
)
def test_files_that_differ_are_named(
    keys: LocalKeys, signature: bytes, files: dict[str, bytes | str], reason: str
) -> None:
    with pytest.raises(IntegrityError, match=reason):
        oms.verify(signature, files, keys.bundle_public_pem())


def test_a_stranger_and_nobody_are_refused(signature: bytes) -> None:
    with pytest.raises(IntegrityError, match="stranger"):
        oms.verify(signature, FILES, _any_pem())
    with pytest.raises(IntegrityError, match="no trusted key"):
        oms.verify(signature, FILES, [])


@pytest.mark.parametrize(
    "name",
    ["", "/a", "../a", "a/../b", "a//b", "./a", "a/.", "a\\b", "a/", "a\x00b", "a\nb", "e\u0301", "\ud800", "x" * 2000],
)
def test_names_that_are_not_plain_are_refused_when_signed_and_when_read(keys: LocalKeys, name: str) -> None:
    with pytest.raises(IntegrityError):
        oms.sign({name: b""}, keys)
    with pytest.raises(IntegrityError):
        oms.parse_signature(_forged(keys, lambda s: s["predicate"]["resources"][0].update(name=name)))


def test_an_empty_set_is_refused(keys: LocalKeys) -> None:
    with pytest.raises(IntegrityError, match="nothing is signed"):
        oms.sign({}, keys)
    with pytest.raises(IntegrityError):
        oms.parse_signature(_forged(keys, lambda s: s["predicate"]["resources"].clear()))


def _forged(keys: LocalKeys, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A well signed signature whose statement was changed before it was signed, its root digest made right."""
    bundle = json.loads(oms.sign(FILES, keys))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    bundle["dsseEnvelope"] = oms.sign_envelope(json.dumps(statement).encode(), keys)
    return json.dumps(bundle).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
        lambda s: s["predicate"]["resources"][0].update(algorithm="blake3"),
        lambda s: s["predicate"]["resources"][0].update(digest="0" * 63),
        lambda s: s["predicate"]["serialization"].update(method="shards", shard_size=1),
        lambda s: s["predicate"]["serialization"].update(allow_symlinks=True),
        lambda s: s["predicate"].update(resources=None),
        lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
        lambda s: s["subject"].append({}),
        lambda s: s.update(predicateType="https://example.com/v1"),
        lambda s: s.update(more=1),
    ],
)
def test_a_statement_that_is_not_exactly_ours_is_refused(
    keys: LocalKeys, change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(IntegrityError):
        oms.parse_signature(_forged(keys, change))


def test_doubled_keys_and_nan_are_refused(signature: bytes) -> None:
    doubled = signature.replace(b'{"dsseEnvelope"', b'{"mediaType":"x","dsseEnvelope"', 1)
    for data in (doubled, b"NaN", b"[" * 100_000, b"1" * 10_000, b'"\\ud800"'):
        with pytest.raises(IntegrityError):
            oms.parse_signature(data)


def test_every_changed_byte_is_refused(keys: LocalKeys, signature: bytes) -> None:
    """Except where it changes nothing that is read: the key identifier of the envelope is no part of the proof."""
    for at in range(0, len(signature), 7):
        changed = signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
        try:
            oms.verify(changed, FILES, keys.bundle_public_pem())
        except IntegrityError:
            continue
        ours, theirs = oms.parse_signature(signature), oms.parse_signature(changed)
        assert ours == theirs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        oms.parse_signature(data)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_edit_of_a_true_signature_raises_anything_but_our_error(
    keys: LocalKeys, signature: bytes, data: st.DataObject
) -> None:
    """Any value anywhere, in the bundle or in a well signed statement, is refused or read; nothing else escapes."""
    bundle = json.loads(signature)
    inside = data.draw(st.booleans())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    target = statement if inside else bundle
    for _ in range(data.draw(st.integers(0, 4))):
        children = [
            v for v in (target.values() if isinstance(target, dict) else target) if isinstance(v, dict | list) and v
        ]
        if not children:
            break
        target = data.draw(st.sampled_from(children))
    place = data.draw(st.sampled_from(list(target) if isinstance(target, dict) else list(range(len(target)))))
    target[place] = data.draw(JSON)
    if inside:
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(canonical(statement)).decode()
    with contextlib.suppress(IntegrityError):
        oms.parse_signature(json.dumps(bundle).encode())


names = st.from_regex(r"[a-z.]{1,6}(/[a-z]{1,4}){0,2}", fullmatch=True).filter(
    lambda name: not {".", ".."} & set(name.split("/"))
)


@settings(max_examples=30, deadline=None)
@given(files=st.dictionaries(names, st.binary(max_size=20), min_size=1, max_size=5))
def test_any_set_of_files_round_trips(keys: LocalKeys, files: dict[str, bytes | str]) -> None:
    assert oms.verify(oms.sign(files, keys), files, keys.bundle_public_pem()).digests.keys() == files.keys()
