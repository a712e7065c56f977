"""Networks that families share. Importing this imports no torch."""

from __future__ import annotations

_ALIGNED = 16  # lanes of a float32 vector
_SHARES = (0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.09375, 0.0625)


def narrower(hidden: int) -> list[int]:
    """Widths below `hidden`, in whole vectors where there is one, widest first."""
    found = [max(8, round(hidden * share / _ALIGNED) * _ALIGNED) for share in _SHARES]
    return sorted({width for width in found if width < hidden}, reverse=True)
