"""The table decoder as a torch module: what the platform appends to a family's sample graph.

Only gathers, arithmetic and comparisons, so that it exports; the one transcendental is the exponential of columns on an
asinh scale, in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from genward.data.codec import TableCodec
    from genward.data.schema import Column
    from genward.family import Field

_POWERS = 22  # powers of ten up to here are exact in float64


class TableDecoder(nn.Module):
    """Encoded fields -> numbers (B, P) float64 with NaN for missing, codes (B, Q) int32 with -1 for missing."""

    table: Tensor
    offset: Tensor
    reach: Tensor
    stairs: Tensor
    scale: Tensor
    curved: Tensor
    times: Tensor
    step: Tensor
    has_step: Tensor
    digits: Tensor
    has_digits: Tensor
    ups: Tensor
    downs: Tensor
    low: Tensor
    high: Tensor
    nullable: Tensor

    def __init__(self, codec: TableCodec) -> None:
        super().__init__()
        columns = [codec.schema.column(name) for name in codec.number_columns]
        self._layout(codec)
        quantiles = [codec.quantiles[name] for name in codec.number_columns]
        self.knots = max((len(q.table) for q in quantiles), default=2)
        self._keep("table", np.array([np.resize(q.knots, self.knots) for q in quantiles]).reshape(-1))
        self._keep("offset", np.arange(len(columns)) * self.knots, torch.int64)
        self._keep("reach", np.array([q.reach for q in quantiles]))
        self.any_stairs = any(q.stairs for q in quantiles)
        self._keep("stairs", np.array([q.stairs for q in quantiles]), torch.bool)
        self._keep("scale", np.array([q.scale or 1.0 for q in quantiles]))
        self._keep("curved", np.array([q.scale > 0 for q in quantiles]), torch.bool)
        self.any_curved = any(q.scale > 0 for q in quantiles)
        self._grid(columns)
        self._groups(codec)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fields = x if c is None else torch.cat([x, c], dim=1)
        return self._numbers(fields), self._codes(fields)

    # numbers

    def _numbers(self, fields: Tensor) -> Tensor:
        if not self.number_at:
            return fields.new_zeros((fields.shape[0], 0), dtype=torch.float64)
        values = self._rounded(self._interpolated(fields[:, self.number_at].double()))
        values = torch.minimum(torch.maximum(values, self.low), self.high)
        for index, group in enumerate(self.groups):
            values = self._added_up(values, index, group)
        if not self.any_nullable:
            return values
        return torch.where(self._missing(fields), torch.full_like(values, float("nan")), values)

    def _interpolated(self, latents: Tensor) -> Tensor:
        """Values on the columns' scales at latents (B, P), by the knot below and the next."""
        at = torch.clamp((latents + self.reach) / (2 * self.reach), 0.0, 1.0) * (self.knots - 1)
        if self.any_stairs:
            at = torch.where(self.stairs, torch.round(at), at)
        low = torch.clamp(torch.floor(at), max=self.knots - 2)
        index = low.long() + self.offset
        below, above = _look_up(self.table, index), _look_up(self.table, index + 1)
        values = below + (at - low) * (above - below)
        if not self.any_curved:
            return values
        grown = torch.exp(torch.where(self.curved, values, torch.zeros_like(values)))
        return torch.where(self.curved, (grown - 1 / grown) * 0.5 * self.scale, values)

    def _rounded(self, values: Tensor) -> Tensor:
        """To the column's step, or to its significant digits; exact decimals come out as their nearest float64."""
        if not self.any_digits:
            return torch.where(self.has_step, self._stepped(values), values)
        size = torch.floor(torch.log10(torch.maximum(values.abs(), self.scale)))
        shift = (torch.clamp(self.digits - 1 - size, -_POWERS, _POWERS) + _POWERS).long()
        up, down = _look_up(self.ups, shift), _look_up(self.downs, shift)
        digits = torch.round(values * up / down) / up * down
        others = torch.where(self.has_step, self._stepped(values), values) if self.any_step else values
        return torch.where(self.has_digits, digits, others)

    def _stepped(self, values: Tensor) -> Tensor:
        return torch.round(values * self.times / self.step) / self.times * self.step

    def _added_up(self, values: Tensor, index: int, group: list[int]) -> Tensor:
        """Scale a group to its total, round again, and give what is left to its largest part."""
        mine = getattr(self, f"group{index}")
        parts = torch.clamp(values[:, group], min=0.0)
        total = torch.clamp(parts.sum(dim=1, keepdim=True), min=1e-12)
        wanted = self.totals[index]
        scaled = torch.where((total - wanted).abs() > self.tolerances[index], parts * (wanted / total), parts)
        times, step = self.times[group], self.step[group]
        scaled = torch.where(self.has_step[group], torch.round(scaled * times / step) / times * step, scaled)
        rest = wanted - scaled.sum(dim=1, keepdim=True)
        rest = torch.where(rest.abs() > self.tolerances[index], rest, torch.zeros_like(rest))
        largest = scaled == scaled.max(dim=1, keepdim=True).values
        first = largest & (torch.cumsum(largest.long(), dim=1) == 1)
        scaled = scaled + torch.where(first, rest, torch.zeros_like(scaled))
        added = values + (scaled - parts) @ mine
        return torch.where(self.has_step, self._stepped(added), added)

    def _missing(self, fields: Tensor) -> Tensor:
        """(B, P) bool: where the {present, missing} choice says missing."""
        gap = fields[:, self.gap_at] > fields[:, self.there_at]
        return gap & self.nullable

    # choices

    def _codes(self, fields: Tensor) -> Tensor:
        parts = []
        for start, width, classes in self.choices:
            code = torch.argmax(fields[:, start : start + width], dim=1, keepdim=True).to(torch.int32)
            parts.append(torch.where(code == classes, torch.full_like(code, -1), code))
        if not parts:
            return torch.zeros((fields.shape[0], 0), dtype=torch.int32)
        return torch.cat(parts, dim=1)

    # what is prepared once

    def _layout(self, codec: TableCodec) -> None:
        """Where each column's fields lie once the given fields are put behind the generated ones."""
        spec = codec.spec
        placed: dict[tuple[str, str], tuple[Field, int]] = {(f.column, f.kind): (f, f.start) for f in spec.fields}
        placed |= {(f.column, f.kind): (f, f.start + spec.width) for f in spec.given}
        self.number_at = [placed[name, "number"][1] for name in codec.number_columns]
        gaps = [placed.get((name, "choice")) for name in codec.number_columns]
        self.there_at = [gap[1] if gap else 0 for gap in gaps]
        self.gap_at = [gap[1] + 1 if gap else 0 for gap in gaps]
        self.any_nullable = any(gap is not None for gap in gaps)
        self._keep("nullable", np.array([gap is not None for gap in gaps]), torch.bool)
        self.choices = [_choice(codec, name, *placed[name, "choice"]) for name in codec.code_columns]

    def _grid(self, columns: list[Column]) -> None:
        steps = [c.grid if c.grid > 1e-200 else 1.0 for c in columns]
        times = [round(1 / s) if s < 1 and abs(round(1 / s) * s - 1) < 1e-9 else 1 for s in steps]
        self._keep("times", np.array(times))
        self._keep("step", np.array([1.0 if t > 1 else s for s, t in zip(steps, times, strict=True)]))
        self._keep("has_step", np.array([c.grid > 1e-200 and not c.digits for c in columns]), torch.bool)
        self._keep("digits", np.array([c.digits or 1 for c in columns]))
        self._keep("has_digits", np.array([c.digits is not None for c in columns]), torch.bool)
        self.any_digits = any(c.digits for c in columns)
        self.any_step = any(c.grid > 1e-200 and not c.digits for c in columns)
        powers = [float(10**i) for i in range(_POWERS + 1)]
        self._keep("ups", np.array([1.0] * _POWERS + powers))
        self._keep("downs", np.array(powers[::-1] + [1.0] * _POWERS))
        bounds = [c.bounds for c in columns]
        self._keep("low", np.array([-np.inf if low is None else low for low, _ in bounds]))
        self._keep("high", np.array([np.inf if high is None else high for _, high in bounds]))

    def _groups(self, codec: TableCodec) -> None:
        sums = codec.schema.sums
        self.groups = [[codec.number_columns.index(name) for name in group.columns] for group in sums]
        for index, group in enumerate(self.groups):
            self._keep(f"group{index}", np.eye(len(codec.number_columns))[group])
        self.totals = [group.total for group in sums]
        self.tolerances = [group.tolerance for group in sums]

    def _keep(self, name: str, array: NDArray[Any], dtype: torch.dtype = torch.float64) -> None:
        self.register_buffer(name, torch.as_tensor(array, dtype=dtype), persistent=False)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index] for a flat table: exported so, it is one GatherElements, a fraction of what indexing becomes."""
    return torch.gather(table, 0, index.reshape(-1)).reshape(index.shape)


def _choice(codec: TableCodec, name: str, field: Field, start: int) -> tuple[int, int, int]:
    """(start, width, number of real categories) of a choice column."""
    column = codec.schema.column(name)
    return start, field.width, field.width - 1 if column.nullable else field.width
