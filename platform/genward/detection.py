"""Detection: a file is held against releases, and what was found is in the log before anybody hears of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genward.contracts import Detection, ReleaseInfo
from genward.errors import NotFound, UsageError

if TYPE_CHECKING:
    from genward.api import Platform

_IN_AN_ENTRY = 10  # of at most 4 kB


def detect(
    platform: Platform,
    path: Path,
    model: str | None = None,
    renamed: Mapping[str, str] | None = None,
    *,
    actor: str = "",
    most: int | None = None,
) -> list[Detection]:
    """Whether a file carries the mark of a release, by key and tenant; of every release, or of one.

    Raises UsageError when the active policy recognises no marks, DataError for what is no table of at most `most`
    rows, NotFound when none of the releases was sealed with a mark.
    """
    from genward.data.foreign import foreign_table

    policies = platform.policies()
    if not policies.detects:
        raise UsageError("the active policy recognises no marks", remedy="activate a document with `watermark`")
    releases = _releases(platform, model)
    reading = _Counted(foreign_table(path, renamed, most))
    found = policies.detect(reading, releases, platform.registry.tenants())
    named = model or f"{len(releases)} releases"
    told: dict[str, Any] = {"against": named, "rows": reading.rows, "answers": len(found), "found": _told(found)}
    platform.record("watermark.detect", actor, file=digest_of_file(path), **told)
    return found


def _told(found: Sequence[Detection]) -> list[dict[str, Any]]:
    """Answers as the log keeps them, what was found first; an entry has room for some."""
    nearest = sorted(found, key=lambda one: one.p)[:_IN_AN_ENTRY]
    return [
        {"release": d.release, "tenant": d.tenant, "p": f"{d.p:.3g}", "verdict": d.extra.get("verdict")}
        for d in nearest
    ]


class _Counted:
    """Batches, their rows counted."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches, self.rows = batches, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch


def _releases(platform: Platform, model: str | None) -> list[ReleaseInfo]:
    """One release, or all there ever were: a retired one's rows are still about."""
    if model is not None:
        return [platform.registry.resolve(model, retired=True)]
    names = [f"{row['name']}:{row['version']}" for row in platform.registry.releases()]
    if not names:
        raise NotFound("there is no release", remedy="`genward release` makes one")
    return [platform.registry.resolve(name, retired=True) for name in names]


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file of any size."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def as_json(found: Sequence[Detection]) -> list[dict[str, Any]]:
    """Detections as plain values, one flat record each."""
    records = [asdict(detection) for detection in found]
    return [{**{k: v for k, v in record.items() if k != "extra"}, **record["extra"]} for record in records]


def sentence(found: Detection) -> str:
    """A detection in a line for people."""
    extra, who = found.extra, found.tenant or "the release's own key"
    rows = (
        f"{found.rows} rows" if extra.get("used", found.rows) == found.rows else f"{extra['used']} of {found.rows} rows"
    )
    verdict = str(extra.get("verdict", "marked" if found.p < 1 else "not marked"))
    if verdict == "marked":
        share = f", about {100 * extra['share']:.0f} % of them marked" if "share" in extra else ""
        return f"{found.release}: made for {who}, p <= {found.p:.2g} ({rows}{share})"
    if verdict == "too few rows":
        more = f"; about {extra['rows_needed']} would do" if "rows_needed" in extra else ""
        return f"{found.release}: too few rows to tell: {rows}, power {extra['power']:.2f}{more}"
    if verdict == "nothing to test":
        return f"{found.release}: nothing to test: {extra['columns']} of its {extra['of_columns']} columns are here"
    return f"{found.release}: no mark found ({rows}; a marked file would show with power {extra.get('power', 0):.4f})"
