"""Training without gradients: a family asks a mechanism for counts of discretised records, and sets its parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from genward.candidate import NETWORK
from genward.contracts import Progress
from genward.errors import CheckFailed, DataError, Interrupted
from genward.family import Family, Field, Mechanism, Spec, Trained

if TYPE_CHECKING:
    from genward.train import Protector, TrainOptions

Codes = NDArray[np.int32]


def fit(
    family: Family,
    config: Any,
    spec: Spec,
    records: Mapping[str, NDArray[np.float32]],
    folder: Path,
    options: TrainOptions,
    progress: Progress,
    protect: Protector | None = None,
) -> Trained:
    """Train a family that has `bins` and leave its network in `folder`; interrupted, it begins anew."""
    if spec.given:
        raise DataError("this family takes no conditions", where=family.name, remedy="train without --condition")
    if len(records["x"]) < 2:
        raise DataError(f"{len(records['x'])} records are nothing to learn from", remedy="give a larger table")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    network = family.build(spec, config)
    about = {"spec": spec, "network": network, "phases": (), "records": records}
    owner = None if protect is None else protect(**about, device=torch.device("cpu"), options=options)
    mechanism: Mechanism = Exact(spec, records["x"], family.bins(config)) if owner is None else owner.mechanism()
    try:
        family.fit(network, mechanism, config, progress)
    except KeyboardInterrupt:
        progress.finish("stopped")
        remedy = "the same command with --resume begins anew"
        raise Interrupted("training was stopped", where=str(folder), remedy=remedy) from None
    if owner is not None:
        owner.finish()
    return _kept(network, folder, options)


def _kept(network: torch.nn.Module, folder: Path, options: TrainOptions) -> Trained:
    from safetensors.torch import save_file

    from genward.train import replaced

    history = {"steps": [], "options": asdict(options)}
    replaced(folder / "losses.json", lambda path: path.write_text(json.dumps(history, indent=1)))
    tensors = {name: t.contiguous() for name, t in network.eval().state_dict().items()}
    replaced(folder / NETWORK, lambda path: save_file(tensors, path))
    return Trained(network, history)


class Exact:
    """A mechanism without protection: true counts, for nothing."""

    rho = math.inf

    def __init__(self, spec: Spec, x: NDArray[np.float32], bins: int) -> None:
        self._codes, self.domain = discretised(spec, x, bins)
        self.rows = float(len(x))

    def merge(self, field: int, groups: Sequence[int]) -> None:
        """Count groups of values from now on."""
        self._codes, self.domain = merged(self._codes, self.domain, field, groups)

    def measure(self, fields: Sequence[int], rho: float) -> NDArray[np.float64]:
        """True counts of every combination of values."""
        return counted(self._codes, self.domain, fields)

    def select(
        self,
        candidates: Sequence[Sequence[int]],
        expected: Sequence[NDArray[np.float64]],
        penalties: Sequence[float],
        rho: float,
    ) -> int:
        """The candidate that differs most."""
        pairs = zip(candidates, expected, strict=True)
        apart = [np.abs(counted(self._codes, self.domain, c) - e).sum() for c, e in pairs]
        return int(np.argmax(np.array(apart) - np.asarray(penalties)))


@dataclass(frozen=True)
class Place:
    """Where a column of the spec lies, and how it is cut.

    `cuts` are the interior bounds of a number's bins, as shares in (0, 1) of its law; `choice` is the start of its
    {present, missing}, None when it is never missing. Of a choice column `choice` is its own start, `cuts` is empty.
    """

    column: str
    start: int
    choice: int | None
    cuts: tuple[float, ...]
    values: int  # how many there are, a gap included

    @property
    def is_choice(self) -> bool:
        return self.start == self.choice


def places(spec: Spec, bins: int) -> list[Place]:
    """Each column of the spec, in order."""
    found: dict[str, Place] = {}
    for field in spec.fields:
        if field.kind == "number":
            inner = cuts(field, bins)
            found[field.column] = Place(field.column, field.start, None, inner, len(inner) + 1)
        elif field.column in found:
            number = found[field.column]
            found[field.column] = replace(number, choice=field.start, values=number.values + 1)
        else:
            found[field.column] = Place(field.column, field.start, field.start, (), field.width)
    return list(found.values())


def cuts(field: Field, bins: int) -> tuple[float, ...]:
    """Interior bounds of at most `bins` bins of a number: even in probability, moved to where it may be cut."""
    even = np.arange(1, bins) / bins
    if not field.cuts:
        return tuple(even.tolist())
    allowed = np.array(field.cuts)
    if len(allowed) < bins:
        return field.cuts
    nearest = np.unique(np.abs(allowed[None, :] - even[:, None]).argmin(axis=1))
    return tuple(allowed[nearest].tolist())


def discretised(spec: Spec, x: NDArray[np.float32], bins: int) -> tuple[Codes, tuple[int, ...]]:
    """(codes (N, columns), domain) of encoded records; see `Mechanism`."""
    columns = places(spec, bins)
    codes = np.empty((len(x), len(columns)), dtype=np.int32)
    for i, place in enumerate(columns):
        if place.is_choice:
            codes[:, i] = x[:, place.start : place.start + place.values].argmax(axis=1)
            continue
        share = torch.special.ndtr(torch.from_numpy(x[:, place.start].astype(np.float64))).numpy()
        codes[:, i] = np.searchsorted(np.array(place.cuts), share, side="right")
        if place.choice is not None:
            missing = x[:, place.choice + 1] > x[:, place.choice]
            codes[:, i] = np.where(missing, place.values - 1, codes[:, i])
    return codes, tuple(place.values for place in columns)


def merged(codes: Codes, domain: Sequence[int], field: int, groups: Sequence[int]) -> tuple[Codes, tuple[int, ...]]:
    """(codes, domain) with a group in place of each value of a field; CheckFailed unless each value has one."""
    table = np.asarray(groups)
    if (
        not 0 <= field < len(domain)
        or table.shape != (domain[field],)
        or set(table.tolist()) != set(range(max(groups) + 1))
    ):
        raise CheckFailed("each value of a field needs a group, and the groups are 0, 1, ...", where=f"field {field}")
    codes = codes.copy()
    codes[:, field] = table[codes[:, field]]
    return codes, (*domain[:field], int(table.max()) + 1, *domain[field + 1 :])


def counted(codes: Codes, domain: Sequence[int], fields: Sequence[int]) -> NDArray[np.float64]:
    """How many records have each combination of values of some fields, shape (domain[f] for f in fields)."""
    shape = tuple(domain[f] for f in fields)
    flat = np.ravel_multi_index(tuple(codes[:, f] for f in fields), shape)
    return np.bincount(flat, minlength=math.prod(shape)).reshape(shape).astype(np.float64)
