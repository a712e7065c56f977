"""A small release without a trained network: one graph in ONNX, a codec of two numbers and a category."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from genward.data.schema import Column, Schema
from genward.engine import Engine
from genward.family import Field, Spec
from genward.table import Cell, Table

FLOAT, DOUBLE, INT32, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64


@dataclass
class TinyCodec:
    """Columns density and hardness, phase of three, conditions on phase; what an engine asks of a codec."""

    given: bool = False
    number_columns: tuple[str, ...] = ("density", "hardness")
    code_columns: tuple[str, ...] = ("phase",)
    spec: Spec = field(init=False)

    def __post_init__(self) -> None:
        given = (Field("phase", "choice", 0, 3),) if self.given else ()
        self.spec = Spec("table", (Field("density", "number", 0, 1),), given)

    def condition(self, cells: Sequence[Cell], ids: NDArray[Any], uniforms: NDArray[Any]) -> NDArray[np.float32]:
        names = ("fcc", "bcc", "hcp")
        table = np.array([[n in cell.where.get("phase", ("in", names))[1] for n in names] for cell in cells])
        return table.astype(np.float32)[ids]


def tiny_graph(given: bool = False) -> bytes:
    """z (B, 4) and u (B, 3) -> numbers from awkward functions, codes by argmax with Gumbel noise (or the condition)."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 16)).astype(np.float32),
        "v": rng.normal(size=(16, 2)).astype(np.float32),
        "hole": np.array(-1.2, np.float32),
        "nan": np.array(np.nan, np.float64),
        "minus": np.array(-1.0, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["z", "w"], ["h"]),
        helper.make_node("Softplus", ["h"], ["s"]),
        helper.make_node("Sin", ["s"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["y32"]),
        helper.make_node("Cast", ["y32"], ["y"], to=DOUBLE),
        helper.make_node("Less", ["y32", "hole"], ["gone"]),
        helper.make_node("Where", ["gone", "nan", "y"], ["numbers"]),
        helper.make_node("Log", ["u"], ["logu"]),
        helper.make_node("Mul", ["logu", "minus"], ["e"]),
        helper.make_node("Log", ["e"], ["loge"]),
        helper.make_node("Mul", ["loge", "minus"], ["gumbel"]),
        helper.make_node("ArgMax", ["condition" if given else "gumbel"], ["code64"], axis=1, keepdims=1),
        helper.make_node("Cast", ["code64"], ["codes"], to=INT32),
    ]
    inputs = [value("z", FLOAT, 4), value("u", FLOAT, 3)] + ([value("condition", FLOAT, 3)] if given else [])
    return model(nodes, inputs, [value("numbers", DOUBLE, 2), value("codes", INT32, 1)], constants)


def tiny_meta(given: bool = False) -> dict[str, Any]:
    noise = [{"name": "z", "shape": [4], "law": "normal"}, {"name": "u", "shape": [3], "law": "uniform"}]
    outputs = ["numbers", "codes"]
    return {"noise": noise, "condition": 3 if given else 0, "outputs": outputs, "loops": 0, "gate": "step", "opset": 20}


def value(name: str, kind: int, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: dict[str, Any]) -> bytes:
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(made.SerializeToString())


CELLS = (
    Cell({"phase": ("in", ("fcc",))}, 0.6),
    Cell({"phase": ("in", ("bcc",))}, 0.3),
    Cell({"phase": ("in", ("hcp",))}, 0.1),
)


@pytest.fixture(scope="session")
def tiny_schema() -> Schema:
    numbers = [Column(name=n, kind="numeric", minimum=-50.0, maximum=50.0, step=0.01) for n in ("density", "hardness")]
    return Schema(columns=(*numbers, Column(name="phase", kind="categorical", categories=("fcc", "bcc", "hcp"))))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Engine]:
    """Make an engine: tiny(slots, candidates=1, block=64, given=False, **engine options)."""

    def make(
        slots: int | None = 1000, candidates: int = 1, block: int = 64, given: bool = False, **options: Any
    ) -> Engine:
        table = Table(slots, candidates, block, CELLS if given else ())
        options = {"pool_key": b"0123456789abcdef", **options}
        return Engine(tiny_graph(given), TinyCodec(given), table, tiny_meta(given), **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def onnx_model() -> Callable[..., bytes]:
    return model


@pytest.fixture(scope="session")
def onnx_value() -> Callable[..., Any]:
    return value


@pytest.fixture(scope="session")
def tiny_bytes() -> bytes:
    onnx.checker.check_model(tiny_graph())
    return tiny_graph()
