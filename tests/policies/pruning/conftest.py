"""Small networks trained for a moment on a small table: enough to cut, and seconds to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from genward.candidate import Candidate, Recipe
from genward.contracts import Silent
from genward.data.codec import TableCodec
from genward.data.schema import Schema
from genward.plugins import Plugins
from genward.testing import small_table
from genward.train import TrainOptions, train

CONFIGS = {
    "diffusion": {"hidden": 64, "blocks": 1, "steps": 9},
    "vae": {"hidden": 96, "latent": 8, "blocks": 1, "couplings": 1},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_candidate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Candidate]:
    """A trained candidate of a family, its held-out rows in hand and no row that it was trained on."""
    known: dict[tuple[Any, ...], Candidate] = {}

    def make(family: str, conditions: tuple[str, ...] = (), **more: Any) -> Candidate:
        key = (family, conditions, tuple(sorted(more.items())))
        if key not in known:
            known[key] = _trained(tmp_path_factory.mktemp(family) / "candidate", family, conditions, more)
        return known[key]

    return make


def _trained(folder: Path, family: str, conditions: tuple[str, ...], more: dict[str, Any]) -> Candidate:
    table = small_table(1500)
    train_rows, test = table.slice(0, 900), table.slice(900)
    codec = TableCodec.fit(Schema.infer(table), train_rows, conditions)
    plugins = Plugins.load(["genward"])
    recipe = Recipe("c", family, "sha256:0", {**CONFIGS.get(family, {}), **more}, conditions, target="hardness")
    candidate = Candidate.create(folder, recipe, plugins, codec)
    options = TrainOptions(steps=250, batch=128, device="cpu", held_out=0.0)
    train(candidate.family, candidate.config, codec.spec, codec.encode(train_rows), folder, options, Silent())
    from dataclasses import replace

    return replace(candidate, test=test)


@pytest.fixture
def cpu_seconds() -> Iterator[Any]:
    """CPU seconds of this process since the test began."""
    import time

    began = time.process_time()
    yield lambda: time.process_time() - began


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., Any]:
    """The policy with a price in microseconds a row, and floors wide enough for networks trained for a moment."""
    from genward_policies.pruning import Pruning

    def make(microseconds: float, **more: Any) -> Any:
        settings = {
            "price_per_vcpu_hour": 3600.0,  # so that a million rows cost as many as a row takes microseconds
            "target": {"cost_per_million_rows": microseconds, "batch": 256},
            "floor": {"relative_quality_loss_hi95": 0.6, "tstr_drop": 0.2},
            "recovery_cpu_seconds": 5,
        }
        return Pruning(Pruning.Config(**{**settings, **more}), None)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session", autouse=True)
def _fewer_rows() -> Iterator[None]:
    """Judge by fewer rows: the intervals say what they are worth."""
    from genward_policies.pruning import judge, points

    before = judge.ROWS, points.ROWS
    judge.ROWS, points.ROWS = 6000, 1024
    yield
    judge.ROWS, points.ROWS = before


def sealed(candidate: Candidate, compressed: Any) -> Candidate:
    """What the release pipeline makes of a compressed network: the child as it would be measured and sealed."""
    from dataclasses import replace

    from genward.engine import choose_block
    from genward.export import export_graph, parity
    from genward.table import Table

    exported = export_graph(candidate.family, compressed.network, compressed.config, candidate.codec)
    parity(exported, rows=512)
    if compressed.quantise is not None:
        exported = replace(exported, data=compressed.quantise(exported.data))
    table = Table(None, 1, choose_block(exported.data, exported.meta))
    return replace(candidate, config=compressed.config, exported=exported, table=table, parent="sha256:parent")


@pytest.fixture(scope="session")
def seal() -> Callable[[Candidate, Any], Candidate]:
    return sealed


@pytest.fixture(scope="session")
def parent_price(make_candidate: Callable[..., Candidate]) -> Callable[[str], float]:
    """Microseconds of a row of a trained network."""
    from genward.export import export_graph
    from genward_policies.pruning import cost

    def price(family: str) -> float:
        candidate = make_candidate(family)
        exported = export_graph(candidate.family, candidate.network(), candidate.config, candidate.codec)
        return 1e6 * cost.seconds_per_row(exported.data, exported.meta, candidate.codec, 256)

    return price
