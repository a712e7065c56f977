"""What a release must be worth: gates on the evidence that every release is measured for.

`tstr_drop_max`: how much less a model trained on synthetic rows may be worth on real ones, as a share of what one
trained on real rows is worth. `exact_copies_max`: how many training rows may come back, as a share of rows beyond what
held-out rows show.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from genward.contracts import Evidence, Verdict
from genward.hookspecs import hookimpl
from genward.policy import Policy


class QualityConfig(BaseModel):
    """Limits; a figure that was not measured does not pass a limit that is set, but for a missing target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tstr_drop_max: float | None = Field(0.10, ge=0, le=1)
    c2st_max: float | None = Field(None, ge=0.5, le=1)
    exact_copies_max: float | None = Field(0.01, ge=0, le=1)


class Quality(Policy):
    """Gates releases."""

    name = "quality"
    Config = QualityConfig

    @hookimpl
    def gate(self, evidence: Sequence[Evidence]) -> Verdict:
        found = {item.claim: item for item in evidence}
        reasons = [reason for check in (self._tstr, self._c2st, self._copies) for reason in check(found)]
        return Verdict(not reasons, tuple(reasons))

    def _tstr(self, found: dict[str, Evidence]) -> list[str]:
        item, limit = found.get("tstr"), self.config.tstr_drop_max
        if limit is None or (item is not None and item.value is None and "no target" in item.method):
            return []
        if item is None or item.value is None or not item.reference:
            return ["quality: usefulness (tstr) was not measured"]
        drop = 1 - item.value / item.reference
        return [f"quality: tstr drops by {drop:.3f}, allowed is {limit}"] if drop > limit else []

    def _c2st(self, found: dict[str, Evidence]) -> list[str]:
        item, limit = found.get("c2st"), self.config.c2st_max
        if limit is None:
            return []
        if item is None or item.value is None:
            return ["quality: c2st was not measured"]
        return [f"quality: c2st is {item.value:.3f}, allowed is {limit}"] if item.value > limit else []

    def _copies(self, found: dict[str, Evidence]) -> list[str]:
        item, limit = found.get("exact_copies"), self.config.exact_copies_max
        if limit is None:
            return []
        if item is None or item.value is None:
            return ["quality: exact copies were not counted"]
        excess = item.value - (item.reference or 0.0)
        return [f"quality: {excess:.4f} of the rows are copies, allowed is {limit}"] if excess > limit else []
