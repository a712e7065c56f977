"""From a trained network to ONNX bytes, and the proof that onnxruntime computes what torch does.

The exported graph is the family's graph with the codec's decoder behind it: noise and condition are named inputs,
`numbers` (B, P) float64 and `codes` (B, Q) int32 come out in physical units. Traces of this machine are removed.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genward import noise
from genward.contracts import Evidence
from genward.engine_session import Session
from genward.errors import CheckFailed, NotFound
from genward.family import Family, Graph, NoiseSpec, Spec
from genward.graphcheck import check_graph, count_loops

if TYPE_CHECKING:
    from genward.data.codec import Codec

OPSET = 20
ROWS, CHUNK = 8192, 1024  # rows that parity compares, and how many at a time
STEP, CHAIN = 1e-5, 1e-3  # of a column's scale: one step at most, and a chain's 99.9th percentile
CODES = 1e-3  # share of categories and gaps that may fall on the other side of an edge
FLIPS = 1e-2  # share of numbers that may round to the next step of their grid; a fine grid has many edges
_KEY = b"genward parity 1"  # public: nothing of a pool is given away
_Array = NDArray[Any]


@dataclass(frozen=True)
class Exported:
    """A graph's bytes and what they promise; with the module and codec it came from, for the parity gate."""

    data: bytes
    meta: Mapping[str, Any]
    module: nn.Module = field(repr=False)
    graph: Graph = field(repr=False)
    codec: Codec = field(repr=False)


@dataclass(frozen=True)
class ParityReport:
    """How far onnxruntime is from torch, in units of each column's scale, over `n` rows.

    `max` and `p999` leave out flips: values that differ by one step of their column's grid, whose share is `flip_rate`.
    `code_rate` is the share of categories and gaps that differ; `step_max` is one step of an iterated sampler, None for
    a single call. A step may differ by twice what torch in float32 differs from float64, where that is more than STEP.
    """

    n: int
    gate: str
    max: float
    p999: float
    code_rate: float
    flip_rate: float
    step_max: float | None = None
    float32: float = 0.0  # one step of torch in float32 against float64

    def evidence(self) -> list[Evidence]:
        method = f"onnxruntime against torch, {self.n} rows of one key, in units of each column's scale"
        figures = {"max": self.max, "p999": self.p999, "codes": self.code_rate, "flips": self.flip_rate}
        if self.gate == "chain":
            figures["step"] = self.step_max if self.step_max is not None else float("nan")
            figures["float32"] = self.float32
        return [_evidence(f"parity.{name}", value, method, self.n) for name, value in figures.items()]

    def check(self) -> None:
        """Raise CheckFailed unless the gate holds."""
        measured = self.p999 if self.gate == "chain" else self.max
        limit = CHAIN if self.gate == "chain" else STEP
        one = max(STEP, 2 * self.float32)
        tests = {
            f"values differ by {measured:.3g} of their column's scale, allowed is {limit:g}": measured <= limit,
            f"one step differs by {self.step_max}, allowed is {one:g}": self.step_max is None or self.step_max <= one,
            f"{self.code_rate:.3g} of the categories and gaps differ, allowed is {CODES:g}": self.code_rate <= CODES,
            f"{self.flip_rate:.3g} of the last digits differ, allowed is {FLIPS:g}": self.flip_rate <= FLIPS,
        }
        if failed := [text for text, holds in tests.items() if not holds]:
            raise CheckFailed(f"onnxruntime and torch disagree: {'; '.join(failed)}", where="parity")


def export_graph(family: Family, network: nn.Module, config: Any, codec: Codec, *, name: str = "sample") -> Exported:
    """Export one graph of a family with the decoder behind it; NotFound if there is none, CheckFailed if refused."""
    network.eval()
    graphs = family.graphs(network, config)
    if name not in graphs:
        raise NotFound(f"family {family.name!r} has no graph {name!r}", remedy=f"it has {', '.join(graphs)}")
    return export(graphs[name], codec)


def export(graph: Graph, codec: Codec) -> Exported:
    """Export a graph with the decoder of `codec`, and run the gate for graphs over the bytes."""
    module = _Served(graph, codec.decoder(), codec.spec).eval()
    outputs = ["numbers", "codes", *(f"next_{s.name}" for s in graph.state)]
    data = to_onnx(module, module.examples(2), module.names, outputs)
    loops = count_loops(data)
    if loops and graph.gate != "chain":
        raise CheckFailed(f"the graph has {loops} loops or branches", where="export", remedy='declare gate="chain"')
    meta = _meta(module, loops)
    check_graph(data, loops=loops, opset=OPSET, meta=meta)
    return Exported(data, meta, module, graph, codec)


def _meta(module: _Served, loops: int) -> dict[str, Any]:
    graph, outputs = module.graph, ["numbers", "codes"]
    meta = {"driver": "single", "noise": _plain(graph.noise), "condition": module.width, "outputs": outputs}
    if graph.state:
        meta |= {"driver": "stepped", "state": _plain(graph.state), "steps": module.steps}
    return {**meta, "loops": loops, "gate": graph.gate, "opset": OPSET}


def _plain(specs: Sequence[NoiseSpec]) -> list[dict[str, Any]]:
    return [{"name": s.name, "shape": list(s.shape), "law": s.law} for s in specs]


class _Served(nn.Module):
    """Noise in order, condition, states, step -> numbers, codes, new states. A stepped module says how many `steps`
    it takes and gets the step's number as its last input, int64 of shape (1,)."""

    def __init__(self, graph: Graph, decoder: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.graph, self.network, self.decoder = graph, graph.module, decoder
        self.width = spec.condition_width
        self.spec = spec
        self.steps = int(getattr(graph.module, "steps", 0)) if graph.state else 0
        if graph.state and self.steps < 1:
            raise CheckFailed("a graph with state must say its number of `steps`", where="export")

    @property
    def names(self) -> list[str]:
        condition = ["condition"] if self.width else []
        states = [*(s.name for s in self.graph.state), "step"] if self.graph.state else []
        return [*(s.name for s in self.graph.noise), *condition, *states]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        count = len(self.graph.noise)
        condition = inputs[count : count + 1] if self.width else ()
        rest = inputs[count + len(condition) :]
        given = condition if self.graph.conditions else ()
        out = self.network(*inputs[:count], *given, *rest)
        encoded, states = (out[0], tuple(out[1:])) if self.graph.state else (out, ())
        numbers, codes = self.decoder(encoded, *condition)
        return numbers.to(torch.float64), codes.to(torch.int32), *states

    def examples(self, rows: int, start: int = 0) -> tuple[Tensor, ...]:
        """Inputs of `rows` rows from a public key."""
        places = np.arange(start, start + rows, dtype=np.uint64)
        drawn = list(noise.draw(self.graph.noise, _KEY, places).values())
        condition = [_conditions(self.spec, places)] if self.width else []
        states = list(noise.draw(self.graph.state, _KEY, places, first=noise.STATE).values())
        step = [np.zeros(1, dtype=np.int64)] if self.graph.state else []
        return tuple(torch.from_numpy(array) for array in (*drawn, *condition, *states, *step))


def _conditions(spec: Spec, rows: _Array) -> NDArray[np.float32]:
    """Plausible conditions: one category of each choice, a standard normal for each number."""
    parts = []
    for i, given in enumerate(spec.given):
        if given.kind == "choice":
            drawn = noise.uniform(_KEY, rows, noise.WITHIN, (), step=i)
            parts.append(np.eye(given.width, dtype=np.float32)[(drawn * given.width).astype(np.int64)])
        else:
            parts.append(noise.normal(_KEY, rows, noise.WITHIN, (given.width,), step=i))
    return np.concatenate(parts, axis=1)


def to_onnx(module: nn.Module, examples: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """One self-contained file, first axis of every input dynamic but for `step`; the exporter's chatter is silenced."""
    batch = torch.export.Dim("batch")
    shapes = (tuple({} if name == "step" else {0: batch} for name in inputs),)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever its passes raise
            raise CheckFailed(f"the network cannot be exported: {_line(error)}", where="export") from error
    return _stripped(program.model_proto)  # type: ignore[union-attr]


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _stripped(model: Any) -> bytes:
    """The model's bytes without stack traces and names of source files, which the exporter leaves in every node."""
    del model.metadata_props[:]
    _strip(model.graph)
    return bytes(model.SerializeToString(deterministic=True))


def _strip(graph: Any) -> None:
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for attribute in (a for node in graph.node for a in node.attribute):
        attribute.doc_string = ""
        for inner in ([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []) + list(attribute.graphs):
            _strip(inner)


# Parity


def parity(exported: Exported, rows: int = ROWS) -> ParityReport:
    """Compare onnxruntime with torch on the same noise; raises CheckFailed unless the gate holds."""
    report = measure_parity(exported, rows)
    report.check()
    return report


def measure_parity(exported: Exported, rows: int = ROWS) -> ParityReport:
    """Compare without judging."""
    ours, theirs = _both(exported.data, exported.module, exported.module.names, ["numbers", "codes"], rows)  # type: ignore[arg-type]
    differences, flips = _numbers(ours[0], theirs[0], _grids(exported.codec, theirs[0]))
    other = (np.isnan(ours[0]) != np.isnan(theirs[0])).sum() + (ours[1] != theirs[1]).sum()
    codes = float(other / max(ours[0].size + ours[1].size, 1))
    largest = float(differences.max(initial=0.0))
    p999 = float(np.quantile(differences, 0.999)) if differences.size else 0.0
    step, own = _step(exported, rows) if exported.graph.step is not None else (None, 0.0)
    return ParityReport(rows, exported.graph.gate, largest, p999, codes, float(flips), step, own)


def _both(
    data: bytes, module: nn.Module, names: Sequence[str], outputs: Sequence[str], rows: int
) -> tuple[list[_Array], list[_Array]]:
    """Named outputs of onnxruntime and of torch, chunk by chunk."""
    session, ours, theirs = Session(data), [], []
    for start in range(0, rows, CHUNK):
        inputs = module.examples(min(CHUNK, rows - start), start)  # type: ignore[operator]
        feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        ours.append(session.run(outputs, feeds))
        with torch.no_grad():
            out = module(*inputs)
        theirs.append([t.numpy() for t in (out if isinstance(out, tuple) else (out,))][: len(outputs)])
    join = [[np.concatenate(parts) for parts in zip(*side, strict=True)] for side in (ours, theirs)]
    return join[0], join[1]


def _numbers(ours: _Array, theirs: _Array, grids: _Array, least: float = 1e-12) -> tuple[_Array, float]:
    """Differences in units of max(column's scale, value), and the share of flips among all values; gaps are left out.

    A heavy tail's value is judged against itself: float32 holds seven digits of it, not of its column's scale.
    """
    if not theirs.size:
        return np.zeros(0), 0.0
    apart = np.where(np.isnan(ours) | np.isnan(theirs), 0.0, np.abs(ours - theirs))
    stepped = (apart > 0) & (np.abs(apart - grids) <= 1e-6 * grids)
    known = np.where(np.isnan(theirs), 0.0, np.abs(theirs))
    scale = np.maximum(np.nanstd(np.where(np.isnan(theirs).all(axis=0), 0.0, theirs), axis=0), 1e-12)
    differences = apart / np.maximum(scale, known)
    flips = stepped & (differences > STEP)
    return differences[~flips], float(flips.mean())


def _grids(codec: Any, numbers: _Array) -> _Array:
    """One step of each value's grid, NaN where its column has none; shape of `numbers`."""
    grids = np.full(numbers.shape, np.nan)
    columns = [codec.schema.column(name) for name in codec.number_columns] if hasattr(codec, "schema") else []
    for i, column in enumerate(columns):
        if column.digits:
            size = np.maximum(np.abs(np.nan_to_num(numbers[:, i])), 1e-300)
            grids[:, i] = 10.0 ** (np.floor(np.log10(size)) + 1 - column.digits)
        elif column.step or column.kind != "numeric":
            grids[:, i] = column.grid
    return grids


class _OneStep(nn.Module):
    """One step of an iterated sampler, without the decoder."""

    def __init__(self, served: _Served, step: nn.Module) -> None:
        super().__init__()
        self.step, self._served = step, [served]  # in a list: not a sub-module

    def examples(self, rows: int, start: int = 0) -> tuple[Tensor, ...]:
        served = self._served[0]
        inputs = served.examples(rows, start)
        return inputs if served.graph.conditions else inputs[: len(served.graph.noise)]

    def forward(self, *inputs: Tensor) -> Any:
        return self.step(*inputs)


def _step(exported: Exported, rows: int) -> tuple[float, float]:
    """The largest difference of one step, in units of max(1, value): encoded fields have unit scale by contract; and
    the largest of torch's own, float32 against float64."""
    served, step = exported.module, exported.graph.step
    if not isinstance(served, _Served) or step is None:
        raise CheckFailed("this graph has no single step", where="parity")
    module = _OneStep(served, step).eval()
    examples = module.examples(2)
    names = served.names[: len(examples)]
    data = to_onnx(module, examples, names, ["encoded"])
    ours, theirs = _both(data, module, names, ["encoded"], rows)
    return _unit(ours[0], theirs[0]), _unit(_doubled(module, rows), theirs[0])


def _unit(ours: _Array, theirs: _Array) -> float:
    differences, _ = _numbers(ours, theirs, np.full(theirs.shape, np.nan), least=1.0)
    return float(differences.max(initial=0.0))


def _doubled(module: _OneStep, rows: int) -> _Array:
    """The step in float64 on the same inputs."""
    exact, parts = copy.deepcopy(module.step).double(), []
    for start in range(0, rows, CHUNK):
        inputs = module.examples(min(CHUNK, rows - start), start)
        with torch.no_grad():
            parts.append(exact(*(x.double() for x in inputs)).numpy())
    return np.concatenate(parts)


def _evidence(claim: str, value: float, method: str, n: int) -> Evidence:
    known = Evidence(claim, value, method, n)
    return (
        known if value == value else replace(known, value=None, method="not measured: the family names no single step")
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
