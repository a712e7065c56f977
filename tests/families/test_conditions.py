"""Conditions from training to served rows: given to the network, exported as an input, filled in from cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genward.contracts import Rows, Silent
from genward.data.codec import TableCodec
from genward.data.schema import Schema
from genward.engine import Engine
from genward.export import Exported, export_graph, parity
from genward.plugins import Plugins
from genward.table import Predicate, Table, Walk, scan
from genward.testing import small_table
from genward.train import TrainOptions, train

KEY = b"0123456789abcdef"
GIVEN = ("phase", "hardness")
BINS = {"phase": None, "hardness": [0.0, 2.0, 5.0, 1000.0]}
DATA = small_table(1000)


class Conditioned:
    """A family trained with two columns given, exported, and its release table with a cell per phase and bin."""

    def __init__(self, name: str, folder: Path) -> None:
        self.codec = TableCodec.fit(Schema.infer(DATA), DATA, GIVEN)
        family = Plugins.load(["genward"]).family(name)()
        config = family.Config(hidden=48)
        options = TrainOptions(steps=600, batch=128, ema=0.99, device="cpu")
        trained = train(family, config, self.codec.spec, self.codec.encode(DATA), folder, options, Silent())
        self.exported: Exported = export_graph(family, trained.network, config, self.codec)
        self.table = Table(2000, 1, 64, tuple(self.codec.cells(BINS, DATA)))

    def engine(self, codec: TableCodec | None = None) -> Engine:
        return Engine(self.exported.data, codec or self.codec, self.table, self.exported.meta, pool_key=KEY)

    def decoded(self, rows: Rows) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = pa.Table.from_batches([self.codec.decode(rows.numbers, rows.codes)]).to_pydict()
        return found


@pytest.fixture(scope="module", params=["vae", "diffusion"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Conditioned:
    return Conditioned(request.param, tmp_path_factory.mktemp(request.param))


def test_the_graph_takes_the_condition_as_an_input_with_parity(served: Conditioned) -> None:
    assert served.exported.meta["condition"] == served.codec.spec.condition_width > 0
    parity(served.exported, rows=512)


def test_served_rows_are_the_same_bytes_from_the_stored_codec(served: Conditioned) -> None:
    """In another order, another engine and with the codec read back from its JSON, as a bundle's is."""
    slots = np.arange(300)
    whole = served.engine().rows(slots)
    order = np.random.default_rng(0).permutation(300)
    again = served.engine(TableCodec.from_json(served.codec.to_json())).rows(order)
    assert again.numbers.tobytes() == whole.numbers[order].tobytes()
    assert again.codes.tobytes() == whole.codes[order].tobytes()


def test_every_row_lies_in_the_cell_of_its_slot(served: Conditioned) -> None:
    slots = np.arange(500)
    found = served.decoded(served.engine().rows(slots))
    for i, cell in enumerate(served.table.cell_of(slots, KEY)):
        where = served.table.cells[cell].where
        assert found["phase"][i] in where["phase"][1]
        assert where["hardness"][1] <= found["hardness"][i] <= where["hardness"][2]


def test_a_predicate_over_conditions_walks_its_cells_only(served: Conditioned) -> None:
    engine, predicate = served.engine(), Predicate.parse(["phase=hcp", "hardness>6"], served.codec.schema)
    cells = predicate.cells(served.table)
    assert [served.table.cells[i].where["phase"] for i in cells] == [("in", ("hcp",))]
    walk = Walk(served.table, b"w" * 16, KEY, cells)
    page = scan(walk, 0, 10, engine.rows, lambda r: predicate.mask(r.numbers, r.codes, served.codec))
    found = served.decoded(page.rows)
    assert len(page.rows) == 10 and set(found["phase"]) == {"hcp"} and min(found["hardness"]) > 6


def test_what_is_generated_follows_what_is_given(served: Conditioned) -> None:
    """`stable` is hardness > 2 in the data: the network has learnt it from the condition."""
    found = served.decoded(served.engine().rows(np.arange(1000)))
    agree = [(h > 2.0) == s for h, s in zip(found["hardness"], found["stable"], strict=True)]
    assert np.mean(agree) > 0.9
