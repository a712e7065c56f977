"""Extraction defence: a finite pool, shares of it written as risk, and a watch on conditions. Door: `Extraction`."""

from __future__ import annotations

from genward_policies.extraction.policy import Extraction

__all__ = ["Extraction"]
