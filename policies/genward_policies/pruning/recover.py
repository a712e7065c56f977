"""Recovery: a network that was cut learns from its teacher on noise alone.

Pools of examples are made with keys of their own and thrown away after two rounds, so that no example is learnt by
heart. Nothing here has a table, a data set or a ledger within reach.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from genward import noise
from genward.contracts import Progress
from genward.errors import CheckFailed
from genward_policies.pruning.cost import conditions, key

if TYPE_CHECKING:
    from genward.data.codec import TableCodec
    from genward.family import Distillation, Family, Spec

POOL, ROUNDS, CHUNK = 32_768, 2, 4096
_EMA, _CLIP = 0.999, 1.0
_PACED = 20  # steps that are timed on a copy


def recovered(
    family: Family,
    teacher: nn.Module,
    config: Any,
    smaller: Any,
    codec: TableCodec,
    seconds: float,
    progress: Progress,
    pool: int = POOL,
) -> nn.Module:
    """Cut, distil for about so many CPU seconds, and prove that the widths are those of the recipe."""
    torch.manual_seed(0)
    student = family.cut(teacher, codec.spec, smaller)
    distillation = family.distillation(teacher, config, smaller)
    steps = _affordable(copy.deepcopy(student), distillation, codec, seconds, pool)
    progress.start("distil on noise", steps)
    _distil(student, distillation, codec, steps, pool, progress)
    progress.finish(f"{steps} steps")
    require_widths(family, codec.spec, student, smaller)
    return student.eval()


def require_widths(family: Family, spec: Spec, network: nn.Module, config: Any) -> None:
    """Raise CheckFailed, naming the parameter, unless a network has the widths of its configuration."""
    wanted = {name: tuple(p.shape) for name, p in family.build(spec, config).named_parameters()}
    found = {name: tuple(p.shape) for name, p in network.named_parameters()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckFailed(
                f"parameter {name!r} has shape {found.get(name)}, the recipe says {wanted.get(name)}", where="pruning"
            )


def _affordable(student: nn.Module, distillation: Distillation, codec: TableCodec, seconds: float, pool: int) -> int:
    """Steps that fit, pools included; a short run on a copy says how long both take."""
    began = time.process_time()
    examples = _examples(distillation, codec, 0, min(pool, CHUNK))
    making = (time.process_time() - began) * pool / min(pool, CHUNK)
    batches = _batches(examples, distillation.batch, torch.Generator().manual_seed(1))
    optimiser = _optimiser(student, distillation)
    ends = [time.process_time()]
    for _ in range(_PACED):
        _step(student, distillation, optimiser, next(batches))
        ends.append(time.process_time())
    pace = float(np.median(np.diff(ends)))
    each = pace + making / (ROUNDS * max(1, pool // distillation.batch))
    return max(10, int(seconds / each))


def _distil(
    student: nn.Module, distillation: Distillation, codec: TableCodec, steps: int, pool: int, progress: Progress
) -> None:
    optimiser = _optimiser(student, distillation)
    average = [p.detach().clone() for p in student.parameters()]
    order = torch.Generator().manual_seed(2)
    batches: Iterator[Mapping[str, Tensor]] = iter(())
    every = ROUNDS * max(1, pool // distillation.batch)
    for step in range(steps):
        if step % every == 0:
            batches = _batches(_examples(distillation, codec, 1 + step // every, pool), distillation.batch, order)
        _paced(optimiser, distillation, step / steps)
        loss = _step(student, distillation, optimiser, next(batches))
        keep = min(_EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in student.parameters()], 1 - keep)
        if step % 50 == 0:
            progress.update(step, f"loss {loss:.4f}")
    with torch.no_grad():
        for parameter, value in zip(student.parameters(), average, strict=True):
            parameter.copy_(value)


def _examples(distillation: Distillation, codec: TableCodec, pool: int, rows: int) -> dict[str, Tensor]:
    """One pool of examples, from a noise key of its own."""
    secret, parts = key(f"recovery {pool}"), []
    for start in range(0, rows, CHUNK):
        places = np.arange(start, min(start + CHUNK, rows), dtype=np.uint64)
        drawn = {name: torch.from_numpy(v) for name, v in noise.draw(distillation.noise, secret, places).items()}
        given = conditions(codec, secret, places)
        parts.append(distillation.examples(drawn, None if given is None else torch.from_numpy(given)))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _batches(examples: Mapping[str, Tensor], size: int, order: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
    """Batches without end; each round goes through all examples in a new order."""
    rows = len(next(iter(examples.values())))
    size = min(size, rows)
    while True:
        shuffled = torch.randperm(rows, generator=order)
        for start in range(0, rows - size + 1, size):
            index = shuffled[start : start + size]
            yield {name: part[index] for name, part in examples.items()}


def _optimiser(student: nn.Module, distillation: Distillation) -> torch.optim.Optimizer:
    o = distillation.optimiser
    return torch.optim.AdamW(student.parameters(), o.lr, o.betas, weight_decay=o.weight_decay, fused=True)


def _paced(optimiser: torch.optim.Optimizer, distillation: Distillation, share: float) -> None:
    """The learning rate: a linear warm-up, then a cosine to almost nothing."""
    o = distillation.optimiser
    rate = o.lr * min(1.0, share / max(o.warmup, 1e-9) + 1e-3) * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * share)))
    for group in optimiser.param_groups:
        group["lr"] = rate


def _step(
    student: nn.Module, distillation: Distillation, optimiser: torch.optim.Optimizer, batch: Mapping[str, Tensor]
) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss = distillation.loss(student, batch).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    if not math.isfinite(value := float(loss.detach())):
        raise CheckFailed("the distillation's loss is not finite", where=type(distillation).__name__)
    nn.utils.clip_grad_norm_(student.parameters(), _CLIP)
    optimiser.step()
    return value
