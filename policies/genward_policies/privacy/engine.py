"""Sums of clipped per-record gradients: two engines behind one interface.

`Vmap` is the reference: each record's gradient on its own, by torch.func (Abadi et al. 2016, arXiv:1607.00133,
algorithm 1). A record meets no other, so it takes every architecture. `Ghost` is the fast path: per-record norms from
activations and output gradients, then one weighted backward pass, no per-record gradient is ever made (Li et al. 2022,
arXiv:2110.05679; Opacus 1.6.0's hooks). Ghost sees modules, not the loss: weights used outside their module, tied ones
or a penalty on weights escape its norms without an error. So `choose` takes it only where it agrees with the reference
on a trial batch, and is quicker.

C is an argument of each call: there is no second copy of it to forget.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from genward.errors import CheckFailed, IntegrityError
from genward.family import Objective, Record

if TYPE_CHECKING:
    from opacus.grad_sample import GradSampleHooksFastGradientClipping as Hooks

Name = Literal["vmap", "ghost"]
AGREE = 1e-4  # largest relative difference between the engines
_MEMORY, _TRIED = 16 << 20, 8 << 20  # bytes of per-record gradients at a time, in training and in trials
_MARGIN = 1e-5  # a float32 norm errs by less, so no record ever counts for more than C
_TRIALS = 3
_AGREEING = 32  # records of the trial batch on which the engines must agree


class Engine(Protocol):
    """Computes what a private step needs; nothing of what it sees stays in it."""

    @property
    def name(self) -> Name: ...

    def clipped(self, record: Record, noise: Record, progress: float, clip: float) -> Tensor:
        """Sum over records of gradients of norm at most `clip`, flat, shape (parameters,), in the order of `trained`.
        A record whose gradient is not finite counts for nothing."""

    def norms(self, record: Record, noise: Record, progress: float) -> Tensor:
        """Norm of each record's gradient, shape (B,). For trials on public records only."""


def trained(network: nn.Module, objective: Objective) -> dict[str, nn.Parameter]:
    """Parameters that an objective moves, by name, each once."""
    moved = {id(p) for path in objective.trains for p in network.get_submodule(path).parameters() if p.requires_grad}
    return {name: p for name, p in network.named_parameters() if id(p) in moved}


def set_modes(network: nn.Module, objective: Objective) -> None:
    """What an objective trains is in train(), the rest in eval()."""
    network.eval()
    for path in objective.trains:
        network.get_submodule(path).train()


def shares(norms: Tensor, clip: float) -> Tensor:
    """How much of each record's gradient counts, in [0, 1], so that none is longer than `clip`."""
    limit = clip * (1.0 - _MARGIN)
    return torch.where(torch.isfinite(norms), limit / norms.clamp(min=limit), 0.0)


def place(network: nn.Module, objective: Objective) -> str:
    """The two names an error must say."""
    return f"{type(objective).__name__} on {type(network).__name__}"


def rows(record: Record) -> int:
    """How many records there are."""
    return len(next(iter(record.values())))


def picked(record: Record, index: Tensor) -> dict[str, Tensor]:
    """Some of the records."""
    return {name: part[index] for name, part in record.items()}


class _Loss(nn.Module):
    """A network and its loss as one module, so that parameters can be swapped underneath."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.loss = objective.loss

    def forward(self, record: Record, noise: Record, progress: float) -> Tensor:
        return self.loss(self.network, record, noise, progress)


class Vmap:
    """The reference: a gradient for each record, a few records at a time."""

    name: Name = "vmap"

    def __init__(self, network: nn.Module, objective: Objective, memory: int | None = None) -> None:
        self._network, self._objective = network, objective
        size = 4 * sum(p.numel() for p in trained(network, objective).values())
        self._chunk = max(1, (_MEMORY if memory is None else memory) // max(1, size))

    def clipped(self, record: Record, noise: Record, progress: float, clip: float) -> Tensor:
        """See Engine."""
        found = torch.zeros(sum(p.numel() for p in trained(self._network, self._objective).values()))
        total = found.to(next(iter(record.values())).device)
        for gradients in self._chunks(record, noise, progress):
            norms = _norms(gradients)
            share = shares(norms, clip)
            finite = torch.isfinite(norms)
            if not finite.all():
                gradients = [torch.where(finite[:, None], g, 0.0) for g in gradients]
            total += torch.cat([share @ g for g in gradients])
        return total

    def norms(self, record: Record, noise: Record, progress: float) -> Tensor:
        """See Engine."""
        return torch.cat([_norms(part) for part in self._chunks(record, noise, progress)])

    def each(self, record: Record, noise: Record, progress: float) -> Tensor:
        """Every record's gradient, shape (B, parameters). For trials on public records only."""
        return torch.cat([torch.cat(part, dim=1) for part in self._chunks(record, noise, progress)])

    def _chunks(self, record: Record, noise: Record, progress: float) -> Iterator[list[Tensor]]:
        """Gradients by parameter, each (b, size), of some records after the other."""
        whole = _Loss(self._network, self._objective)
        values = {f"network.{n}": p.detach() for n, p in trained(self._network, self._objective).items()}

        def alone(values: Mapping[str, Tensor], record: Record, noise: Record) -> Tensor:
            given = [{name: part.unsqueeze(0) for name, part in parts.items()} for parts in (record, noise)]
            return _one(functional_call(whole, dict(values), (*given, progress)), self._objective)

        gradient = vmap(grad(alone), in_dims=(None, 0, 0), randomness="error")
        for start in range(0, rows(record), self._chunk):
            parts = [{n: v[start : start + self._chunk] for n, v in given.items()} for given in (record, noise)]
            with warnings.catch_warnings():  # an operator without a batching rule is slow, and right
                warnings.filterwarnings("ignore", message="There is a performance drop")
                found = gradient(values, *parts)
            yield [found[name].flatten(1).detach() for name in values]


class Ghost:
    """The fast path. Hooks are there during a call only; nothing of it stays on the network."""

    name: Name = "ghost"

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        self._network, self._objective = network, objective

    def clipped(self, record: Record, noise: Record, progress: float, clip: float) -> Tensor:
        """See Engine."""
        with _hooked(self._network, self._objective, clip) as hooks:
            losses, norms = self._measured(hooks, record, noise, progress)
            finite = torch.isfinite(norms)
            if finite.all():
                return self._weighted(hooks, losses, norms, clip)
        del losses
        kept = finite.nonzero()[:, 0]
        if len(kept) == 0:
            return torch.cat([torch.zeros_like(p).flatten() for p in trained(self._network, self._objective).values()])
        return self.clipped(picked(record, kept), picked(noise, kept), progress, clip)

    def norms(self, record: Record, noise: Record, progress: float) -> Tensor:
        """See Engine."""
        with _hooked(self._network, self._objective, 1.0) as hooks:
            return self._measured(hooks, record, noise, progress)[1]

    def _measured(self, hooks: Hooks, record: Record, noise: Record, progress: float) -> tuple[Tensor, Tensor]:
        """(losses, gradient norms), both (B,); the first of two backward passes."""
        losses = self._objective.loss(self._network, record, noise, progress)
        torch.autograd.grad(losses.sum(), hooks.trainable_parameters, retain_graph=True)
        norms: Tensor = hooks.get_norm_sample()
        if losses.shape != norms.shape or norms.shape != (rows(record),):
            raise CheckFailed(
                f"{rows(record)} records give losses {tuple(losses.shape)} and norms {tuple(norms.shape)}",
                where=type(self._objective).__name__,
                remedy="one loss per record, and the record axis first in every module",
            )
        return losses, norms.detach()

    def _weighted(self, hooks: Hooks, losses: Tensor, norms: Tensor, clip: float) -> Tensor:
        """The second pass: gradients of the losses, each weighted by its record's share."""
        if hooks.max_grad_norm != clip:
            raise IntegrityError("the clipping bound moved during a step", remedy="no scheduler of C is allowed")
        hooks.disable_hooks()
        found = torch.autograd.grad((shares(norms, clip) * losses).sum(), hooks.trainable_parameters)
        return torch.cat([g.flatten() for g in found])


@contextmanager
def _hooked(network: nn.Module, objective: Objective, clip: float) -> Iterator[Hooks]:
    """Opacus' hooks on what is trained; afterwards the network is as it was, and gradients are on or off as before."""
    from opacus.grad_sample import GradSampleHooksFastGradientClipping

    moved = {id(p) for p in trained(network, objective).values()}
    frozen = [p for p in network.parameters() if p.requires_grad and id(p) not in moved]
    grads = torch.is_grad_enabled()
    hooks = None
    try:
        for p in frozen:
            p.requires_grad_(False)
        torch.set_grad_enabled(True)
        with warnings.catch_warnings():  # a first layer's input needs no gradient, which torch thinks worth a warning
            warnings.simplefilter("ignore")
            hooks = GradSampleHooksFastGradientClipping(network, loss_reduction="sum", max_grad_norm=clip)
            yield hooks
    finally:
        _clean(network, hooks)
        for p in frozen:
            p.requires_grad_(True)
        torch.set_grad_enabled(grads)  # a failed pass leaves it off


def _clean(network: nn.Module, hooks: Hooks | None) -> None:
    """Take everything away that holds a trace of a record: activations, norms, counters, the hooks."""
    if hooks is not None:
        hooks.cleanup()
        hooks._per_sample_gradient_norms = None
    for module in network.modules():
        for name in ("activations", "max_batch_len", "ft_compute_sample_grad", "autograd_grad_sample_hooks"):
            module.__dict__.pop(name, None)
    for p in network.parameters():
        for name in ("grad_sample", "_norm_sample", "_forward_counter", "_current_grad_sample", "ddp_hooks"):
            p.__dict__.pop(name, None)


def choose(
    network: nn.Module, objective: Objective, record: Record, noise: Record, wanted: Literal["auto"] | Name = "auto"
) -> Engine:
    """The engine for an objective, tried on a copy of the network with public records.

    Args:
        record: public records, never the private ones: what the choice tells must not depend on them.
        noise: the objective's noise for each.
        wanted: "ghost" raises CheckFailed where ghost clipping does not agree with the reference; "auto" then takes
            the reference, as it does where ghost clipping is slower.
    """
    if wanted == "vmap":
        return Vmap(network, objective)
    apart = disagreement(network, objective, record, noise)
    if wanted == "ghost" and not apart <= AGREE:
        raise CheckFailed(
            f"ghost clipping differs from per-record gradients by {apart:.2g}, above {AGREE:g}",
            where=place(network, objective),
            remedy="engine: auto takes the reference",
        )
    if apart <= AGREE and (wanted == "ghost" or _quicker(network, objective, record, noise)):
        return Ghost(network, objective)
    return Vmap(network, objective)


def disagreement(network: nn.Module, objective: Objective, record: Record, noise: Record) -> float:
    """Largest relative difference of ghost clipping to the reference, in norms and in clipped sums; infinite where it
    cannot run, or where either has no finite answer. Tried where the network stands, and away from there: a weight
    that begins at 0 hides what happens behind it."""
    few = torch.arange(min(_AGREEING, rows(record)))
    given = [picked(parts, few.to(next(iter(record.values())).device)) for parts in (record, noise)]
    worst = 0.0
    for scale, progress in ((0.0, 0.0), (0.3, 0.5)):
        copied = perturbed(network, objective, scale)
        try:
            worst = max(worst, _apart(copied, objective, given[0], given[1], progress))
        except Exception:  # whatever Opacus cannot do, it says in many ways
            return float("inf")
    return worst


def _apart(network: nn.Module, objective: Objective, record: Record, noise: Record, progress: float) -> float:
    reference, fast = Vmap(network, objective, _TRIED), Ghost(network, objective)
    norms, other = (engine.norms(record, noise, progress) for engine in (reference, fast))
    if not (torch.isfinite(norms).all() and torch.isfinite(other).all()):
        return float("inf")
    typical = float(norms.median())
    if typical == 0:
        return float((other - norms).abs().max() > 0) * float("inf") if other.any() else 0.0
    found = [float(((other - norms).abs() / norms.clamp(min=0.01 * typical)).max())]
    for clip in (0.3 * typical, 3.0 * typical):
        sums = [engine.clipped(record, noise, progress, clip) for engine in (reference, fast)]
        found.append(float((sums[1] - sums[0]).norm() / sums[0].norm()))
    return max(found)


def perturbed(network: nn.Module, objective: Objective, scale: float) -> nn.Module:
    """A copy in the right modes, its trained parameters moved by `scale` of their usual size, the same way each
    time."""
    copied = copy.deepcopy(network)
    set_modes(copied, objective)
    generator = torch.Generator().manual_seed(20231)
    with torch.no_grad():
        for p in trained(copied, objective).values():
            size = max(float(p.detach().square().mean().sqrt()), 0.05)
            p.add_((scale * size * torch.randn(p.shape, generator=generator)).to(p.device, p.dtype))
    return copied


def _quicker(network: nn.Module, objective: Objective, record: Record, noise: Record) -> bool:
    """Whether ghost clipping takes less time for a batch; each engine's best of a few."""
    copied = perturbed(network, objective, 0.0)
    ghost, reference = (
        _seconds(lambda engine=engine: engine.clipped(record, noise, 0.5, 1.0))  # type: ignore[misc]
        for engine in (Ghost(copied, objective), Vmap(copied, objective, _TRIED))
    )
    return ghost < reference


def _seconds(run: Callable[[], Tensor]) -> float:
    taken = []
    for _ in range(_TRIALS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _norms(gradients: list[Tensor]) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g, dim=1) for g in gradients]), dim=0
    )
    return found


def _one(losses: Tensor, objective: Objective) -> Tensor:
    if losses.shape != (1,):
        raise CheckFailed(
            f"one record gives losses of shape {tuple(losses.shape)}, not (1,)",
            where=type(objective).__name__,
            remedy="return one loss per record",
        )
    return losses[0]
