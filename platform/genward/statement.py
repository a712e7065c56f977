"""Statements of generation: who made these rows, signed with the key that signs bundles.

They travel beside the rows: in the metadata of Arrow and Parquet and in the head of a JSON answer as `statement` and
`signature`, in the header `genward-statement`, and in a sidecar beside a CSV file. They say where rows came from as
long as nobody takes them off; what stays in the rows themselves is the watermark.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genward.contracts import KeyProvider
from genward.errors import IntegrityError, NotFound
from genward.oms import verify_bytes
from genward.strictjson import canonical, parse

HEADER = "genward-statement"
SIDECAR = ".statement.json"  # what is put behind a file's name
_DOMAIN = b"genward.statement/1\n"  # what is signed begins with it, so that it is no other signature of the key
_LIMIT = 64 << 10


def sign(keys: KeyProvider, facts: Mapping[str, str]) -> dict[str, str]:
    """{"statement": canonical JSON of the facts, "signature": base64 of ECDSA in DER}."""
    text = canonical({**facts, "generated": True, "v": 1})
    signature = base64.b64encode(keys.sign_bundle(_DOMAIN + text)).decode()
    return {"statement": text.decode(), "signature": signature}


def header(payload: Mapping[str, str]) -> str | None:
    """Both in one line, for a response's header; None when nothing was signed."""
    if "statement" not in payload or "signature" not in payload:
        return None
    return f"{base64.b64encode(payload['statement'].encode()).decode()}.{payload['signature']}"


def from_header(line: str) -> dict[str, str]:
    """What `header` wrote; IntegrityError when it is none."""
    text, _, signature = line.partition(".")
    return {"statement": _decoded(text).decode("utf-8", errors="replace"), "signature": signature}


def write_sidecar(path: Path, line: str) -> Path:
    """Put a statement beside a file."""
    beside = path.with_name(path.name + SIDECAR)
    beside.write_bytes(canonical(from_header(line)))
    return beside


def read(path: Path) -> dict[str, str]:
    """The statement of an Arrow or Parquet file, or the sidecar of another; NotFound when there is none."""
    beside = path.with_name(path.name + SIDECAR)
    found = _of_json(beside) if beside.is_file() else _of_metadata(path)
    if not all(isinstance(found.get(name), str) for name in ("statement", "signature")):
        raise NotFound("no statement of generation", where=str(path), remedy="it may have been taken off")
    return {name: found[name] for name in ("statement", "signature")}


def verify(payload: Mapping[str, str], public: bytes) -> dict[str, Any]:
    """What is stated, if the owner of the public key (PEM) signed it; IntegrityError otherwise."""
    text = payload["statement"].encode()
    try:
        verify_bytes(_DOMAIN + text, _decoded(payload["signature"]), public)
    except IntegrityError:
        raise IntegrityError("the statement is not signed by this key", where="statement") from None
    found: dict[str, Any] = parse(text, "statement", _LIMIT)
    return found


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise IntegrityError("not base64", where="statement") from None


def _of_json(path: Path) -> dict[str, Any]:
    found = parse(path.read_bytes(), str(path), _LIMIT)
    return found if isinstance(found, dict) else {}


def _of_metadata(path: Path) -> dict[str, Any]:
    from genward.data.foreign import metadata

    found = metadata(path)
    return {name: found[f"genward.{name}"] for name in ("statement", "signature") if f"genward.{name}" in found}
