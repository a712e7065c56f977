"""What an administrator writes under `extraction`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

Response = Literal["record", "slow", "deny"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MaxRisk(_Strict):
    """The risk that the rows of one tenant, and those of all keys together, may come to; null is no limit."""

    key: float | None = Field(0.5, gt=0, le=1)
    release: float | None = Field(0.8, gt=0, le=1)


class Detection(_Strict):
    """What is done about a key whose conditions look like an extraction: `respond` is the strongest response allowed.

    `slow_rows_per_minute` is what a slowed key may have.
    """

    respond: Response = "slow"
    slow_rows_per_minute: int = Field(100, ge=1)


class ExtractionConfig(_Strict):
    """A pool, the risk that may be run, and what happens when a tenant has had his share."""

    pool: Literal["auto", "none"] | StrictInt = "auto"
    max_risk: MaxRisk = MaxRisk()
    on_exceed: Literal["recycle", "deny"] = "recycle"
    detection: Detection = Detection()
    attackers: tuple[str, ...] = ()  # names; empty: all that the installed plugins bring
    calibration_cpu_seconds: float = Field(60, ge=5, le=86_400)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        """YAML reads `none` as text and null as nothing; both mean no pool."""
        if isinstance(given, dict) and "pool" in given and given["pool"] is None:
            return {**given, "pool": "none"}
        return given

    @model_validator(mode="after")
    def _agree(self) -> ExtractionConfig:
        if isinstance(self.pool, int) and self.pool < 1:
            raise ValueError(f"pool is {self.pool!r}: write auto, none, or how many slots there shall be")
        if self.pool == "none" and self.max_risk.release is not None:
            raise ValueError("without a pool nothing bounds what all keys hold together: write max_risk.release: null")
        if self.pool == "auto" and self.max_risk.release is None:
            raise ValueError("pool: auto takes the slots from max_risk.release, which is null")
        return self
