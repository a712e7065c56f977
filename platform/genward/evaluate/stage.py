"""Judging a candidate: what the evidence of a release may say, and the report that its owner reads.

The owner's files lie in the candidate's folder: `report.html` and `quality.json`, or of protected rows
`owner_report.html` and `owner_report.json`, which only the owner of the folder can read and which go nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genward.contracts import Evidence, Progress, Silent
from genward.errors import GenwardError
from genward.evaluate import CLAIMS, Settings, evaluate, sides_of
from genward.evaluate.drawing import document, to_json
from genward.evaluate.public import public
from genward.evaluate.report import html

if TYPE_CHECKING:
    from genward.candidate import Candidate

REPORT, FIGURES = "report.html", "quality.json"
OWNER_REPORT, OWNER_FIGURES = "owner_report.html", "owner_report.json"
_USUAL = Settings()
_NAMING = Settings(overlap="name")  # a refusal would tell something of protected rows


def judge(candidate: Candidate, progress: Progress, settings: Settings = _USUAL) -> list[Evidence]:
    """Evidence for a bundle, of a candidate that carries its train, held-out and synthetic rows.

    Of protected rows nothing that reads them is in it, nor shown by `progress`.
    """
    if not candidate.recipe.protected:
        found = _measured(candidate, progress, settings)
        report = report_of(candidate, found)
        write(candidate.folder / REPORT, report[REPORT])
        write(candidate.folder / FIGURES, report[FIGURES])
        return found
    progress.start("evaluate", 2)
    _keep_for_owner(candidate)
    progress.update(1, "the owner's report")
    found = public(candidate.synthetic, candidate.codec.schema, candidate.folder, CLAIMS)
    progress.finish(f"figures that read protected rows are in {OWNER_REPORT} only")
    return found


def _measured(candidate: Candidate, progress: Progress, settings: Settings) -> list[Evidence]:
    rows = (candidate.train, candidate.test, candidate.synthetic)
    return evaluate(*rows, candidate.codec.schema, candidate.recipe.target, progress, settings)


def _keep_for_owner(candidate: Candidate) -> None:
    """The whole judgement, in files that only the owner reads; why there is none is told there too, since a refusal
    would tell something of protected rows."""
    try:
        report = report_of(candidate, _measured(candidate, Silent(), _NAMING))
    except GenwardError as error:
        report = {
            REPORT: f"<!doctype html><title>Not judged</title><p>{escape(str(error))}</p>".encode(),
            FIGURES: b"{}",
        }
    write(candidate.folder / OWNER_REPORT, report[REPORT], mode=0o600)
    write(candidate.folder / OWNER_FIGURES, report[FIGURES], mode=0o600)


def report_of(candidate: Candidate, evidence: Sequence[Evidence]) -> dict[str, bytes]:
    """`report.html` and `quality.json` of a candidate that carries its rows."""
    recipe = candidate.recipe
    sides = sides_of(candidate.train, candidate.test, candidate.synthetic, candidate.codec.schema)
    about: dict[str, Any] = {"name": recipe.id, "family": candidate.family.name}
    if recipe.protected:
        about["for the owner only"] = "these figures read protected rows and were not paid for; do not pass them on"
    return rendered(document(sides, evidence, about | counted(sides)))


def counted(sides: Any) -> dict[str, str]:
    """How many rows of each kind there were."""
    kinds = {"training rows": sides.train, "held-out rows": sides.test, "synthetic rows": sides.made}
    return {kind: f"{len(rows):,}" for kind, rows in kinds.items()}


def rendered(report: dict[str, Any]) -> dict[str, bytes]:
    """The two files of a document."""
    return {REPORT: html(report).encode(), FIGURES: to_json(report)}


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put a file in place at once, with these permissions from the first byte on."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    temporary.replace(path)
