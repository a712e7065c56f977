"""Eight-bit weights: which layers take them, which are named and left, and that nothing is left without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genward.candidate import Candidate
from genward.errors import CheckFailed
from genward.export import Exported, export_graph
from genward.graphcheck import check_graph
from genward_policies.pruning import cost
from genward_policies.pruning.quantise import layers, quantise, widths, zeroed
from genward_policies.pruning.search import feeds, quantised


def _exported(candidate: Candidate, unrolled: bool = True) -> Exported:
    config = candidate.family.unrolled(candidate.config) if unrolled else candidate.config
    return export_graph(candidate.family, candidate.network(), config, candidate.codec)


@pytest.fixture(scope="module", params=["vae", "diffusion"])
def subject(request: Any, make_candidate: Callable[..., Candidate]) -> tuple[Candidate, Exported]:
    candidate = make_candidate(request.param)
    return candidate, _exported(candidate)


def test_a_quantised_graph_passes_the_gate_for_graphs_and_is_near_the_float_one(subject: Any) -> None:
    candidate, exported = subject
    data = quantised(candidate, exported.data, exported.graph.noise, "static")
    check_graph(data, loops=exported.meta["loops"], opset=exported.meta["opset"], meta=exported.meta)
    plain, coarse = (
        cost.made(graph, exported.meta, candidate.codec, cost.key("test"), 1024) for graph in (exported.data, data)
    )
    assert not np.array_equal(plain, coarse)
    number = next(f.start for f in candidate.codec.spec.fields if f.kind == "number")
    assert np.corrcoef(plain[:, number], coarse[:, number])[0, 1] > 0.9
    assert {node.op_type for node in onnx.load_model_from_string(data).graph.node} >= {"QuantizeLinear"}


def test_quantising_twice_gives_the_same_bytes(subject: Any) -> None:
    candidate, exported = subject
    one, two = (quantised(candidate, exported.data, exported.graph.noise, "static") for _ in range(2))
    assert one == two


def test_dynamic_weights_survive_the_shapes_that_torch_leaves_in_its_exports(subject: Any) -> None:
    """The export's inferred shapes make onnxruntime's quantize_dynamic fail; ours takes them out first."""
    candidate, exported = subject
    assert len(onnx.load_model_from_string(exported.data).graph.value_info)
    data = quantised(candidate, exported.data, exported.graph.noise, "dynamic")
    check_graph(data, loops=exported.meta["loops"], opset=exported.meta["opset"], meta=exported.meta)
    assert {node.op_type for node in onnx.load_model_from_string(data).graph.node} >= {"MatMulInteger"}


def test_the_decoder_and_narrow_layers_stay_float_and_say_why(subject: Any) -> None:
    _, exported = subject
    found = layers(exported.data)
    assert found.chosen
    assert any("channels on one side" in why for why in found.left.values())
    model = onnx.load_model_from_string(exported.data)
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.name in found.chosen:
            assert stored[node.input[1]].data_type == TensorProto.FLOAT


def test_a_loop_is_named_because_its_calls_cannot_be_quantised(make_candidate: Callable[..., Candidate]) -> None:
    candidate = make_candidate("diffusion")
    exported = _exported(candidate, unrolled=False)
    with pytest.raises(CheckFailed, match=r"node '.*': Loop") as failed:
        quantise(exported.data, "static", feeds(candidate, exported.graph.noise))
    assert "int8_static" in failed.value.remedy


def test_a_graph_of_other_operators_is_refused_by_node() -> None:
    """A layer in float64, and one whose both sides are computed."""
    weight = numpy_helper.from_array(np.ones((32, 32)), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.DOUBLE, ["batch", 32]) for n in ("x", "y"))
    wide = helper.make_node("MatMul", ["x", "w"], ["a"], "double")
    both = helper.make_node("MatMul", ["a", "a"], ["y"], "both")
    graph = helper.make_graph([wide, both], "g", [x], [y], [weight])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    with pytest.raises(
        CheckFailed, match="node 'double': MatMul: it is not float32; node 'both': MatMul: it multiplies two"
    ):
        quantise(data, "static", [])


def test_magnitude_pruning_changes_no_width(subject: Any) -> None:
    """Zeros in a dense matrix: as many channels, hence as many multiplications."""
    _, exported = subject
    sparse = zeroed(exported.data, 0.8)
    assert widths(sparse) == widths(exported.data)
    zeros = [
        np.mean(numpy_helper.to_array(t) == 0)
        for t in onnx.load_model_from_string(sparse).graph.initializer
        if len(t.dims) == 2 and min(t.dims) >= 24 and t.data_type == TensorProto.FLOAT
    ]
    assert zeros and min(zeros) > 0.75


def test_only_what_every_row_goes_through_is_quantised(make_candidate: Callable[..., Candidate]) -> None:
    """Two layers a block and step: the time's are computed once for all rows, if they are not constant altogether."""
    candidate = make_candidate("diffusion")
    chosen = layers(_exported(candidate).data).chosen
    assert len(chosen) == 2 * candidate.config.blocks * candidate.config.steps
