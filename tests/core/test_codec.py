"""The table codec: what goes in comes out, exactly or within the column's stated precision."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genward.data.codec import TableCodec
from genward.data.readers import as_numbers, read_table
from genward.data.schema import Column, Schema, SumGroup
from genward.errors import DataError, GenwardError, IntegrityError, NotFound

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


def back(codec: TableCodec, table: pa.Table, rng: np.random.Generator | None = None) -> pa.RecordBatch:
    """A table encoded and decoded."""
    record = codec.encode(table, rng)
    with torch.no_grad():
        numbers, codes = codec.decoder()(*(torch.from_numpy(record[key]) for key in ("x", "c") if key in record))
    return codec.decode(numbers.numpy(), codes.numpy())


def plain(table: pa.Table | pa.RecordBatch, name: str) -> list[Any]:
    values: list[Any] = table.column(name).to_pylist()
    return values


def _cells(column: Column, draw: st.DrawFn, rows: int) -> list[Any]:
    value: st.SearchStrategy[Any]
    if column.kind == "categorical":
        value = st.sampled_from(column.categories)
    elif column.kind == "boolean":
        value = st.booleans()
    elif column.kind == "datetime":
        value = st.integers(0, 300_000).map(lambda s: datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=s))
    elif column.kind == "integer":
        value = st.integers(-1000, 1000)
    else:
        value = st.integers(-10_000, 10_000).map(lambda n: n / 10)
    value = st.none() | value if column.nullable else value
    return draw(st.lists(value, min_size=rows, max_size=rows))


@st.composite
def tables(draw: st.DrawFn) -> tuple[Schema, pa.Table]:
    kinds = draw(st.lists(st.sampled_from(["numeric", "integer", "categorical", "boolean", "datetime"]), min_size=1))
    columns = []
    for i, kind in enumerate(kinds[:5]):
        extra = {"categories": ("bcc", "fcc", "ünlike")} if kind == "categorical" else {}
        extra |= {"step": 0.1} if kind == "numeric" else {}
        columns.append(Column(name=f"c{i}", kind=kind, nullable=draw(st.booleans()), **extra))
    schema = Schema(columns=tuple(columns))
    rows = draw(st.integers(2, 60))
    return schema, pa.table({c.name: _cells(c, draw, rows) for c in columns})


@given(tables(), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_table_on_its_grid_comes_back_exactly(case: tuple[Schema, pa.Table], dithered: bool) -> None:
    schema, table = case
    try:
        codec = TableCodec.fit(schema, table)
    except DataError as error:
        assert "has no value" in error.what
        return
    found = back(codec, table, np.random.default_rng(0) if dithered else None)
    for name in schema.names:
        assert plain(found, name) == plain(table, name)
    assert TableCodec.from_json(codec.to_json()).to_json() == codec.to_json()


def transport() -> tuple[Schema, pa.Table]:
    schema = Schema.from_yaml((EXAMPLES / "mp_transport.yaml").read_text(encoding="utf-8"))
    return schema, read_table(EXAMPLES / "mp_transport.csv.gz", schema)


def test_heavy_tails_of_real_data_come_back_within_their_digits() -> None:
    schema, table = transport()
    codec = TableCodec.fit(schema, table)
    found = back(codec, table)
    for column in schema.columns:
        was, now = (np.asarray(t.column(column.name), dtype=np.float64) for t in (table, found))
        size = np.maximum(np.abs(was), codec.quantiles[column.name].scale or 1.0)
        unit = 10.0 ** (np.floor(np.log10(size)) + 1 - (column.digits or 4))
        assert np.all(np.abs(was - now) <= 1.01 * unit), column.name
    latents = codec.encode(table)["x"]
    assert np.all(np.abs(latents.mean(axis=0)) < 0.05)
    assert np.all(np.abs(latents.std(axis=0) - 1) < 0.15)


def test_gaps_and_rare_categories_of_real_data_come_back_exactly() -> None:
    schema = Schema.from_yaml((EXAMPLES / "mpea_alloys.yaml").read_text(encoding="utf-8"))
    table = read_table(EXAMPLES / "mpea_alloys.csv", schema)
    found = back(TableCodec.fit(schema, table), table)
    for column in schema.columns:
        assert found.column(column.name).is_null().equals(table[column.name].combine_chunks().is_null())
        if not column.digits:
            assert plain(found, column.name) == plain(table, column.name), column.name


def test_an_atom_owns_its_share_of_the_latents() -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random(4000) < 0.3, 0.0, np.round(rng.lognormal(0, 1, 4000), 3))
    table = pa.table({"a": values})
    codec = TableCodec.fit(Schema(columns=(Column(name="a", kind="numeric", step=0.001),)), table)
    noise = torch.from_numpy(rng.normal(size=(20_000, 1)).astype(np.float32))
    share = float((codec.decoder()(noise)[0] == 0).double().mean())
    assert share == pytest.approx(float((values == 0).mean()), abs=0.015)
    assert np.std(codec.encode(table.filter(pa.array(values == 0)), rng)["x"]) > 0.1


def compositions() -> tuple[Schema, pa.Table]:
    rng = np.random.default_rng(0)
    parts = np.round(rng.dirichlet([1, 1, 0.3], 500) * 100, 1)
    parts[:, 0] = np.round(100 - parts[:, 1] - parts[:, 2], 1)
    columns = tuple(Column(name=n, kind="numeric", minimum=0, maximum=100, step=0.1) for n in ("fe", "cr", "ni"))
    table = pa.table(dict(zip(("fe", "cr", "ni"), parts.T, strict=True)))
    return Schema(columns=columns, sums=(SumGroup(columns=("fe", "cr", "ni"), tolerance=0.05),)), table


def test_whatever_the_network_says_parts_add_up_on_their_grid() -> None:
    schema, table = compositions()
    codec = TableCodec.fit(schema, table)
    for name in schema.names:
        assert plain(back(codec, table), name) == pytest.approx(plain(table, name), abs=1e-9)
    noise = np.random.default_rng(1).normal(size=(5000, 3)).astype(np.float32) * 2
    numbers = codec.decoder()(torch.from_numpy(noise))[0].numpy()
    assert np.all(np.abs(numbers.sum(axis=1) - 100) <= 0.05)
    assert np.all((numbers >= 0) & (numbers <= 100))
    assert np.all(np.abs(numbers * 10 - np.rint(numbers * 10)) < 1e-6)


def test_rows_of_any_latents_are_within_bounds_and_categories() -> None:
    schema, table = transport()
    codec = TableCodec.fit(schema, table)
    wild = torch.from_numpy(np.random.default_rng(2).normal(size=(500, codec.spec.width)).astype(np.float32) * 50)
    numbers = codec.decoder()(wild)[0].numpy()
    for i, name in enumerate(codec.number_columns):
        low, high = schema.column(name).bounds
        assert low is not None and high is not None
        assert np.all((numbers[:, i] >= low) & (numbers[:, i] <= high))


def mixed() -> tuple[Schema, pa.Table]:
    rng = np.random.default_rng(0)
    density = [None if u < 0.2 else round(v, 2) for u, v in zip(rng.random(400), rng.normal(8, 2, 400), strict=True)]
    table = pa.table(
        {
            "density": density,
            "sigma": 10.0 ** rng.uniform(-10, 10, 400),
            "phase": rng.choice(["bcc", "fcc", "hcp"], 400, p=[0.7, 0.28, 0.02]),
            "ok": rng.random(400) < 0.5,
        }
    )
    columns = (
        Column(name="density", kind="numeric", step=0.01, nullable=True),
        Column(name="sigma", kind="numeric", digits=4),
        Column(name="phase", kind="categorical", categories=("bcc", "fcc", "hcp")),
        Column(name="ok", kind="boolean"),
    )
    return Schema(columns=columns), table


def test_the_exported_decoder_says_what_torch_says_for_any_batch() -> None:
    schema, table = mixed()
    codec = TableCodec.fit(schema, table)
    decoder = codec.decoder().eval()
    x = codec.encode(table, np.random.default_rng(0))["x"]
    rows = torch.export.Dim("rows")
    program = _exported(decoder, torch.from_numpy(x[:2]), rows)
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    for rows_ in (1, 64, 400):
        numbers, codes = session.run(None, {session.get_inputs()[0].name: x[:rows_]})
        want_numbers, want_codes = (t.numpy() for t in decoder(torch.from_numpy(x[:rows_])))
        np.testing.assert_allclose(numbers, want_numbers, rtol=1e-3, atol=0.011)
        assert np.mean(numbers == want_numbers) + np.isnan(want_numbers).mean() > 0.99
        assert np.array_equal(codes, want_codes)


def _exported(module: torch.nn.Module, x: torch.Tensor, rows: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (x,), dynamo=True, opset_version=20, dynamic_shapes=({0: rows},), verbose=False
        )
    data: bytes = program.model_proto.SerializeToString()  # type: ignore[union-attr]
    return data


def test_conditions_are_given_not_generated_and_come_back_in_the_rows() -> None:
    schema, table = mixed()
    codec = TableCodec.fit(schema, table, conditions=("phase", "density"))
    assert {f.column for f in codec.spec.given} == {"phase", "density"}
    assert {f.column for f in codec.spec.fields} == {"sigma", "ok"}
    found = back(codec, table)
    assert plain(found, "phase") == plain(table, "phase")
    assert plain(found, "density") == plain(table, "density")
    with pytest.raises(NotFound, match="phase"):
        TableCodec.fit(schema, table, conditions=("phaze",))


def test_a_condition_lies_in_its_cell() -> None:
    schema, table = mixed()
    codec = TableCodec.fit(schema, table, conditions=("phase", "density"))
    cells = codec.cells({"phase": None, "density": [0.0, 8.0, 20.0]}, table)
    assert sum(cell.share for cell in cells) == pytest.approx(1 - table["density"].null_count / 400)
    ids = np.arange(1000) % len(cells)
    uniforms = np.random.default_rng(0).random((1000, len(codec.spec.given)), dtype=np.float32)
    given = torch.from_numpy(codec.condition(cells, ids, uniforms))
    numbers, codes = codec.decoder()(torch.zeros(1000, codec.spec.width), given)
    rows = codec.decode(numbers.numpy(), codes.numpy())
    for cell, phase, density in zip(ids, plain(rows, "phase"), plain(rows, "density"), strict=True):
        where = cells[cell].where
        assert phase in where["phase"][1]
        assert where["density"][1] - 0.02 <= density <= where["density"][2] + 0.02
    with pytest.raises(DataError, match="rising bounds"):
        codec.cells({"phase": None, "density": [3.0, 1.0]}, table)
    with pytest.raises(DataError, match="condition columns"):
        codec.cells({"ok": None}, table)
    with pytest.raises(DataError, match="no row"):
        codec.cells({"phase": None, "density": [100.0, 200.0]}, table)


def test_decoded_columns_have_the_types_a_reader_expects() -> None:
    schema, table = mixed()
    rows = back(TableCodec.fit(schema, table), table)
    assert rows.schema.names == schema.names
    assert pa.types.is_dictionary(rows.schema.field("phase").type)
    assert pa.types.is_boolean(rows.schema.field("ok").type)
    assert as_numbers(rows.column("density")).null_count == table["density"].null_count


def test_what_was_taken_from_data_is_listed() -> None:
    schema, table = mixed()
    codec = TableCodec.fit(schema, table, conditions=("phase",))
    assert codec.estimated["phase"] == ["shares"]
    assert "quantiles" in codec.estimated["density"]
    assert "ok" not in codec.estimated


def test_a_precision_that_does_not_survive_is_refused_with_the_one_that_does() -> None:
    values = np.random.default_rng(0).normal(0, 1e9, 2000)
    schema = Schema(columns=(Column(name="a", kind="numeric", step=0.001),))
    with pytest.raises(DataError, match="declare step"):
        TableCodec.fit(schema, pa.table({"a": values}))


@given(st.binary(max_size=60) | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_garbage_is_no_codec(garbage: bytes | str) -> None:
    with pytest.raises(GenwardError):
        TableCodec.from_json(garbage if isinstance(garbage, bytes) else garbage.encode())


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_codec_with_a_part_replaced_is_read_or_refused(data: st.DataObject) -> None:
    schema, table = mixed()
    whole = json.loads(TableCodec.fit(schema, table, conditions=("phase",)).to_json())
    place = whole
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [key for key in place if isinstance(place[key], dict)]
        place = place[data.draw(st.sampled_from(inner))] if inner else place
    key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3))
    try:
        TableCodec.from_json(json.dumps(whole).encode())
    except IntegrityError as error:
        assert "codec" in str(error)


def test_decoding_rows_imports_no_torch() -> None:
    code = "import sys, genward.data.codec, genward.data.cells, genward.data.dataset; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
