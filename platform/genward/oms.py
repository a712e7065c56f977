"""OpenSSF Model Signing v1.0: sign and verify a set of named files with a key.

A signature is a Sigstore bundle v0.3 (JSON) around a DSSE envelope around an in-toto Statement v1 whose predicate lists
every file with its SHA-256. What we write has `ignore_paths: []`; what we read is held to the listed files exactly,
whatever it asks to ignore (a verifier that skips `.git*` lets unsigned files in).
Sources: ossf/model-signing-spec v1.0; DSSE v1.0.2 protocol; in-toto Attestation Framework v1.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from genward.contracts import KeyProvider
from genward.errors import IntegrityError
from genward.keys import key_id, public_pem
from genward.strictjson import canonical, parse

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
SIZE_LIMIT = 16 << 20
_HEX = re.compile(r"[0-9a-f]{64}")
_HASHES: Mapping[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}


@dataclass(frozen=True)
class Signature:
    """A parsed signature. `payload` is what was signed; `digests` file name -> hex SHA-256, unproven until `check`."""

    payload: bytes
    value: bytes
    hint: str
    digests: Mapping[str, str]


def sign(files: Mapping[str, bytes | str], key: KeyProvider, name: str = "bundle") -> bytes:
    """Sign files given by content (bytes) or by hex SHA-256 (str); returns the signature file.

    Raises IntegrityError for an empty set and for names that are not plain relative paths.
    """
    digests = {file: _digest(content) for file, content in files.items()}
    check_names(digests)
    resources = [{"name": file, "digest": digests[file], "algorithm": "sha256"} for file in sorted(digests)]
    serialization_ = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(item["digest"] for item in resources)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"resources": resources, "serialization": serialization_},
    }
    material = {"publicKey": {"hint": key_id(key.bundle_public_pem())}, "tlogEntries": []}
    envelope = sign_envelope(canonical(statement), key)
    return canonical({"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope})


def verify(signature: bytes, files: Mapping[str, bytes | str], public: bytes | Sequence[bytes]) -> Signature:
    """Check a signature over exactly these files by one of the public keys (PEM); IntegrityError names what differs."""
    found = check(parse_signature(signature), [public] if isinstance(public, bytes) else public)
    compare(found.digests, {name: _digest(content) for name, content in files.items()})
    return found


def compare(signed: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Raise IntegrityError unless both name the same files with the same digests."""
    for name in sorted(signed.keys() | present.keys()):
        if name not in present:
            raise _bad("a signed file is missing", name)
        if name not in signed:
            raise _bad("an extra file that nobody signed", name)
        if signed[name] != present[name]:
            raise _bad("the file was changed after it was signed", name)


def check(signature: Signature, trusted: Sequence[bytes]) -> Signature:
    """Check the signature itself; IntegrityError when no trusted key (PEM) made it. Returns it, now proven."""
    known = {key_id(pem): pem for pem in map(public_pem, trusted)}
    if signature.hint not in known:
        what = f"signed by a stranger, key {signature.hint[:16]}" if known else "there is no trusted key to verify with"
        raise IntegrityError(
            what, where="signature", remedy="add the signer's public key to keys/trusted if you trust him"
        )
    verify_bytes(pae(signature.payload), signature.value, known[signature.hint])
    return signature


def parse_signature(data: bytes) -> Signature:
    """Read a key-based OMS v1.0 signature file; IntegrityError for whatever is not exactly one."""
    outer = _object(
        parse(data, "signature", SIZE_LIMIT), {"mediaType", "verificationMaterial", "dsseEnvelope"}, "signature"
    )
    if outer["mediaType"] != MEDIA_TYPE:
        raise _bad("not a Sigstore bundle v0.3", "signature")
    material = outer["verificationMaterial"]
    if not isinstance(material, dict) or not isinstance(material.get("publicKey"), dict):
        raise _bad("not signed with a key", "verificationMaterial")
    hint = material["publicKey"].get("hint")
    if not isinstance(hint, str) or not _HEX.fullmatch(hint):
        raise _bad("the key is not named by its SHA-256", "verificationMaterial")
    payload, value = open_envelope(outer["dsseEnvelope"])
    return Signature(payload, value, hint, _statement(parse(payload, "statement", SIZE_LIMIT)))


def _statement(value: Any) -> dict[str, str]:
    statement = _object(value, {"_type", "subject", "predicateType", "predicate"}, "statement")
    if statement["_type"] != STATEMENT_TYPE or statement["predicateType"] != PREDICATE_TYPE:
        raise _bad("not a model signing statement v1.0", "predicateType")
    predicate = _object(statement["predicate"], {"resources", "serialization"}, "predicate")
    _serialization(predicate["serialization"])
    digests = _resources(predicate["resources"])
    subject = statement["subject"]
    if not isinstance(subject, list) or len(subject) != 1 or not isinstance(subject[0], dict):
        raise _bad("there must be one subject", "subject")
    if subject[0].get("digest") != {"sha256": _root(digests.values())}:
        raise _bad("the subject's digest is not that of the listed files", "subject")
    return digests


def _serialization(value: Any) -> None:
    if not isinstance(value, dict) or (value.get("method"), value.get("hash_type")) != ("files", "sha256"):
        raise _bad("only whole files with SHA-256 are read here", "serialization")
    if value.get("allow_symlinks") is not False or "shard_size" in value:
        raise _bad("symbolic links and shards are not allowed", "serialization")


def _resources(value: Any) -> dict[str, str]:
    if not isinstance(value, list):
        raise _bad("the list of files is missing", "resources")
    found: dict[str, str] = {}
    for item in value:
        if not isinstance(item, dict) or item.get("algorithm") != "sha256":
            raise _bad("a file without a SHA-256", "resources")
        name, digest = item.get("name"), item.get("digest")
        if not isinstance(name, str) or not isinstance(digest, str) or not _HEX.fullmatch(digest):
            raise _bad("a file without a name or digest", "resources")
        if name in found:
            raise _bad("a file is listed twice", name)
        found[name] = digest
    check_names(found)
    return found


def check_names(names: Iterable[str]) -> None:
    """Raise IntegrityError unless there are names and each is a plain relative path: no `..`, no root, no backslash."""
    listed = list(names)
    if not listed:
        raise _bad("no file is listed, so nothing is signed", "manifest")
    for name in listed:
        parts = name.split("/")
        plain = name.isprintable() and "\\" not in name and unicodedata.is_normalized("NFC", name)
        if not plain or any(part in ("", ".", "..") for part in parts) or len(name.encode()) > 1024:
            raise _bad("not a plain relative path", repr(name))


def sign_envelope(payload: bytes, key: KeyProvider) -> dict[str, Any]:
    """A DSSE envelope with one ECDSA signature over an in-toto payload."""
    value = base64.b64encode(key.sign_bundle(pae(payload))).decode()
    text = base64.b64encode(payload).decode()
    return {"payload": text, "payloadType": PAYLOAD_TYPE, "signatures": [{"sig": value, "keyid": ""}]}


def open_envelope(value: Any) -> tuple[bytes, bytes]:
    """Payload and signature of a DSSE envelope with one signature, unproven; IntegrityError for anything else."""
    envelope = _object(value, {"payload", "payloadType", "signatures"}, "dsseEnvelope")
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise _bad("not an in-toto payload", "payloadType")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise _bad("there must be one signature", "signatures")
    return _bytes(envelope["payload"], "payload"), _bytes(signatures[0].get("sig"), "sig")


def pae(payload: bytes, kind: str = PAYLOAD_TYPE) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def verify_bytes(message: bytes, signature: bytes, pem: bytes) -> None:
    """ECDSA with the hash that OMS ties to the curve; IntegrityError when it does not verify."""
    key = serialization.load_pem_public_key(public_pem(pem))
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _bad("not an elliptic curve key", "public key")
    try:
        key.verify(signature, message, ec.ECDSA(_HASHES[key.key_size]))
    except InvalidSignature:
        raise _bad("the signature does not verify: it or what it signs was changed", "signature") from None


def _digest(content: bytes | str) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if not _HEX.fullmatch(content):
        raise _bad("not a hex SHA-256", content[:80])
    return content


def _root(digests: Iterable[str]) -> str:
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _bytes(value: Any, where: str) -> bytes:
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        data = b""
    if not data:
        raise _bad("not base64, or empty", where)
    return data


def _object(value: Any, keys: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != keys:
        raise _bad(f"must be an object of {', '.join(sorted(keys))}", where)
    return value


def _bad(what: str, where: str) -> IntegrityError:
    return IntegrityError(what, where=where, remedy="do not use it; get it again from its source")
