"""One contract test over every built-in family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from genward import testing
from genward.contracts import Silent
from genward.data.codec import TableCodec
from genward.data.schema import Column, Schema
from genward.export import export_graph, parity
from genward.family import Family, Objective, Spec
from genward.noise import draw
from genward.plugins import Plugins
from genward.testing import small_codec, small_table
from genward.train import TrainOptions, train

FAMILIES = ("diffusion", "vae")
SMALL: Mapping[str, Mapping[str, Any]] = {"diffusion": {"hidden": 16, "steps": 4, "draws": 2}, "vae": {"hidden": 16}}
ROWS = 12


class Subject:
    """A family built on a small table with gaps, with or without conditions."""

    def __init__(self, name: str, conditions: tuple[str, ...] = ()) -> None:
        self.family: Family = Plugins.load(["genward"]).family(name)()
        self.config = self.family.Config(**SMALL[name])
        table = small_table()
        self.codec = TableCodec.fit(Schema.infer(table), table, conditions)
        self.spec: Spec = self.codec.spec
        torch.manual_seed(0)
        self.network = self.family.build(self.spec, self.config)
        for parameter in self.network.parameters():  # off the zeros that blocks begin with
            parameter.data += 0.05 * torch.randn_like(parameter)
        encoded = self.codec.encode(table)
        self.record = {k: torch.from_numpy(v[:ROWS]) for k, v in encoded.items() if v.shape[1]}
        self.objective: Objective = self.family.phases(self.network, self.config)[0].objectives[0]

    def noise(self, specs: Any, start: int = 0) -> dict[str, Tensor]:
        rows = np.arange(start, start + ROWS, dtype=np.uint64)
        return {k: torch.from_numpy(v) for k, v in draw(specs, bytes(16), rows).items()}


@pytest.fixture(params=[(name, given) for name in FAMILIES for given in ((), ("phase", "hardness"))], ids=str)
def subject(request: Any) -> Subject:
    return Subject(*request.param)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_public_contract_suite_passes(name: str) -> None:
    """Record independence, gradients, noise, export and parity: what any author's family must pass."""
    from genward_families import genward_families

    family = {cls.name: cls for cls in genward_families()}[name]
    assert testing.check(family, **SMALL[name]) == list(testing.FAMILY_CHECKS)


def test_each_loss_is_that_of_the_record_alone(subject: Subject) -> None:
    noise = subject.noise(subject.objective.noise)
    whole = subject.objective.loss(subject.network, subject.record, noise, 0.5).detach()
    for i in range(ROWS):
        one, own = ({k: v[i : i + 1] for k, v in part.items()} for part in (subject.record, noise))
        alone = subject.objective.loss(subject.network, one, own, 0.5).detach()[0]
        assert float(alone) == pytest.approx(float(whole[i]), rel=1e-4)


def test_gradients_per_record_under_vmap_equal_a_loop(subject: Subject) -> None:
    """What differential privacy needs: functional_call, grad and vmap go through the loss."""
    parameters = {k: p.detach() for k, p in subject.network.named_parameters()}
    noise = subject.noise(subject.objective.noise)

    def loss(values: dict[str, Tensor], record: dict[str, Tensor], drawn: dict[str, Tensor]) -> Tensor:
        batch, own = ({k: v[None] for k, v in part.items()} for part in (record, drawn))
        return functional_call(Whole(subject), {f"network.{k}": v for k, v in values.items()}, (batch, own))

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, subject.record, noise)
    for i in range(3):
        alone = grad(loss)(parameters, *({k: v[i] for k, v in part.items()} for part in (subject.record, noise)))
        for name, value in alone.items():
            scale = float(value.abs().max()) + 1e-6
            assert float((found[name][i] - value).abs().max()) <= 1e-4 * scale, name


class Whole(nn.Module):
    """The loss as a module, for functional_call only."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.network, self._objective = subject.network, subject.objective

    def forward(self, record: dict[str, Tensor], noise: dict[str, Tensor]) -> Tensor:
        return self._objective.loss(self.network, record, noise, 0.5)[0]


def test_every_noise_a_graph_declares_moves_its_rows(subject: Subject) -> None:
    """And nothing else does: two runs on the same noise are equal."""
    graph = subject.family.graphs(subject.network, subject.config)["sample"]
    noise = list(subject.noise(graph.noise).values())
    given = [subject.record["c"]] if subject.spec.condition_width else []
    with torch.no_grad():
        rows = graph.module.eval()(*noise, *given)
        assert rows.shape == (ROWS, subject.spec.width)
        assert torch.equal(rows, graph.module(*noise, *given))
        for i, other in enumerate(subject.noise(graph.noise, start=99).values()):
            assert not torch.equal(rows, graph.module(*noise[:i], other, *noise[i + 1 :], *given)), graph.noise[i].name


def test_every_noise_an_objective_declares_moves_its_loss(subject: Subject) -> None:
    specs = subject.objective.noise
    noise, other = subject.noise(specs), subject.noise(specs, start=99)
    loss = subject.objective.loss(subject.network, subject.record, noise, 0.5)
    for name in noise:
        changed = subject.objective.loss(subject.network, subject.record, {**noise, name: other[name]}, 0.5)
        assert not torch.equal(loss, changed), name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conditional_graph_exports_with_parity(name: str) -> None:
    subject = Subject(name, ("phase",))
    exported = export_graph(subject.family, subject.network, subject.config, subject.codec)
    assert exported.meta["condition"] == subject.spec.condition_width
    parity(exported, rows=256)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1.0] * 40},
        {"b": ["x"] * 40},
        {"a": [None] * 39 + [2.5]},
        {"a": [1.0, 2.0] * 20, "b": [None, "x"] * 20},
    ],
    ids=["constant number", "constant category", "almost only gaps", "half gaps"],
)
def test_awkward_columns_train_and_come_back(name: str, columns: dict[str, list[Any]], tmp_path: Any) -> None:
    table = pa.table(columns)
    known = {
        "a": Column(name="a", kind="numeric", minimum=0.0, maximum=9.0, step=0.5, nullable=True),
        "b": Column(name="b", kind="categorical", categories=("x", "y"), nullable=True),
    }
    codec = TableCodec.fit(Schema(columns=tuple(known[name] for name in columns)), table)
    family = Plugins.load(["genward"]).family(name)()
    config = family.Config(**SMALL[name])
    options = TrainOptions(steps=30, batch=16, device="cpu")
    trained = train(family, config, codec.spec, codec.encode(table), tmp_path, options, Silent())
    made = sampled(family, trained.network, config, codec, 64)
    assert made.num_rows == 64
    for column in columns:
        assert {v for v in made[column].to_pylist() if v is not None} <= {1.0, 1.5, 2.0, 2.5, "x", "y"}


def sampled(family: Family, network: nn.Module, config: Any, codec: TableCodec, rows: int) -> pa.Table:
    graph = family.graphs(network, config)["sample"]
    noise = draw(graph.noise, bytes(16), np.arange(rows, dtype=np.uint64))
    with torch.no_grad():
        numbers, codes = codec.decoder()(graph.module.eval()(*(torch.from_numpy(v) for v in noise.values())))
    return pa.Table.from_batches([codec.decode(numbers.numpy(), codes.numpy())])


@pytest.mark.parametrize("name", FAMILIES)
def test_columns_that_hang_together_stay_together(name: str, tmp_path: Any) -> None:
    """`stable` is hardness > 2 in the table: clearly beaten are shuffled columns, of which .55 agree."""
    table = small_table(1000)
    codec = TableCodec.fit(Schema.infer(table), table)
    family = Plugins.load(["genward"]).family(name)()
    config = family.Config(hidden=64)
    options = TrainOptions(steps=800, batch=128, ema=0.99, device="cpu")
    trained = train(family, config, codec.spec, codec.encode(table), tmp_path, options, Silent())
    made = sampled(family, trained.network, config, codec, 1000)
    pairs = [(h > 2.0) == s for h, s in zip(*(made[c].to_pylist() for c in ("hardness", "stable")), strict=True) if h]
    assert np.mean(pairs) > 0.8
    gaps = made["hardness"].null_count / 1000
    assert abs(gaps - table["hardness"].null_count / 1000) < 0.06


def test_importing_the_families_is_cheap() -> None:
    """Announcing them imports no torch."""
    import subprocess
    import sys

    code = "import sys, genward_families as f; f.genward_families(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_small_codec_has_gaps_and_choices() -> None:
    """What the contract runs on is a mixed table with gaps."""
    kinds = {(f.column, f.kind) for f in small_codec().spec.fields}
    assert {("hardness", "number"), ("hardness", "choice"), ("phase", "choice")} <= kinds


def test_the_page_on_families_runs() -> None:
    """Its example passes the contract suite, and its tables list every setting with its default."""
    import doctest
    import logging
    from pathlib import Path

    from genward_families import genward_families

    page = Path(__file__).parents[2] / "docs" / "families.md"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    assert doctest.testfile(str(page), module_relative=False).failed == 0
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in page.read_text().splitlines() if "|" in line]
    for family in genward_families():
        for key, setting in family.Config.model_fields.items():
            assert [f"`{key}`", f"{setting.default:g}" if key != "sampler" else setting.default] in rows, key


def test_the_page_lists_every_training_option_with_its_default() -> None:
    from dataclasses import fields
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in page.splitlines() if "|" in line]
    for item in fields(TrainOptions):
        default = "none" if item.default is None else f"{item.default:g}" if item.type != "str" else item.default
        assert [f"`{item.name}`", default] in rows, item.name
