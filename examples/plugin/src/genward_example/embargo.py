"""A request policy: nothing of a release leaves before a date."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

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
    example: ClassVar[dict[str, str]] = {"until": "2030-01-01T00:00:00Z"}
    Config = EmbargoConfig

    @hookimpl
    def admit(self, request: Request, facts: Facts) -> Verdict:
        if request.action == "generate" and datetime.fromtimestamp(facts.now, UTC) < self.config.until:
            return Verdict(False, ("embargo: not before its date",))
        return Verdict(True)
