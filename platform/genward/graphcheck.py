"""Which ONNX graphs are let in: no randomness of their own, no foreign operators, nothing outside their bytes.

Random operators make rows that cannot be replayed, and equal ones in every replica (onnxruntime seeds each session
alike); external data and foreign domains open files and code that no signature covers (CVE-2024-27318,
CVE-2026-27489); undeclared loops and huge tensors take a worker's time and memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import onnx
from onnx import TensorProto

from genward.errors import CheckFailed, IntegrityError

LARGEST_FILE = 512 << 20  # bytes
LARGEST_TENSOR = 1 << 28  # elements of any one value at BATCH rows
BATCH = 1024
OLDEST = 13  # opset
RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
LOOPS = frozenset(("If", "Loop", "Scan", "SequenceMap"))
_OWN = ("", "ai.onnx")
_TYPES = {"numbers": TensorProto.DOUBLE, "codes": TensorProto.INT32}


def check_graph(data: bytes, *, loops: int, opset: int = 20, meta: Mapping[str, Any] | None = None) -> None:
    """Refuse a graph that is not what was declared.

    Args:
        data: the model's bytes.
        loops: how many Loop, Scan, If and SequenceMap nodes it may hold, at any depth.
        opset: newest opset of the default domain.
        meta: what `export_graph` declared; when given, inputs and outputs must be exactly these.

    Raises:
        IntegrityError: it cannot be read, is too large, or keeps data outside its bytes.
        CheckFailed: an operator, a domain, an input, an output or a size was not declared; names the node.
    """
    model = _parsed(data)
    _check_domains(model, opset)
    graphs = list(_graphs(model.graph))
    nodes = [node for graph in graphs for node in graph.node]
    for node in nodes:
        _check_node(node)
    _check_loops(nodes, loops)
    for tensor in _tensors(graphs, nodes):
        _check_inside(tensor)
    if meta is not None:
        _check_inputs(model.graph, meta)
        _check_outputs(model.graph, meta)
    _check_sizes(model)


def count_loops(data: bytes) -> int:
    """How many Loop, Scan, If and SequenceMap nodes a graph holds, at any depth."""
    return sum(node.op_type in LOOPS for graph in _graphs(_parsed(data).graph) for node in graph.node)


def _parsed(data: bytes) -> Any:
    if len(data) > LARGEST_FILE:
        raise IntegrityError(f"the graph has {len(data)} bytes, the most is {LARGEST_FILE}", where="graph")
    try:
        model = onnx.load_model_from_string(data)
        for tensor in _tensors(list(_graphs(model.graph)), []):
            _check_inside(tensor)  # before the checker, which would look for the file
        onnx.checker.check_model(model)
    except IntegrityError:
        raise
    except Exception as error:  # protobuf and the checker raise bases of their own
        _check_parsed(locals().get("model"))
        raise IntegrityError(f"the graph cannot be read: {_line(error)}", where="graph") from None
    return model


def _check_parsed(model: Any) -> None:
    """A graph the checker refuses may have a more telling fault: a foreign operator."""
    for graph in _graphs(model.graph) if model is not None else ():
        for node in graph.node:
            _check_node(node)


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _tensors(graphs: Sequence[Any], nodes: Sequence[Any]) -> Iterator[Any]:
    """Every tensor stored in the model: initialisers and attributes, dense and sparse."""
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in (a for node in nodes for a in node.attribute):
        yield from ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors)
        for sparse in ([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []) + list(
            attribute.sparse_tensors
        ):
            yield from (sparse.values, sparse.indices)


def _check_domains(model: Any, opset: int) -> None:
    if len(model.functions):
        raise CheckFailed(
            f"function {model.functions[0].name!r} in the model", where="graph", remedy="inline functions"
        )
    if len(model.training_info):
        raise CheckFailed("the model carries training graphs", where="graph")
    for entry in model.opset_import:
        if entry.domain not in _OWN:
            raise CheckFailed(f"foreign domain {entry.domain!r}", where="graph", remedy="use standard operators only")
        if not OLDEST <= entry.version <= opset:
            raise CheckFailed(f"opset {entry.version}, allowed are {OLDEST} to {opset}", where="graph")


def _check_node(node: Any) -> None:
    where = f"node {node.name or node.op_type!r}"
    if node.domain not in _OWN:
        raise CheckFailed(f"operator {node.domain}::{node.op_type} is foreign", where=where)
    if node.op_type in RANDOM:
        raise CheckFailed(
            f"{node.op_type} is random", where=where, remedy="make noise an input of the graph (NoiseSpec)"
        )
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        raise CheckFailed("Dropout may train", where=where, remedy="export the network in eval mode")
    if any(a.name == "training_mode" and a.i for a in node.attribute):
        raise CheckFailed(f"{node.op_type} is in training mode", where=where, remedy="export the network in eval mode")


def _check_loops(nodes: Sequence[Any], loops: int) -> None:
    found = [node for node in nodes if node.op_type in LOOPS]
    if len(found) > loops:
        node = found[loops]
        raise CheckFailed(
            f"{len(found)} loops and branches, {loops} declared", where=f"node {node.name or node.op_type!r}"
        )


def _check_inside(tensor: Any) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
        raise IntegrityError(
            f"tensor {tensor.name!r} lies outside the file", where="graph", remedy="external_data=False"
        )


def _check_inputs(graph: Any, meta: Mapping[str, Any]) -> None:
    stored = {tensor.name for tensor in graph.initializer}
    found = {x.name: _shape(x) for x in graph.input if x.name not in stored}
    wanted = {x["name"]: list(x["shape"]) for x in (*meta["noise"], *meta.get("state", ()))}
    wanted |= {"condition": [int(meta["condition"])]} if meta["condition"] else {}
    steps = {"step"} if meta.get("state") else set()
    _same_names("inputs", found, {*wanted, *steps})
    for name, shape in wanted.items():
        if found[name][1:] != shape:
            raise CheckFailed(f"input {name!r} has rows of shape {found[name][1:]}, declared is {shape}", where="graph")
    if any(x.type.tensor_type.elem_type != TensorProto.FLOAT for x in graph.input if x.name in wanted):
        raise CheckFailed("inputs are not float32", where="graph")


def _check_outputs(graph: Any, meta: Mapping[str, Any]) -> None:
    found = {x.name: x.type.tensor_type.elem_type for x in graph.output}
    states = [f"next_{x['name']}" for x in meta.get("state", ())]
    _same_names("outputs", found, {*meta["outputs"], *states})
    for name, kind in _TYPES.items():
        if found.get(name, kind) != kind:
            raise CheckFailed(f"output {name!r} is not {TensorProto.DataType.Name(kind).lower()}", where="graph")


def _same_names(kind: str, found: Mapping[str, Any], wanted: set[str]) -> None:
    if set(found) != wanted:
        raise CheckFailed(f"{kind} are {sorted(found)}, declared are {sorted(wanted)}", where="graph")


def _check_sizes(model: Any) -> None:
    """No value may be huge at BATCH rows. Shape inference also computes shapes that are given by constants."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise IntegrityError(f"the graph's shapes contradict each other: {_line(error)}", where="graph") from None
    for graph in _graphs(inferred.graph):
        for value in (*graph.value_info, *graph.output):
            if prod(_shape(value)) > LARGEST_TENSOR:
                raise CheckFailed(
                    f"value {value.name!r} has shape {_shape(value)}", where="graph", remedy="too large to serve"
                )


def _shape(value: Any) -> list[int]:
    """Dimensions; a named or unknown one counts as BATCH."""
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else BATCH for d in dims]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
