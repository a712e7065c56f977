"""Networks over encoded tables: residual blocks, and what a family needs to know of the fields.

Everything here works record by record, so that it can be trained privately: no batch statistics, no own randomness.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genward.family import Field, Spec


class Block(nn.Module):
    """x + W2 act(W1 norm(x) + context): a residual block, shifted by a context (B, context)."""

    def __init__(self, hidden: int, context: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, hidden)
        self.shift = nn.Linear(context, hidden) if context else None
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.up(self.norm(x))
        if self.shift is not None and context is not None:
            h = h + self.shift(context)
        found: Tensor = x + self.down(nn.functional.silu(h))
        return found


class Tower(nn.Module):
    """(B, inside) -> (B, outside) through residual blocks of one width."""

    def __init__(self, inside: int, outside: int, hidden: int, blocks: int, context: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(inside, hidden)
        self.blocks = nn.ModuleList(Block(hidden, context) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden)
        self.last = nn.Linear(hidden, outside)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h, context)
        found: Tensor = self.last(nn.functional.silu(self.norm(h)))
        return found


class Layout(nn.Module):
    """Where the fields of a record lie.

    `numbers` are positions of number fields; `gaps[i]` is the position that says number i is missing, -1 if it never
    is; `choices` are (start, width) of the one-hots.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        gap = {f.column: f.start + 1 for f in spec.fields if f.kind == "choice" and _is_gap(f, spec.fields)}
        columns = [f for f in spec.fields if f.kind == "number"]
        self.numbers = [f.start for f in columns]
        self.gaps = [gap.get(f.column, -1) for f in columns]
        self.choices = [(f.start, f.width) for f in spec.fields if f.kind == "choice"]
        hot = torch.zeros(spec.width)
        for start, width in self.choices:
            hot[start : start + width] = 1.0
        self.register_buffer("hot", hot)

    hot: Tensor

    def present(self, x: Tensor) -> Tensor:
        """(B, numbers): 1 where a number is there, 0 where it is missing."""
        columns = [1 - x[:, gap] if gap >= 0 else torch.ones_like(x[:, 0]) for gap in self.gaps]
        return torch.stack(columns, dim=1) if columns else x[:, :0]


def _is_gap(field: Field, fields: Sequence[Field]) -> bool:
    """Whether a choice field is the {present, missing} of a number."""
    return any(f.column == field.column and f.kind == "number" for f in fields)


def joined(*parts: Tensor | None) -> Tensor:
    """Concatenate what is there along the features."""
    return torch.cat([part for part in parts if part is not None], dim=-1)
