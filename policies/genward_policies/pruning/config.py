"""What an administrator writes under `pruning`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from genward.candidate import Candidate

PROBES = 8  # latency measurements of one search, at most
Technique = Literal["structured", "int8_static", "int8_dynamic", "steps"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Target(_Strict):
    """The price to meet, for noise and graph, in whatever currency `price_per_vcpu_hour` has; `batch` rows at a time,
    as many as a block may have."""

    cost_per_million_rows: float = Field(gt=0)
    batch: int = Field(1024, ge=16, le=1024)


class Floor(_Strict):
    """What may be lost: the upper end of the 95 % interval of the relative loss, and the drop of usefulness."""

    relative_quality_loss_hi95: float = Field(0.05, gt=0, le=1)
    tstr_drop: float = Field(0.01, ge=0, le=1)


class PruningConfig(_Strict):
    """A price, a floor, and the means. `data: none` is the only recovery there is: the teacher answers noise."""

    price_per_vcpu_hour: float = Field(gt=0)
    target: Target
    floor: Floor = Floor()
    allow: Annotated[tuple[Technique, ...], Field(min_length=1)] = ("structured", "int8_static", "steps")
    data: Literal["none"] = "none"
    recovery_cpu_seconds: float = Field(60, gt=0, le=86_400)

    @model_validator(mode="after")
    def _agree(self) -> PruningConfig:
        if len(set(self.allow)) < len(self.allow):
            raise ValueError("a technique stands twice under allow")
        if {"int8_static", "int8_dynamic"} <= set(self.allow):
            raise ValueError("int8_static and int8_dynamic exclude each other: a graph has one kind of scale")
        return self

    @property
    def int8(self) -> Literal["static", "dynamic"] | None:
        """Which kind of eight-bit weights is allowed."""
        if "int8_static" in self.allow:
            return "static"
        return "dynamic" if "int8_dynamic" in self.allow else None


def cuttable(candidate: Candidate) -> bool:
    """Whether the network was one that can be made cheaper, when it was trained."""
    return candidate.family.can_be_cut(candidate.family.Config(**candidate.recipe.config))
