"""Export: the decoder is in the graph, torch and onnxruntime agree or it is refused, golden blocks replay."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from genward.data.codec import TableCodec
from genward.data.schema import Column, Schema
from genward.engine import Engine, choose_block
from genward.errors import CheckFailed, NotFound
from genward.export import ParityReport, export, export_graph, measure_parity, parity
from genward.family import Family, Graph, NoiseSpec, Phase
from genward.table import Predicate, Table, Walk, scan

SCHEMA = Schema(
    columns=(
        Column(name="density", kind="numeric", step=0.01, nullable=True),
        Column(name="count", kind="integer"),
        Column(name="phase", kind="categorical", categories=("fcc", "bcc", "hcp")),
        Column(name="stable", kind="boolean"),
    )
)


@pytest.fixture(scope="module")
def data() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "density": pa.array(rng.normal(8, 2, 400).round(2), mask=rng.random(400) < 0.1),
            "count": rng.integers(0, 50, 400),
            "phase": rng.choice(["fcc", "bcc", "hcp"], 400, p=[0.6, 0.3, 0.1]),
            "stable": rng.random(400) < 0.5,
        }
    )


@pytest.fixture(scope="module")
def codec(data: pa.Table) -> TableCodec:
    return TableCodec.fit(SCHEMA, data)


@pytest.fixture(scope="module")
def conditional(data: pa.Table) -> TableCodec:
    return TableCodec.fit(SCHEMA, data, conditions=["phase"])


class Net(nn.Module):
    """One affine layer; with a condition it is added in."""

    def __init__(self, width: int, given: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.given = nn.Linear(width + given, width), given

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return self.layer(z if c is None else torch.cat([z, c], dim=1)) * 3


class Chain(nn.Module):
    """Twenty small steps in a loop."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        from torch._higher_order_ops import while_loop

        start = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda i, x: i < 20, lambda i, x: (i + 1, x + 0.05 * torch.tanh(self.net(x))), (start, z))[1]


class OneStep(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.05 * torch.tanh(self.net(x))


class Walker(nn.Module):
    """Five noisy steps, driven from outside."""

    steps = 5

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, eps: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        x = x + 0.1 * torch.tanh(self.net(x)) + 0.1 * eps / (1 + step.float())
        return x, x


class Toy(Family):
    name = "toy"

    def build(self, spec: Any, config: Any) -> nn.Module:
        return Net(spec.width, spec.condition_width)

    def phases(self, network: nn.Module, config: Any) -> list[Phase]:
        return []

    def graphs(self, network: nn.Module, config: Any) -> Mapping[str, Graph]:
        width = network.layer.out_features  # type: ignore[union-attr]
        return {"sample": Graph(network, [NoiseSpec("z", (width,))])}  # type: ignore[arg-type]


def noise(codec: TableCodec, name: str = "z") -> list[NoiseSpec]:
    return [NoiseSpec(name, (codec.spec.width,))]


def torch_rows(exported: Any, engine: Engine, n: int) -> np.ndarray:  # type: ignore[type-arg]
    from genward.noise import draw

    drawn = draw(exported.graph.noise, b"k" * 16, np.arange(n))
    with torch.no_grad():
        return exported.module(*map(torch.from_numpy, drawn.values()))[0].numpy()  # type: ignore[no-any-return]


def test_a_family_is_exported_quietly_and_served_as_torch_computes(
    codec: TableCodec, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported = export_graph(Toy(), Toy().build(codec.spec, None), None, codec)
    said = capfd.readouterr()
    assert said.out + said.err == "" and logging.root.manager.disable == before
    assert exported.meta["noise"] == [{"name": "z", "shape": [codec.spec.width], "law": "normal"}]
    engine = Engine(exported.data, codec, Table(500, 1, 64), exported.meta, pool_key=b"k" * 16)
    rows = engine.candidates(np.arange(500))
    assert codec.decode(rows.numbers, rows.codes).num_rows == 500
    np.testing.assert_allclose(rows.numbers, torch_rows(exported, engine, 500), atol=0.0101)
    report = parity(exported)
    assert report.max <= 1e-5 and {e.claim for e in report.evidence()} >= {"parity.max", "parity.codes"}
    with pytest.raises(NotFound, match="density"):
        export_graph(Toy(), Toy().build(codec.spec, None), None, codec, name="density")


def test_nothing_of_this_machine_is_in_the_file_and_a_second_export_is_equal(codec: TableCodec) -> None:
    graph = Graph(Net(codec.spec.width), noise(codec))
    data = export(graph, codec).data
    model = onnx.load_model_from_string(data)
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    assert b".py" not in data and b"site-packages" not in data
    assert export(graph, codec).data == data


def test_an_iterated_sampler_is_gated_on_its_step_and_its_percentile(codec: TableCodec) -> None:
    net = Net(codec.spec.width)
    exported = export(Graph(Chain(net), noise(codec), gate="chain", step=OneStep(net)), codec)
    report = parity(exported)
    assert exported.meta["loops"] == 1 and report.step_max is not None and report.step_max <= 1e-5
    assert next(e for e in report.evidence() if e.claim == "parity.step").value == report.step_max
    engine = Engine(exported.data, codec, Table(1000, 1, 64), exported.meta, pool_key=b"k" * 16)
    golden = engine.golden(bytes(16))
    other = Engine(exported.data, codec, Table(2000, 1, 64), exported.meta, pool_key=b"x" * 16)
    assert other.check_golden(golden, engine.fingerprint, bytes(16))


def test_a_loop_that_the_family_did_not_declare_is_refused(codec: TableCodec) -> None:
    with pytest.raises(CheckFailed, match="loops"):
        export(Graph(Chain(Net(codec.spec.width)), noise(codec)), codec)


def test_conditions_enter_and_every_row_meets_its_cell(conditional: TableCodec, data: pa.Table) -> None:
    net = Net(conditional.spec.width, conditional.spec.condition_width)
    exported = export(Graph(net, noise(conditional)), conditional)
    parity(exported, 2048)
    table = Table(600, 2, 64, tuple(conditional.cells({"phase": None}, data)))
    engine = Engine(exported.data, conditional, table, exported.meta, pool_key=b"k" * 16)
    predicate = Predicate.parse(["phase in {bcc, hcp}"], SCHEMA)
    walk = Walk(table, b"w" * 16, b"k" * 16, predicate.cells(table))
    page = scan(walk, 0, 100, engine.rows, lambda r: predicate.mask(r.numbers, r.codes, conditional))
    assert page.scanned == 100 and set(page.rows.codes[:, 0].tolist()) == {1, 2}
    undeclared = Engine(exported.data, conditional, Table(600), exported.meta, pool_key=b"k" * 16)
    shares = np.bincount(undeclared.candidates(np.arange(600)).codes[:, 0], minlength=3) / 600
    assert np.abs(shares - [0.6, 0.3, 0.1]).max() < 0.12


def test_stepped_graphs_are_exported_and_driven(codec: TableCodec) -> None:
    state = [NoiseSpec("x", (codec.spec.width,))]
    exported = export(Graph(Walker(Net(codec.spec.width)), noise(codec, "eps"), state=state), codec)
    parity(exported, 1024)
    assert (exported.meta["driver"], exported.meta["steps"]) == ("stepped", 5)
    assert choose_block(exported.data, exported.meta) >= 16
    small = [Engine(exported.data, codec, Table(300, 1, 64), exported.meta, pool_key=b"k" * 16) for _ in range(2)]
    one, two = small[0].candidates(np.arange(300)), small[1].candidates(np.arange(299, -1, -1))
    assert one.numbers.tobytes() == two.numbers[::-1].tobytes()
    module = Walker(Net(codec.spec.width))
    module.steps = 0
    with pytest.raises(CheckFailed, match="steps"):
        export(Graph(module, noise(codec, "eps"), state=state), codec)


class Dice(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z + torch.randn_like(z)


class Inverse(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z @ torch.linalg.inv(z.T @ z)


@pytest.mark.parametrize(("module", "said"), [(Dice(), "random"), (Inverse(), "cannot be exported")])
def test_networks_that_draw_or_cannot_be_exported_are_refused(codec: TableCodec, module: nn.Module, said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        export(Graph(module, noise(codec)), codec)


def test_parity_sees_another_network(codec: TableCodec) -> None:
    net = Net(codec.spec.width)
    exported = export(Graph(net, noise(codec)), codec)
    with torch.no_grad():
        net.layer.weight *= 1.05
        net.layer.bias += torch.linspace(0, 0.2, len(net.layer.bias))
    report = measure_parity(exported, 1024)
    assert report.max > 1e-3 and report.code_rate > 1e-3
    with pytest.raises(CheckFailed, match=r"disagree.*values differ.*categories"):
        report.check()


REPORT: dict[str, Any] = {"n": 1000, "gate": "step", "max": 1e-6, "p999": 1e-7, "code_rate": 0.0, "flip_rate": 0.0}
BAD: list[dict[str, Any]] = [
    {"max": 2e-5},
    {"code_rate": 2e-3},
    {"flip_rate": 2e-2},
    {"gate": "chain", "p999": 2e-3},
    {"gate": "chain", "max": 0.5, "step_max": 2e-5},
    {"max": float("nan")},
]


@pytest.mark.parametrize("change", BAD)
def test_each_gate_closes(change: dict[str, Any]) -> None:
    with pytest.raises(CheckFailed, match="disagree"):
        ParityReport(**{**REPORT, **change}).check()


def test_gates_open_within_their_limits_and_unmeasured_is_written() -> None:
    ParityReport(**REPORT).check()
    chain = ParityReport(**{**REPORT, "gate": "chain", "max": 0.5})
    chain.check()
    step = next(e for e in chain.evidence() if e.claim == "parity.step")
    assert step.value is None and "not measured" in step.method


def test_flips_of_the_last_digit_are_counted_and_not_called_differences(codec: TableCodec) -> None:
    from genward.export import _grids, _numbers

    theirs = np.tile([[8.0, 3.0]], (1000, 1)) + np.arange(1000)[:, None]
    ours = theirs.copy()
    ours[5, 0] += 0.01
    ours[6, 1] -= 1
    ours[7, 0] = np.nan
    differences, flips = _numbers(ours, theirs, _grids(codec, theirs))
    assert differences.max() == 0 and flips == 2 / 2000
    ours[8, 0] += 0.02
    assert _numbers(ours, theirs, _grids(codec, theirs))[0].max() > 1e-5
