"""Who may do what: a key's roles decide on actions, a release's grants on tenants. What is not named is denied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from genward.contracts import Facts, ReleaseInfo, Request, Verdict
from genward.hookspecs import hookimpl
from genward.policy import Policy

Role = Literal["administrator", "publisher", "auditor", "consumer"]
Action = Literal["generate", "read", "audit", "detect"]
ALL = "*"


class AccessConfig(BaseModel):
    """`roles[action]`: any of these roles may do it. An action that is not named may be done by nobody."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    roles: Mapping[Action, Annotated[tuple[Role, ...], Field(min_length=1)]] = Field(description="who may do what")


class Access(Policy):
    """Deny by default."""

    name = "access"
    Config = AccessConfig
    example: ClassVar[Mapping[str, Any]] = {"roles": {"generate": ("consumer",)}}

    @hookimpl
    def admit(self, request: Request, facts: Facts) -> Verdict:
        allowed = self.config.roles.get(request.action, ())
        if not facts.principal.roles & set(allowed):
            return Verdict(False, (f"access: the key has no role that may {request.action}",))
        if facts.release is not None and not _granted(facts.principal.tenant, facts.release):
            return Verdict(False, ("access: the release is not granted to this tenant",))
        if request.action == "generate" and facts.release is None:
            return Verdict(False, ("access: no release was named",))
        return Verdict(True)


def _granted(tenant: str, release: ReleaseInfo) -> bool:
    return tenant in release.tenants or ALL in release.tenants
