"""Attackers: ways to copy a release from the rows that it gave out. Register the class from `genward_attackers`.

An attacker gets rows as the release's own codec encodes them, the strongest place a thief can stand, and makes rows of
the same kind. How near they come to the release's own rows says how good a copy so many rows allow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from genward.family import Family, Spec

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Target:
    """What a thief knows of the release, and what he may spend.

    `spec` lays out the encoded rows: generated fields, then given ones. `family` and `config` are the release's own:
    that they are secret is not counted on.
    """

    spec: Spec
    family: Family
    config: Any
    cpu_seconds: float = 10.0

    @property
    def choices(self) -> Sequence[slice]:
        """Columns of each choice among the encoded rows."""
        spec = self.spec
        places = [(f, f.start) for f in spec.fields] + [(f, spec.width + f.start) for f in spec.given]
        return [slice(start, start + f.width) for f, start in places if f.kind == "choice"]

    def hardened(self, rows: NDArray[Any]) -> Rows:
        """Rows in which each choice is made: one where it is largest, zero elsewhere."""
        out = np.array(rows, dtype=np.float32)
        for part in self.choices:
            out[:, part] = np.eye(part.stop - part.start, dtype=np.float32)[out[:, part].argmax(axis=1)]
        return out


class Attacker(ABC):
    """One way to copy. A light one is run on every batch of delivered rows, a usual one on some; a costly one learns
    for as long as `Target.cpu_seconds` says, and is run once at few sizes."""

    name: ClassVar[str]
    effort: ClassVar[Literal["light", "usual", "costly"]] = "usual"

    def __init__(self, target: Target) -> None:
        self.target = target

    @classmethod
    def cannot(cls, target: Target) -> str:
        """Why this attack cannot be run on a release; empty when it can."""
        return ""

    @abstractmethod
    def fit(self, rows: Rows, seed: int) -> None:
        """Learn from delivered rows, (n, width + condition_width), n at least 50."""

    @abstractmethod
    def sample(self, n: int, seed: int) -> Rows:
        """n rows of the copy, (n, width + condition_width), choices made."""
