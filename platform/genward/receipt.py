"""Receipts: what proves, offline, that a response was recorded, and from what its rows can be computed again.

{"format": "genward.receipt/1", "request", "vkey", "salt", "asked": {...},
 "entries": [{"index", "entry": "<canonical JSON>", "proof": "<.tlog-proof>"}]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from genward import record
from genward.contracts import AuditSink, Condition, KeyProvider, Principal
from genward.errors import CheckFailed, Denied, GenwardError, IntegrityError, NotFound
from genward.strictjson import parse

FORMAT = "genward.receipt/1"
_LIMIT = 1 << 20


def make(audit: AuditSink, keys: KeyProvider, request: str, principal: Principal, vkey: str) -> dict[str, Any] | None:
    """The receipt of a request; None until a checkpoint covers its entries.

    Raises NotFound for a request nobody made, Denied for another tenant's, unless the caller is an auditor.
    """
    indices = _links(audit, request)
    if not indices:
        raise NotFound(f"no request {request!r}", remedy="the header genward-request of a response names it")
    entries = [(index, audit.entry(index)) for index in indices]
    for _, entry in entries:
        owner = json.loads(entry).get("tenant")
        if owner != principal.tenant and not principal.roles & {"auditor", "administrator"}:
            raise Denied("this is another tenant's request")
    proofs = [audit.proof(index) for index in indices]
    if any(proof is None for proof in proofs):
        return None
    listed = [
        {"index": index, "entry": entry.decode(), "proof": (proof or b"").decode()}
        for (index, entry), proof in zip(entries, proofs, strict=True)
    ]
    return {
        "format": FORMAT,
        "request": request,
        "vkey": vkey,
        "salt": record.salt(keys, request).hex(),
        "entries": listed,
    }


def read(data: bytes, where: str = "receipt") -> dict[str, Any]:
    """A receipt's JSON; IntegrityError when it is none."""
    found = parse(data, where, _LIMIT)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("entries"), list):
        raise IntegrityError("not a receipt", where=where)
    return found


def verify(receipt: Mapping[str, Any], vkey: str | None = None) -> dict[str, Any]:
    """Check every proof against the log's key and the commitment against what was asked; what it says, for people.

    Args:
        vkey: the log's verifier key that the reader trusts; the receipt's own only shows that it agrees with itself.
    """
    trusted = vkey or str(receipt["vkey"])
    check = _verifier()
    for item in receipt["entries"]:
        try:
            check(str(item["proof"]).encode(), str(item["entry"]).encode(), [trusted])
        except GenwardError:
            raise
        except Exception as error:
            raise IntegrityError(f"entry {item.get('index')} is not proved: {error}", where="receipt") from None
    settles = settled(receipt)
    return {
        "receipt": "proved",
        "conditions": _opened(receipt, settles[0]),
        "entries": [item["index"] for item in receipt["entries"]],
        "status": settles[-1].get("status"),
        "rows": sum(int(entry.get("out", {}).get("rows", 0)) for entry in settles),
        "key": "the reader's" if vkey else "the receipt's own",
    }


def settled(receipt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settle entries of a receipt, one a grant, in order; CheckFailed if it has none."""
    entries = [json.loads(item["entry"]) for item in receipt["entries"]]
    found = [entry for entry in entries if entry.get("event") == "settle" and _is_of(entry, str(receipt["request"]))]
    if not found:
        raise CheckFailed("the receipt has no settle entry", where=str(receipt.get("request")))
    return found


def _links(audit: AuditSink, request: str) -> list[int]:
    """Entries of a request and of the further grants of a long stream: `request/1`, `request/2`, ..."""
    indices = list(audit.find(request))
    link = 1
    while indices and (more := audit.find(f"{request}/{link}")):
        indices.extend(more)
        link += 1
    return indices


def _is_of(entry: Mapping[str, Any], request: str) -> bool:
    return str(entry.get("request")).partition("/")[0] == request


def asked_where(receipt: Mapping[str, Any]) -> Sequence[str]:
    """The predicate that was asked, as the caller kept it."""
    where = (receipt.get("asked") or {}).get("where", [])
    return [str(clause) for clause in where]


def added_where(receipt: Mapping[str, Any]) -> Sequence[Condition]:
    """The clauses that policies joined to it, as the response's header told them and the caller kept them."""
    found = (receipt.get("asked") or {}).get("added", [])
    try:
        return [Condition(str(c), op, tuple(v) if isinstance(v, list) else v) for c, op, v in found]
    except (TypeError, ValueError):
        raise IntegrityError("the clauses that were added cannot be read", where="receipt") from None


def _opened(receipt: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Whether the conditions that the caller kept open the commitment in the log; IntegrityError if they do not."""
    commit, where, added = entry.get("commit") or {}, asked_where(receipt), added_where(receipt)
    kept = {"where": record.asked(where) if where else None, "added": record.added(added) if added else None}
    if not commit and not where and not added:
        return "none"
    if any(kept[name] is None for name in commit):
        return "not kept beside the receipt"
    salt = bytes.fromhex(str(receipt["salt"]))
    found = {name: record.commitment(salt, value) for name, value in kept.items() if value is not None}
    if found != commit:
        raise IntegrityError("what was asked is not what the log committed to", where="receipt")
    return "as the log committed to"


def _verifier() -> Callable[[bytes, bytes, Sequence[str]], Any]:
    """The log's own verifier, as whoever installed it announces it."""
    for point in entry_points(group="genward.audit", name="verify"):
        found: Callable[[bytes, bytes, Sequence[str]], Any] = point.load()
        return found
    raise NotFound("no verifier of the log is installed", remedy="install genward whole")
