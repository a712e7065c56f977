"""What a release must be worth: gates on the evidence that every release is measured for, and its report.

A limit holds against the figure itself, or with `decide: bound` against the worse end of its 95 % interval. Copies of
training rows and rows that break a rule count in excess of what real rows show, and only when that excess is more
than chance: a limit of 0 refuses a model that remembers and no honest one. A figure that was not measured does not
pass a limit that is set, but for usefulness where no target was named.

Of a release trained on protected rows every figure that reads them is withheld, so no limit can be held against it.
What gates it is `one_way`, measured against published noisy counts that the training paid for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from genward.contracts import Evidence, Verdict
from genward.hookspecs import hookimpl
from genward.policy import Policy

if TYPE_CHECKING:
    from genward.candidate import Candidate

_Found = Mapping[str, Evidence]
_NO_TARGET = "no target column"
_AT_MOST = {"tstr_drop_max": "tstr_drop", "c2st_max": "c2st", "pairs_max": "pairs"}
_AT_LEAST = {"coverage_min": "coverage", "precision_min": "precision", "novelty_min": "novelty"}
_IN_EXCESS = {"exact_copies_max": "exact_copies", "violated_max": "rules_violated"}


class QualityConfig(BaseModel):
    """Limits; null sets none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tstr_drop_max: float | None = Field(0.10, ge=0, le=1, description="what a model taught by the rows may not know")
    exact_copies_max: float | None = Field(0.0, ge=0, le=1, description="training rows again, in excess of real rows")
    c2st_max: float | None = Field(None, ge=0.5, le=1, description="AUC of telling rows from real ones")
    pairs_max: float | None = Field(None, ge=0, le=1, description="distance of pairs of columns")
    coverage_min: float | None = Field(None, ge=0, le=1, description="share of real rows that are reached")
    precision_min: float | None = Field(None, ge=0, le=1, description="share of rows that lie where real ones are")
    novelty_min: float | None = Field(None, ge=0, le=1, description="share of rows not close to a training row")
    violated_max: float | None = Field(None, ge=0, le=1, description="rows that break a rule, in excess of real rows")
    one_way_max: float | None = Field(
        0.15, ge=0, le=1, description="of a protected release: distance of single columns to the published counts"
    )
    decide: Literal["value", "bound"] = Field("value", description="hold limits against the figure, or its worse end")


class Quality(Policy):
    """Gates releases, and seals the report of those whose rows are not protected."""

    name = "quality"
    Config = QualityConfig

    @hookimpl
    def attach(self, candidate: Candidate, evidence: Sequence[Evidence]) -> Mapping[str, bytes]:
        """`report.html` and `quality.json`; nothing of protected rows."""
        from genward.evaluate.stage import report_of

        return {} if candidate.recipe.protected else report_of(candidate, evidence)

    @hookimpl
    def gate(self, evidence: Sequence[Evidence]) -> Verdict:
        found = {item.claim: item for item in evidence}
        reasons = [*self._far(found), *self._in_excess(found), *_overlapping(found)]
        if any(item.withheld for item in evidence):
            reasons += self._public(found)
        return Verdict(not reasons, tuple(f"quality: {reason}" for reason in reasons))

    def _far(self, found: _Found) -> list[str]:
        """Figures beyond their limits."""
        reasons = []
        for keys, more in ((_AT_MOST, False), (_AT_LEAST, True)):
            for key, claim in keys.items():
                limit, item = getattr(self.config, key), found.get(claim)
                if limit is None or _excused(item):
                    continue
                reasons += self._against(claim, item, limit, more)
        return reasons

    def _against(self, claim: str, item: Evidence | None, limit: float, more: bool) -> list[str]:
        if item is None or item.value is None:
            return [_unmeasured(claim, item)]
        end = item.low if more else item.high
        held = item.value if self.config.decide == "value" or end is None else end
        if held >= limit if more else held <= limit:
            return []
        what = "is" if held == item.value else "may be"
        return [f"{claim} {what} {held:.3f}, {'asked is at least' if more else 'allowed is'} {limit:g}"]

    def _in_excess(self, found: _Found) -> list[str]:
        """Rows that are more than real rows show, by more than chance and by more than the limit."""
        reasons = []
        for key, claim in _IN_EXCESS.items():
            limit, item = getattr(self.config, key), found.get(claim)
            if limit is None or _excused(item) or _no_rule(item):
                continue
            if item is None or item.value is None:
                reasons.append(_unmeasured(claim, item))
            elif (excess := item.value - (item.reference or 0.0)) > limit and _sure(item):
                reasons.append(f"{claim} is {excess:.4f} beyond real rows, allowed is {limit:g}")
        return reasons

    def _public(self, found: _Found) -> list[str]:
        """What gates a release whose other figures are withheld."""
        item, limit = found.get("one_way"), self.config.one_way_max
        return [] if limit is None else self._against("one_way", item, limit, False)


def _excused(item: Evidence | None) -> bool:
    """A figure that nobody can hold a limit against: withheld, or usefulness for no target."""
    return item is not None and item.value is None and (item.withheld or _NO_TARGET in item.method)


def _no_rule(item: Evidence | None) -> bool:
    return item is not None and item.value is None and "states no rule" in item.method


def _sure(item: Evidence) -> bool:
    """Whether the excess is more than chance; where nobody said, it is."""
    return bool(item.extra.get("beyond_chance", True))


def _unmeasured(claim: str, item: Evidence | None) -> str:
    why = "" if item is None else f" ({item.method.removeprefix('not measured: ')})"
    return f"{claim} was not measured{why}"


def _overlapping(found: _Found) -> list[str]:
    item = found.get("held_out_overlap")
    if item is None or not item.extra.get("beyond_repeats"):
        return []
    return ["held-out rows are training rows, so that every figure flatters"]
