"""What an administrator writes under `watermark`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_ATTACK = re.compile(r"noise-(\d{1,2}(?:\.\d)?)%|round-([1-9])|columns-(\d{1,2})%|unmarked-(\d{1,2})%", re.ASCII)
KINDS = ("noise", "round", "columns", "unmarked")


def _attack(text: str) -> str:
    if not _ATTACK.fullmatch(text) or parsed(text)[1] <= 0:
        raise ValueError(f"{text!r} is no attack; write noise-5%, round-3, columns-70% or unmarked-50%")
    return text


def parsed(text: str) -> tuple[str, float]:
    """(kind, number) of an attack: noise of so many per cent in rank space, so many significant digits left, so many
    per cent of the columns left, so many per cent of the rows unmarked."""
    kind, _, number = text.partition("-")
    return kind, float(number.rstrip("%"))


Attack = Annotated[str, AfterValidator(_attack)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Power(_Strict):
    """What a release must show: a file of `rows` rows is recognised in 99 of 100 cases, with at most `at_fpr` false
    accusations a key, untouched and `under` each attack."""

    rows: int = Field(1000, ge=30, le=100_000)
    at_fpr: float = Field(1e-6, ge=1e-12, le=1e-2)
    under: tuple[Attack, ...] = ("noise-5%", "round-3", "columns-70%")


class WatermarkConfig(_Strict):
    """How rows are marked. `candidates`, `payload` and `power` are sealed into a release; `epoch` is that of keys.

    Detection tries the keys of epochs 0 to `epochs` - 1. Who rotates keys raises `epoch` and never goes back.
    """

    scheme: Literal["select"] = "select"
    candidates: int = Field(2, ge=2, le=8, description="most rows that a slot may hold")
    payload: Literal["tenant", "release"] = "tenant"
    power: Power = Power()
    auc_max: float = Field(0.55, gt=0.5, le=1, description="most that a classifier may tell marked rows by")
    epoch: int = Field(0, ge=0, le=999, description="which keys mark now")
    epochs: int | None = Field(
        None, ge=1, le=1000, description="how many epochs there ever were; epoch + 1 if not given"
    )

    @model_validator(mode="after")
    def _agree(self) -> WatermarkConfig:
        if self.epochs is not None and self.epochs <= self.epoch:
            raise ValueError(f"epochs is {self.epochs}, and epoch {self.epoch} is among them: write {self.epoch + 1}")
        if len(set(self.power.under)) < len(self.power.under):
            raise ValueError("an attack stands twice under power.under")
        return self

    @property
    def known(self) -> range:
        """The epochs whose keys detection tries."""
        return range(self.epochs or self.epoch + 1)
