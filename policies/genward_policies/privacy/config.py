"""What an administrator writes under `privacy:`. What could void the guarantee has no setting."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Budget(BaseModel):
    """What a data set may spend over all trainings, its subsets' and later versions' included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: float = Field(10.0, gt=0, allow_inf_nan=False, description="epsilon, at the policy's delta")


class PrivacyConfig(BaseModel):
    """The promise (epsilon, delta, unit), the data set's budget, and constants whose defaults need no tuning.

    Sampling is Poisson, clipping is flat with a constant, noise is the operating system's, epsilon is PRV confirmed by
    PLD: of these there is no other kind, so there is no key for them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float = Field(gt=0, allow_inf_nan=False, description="what one release may tell about a unit")
    delta: float = Field(gt=0, lt=1, allow_inf_nan=False, description="chance of telling more; below 1 / rows")
    unit: str = Field("row", description="who is protected")
    budget: Budget = Budget()
    clip: float = Field(1.0, gt=0, allow_inf_nan=False, description="largest norm of a unit's gradient")
    batch: int | None = Field(None, ge=1, description="expected rows in a batch; else a share of the table")
    epochs: float = Field(30.0, gt=0, allow_inf_nan=False, description="when a training names neither steps nor time")
    evaluation: float = Field(
        0.05, ge=0, lt=1, description="share of the budget for the marginals that judge a release"
    )
    canaries: int = Field(2000, ge=0, le=100_000, description="units of the audit that rides along")
    min_n: int = Field(5000, ge=0, description="rows below which a deep family is warned about")

    @field_validator("unit")
    @classmethod
    def _rows_only(cls, value: str) -> str:
        if value != "row":
            raise ValueError(
                f"who is protected is a row, not {value!r}: one person's rows together are not protected by this "
                "version; make a table with one row a person and write unit: row"
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.epsilon > self.budget.dataset:
            raise ValueError(f"epsilon {self.epsilon:g} is above the data set's budget {self.budget.dataset:g}")
        return self
