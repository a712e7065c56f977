"""Whose rows a file holds: every key that ever marked is tried, and the claim is corrected for all of them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from genward.contracts import Detection, ReleaseInfo
from genward_policies.watermark.exam import Exam, Usual
from genward_policies.watermark.marking import MarkKey
from genward_policies.watermark.power import LEAST
from genward_policies.watermark.statistic import NORMAL, bound, needed
from genward_policies.watermark.table import Read, columns_of

if TYPE_CHECKING:
    from genward.data.schema import Schema

DECOYS = 999
_NEAR = 0.5  # share of the values at the ends: hardly the release's units,
_MANY = 20  # of a column with so many levels


@dataclass(frozen=True)
class Tried:
    """One key of one release."""

    tenant: str
    epoch: int
    key: MarkKey


@dataclass(frozen=True)
class Suspect:
    """A release against which a file is held, with the keys that may have marked it."""

    info: ReleaseInfo
    usual: Usual
    schema: Schema
    keys: Sequence[Tried]


def detect(file: Read, suspects: Sequence[Suspect]) -> list[Detection]:
    """Every key whose mark is found; for a release of which none is, the key that came nearest."""
    tried = sum(len(suspect.keys) for suspect in suspects)
    return [found for suspect in suspects for found in _release(file, suspect, tried)]


def _release(file: Read, suspect: Suspect, tried: int) -> list[Detection]:
    scheme = suspect.usual.scheme
    told = columns_of(file.table, suspect.schema, scheme.axes)
    exam = Exam.of(suspect.usual, told.columns)
    about = _about(file, suspect, told.columns, told.unreadable, exam, tried)
    ranked = sorted(((exam.weights.z(one.key), place) for place, one in enumerate(suspect.keys)), reverse=True)
    found = [_judged(exam, suspect, suspect.keys[place], z, tried, about) for z, place in ranked[:1]]
    for z, place in ranked[1:]:
        if min(1.0, tried * bound(z)) > scheme.at_fpr:
            break
        found.append(_judged(exam, suspect, suspect.keys[place], z, tried, about))
    return [replace(one, rows=file.rows) for one in found]


def _about(
    file: Read, suspect: Suspect, columns: Mapping[str, Any], unreadable: Mapping[str, int], exam: Exam, tried: int
) -> dict[str, Any]:
    """What is the same for every key of a release."""
    names = suspect.usual.scheme.names
    found: dict[str, Any] = {
        "used": file.table.num_rows if columns else 0,
        "columns": len(columns), "of_columns": len(names), "missing": [n for n in names if n not in columns],
        "hashes": len(exam.hashes), "of_hashes": len(suspect.usual.scheme.hashes), "keys_tried": tried,
    }  # fmt: skip
    if unreadable:
        found["unreadable"] = dict(unreadable)
    if odd := _odd(suspect, columns):
        found["outside"] = odd
    return found


def _odd(suspect: Suspect, columns: Mapping[str, Any]) -> list[str]:
    """Number columns most of whose values lie where the release's hardly do: they may be in other units."""
    found = []
    for axis in suspect.usual.scheme.axes:
        if axis.name in columns and axis.edges:
            values = columns[axis.name][~np.isnan(columns[axis.name])]
            beyond = (values < axis.edges[0]) | (values >= axis.edges[-1])
            if len(axis.edges) > _MANY and len(values) and beyond.mean() > _NEAR:
                found.append(axis.name)
    return found


def _judged(exam: Exam, suspect: Suspect, one: Tried, z: float, tried: int, about: Mapping[str, Any]) -> Detection:
    scheme, weights = suspect.usual.scheme, exam.weights
    p, level = min(1.0, tried * bound(z)), scheme.at_fpr / tried
    extra = {**about, "key": one.key.id, "epoch": one.epoch, "p_one_key": bound(z), "at_fpr": scheme.at_fpr}
    if not exam.hashes:
        extra["verdict"] = "nothing to test"
        return Detection(_name(suspect), one.tenant, 1.0, 0.0, weights.rows, extra)
    decoys = weights.decoys(DECOYS, MarkKey(secrets.token_bytes(16)))
    lift = exam.lift(one.key)
    share, low, high = lift.share(weights, one.key)
    power, expected = lift.power(weights, level), lift.expected(weights)
    extra |= {
        "rank": (1 + int((decoys >= z).sum())) / (DECOYS + 1), "decoys": DECOYS,
        "share": share, "share_low": low, "share_high": high, "power": power, "z_if_marked": expected,
        "verdict": "marked" if p <= scheme.at_fpr else "not marked" if power >= LEAST else "too few rows",
    }  # fmt: skip
    if extra["verdict"] == "too few rows" and expected > 0:
        extra["rows_needed"] = round(weights.rows * ((needed(level) + NORMAL.inv_cdf(LEAST)) / expected) ** 2)
    return Detection(_name(suspect), one.tenant, p, z, weights.rows, extra)


def _name(suspect: Suspect) -> str:
    return f"{suspect.info.name}:{suspect.info.version}"
