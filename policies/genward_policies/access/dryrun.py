"""A dry run: recorded decisions made again by a document that is not active, and what flips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from genward_policies.access.rules import Decision, Rules
from genward_policies.access.terms import Question

_NOTHING = "nothing permits it"


def flips(rules: Rules, recorded: Iterable[tuple[Question, Decision]]) -> Mapping[str, Any]:
    """How many decisions were made again, how many erred, and which flipped: by direction, by the ids that decide now
    (before, where nothing does), by tenant, model and action."""
    decided, errors = 0, 0
    found: Counter[tuple[str, ...]] = Counter()
    for question, before in recorded:
        now = rules.decide(question)
        decided += 1
        errors += bool(now.errors)
        if now.allow != before.allow:
            found[_row(question, before, now)] += 1
    names = ("flip", "by", "tenant", "model", "action")
    rows = [{**dict(zip(names, row, strict=True)), "decisions": count} for row, count in found.most_common()]
    return {"decisions": decided, "flipped": sum(found.values()), "errors": errors, "flips": rows}


def _row(question: Question, before: Decision, now: Decision) -> tuple[str, ...]:
    flip = "deny -> allow" if now.allow else "allow -> deny"
    by = ", ".join(now.because) or (f"{_NOTHING} (before: {', '.join(before.because)})" if before.because else _NOTHING)
    if now.errors:
        by = f"policy_error: {now.errors[0]}"
    model = question.release.name if question.release else "-"
    return flip, by, question.principal.tenant, model, question.action
