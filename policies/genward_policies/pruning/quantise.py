"""Eight-bit weights by onnxruntime: static (QDQ, scales from generated noise), or dynamic where a policy asks for it.

Layers that multiply float32 records by a stored matrix are quantised, channel by channel. The decoder is float64 and
stays so; a layer with few channels on one side stays float too, since it costs little and its error is seen in every
value; so does one that is run once for all rows. The graph's inferred shapes are removed first: left in, they make
`quantize_dynamic` fail on exports of torch (microsoft/onnxruntime issue 25890).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from genward.errors import CheckFailed

FEW = 24  # channels of a layer that stays float
_LAYERS = ("Gemm", "MatMul")
_LOOPS = ("If", "Loop", "Scan")
Feeds = Sequence[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Layers:
    """Names of layers to quantise, and why others are not."""

    chosen: tuple[str, ...]
    left: Mapping[str, str]


def layers(data: bytes) -> Layers:
    """Which layers of a graph can be quantised."""
    model = onnx.load_model_from_string(data)
    stored = {t.name: t for t in model.graph.initializer}
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*model.graph.value_info, *model.graph.input)}
    chosen, left = [], {}
    for node in model.graph.node:
        if node.op_type in _LOOPS:
            left[node.name] = f"{node.op_type}: what it holds runs again and again with scales of its own"
        elif node.op_type in _LAYERS:
            reason = _reason(node, stored, shapes)
            if reason:
                left[node.name] = reason
            else:
                chosen.append(node.name)
    return Layers(tuple(chosen), left)


def _reason(node: Any, stored: Mapping[str, Any], shapes: Mapping[str, Any]) -> str:
    """Why a layer stays float; empty when it need not."""
    weight = stored.get(node.input[1])
    if weight is None or len(weight.dims) != 2:
        return f"{node.op_type}: it multiplies two computed values"
    if weight.data_type != TensorProto.FLOAT:
        return f"{node.op_type}: it is not float32"
    if min(weight.dims) < FEW:
        return f"{node.op_type}: {min(weight.dims)} channels on one side"
    dims = shapes.get(node.input[0], ())
    if len(dims) and dims[0].dim_value == 1:
        return f"{node.op_type}: it is run once for all rows"
    return ""


def quantise(data: bytes, kind: Literal["static", "dynamic"], feeds: Feeds) -> bytes:
    """The graph with eight-bit weights; `feeds` are inputs of generated noise, for the scales of a static one.

    Raises CheckFailed that names the nodes when no layer can be quantised, or one was not that should have been.
    """
    data = data if kind == "static" else _multiplied(data)
    found = layers(data)
    if not found.chosen:
        named = "; ".join(f"node {name!r}: {why}" for name, why in list(found.left.items())[:3]) or "it has no layers"
        remedy = f"leave int8_{kind} out of `allow`"
        raise CheckFailed(f"nothing in the graph can be quantised: {named}", where="int8", remedy=remedy)
    model = onnx.load_model_from_string(data)
    del model.graph.value_info[:]
    weights = {node.input[1]: node.name for node in model.graph.node if node.name in found.chosen}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "int8.onnx"
        (_static if kind == "static" else _dynamic)(model, target, found.chosen, feeds)
        after = onnx.load_model(target)
    _require(after, weights)
    return bytes(after.SerializeToString(deterministic=True))


def _multiplied(data: bytes) -> bytes:
    """Gemm as MatMul and Add: onnxruntime has dynamic kernels for those alone, and would rename the nodes itself."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load_model_from_string(data))
    model.replace_gemm_with_matmul()
    return bytes(model.model.SerializeToString())


def _static(model: Any, target: Path, chosen: Sequence[str], feeds: Feeds) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        model,
        target,
        _Noise(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_LAYERS),
        nodes_to_quantize=list(chosen),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibration_providers=["CPUExecutionProvider"],
    )


def _dynamic(model: Any, target: Path, chosen: Sequence[str], feeds: Feeds) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        model,
        target,
        op_types_to_quantize=list(_LAYERS),
        nodes_to_quantize=list(chosen),
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


class _Noise:
    """Feeds one after the other, as onnxruntime's calibration reads them."""

    def __init__(self, feeds: Feeds) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        return next(self._left, None)

    def __len__(self) -> int:
        return 0


def _require(model: Any, weights: Mapping[str, str]) -> None:
    """No chosen layer may still read its float matrix: onnxruntime leaves what it cannot quantise without a word."""
    stored = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    for node in model.graph.node:
        if node.op_type in _LAYERS and node.input[1] in stored & weights.keys():
            name = weights[node.input[1]]
            raise CheckFailed(f"node {name!r} ({node.op_type}) was not quantised", where="int8")


def widths(data: bytes) -> list[list[int]]:
    """Shapes of every stored matrix of a graph, sorted: what was achieved, whatever was asked."""
    model = onnx.load_model_from_string(data)
    shapes = [list(t.dims) for t in model.graph.initializer if len(t.dims) >= 2]
    inner = [t for node in model.graph.node for a in node.attribute if a.HasField("g") for t in a.g.initializer]
    return sorted([*shapes, *(list(t.dims) for t in inner if len(t.dims) >= 2)])


def zeroed(data: bytes, share: float) -> bytes:
    """Magnitude pruning (Han et al. 2015, arXiv:1506.02626): the smallest weights of each matrix become zero. It makes
    a file that packs well and not one row quicker; it is here to be measured."""
    model = onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT and min(tensor.dims) >= FEW:
            values = numpy_helper.to_array(tensor).copy()
            values[np.abs(values) < np.quantile(np.abs(values), share)] = 0.0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's advice on preprocessing goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
