"""Raising the pool of a sealed release: a signed statement beside the bundle, kept by the registry, checked by servers.

The bundle stays as it is. A statement names its digest and all segments; the first are those that were sealed, so that
every receipt still replays. Nobody can raise a pool by writing to the registry alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genward import oms
from genward.attest import read_evidence
from genward.contracts import KeyProvider
from genward.errors import IntegrityError, UsageError
from genward.strictjson import canonical, parse
from genward.table import Table

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.bundle import Bundle

KIND = "urn:genward:pool:v1"
RISK = "extraction.release_risk"  # the claim whose `extra` holds a curve: [rows, risk, low, high] from few rows to many
_LIMIT = 1 << 20
_WHERE = "pool"


def statement(digest: str, table: Table, keys: KeyProvider) -> str:
    """A signed statement that a release's pool has these segments."""
    said = {"kind": KIND, "release": digest, "segments": list(table.segments)}
    return canonical(oms.sign_envelope(canonical(said), keys)).decode()


def raised(table: Table, digest: str, text: str, trusted: Sequence[bytes]) -> Table:
    """The table with the segments of a statement; IntegrityError unless a trusted key signed it for this release."""
    if not text:
        return table
    payload, signature = oms.open_envelope(parse(text.encode(), _WHERE, _LIMIT))
    _verify(payload, signature, trusted)
    said = parse(payload, _WHERE, _LIMIT)
    segments = said.get("segments") if isinstance(said, dict) else None
    if not isinstance(segments, list) or said.get("kind") != KIND or said.get("release") != digest:
        raise IntegrityError("the statement is not about the pool of this release", where=_WHERE)
    if tuple(segments[: len(table.segments)]) != table.segments:
        raise IntegrityError("the statement does not begin with the segments that were sealed", where=_WHERE)
    return _grown(table, segments[len(table.segments) :])


def _verify(payload: bytes, signature: bytes, trusted: Sequence[bytes]) -> None:
    for pem in trusted:
        try:
            return oms.verify_bytes(oms.pae(payload), signature, pem)
        except IntegrityError:
            continue
    raise IntegrityError("no trusted key signed the statement", where=_WHERE, remedy="raise the pool again")


def _grown(table: Table, more: Sequence[Any]) -> Table:
    for size in more:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1 or table.slots is None:
            raise IntegrityError("the statement has a segment that is none", where=_WHERE)
        table = table.raised(table.slots + size)
    return table


def raise_pool(platform: Platform, reference: str, slots: int, actor: str = "") -> dict[str, Any]:
    """Append a segment to a release's pool, `slots` in all: signed, in the log, and then in force everywhere.

    Returns what was and what is, with the risk of everything that all keys together can now hold.
    """
    info, bundle = platform.registry.resolve(reference), platform._bundle(reference)
    sealed = Table.from_json(bundle.manifest["table"])
    now = raised(sealed, bundle.digest, info.raised, platform.keys.trusted())
    if now.slots is None:
        raise UsageError("the release has no pool, so nothing can be raised", where=reference)
    later = now.raised(slots)
    text = statement(bundle.digest, later, platform.keys)
    model = f"{info.name}:{info.version}"
    platform.record("release.raise", actor, model=f"{model}@{info.digest}", slots=slots, was=now.slots)
    platform.registry.raise_pool(info, slots, text)
    held = {"slots": slots, "was": now.slots, "all_keys_can_hold": slots * later.candidates}
    return {"model": model, **held, **_risks(bundle, now.slots * now.candidates, slots * later.candidates)}


def _risks(bundle: Bundle, before: int, after: int) -> dict[str, Any]:
    """Risk before and after with its interval, from the curve that was sealed."""
    claims = {item.claim: item for item in read_evidence(bundle.files["evidence.json"])}
    curve = claims[RISK].extra.get("curve") if RISK in claims else None
    if not curve:
        return {"risk": "not measured"}
    return {"risk": on_curve(curve, after), "risk_was": on_curve(curve, before)["risk"], "curve": curve}


def on_curve(curve: Sequence[Sequence[float]], rows: int) -> Mapping[str, float]:
    """Risk and its interval at a number of rows, between the curve's points on the scale of the logarithm."""
    import numpy as np

    points = np.asarray(curve, dtype=np.float64)
    found = [float(np.interp(math.log(rows), np.log(points[:, 0]), points[:, i])) for i in (1, 2, 3)]
    return dict(zip(("risk", "low", "high"), (round(v, 4) for v in found), strict=True))


def plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `raise_pool` returned, for a table of key and value: the curve as one line."""
    shown = dict(found)
    if curve := shown.pop("curve", None):
        shown["curve"] = ", ".join(f"{int(n):,}: {risk:.2f}" for n, risk, *_ in curve)
    if isinstance(shown.get("risk"), Mapping):
        shown["risk"] = "{risk:.2f} (95 %: {low:.2f} to {high:.2f})".format(**shown["risk"])
    return json.loads(json.dumps(shown))  # type: ignore[no-any-return]
