"""The access part of a policy document: Cedar text, roles, grants, and test cases of its own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Role = Literal["administrator", "publisher", "auditor", "consumer"]
Action = Literal["generate", "read", "audit", "detect"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=100)]
Pattern = Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+|\*)$", max_length=100)]
Value = str | bool | int | float


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Grant(_Part):
    """Rows of a model for a tenant, or for one of its keys, without a word of Cedar."""

    tenant: Name
    model: Pattern = Field(description="a model's name, or * for every one")
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9:._@|+/=-]+$", max_length=200)] | None = Field(
        None, description="public prefix of one key; else all of the tenant's"
    )
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("consumer",)
    where: Mapping[str, tuple[Value, ...]] = Field({}, description="categories, or [low, high] of a number")
    rows_per_day: int | None = Field(None, ge=1)

    @field_validator("where", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """A lone value is a list of one; a date is its ISO text."""
        if not isinstance(value, Mapping):
            return value
        return {column: [_plain(v) for v in (found if isinstance(found, list | tuple) else [found])]
                for column, found in value.items()}  # fmt: skip

    @field_validator("where")
    @classmethod
    def _filled(cls, value: Mapping[str, tuple[Value, ...]]) -> Mapping[str, tuple[Value, ...]]:
        empty = [column for column, values in value.items() if not values]
        if empty:
            raise ValueError(f"{empty[0]!r} has no value: nothing would be left")
        return value

    @property
    def id(self) -> str:
        """What refusals and the log call it."""
        return ".".join(("grants", self.tenant, "all" if self.model == "*" else self.model, *filter(None, [self.key])))

    def covers(self, tenant: str, key: str, model: str) -> bool:
        """Whether it speaks of this caller and this model."""
        return self.tenant == tenant and self.key in (None, key) and self.model in ("*", model)


class Who(_Part):
    """The principal of a test case."""

    tenant: str
    roles: tuple[Role, ...] = ("consumer",)
    key: str = "test"


class What(_Part):
    """The release of a test case; `tenants` it is granted to, the principal's own when left out."""

    model: str
    version: int = 1
    tenants: tuple[str, ...] | None = None


class Context(_Part):
    """Facts of a test case; what is left out is one row asked for in this process, at noon of a Thursday."""

    n: int | None = None
    start: int | None = None
    columns: tuple[str, ...] | None = None
    now: int | None = Field(None, description="seconds since the epoch; sets hour and weekday too")
    hour: int | None = Field(None, ge=0, le=23)
    weekday: int | None = Field(None, ge=0, le=6, description="Monday is 0")
    address: str | None = None
    local: bool | None = None


class Case(_Part):
    """One decision that a document promises."""

    principal: Who
    action: Action
    resource: What | None = None
    context: Context = Context()
    expect: Literal["allow", "deny"]
    because: tuple[str, ...] = Field((), description="ids that must be among the reasons")


class AccessConfig(_Part):
    """Cedar text, or a mapping of it, of roles (`roles[action]`: any of these may) and of grants. What nothing permits
    is denied. A mapping that is only roles comes to Cedar too: there is one engine."""

    cedar: str = Field("", description="Cedar policies, each with an @id")
    roles: Mapping[Action, Annotated[tuple[Role, ...], Field(min_length=1)]] = Field({}, description="who may do what")
    grants: tuple[Grant, ...] = ()
    tests: tuple[Case, ...] = ()
    record: bool = Field(False, description="keep the contexts of decisions in the state folder, for dry runs")

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return {"cedar": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sound(self) -> AccessConfig:
        """Nothing that Cedar would not take, that permits nothing or that fails its own cases is a document."""
        from genward_policies.access.check import check

        check(self)
        return self


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date) else value
