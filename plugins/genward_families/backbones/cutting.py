"""Structured cutting: whole channels leave, so that what remains is a smaller dense network.

A channel's weight is what is written into it times what is read from it (the product of the norms of its row and
column, as in Mariet and Sra 2016, arXiv:1511.05077, and Li et al. 2017, arXiv:1608.08710), after LayerNorm's scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genward_families.backbones.table import Tower

Kept = Tensor | None  # indices of channels, None: all


def heaviest(weights: Tensor, count: int) -> Tensor:
    """Indices of the `count` heaviest channels, in their order."""
    return torch.sort(torch.topk(weights, count).indices).values


def copy_linear(source: nn.Linear, target: nn.Linear, outside: Kept = None, inside: Kept = None) -> None:
    """The rows and columns kept of a layer, into a smaller one that must have just these."""
    weight = source.weight if outside is None else source.weight[outside]
    _copy(weight if inside is None else weight[:, inside], target.weight)
    _copy(source.bias if outside is None else source.bias[outside], target.bias)


def cut_tower(source: Tower, target: Tower, inside: Kept = None, context: Kept = None) -> None:
    """Fill a narrower tower of as many blocks."""
    with torch.no_grad():
        stream = heaviest(_stream(source), target.first.out_features)
        copy_linear(source.first, target.first, stream, inside)
        for old, new in zip(source.blocks, target.blocks, strict=True):
            _cut_block(old, new, stream, context)
        _copy_norm(source.norm, target.norm, stream)
        copy_linear(source.last, target.last, None, stream)


def context_weights(tower: Tower) -> Tensor:
    """What a tower reads of each channel of its context, (context,)."""
    blocks: list[Any] = list(tower.blocks)
    return _squares(*(block.shift.weight for block in blocks))


def _cut_block(old: Any, new: Any, stream: Tensor, context: Kept) -> None:
    inner = heaviest(_norms(old.up.weight, 1) * _norms(old.down.weight, 0), new.up.out_features)
    _copy_norm(old.norm, new.norm, stream)
    copy_linear(old.up, new.up, inner, stream)
    copy_linear(old.down, new.down, stream, inner)
    if old.shift is not None:
        copy_linear(old.shift, new.shift, inner, context)


def _stream(tower: Tower) -> Tensor:
    """Weights of the channels that run through all blocks."""
    blocks: list[Any] = list(tower.blocks)
    written = _squares(tower.first.weight.T, *(block.down.weight.T for block in blocks))
    read = [block.up.weight * block.norm.weight for block in blocks]
    return written.sqrt() * _squares(*read, tower.last.weight * tower.norm.weight).sqrt()


def _squares(*matrices: Tensor) -> Tensor:
    """Sums of squares over the rows of all matrices, one for each column."""
    total: Tensor = sum((m.detach() ** 2).sum(dim=0) for m in matrices)  # type: ignore[assignment]
    return total


def _norms(matrix: Tensor, dim: int) -> Tensor:
    found: Tensor = matrix.detach().norm(dim=dim)
    return found


def _copy_norm(source: Any, target: Any, kept: Tensor) -> None:
    _copy(source.weight[kept], target.weight)
    _copy(source.bias[kept], target.bias)


def _copy(source: Tensor, target: Tensor) -> None:
    if source.shape != target.shape:
        raise ValueError(f"{tuple(source.shape)} does not fit {tuple(target.shape)}")
    with torch.no_grad():
        target.copy_(source)
