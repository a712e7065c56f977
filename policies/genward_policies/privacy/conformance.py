"""Whether a network and its loss keep what differential privacy rests on: one record moves the sum by at most C.

Run before every private training, about a second, on records drawn at random from the spec, so that a refusal tells
nothing of the data. In order of what it finds:

    declared        couples, data-dependent initialisation, batch statistics, dropout
    statistics      a buffer that the loss changes
    own randomness  the same call twice gives two answers
    coupling        a record's loss in a batch against the same record alone: honest losses differ by rounding
    gradients       the reference engine against one-record batches
    sensitivity     leave one record out of the clipped sum

The last two are what the guarantee is; the others say what is wrong in words an author can act on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genward.errors import CheckFailed, GenwardError
from genward.family import Field, NoiseSpec, Objective, Phase, Record, Spec
from genward_policies.privacy.engine import Engine, Vmap, perturbed, picked, place, rows, trained

SENSITIVITY = 1.001  # of C; float32 sums err by less
GRADIENTS = 1e-3  # relative error of a clipped sum; honest losses stay below 1e-5
COUPLING = 3e-4  # relative difference of a loss alone and in company: honest 3e-6, coupled 3e-3 and more
_POINTS = ((0.0, 0.0), (0.3, 0.6))  # how far from where the network stands, and at what progress
_STATISTICS = (nn.modules.batchnorm._BatchNorm,)
_DROPOUT = (nn.modules.dropout._DropoutNd,)


@dataclass(frozen=True, slots=True)
class Conformance:
    """What was found: largest influence of one record over C, largest relative error of gradients, records tried."""

    sensitivity: float
    error: float
    units: int


def check(
    network: nn.Module,
    objective: Objective,
    records: Record | None,
    spec: Spec,
    clip: float,
    *,
    units: int = 16,
    device: torch.device | str = "cpu",
) -> Conformance:
    """Check an objective before it is trained privately; the network is left as it is.

    Args:
        records: public records to try, (units or more, ...) each; None draws them from the spec. Private records do
            not belong here: a refusal is seen by everybody.
        clip: C of the training to come.
        units: how many records are tried.

    Raises CheckFailed that names module, objective and mend.
    """
    refuse_objective(network, objective)
    given = synthetic(spec, units) if records is None else records
    record = {name: part[:units].to(device) for name, part in given.items()}
    noise = drawn(objective.noise, rows(record), torch.Generator().manual_seed(5), device)
    case = _Case(network, objective, record, noise)
    with torch.random.fork_rng(devices=[]), _one_thread():  # randomness of an objective's own must not move ours
        found = [_tried(case, perturbed(network, objective, scale), progress, clip) for scale, progress in _POINTS]
    return Conformance(max(f[0] for f in found), max(f[1] for f in found), rows(record))


def check_phase(phase: Phase, family: str = "") -> None:
    """Refuse a phase that begins with a look at the data."""
    if phase.begin is not None or phase.statistics:
        raise CheckFailed(
            f"a phase begins with statistics of records ({', '.join(phase.statistics) or 'begin'})",
            where=family,
            remedy="initialise by public constants: data-dependent initialisation is not private",
        )


def refuse_objective(network: nn.Module, objective: Objective) -> None:
    """Refuse what an objective says of itself, and modules that are known to mix records or to draw."""
    if objective.couples:
        raise CheckFailed(
            "the loss couples records, so one record's influence has no bound",
            where=place(network, objective),
            remedy="a family whose objective couples records cannot be trained privately; choose another",
        )
    if not objective.reads_data:
        raise CheckFailed("the loss reads no data", where=place(network, objective), remedy="train it as it is")
    if not trained(network, objective):
        raise CheckFailed("the objective trains no parameter", where=place(network, objective), remedy="see `trains`")
    for name, module in _moved(network, objective):
        if isinstance(module, _STATISTICS):
            raise CheckFailed(
                f"{name} ({type(module).__name__}) normalises by statistics of the batch",
                where=place(network, objective),
                remedy="use GroupNorm or LayerNorm",
            )
        if isinstance(module, _DROPOUT) and module.p > 0:
            raise CheckFailed(
                f"{name} ({type(module).__name__}) draws randomness of its own",
                where=place(network, objective),
                remedy="leave dropout out (p=0), or take the mask as a noise input (NoiseSpec)",
            )


def synthetic(spec: Spec, count: int, seed: int = 11) -> dict[str, Tensor]:
    """Records drawn from a spec: normal numbers, choices at random. {"x": (count, width), "c": ...}."""
    generator = torch.Generator().manual_seed(seed)
    found = {"x": _encoded(spec.fields, count, generator)}
    return found | ({"c": _encoded(spec.given, count, generator)} if spec.given else {})


def like(records: Mapping[str, Tensor], count: int, seed: int = 11) -> dict[str, Tensor]:
    """Random records with nothing but the shapes of others: normal where they are floats, zero where whole."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn((count, *part.shape[1:]), generator=generator).to(part.device, part.dtype)
        if part.is_floating_point()
        else torch.zeros((count, *part.shape[1:]), dtype=part.dtype, device=part.device)
        for name, part in records.items()
    }


def drawn(
    specs: Sequence[NoiseSpec], count: int, generator: torch.Generator, device: torch.device | str
) -> dict[str, Tensor]:
    """An objective's noise, a draw a record."""
    found = {}
    for spec in specs:
        draw = torch.randn if spec.law == "normal" else torch.rand
        found[spec.name] = draw((count, *spec.shape), generator=generator, device=generator.device).to(device)
    return found


def sensitivity(engine: Engine, record: Record, noise: Record, progress: float, clip: float) -> float:
    """Largest change of the clipped sum when one record is left out, over C."""
    whole = engine.clipped(record, noise, progress, clip)
    worst = 0.0
    for i in range(rows(record)):
        others = torch.tensor([k for k in range(rows(record)) if k != i], device=whole.device)
        left = engine.clipped(picked(record, others), picked(noise, others), progress, clip)
        worst = max(worst, float((whole - left).norm()) / clip)
    return worst


@dataclass(frozen=True)
class _Case:
    network: nn.Module  # as given, for its names
    objective: Objective
    record: Record
    noise: Record

    def refuse(self, what: str, remedy: str) -> CheckFailed:
        return CheckFailed(what, where=place(self.network, self.objective), remedy=remedy)


def _tried(case: _Case, network: nn.Module, progress: float, clip: float) -> tuple[float, float]:
    """(sensitivity over C, relative error of gradients) of a copy at one point."""
    _check_buffers(case, network, progress)
    _check_losses(case, network, progress)
    engine = Vmap(network, case.objective)
    try:
        truth = _one_by_one(case, network, progress)
        each = engine.each(case.record, case.noise, progress)
    except GenwardError:
        raise
    except Exception as error:
        raise case.refuse(
            f"no gradient of one record alone: {str(error).splitlines()[0]}",
            "a loss takes records one by one, draws nothing (NoiseSpec) and calls no .item()",
        ) from None
    _check_finite(case, truth)
    bound = min(clip, 0.5 * float(truth.norm(dim=1).median()))  # low enough that clipping bites
    apart = float((each - truth).norm() / truth.norm())
    worst = sensitivity(engine, case.record, case.noise, progress, bound)
    if not (apart <= GRADIENTS and worst <= SENSITIVITY):
        raise case.refuse(
            f"one record moves the clipped sum by {worst:.4g} C, gradients err by {apart:.2g}",
            "the loss of a record must depend on that record and its noise alone",
        )
    return worst, apart


def _check_losses(case: _Case, network: nn.Module, progress: float) -> None:
    count = rows(case.record)
    together = _losses(case, network, progress)
    if together.shape != (count,):
        raise case.refuse(f"{count} records give losses of shape {tuple(together.shape)}", "return one loss per record")
    if not torch.isfinite(together).all():
        raise case.refuse("the loss of a record drawn from the schema is not finite", "bound what the loss divides by")
    if not torch.allclose(together, _losses(case, network, progress), rtol=1e-5, atol=1e-6):
        raise case.refuse(
            "the loss draws randomness of its own: the same call twice gives two answers",
            "declare it in `noise` (NoiseSpec), so that each record has a draw",
        )
    alone = torch.cat([_losses(case, network, progress, torch.tensor([i])) for i in range(count)])
    apart = float(((alone - together).abs() / together.abs().clamp(min=float(together.abs().mean()))).max())
    if not apart <= COUPLING:
        raise case.refuse(
            f"a record's loss changes by {apart:.2g} of itself with the records beside it",
            "the loss mixes records (batch normalisation, minibatch discrimination, pairs, a shared mean); "
            "use GroupNorm or LayerNorm, or say `couples` and train without privacy",
        )


def _check_buffers(case: _Case, network: nn.Module, progress: float) -> None:
    """What moves without a gradient moves without noise."""
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    _losses(case, network, progress)
    for name, buffer in network.named_buffers():
        if not torch.equal(buffer, kept[name]):
            raise case.refuse(
                f"the loss changes the buffer {name}: a statistic of records that no noise covers",
                "make it a parameter that the loss trains (no moving averages, no spectral normalisation)",
            )


def _losses(case: _Case, network: nn.Module, progress: float, index: Tensor | None = None) -> Tensor:
    some = torch.arange(rows(case.record)) if index is None else index
    record, noise = picked(case.record, some), picked(case.noise, some)
    try:
        with torch.no_grad():
            return case.objective.loss(network, record, noise, progress).detach()
    except GenwardError:
        raise
    except Exception as error:
        raise case.refuse(
            f"the loss of {len(some)} record{'s' * (len(some) != 1)} fails: {str(error).splitlines()[0]}",
            "a loss takes any number of records, one included",
        ) from None


def _one_by_one(case: _Case, network: nn.Module, progress: float) -> Tensor:
    """Brute force: gradients (B, parameters) of one-record batches, by plain autograd."""
    parameters = list(trained(network, case.objective).values())
    found = []
    for i in range(rows(case.record)):
        index = torch.tensor([i])
        with torch.enable_grad():
            loss = case.objective.loss(network, picked(case.record, index), picked(case.noise, index), progress)
            parts = torch.autograd.grad(loss.sum(), parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def _check_finite(case: _Case, gradients: Tensor) -> None:
    if not torch.isfinite(gradients).all():
        raise case.refuse("the gradient of a record drawn from the schema is not finite", "bound what the loss divides")
    if not gradients.any():
        raise case.refuse("no record has a gradient", "check `trains` and the loss: nothing would be learnt")


@contextmanager
def _one_thread() -> Iterator[None]:
    """A few records: more threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _moved(network: nn.Module, objective: Objective) -> Iterator[tuple[str, nn.Module]]:
    for path in objective.trains:
        for name, module in network.get_submodule(path).named_modules():
            yield ".".join(part for part in (path, name) if part) or type(module).__name__, module


def _encoded(fields: tuple[Field, ...], count: int, generator: torch.Generator) -> Tensor:
    parts = []
    for field in fields:
        if field.kind == "number":
            parts.append(torch.randn((count, field.width), generator=generator))
        else:
            chosen = torch.randint(field.width, (count,), generator=generator)
            parts.append(nn.functional.one_hot(chosen, field.width).float())
    return torch.cat(parts, dim=1) if parts else torch.zeros((count, 0))
