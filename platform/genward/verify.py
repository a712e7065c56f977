"""`genward verify PATH`: a bundle's folder or a receipt, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genward import attest, receipt
from genward.bundle import Bundle
from genward.errors import CheckFailed, NotFound, UsageError

if TYPE_CHECKING:
    from genward.request import Pipeline


def verify_path(path: Path, *, key: Path | None, state: Path) -> dict[str, Any]:
    """Check a bundle (signature, every file, provenance) or a receipt; what was found, for people.

    Args:
        key: for a bundle, the publisher's public key (PEM), else those the state folder trusts; for a receipt, a file
            with the log's verifier key, else the state folder's log.
    """
    if path.is_dir():
        return _bundle(path, [key.read_bytes()] if key else _trusted(state))
    if not path.is_file():
        raise NotFound("no such file or folder", where=str(path))
    return receipt.verify(receipt.read(path.read_bytes(), str(path)), _vkey(key, state))


def _bundle(path: Path, trusted: list[bytes]) -> dict[str, Any]:
    bundle = Bundle.open(path, trusted)
    steps = attest.verify_provenance(bundle.files["provenance.jsonl"], trusted, bundle.files)
    return {
        "bundle": bundle.name,
        "digest": bundle.digest,
        "signer": bundle.signer[:16],
        "files": len(bundle.files),
        "provenance": " -> ".join(step.name for step in steps),
    }


def _trusted(state: Path) -> list[bytes]:
    from genward.keys import LocalKeys

    if not (state / "keys").is_dir():
        raise UsageError("whose key?", where=str(state), remedy="pass --key PUBLISHER.pub, or --state of the publisher")
    return list(LocalKeys(state / "keys").trusted())


def _vkey(key: Path | None, state: Path) -> str | None:
    file = key or state / "log.vkey"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def replay(pipeline: Pipeline, data: bytes, where: str) -> dict[str, Any]:
    """Compute the rows of a receipt's response again; CheckFailed unless they are the same bit for bit."""
    found = receipt.read(data, where)
    asked, added = receipt.asked_where(found), receipt.added_where(found)
    entries = [entry for entry in receipt.settled(found) if "digest" in entry["out"]]
    if not entries:
        raise CheckFailed("no row was served", where=where, remedy="the request was broken off or refused")
    for entry in entries:
        digest = pipeline.replay(entry, asked, added)
        if digest != entry["out"]["digest"]:
            raise CheckFailed(f"the rows are not the same: {digest}", where=where, remedy="is this the same runtime?")
    rows = sum(entry["out"]["rows"] for entry in entries)
    return {"replayed": rows, "rows": "the same bit for bit", "digest": entries[-1]["out"]["digest"]}
