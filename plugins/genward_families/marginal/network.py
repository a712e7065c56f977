"""A mixture of products of categorical distributions, and the graph that samples from it.

    p(g_1, ..., g_d) = sum_r w_r prod_i A_i[r, g_i],   w and each row of A_i a softmax

g_i is a group of values of column i; which value of its group a row has is drawn from the column alone, so that columns
are fine and what ties them together is coarse. Any marginal is a product of matrices, P_ij = A_i^T diag(w) A_j, so that
one large multiplication gives all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genward.family import Spec
from genward.fitting import Place, places

_NEVER = -1e4  # a logit whose softmax is 0


class Mixture(nn.Module):
    """`shares` (R,), `logits` (R, sum of the groups) column after column, and how each column is grouped.

    `order{i}` (values,) lists a column's values group by group; `ends{i}` (values + 1,) are their cumulative
    probabilities in that order, `bounds{i}` (groups + 1,) those at which a group begins.
    """

    def __init__(self, spec: Spec, fine: int, bins: int, components: int) -> None:
        super().__init__()
        self.places: list[Place] = places(spec, fine)
        self.width = spec.width
        self.domain = [_groups(place, bins) for place in self.places]
        self.starts = np.cumsum([0, *self.domain]).tolist()
        self.shares = nn.Parameter(torch.zeros(components))
        self.logits = nn.Parameter(torch.zeros(components, self.starts[-1]))
        for i, place in enumerate(self.places):
            self.register_buffer(f"order{i}", torch.arange(place.values))
            self.register_buffer(f"ends{i}", torch.linspace(0, 1, place.values + 1, dtype=torch.float64))
            self.register_buffer(f"bounds{i}", torch.linspace(0, 1, self.domain[i] + 1, dtype=torch.float64))

    def regroup(self, field: int, groups: NDArray[np.intp], probabilities: NDArray[np.float64]) -> None:
        """Say which group each value of a column is in, and how probable it is."""
        order = np.argsort(groups, kind="stable")
        ends = np.concatenate([[0.0], np.cumsum(probabilities[order])])
        begins = np.searchsorted(groups[order], np.arange(self.domain[field] + 1))  # a group there is not is empty
        self.get_buffer(f"order{field}").copy_(torch.from_numpy(order))
        self.get_buffer(f"ends{field}").copy_(torch.from_numpy(ends / ends[-1]))
        self.get_buffer(f"bounds{field}").copy_(torch.from_numpy(ends[begins] / ends[-1]))

    def parts(self) -> tuple[Tensor, Tensor]:
        """w (R,) and A (R, sum of the groups)."""
        columns = [torch.softmax(part, 1) for part in _split(self.logits, self.domain)]
        return torch.softmax(self.shares, 0), torch.cat(columns, 1)

    @torch.no_grad()
    def begin(self, logits: Sequence[NDArray[np.float64]]) -> None:
        """Every component near the product of the columns; groups that a column does not have are never drawn."""
        spare = [n - len(part) for part, n in zip(logits, self.domain, strict=True)]
        filled = [np.pad(part, (0, n), constant_values=_NEVER) for part, n in zip(logits, spare, strict=True)]
        self.logits.copy_(torch.from_numpy(np.concatenate(filled)).float() + torch.randn_like(self.logits))


def _split(joined: Any, widths: Sequence[int]) -> Sequence[Tensor]:
    """The columns of (B, sum of widths), each (B, width)."""
    found: Sequence[Tensor] = joined.split(list(widths), 1)
    return found


def _groups(place: Place, bins: int) -> int:
    """At most so many groups; a gap is one more."""
    gap = not place.is_choice and place.choice is not None
    return min(place.values - gap, bins) + gap


class Sampler(nn.Module):
    """Uniforms for the component (B,), each column's group (B, d) and the place in it (B, d) -> (B, width)."""

    components: Tensor
    steps: Tensor

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        w, a = (part.detach().double() for part in mixture.parts())
        self.places, self.domain = mixture.places, mixture.domain
        sums = [part.cumsum(1)[:, :-1] for part in _split(a, self.domain)]
        self._keep("components", w.cumsum(0)[:-1].float())
        self._keep("steps", torch.cat(sums, 1).float())
        for i, place in enumerate(self.places):
            for name in ("order", "ends", "bounds"):
                self._keep(f"{name}{i}", mixture.get_buffer(f"{name}{i}"))
            self._keep(f"cuts{i}", torch.tensor([0.0, *place.cuts, 1.0, 1.0], dtype=torch.float64))

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, component: Tensor, group: Tensor, place: Tensor) -> Tensor:
        chosen = (component[:, None] > self.components).sum(1)
        steps = _split(torch.index_select(self.steps, 0, chosen), [n - 1 for n in self.domain])
        pieces: dict[int, Tensor] = {}
        for i, where in enumerate(self.places):
            groups = (group[:, i : i + 1] > steps[i]).sum(1)
            value, share = self._within(i, groups, place[:, i].double())
            if not where.is_choice:
                pieces[where.start] = self._number(i, value, share)
            if where.choice is not None:
                pieces[where.choice] = _choice(where, value)
        return torch.cat([pieces[start] for start in sorted(pieces)], 1)

    def _within(self, i: int, groups: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The value (B,) at a place u of its group, and the place (B,) within the value."""
        bounds, ends = self.get_buffer(f"bounds{i}"), self.get_buffer(f"ends{i}")
        low, high = torch.index_select(bounds, 0, groups), torch.index_select(bounds, 0, groups + 1)
        at = low + (high - low) * u
        index = (at[:, None] > ends[1:-1]).sum(1)
        below, above = torch.index_select(ends, 0, index), torch.index_select(ends, 0, index + 1)
        share = (at - below) / torch.clamp(above - below, min=1e-15)
        return torch.index_select(self.get_buffer(f"order{i}"), 0, index), torch.clamp(share, 0.0, 1.0)

    def _number(self, i: int, value: Tensor, share: Tensor) -> Tensor:
        """The latent number (B, 1), even under the codec's law within a bin; of a gap it does not matter."""
        cuts = self.get_buffer(f"cuts{i}")
        low, high = torch.index_select(cuts, 0, value), torch.index_select(cuts, 0, value + 1)
        return normal_quantile(low + (high - low) * share)[:, None].float()


def _choice(where: Place, value: Tensor) -> Tensor:
    """One-hot of a choice, or {present, missing} of a number."""
    if where.is_choice:
        return (value[:, None] == torch.arange(where.values)).float()
    missing = (value == where.values - 1).float()[:, None]
    return torch.cat([1 - missing, missing], 1)


def normal_quantile(share: Tensor) -> Tensor:
    """Standard normal quantiles of shares in [0, 1], float64, to 1e-8 and within 7: arithmetic, log and sqrt only.

    ONNX has no inverse error function. Rational approximations of Acklam 2003, "An algorithm for computing the inverse
    normal cumulative distribution function".
    """
    lower = torch.minimum(share, 1 - share).clamp(min=1e-12)
    tail = _ratio(torch.sqrt(-2 * torch.log(lower)), _C, _D)
    off = lower - 0.5
    middle = off * _ratio(off * off, _A, _B)
    found = torch.where(lower < 0.02425, tail, middle)
    return torch.where(share > 0.5, -found, found)


def _ratio(x: Tensor, above: Sequence[float], below: Sequence[float]) -> Tensor:
    return _polynomial(x, above) / _polynomial(x, (*below, 1.0))


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    found = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        found = found * x + coefficient
    return found


_A = (-3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2,
      1.383577518672690e2, -3.066479806614716e1, 2.506628277459239)  # fmt: skip
_B = (-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1, -1.328068155288572e1)
_C = (-7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838,
      -2.549732539343734, 4.374664141464968, 2.938163982698783)  # fmt: skip
_D = (7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416)
