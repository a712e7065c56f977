"""A request policy: nothing of a release leaves before a date."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field

from genward.contracts import Facts, Request, Verdict
from genward.hookspecs import hookimpl
from genward.policy import Policy


class EmbargoConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    until: datetime = Field(description="no rows before this moment; with a time zone")


class Embargo(Policy):
    """Denies `generate` before `until`."""

    name = "embargo"
    Config = EmbargoConfig

    @hookimpl
    def admit(self, request: Request, facts: Facts) -> Verdict:
        if request.action == "generate" and datetime.fromtimestamp(facts.now, UTC) < self.config.until:
            return Verdict(False, ("embargo: not before its date",))
        return Verdict(True)
