"""The gate for graphs: each kind of graph that must not be served is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from genward import graphcheck
from genward.errors import CheckFailed, IntegrityError
from genward.graphcheck import check_graph, count_loops

Edit = Callable[[Any], None]
META = {
    "noise": [{"name": "z", "shape": [4], "law": "normal"}, {"name": "u", "shape": [3], "law": "uniform"}],
    "condition": 0,
    "outputs": ["numbers", "codes"],
}


def edited(data: bytes, edit: Edit) -> bytes:
    model = onnx.load_model_from_string(data)
    edit(model)
    return bytes(model.SerializeToString())


def add(*args: Any, **kwargs: Any) -> Edit:
    return lambda model: model.graph.node.append(helper.make_node(*args, **kwargs))


def branch(inner: Any) -> Edit:
    """An If whose branches hold a node."""

    def edit(model: Any) -> None:
        out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
        graphs = {f"{name}_branch": helper.make_graph([inner], name, [], [out]) for name in ("then", "else")}
        model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
        model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], name="fork", **graphs))

    return edit


def external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="../../etc/passwd")


def bomb(model: Any) -> None:
    model.graph.initializer.append(helper.make_tensor("size", TensorProto.INT64, [2], [1 << 20, 1 << 20]))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["huge"], name="bomb"))


def function(model: Any) -> None:
    node = helper.make_node("Relu", ["a"], ["b"])
    made = helper.make_function("own", "Mine", ["a"], ["b"], [node], [helper.make_opsetid("", 20)])
    model.functions.append(made)
    model.opset_import.append(helper.make_opsetid("own", 1))


def foreign(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("evil.ops", 1))
    model.graph.node.append(helper.make_node("Open", ["z"], ["file"], domain="evil.ops", name="door"))


def opset(version: int) -> Edit:
    return lambda model: setattr(model.opset_import[0], "version", version)


RANDOM = ("RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
RANDOM_SHAPED = ("RandomNormal", "RandomUniform")
REFUSED: dict[str, tuple[Edit, str]] = {
    **{op: (add(op, ["z"], ["r"], name="dice"), "dice.*random") for op in RANDOM},
    **{op: (add(op, [], ["r"], name="dice", shape=[2]), "dice.*random") for op in RANDOM_SHAPED},
    "random in a branch": (
        branch(helper.make_node("RandomNormal", [], ["inner"], name="deep", shape=[1])),
        "deep.*random",
    ),
    "undeclared branch": (branch(helper.make_node("Constant", [], ["inner"], value_float=1.0)), "fork.*0 declared"),
    "dropout": (add("Dropout", ["z", "", "hole"], ["r"], name="drop"), "drop"),
    "foreign operator": (foreign, "foreign"),
    "function": (function, "function"),
    "too new": (opset(21), "opset 21"),
    "too old": (opset(11), "opset 11|cannot be read"),
    "huge constant": (bomb, "huge"),
    "external data": (external, "outside"),
    "more outputs": (
        lambda m: m.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 16])),
        "outputs",
    ),
    "input of another shape": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 5),
        "shape",
    ),
    "unused input": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [1])),
        "inputs",
    ),
    "dangling node": (add("Relu", ["nowhere"], ["r"]), "cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_graph_that_must_not_be_served_is_refused(tiny_bytes: bytes, case: str) -> None:
    edit, said = REFUSED[case]
    with pytest.raises((CheckFailed, IntegrityError), match=said):
        check_graph(edited(tiny_bytes, edit), loops=0, meta=META)


def test_the_declared_graph_passes_and_declared_branches_too(tiny_bytes: bytes) -> None:
    check_graph(tiny_bytes, loops=0, meta=META)
    forked = edited(tiny_bytes, branch(helper.make_node("Constant", [], ["inner"], value_float=1.0)))
    assert (count_loops(tiny_bytes), count_loops(forked)) == (0, 1)
    check_graph(forked, loops=1, meta=META)


def test_declared_inputs_must_be_there_with_their_shapes(tiny_bytes: bytes) -> None:
    for noise, said in (([], "inputs"), ([{**META["noise"][0], "shape": [7]}, META["noise"][1]], "shape")):  # type: ignore[index]
        with pytest.raises(CheckFailed, match=said):
            check_graph(tiny_bytes, loops=0, meta={**META, "noise": noise})


def test_outputs_must_have_their_types(onnx_model: Callable[..., bytes], onnx_value: Callable[..., Any]) -> None:
    nodes = [helper.make_node("Cast", ["z"], [name], to=TensorProto.FLOAT) for name in ("numbers", "codes")]
    outputs = [onnx_value(name, TensorProto.FLOAT, 4) for name in ("numbers", "codes")]
    data = onnx_model(nodes, [onnx_value("z", TensorProto.FLOAT, 4)], outputs, {})
    with pytest.raises(CheckFailed, match="double"):
        check_graph(data, loops=0, meta={**META, "noise": META["noise"][:1]})  # type: ignore[index]


def test_oversized_and_garbled_files_are_integrity_errors(tiny_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"", b"\x00\x01garbage", tiny_bytes[:-40], b"PK\x03\x04"):
        with pytest.raises(IntegrityError, match="cannot be read"):
            check_graph(data, loops=0)
    monkeypatch.setattr(graphcheck, "LARGEST_FILE", 100)
    with pytest.raises(IntegrityError, match="bytes"):
        check_graph(tiny_bytes, loops=0)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_is_accepted_or_refused_in_our_words(place: int, value: int) -> None:
    data = bytearray(_graph())
    data[place % len(data)] = value
    try:
        check_graph(bytes(data), loops=0, meta=META)
    except (CheckFailed, IntegrityError) as error:
        assert error.what


def _graph() -> bytes:
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4])
    outs = [
        helper.make_tensor_value_info(n, k, ["batch", 4])
        for n, k in (("numbers", TensorProto.DOUBLE), ("codes", TensorProto.INT32))
    ]
    nodes = [helper.make_node("Cast", ["z"], [o.name], to=o.type.tensor_type.elem_type) for o in outs]
    stored = [onnx.numpy_helper.from_array(np.ones(3, np.float32), "w")]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [z], outs, stored), opset_imports=[helper.make_opsetid("", 20)]
    )
    made.ir_version = 10
    return bytes(made.SerializeToString())
