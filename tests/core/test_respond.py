"""Rows on the wire: pieces make the body of the whole; Accept is read by its rules, digests are made by theirs."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward.contracts import Rows
from genward.data.codec import TableCodec
from genward.data.schema import Column, Schema
from genward.digest import RowsDigest, digest_of
from genward.errors import UsageError
from genward.respond import ARROW, CSV, JSON, MEDIA, PARQUET, encoder, media_type

FACTS = {"request": "r", "model": "m:1"}


@pytest.fixture(scope="module")
def codec() -> TableCodec:
    columns = (
        Column(name="x", kind="numeric", minimum=0, maximum=9, step=0.1, nullable=True),
        Column(name="n", kind="integer", minimum=0, maximum=9, nullable=True),
        Column(name="c", kind="categorical", categories=('a "quoted", word', "b"), nullable=True),
        Column(name="ok", kind="boolean", nullable=True),
    )
    table = pa.table(
        {
            "x": [0.1, 0.5, None, 9.0],
            "n": [1, 2, 3, None],
            "c": ["b", None, "b", 'a "quoted", word'],
            "ok": [True, None, False, True],
        }
    )
    return TableCodec.fit(Schema(columns=columns), table)


def _rows(n: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    numbers = np.stack([rng.integers(0, 90, n) / 10, rng.integers(0, 9, n)], axis=1).astype(float)
    numbers[rng.random((n, 2)) < 0.2] = np.nan
    return Rows(numbers, rng.integers(-1, 2, (n, 2)).astype(np.int32), np.arange(n))


def _cut(rows: Rows, start: int, stop: int) -> Rows:
    return Rows(rows.numbers[start:stop], rows.codes[start:stop], rows.slots[start:stop])


def _body(codec: TableCodec, media: str, parts: list[Rows], exhausted: bool = False) -> bytes:
    made = encoder(media, codec, FACTS)
    made.exhausted = exhausted
    return b"".join([made.start(), *(made.piece(part) for part in parts), made.end()])


def _read(media: str, body: bytes) -> list[list[object]]:
    if media == JSON:
        return json.loads(body)["rows"]  # type: ignore[no-any-return]
    if media == CSV:
        strings = pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
        table = pyarrow.csv.read_csv(io.BytesIO(body), convert_options=strings)
    else:
        table = pa.ipc.open_stream(body).read_all() if media == ARROW else pa.parquet.read_table(io.BytesIO(body))
    return [list(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize("media", MEDIA.values())
@pytest.mark.parametrize("cuts", [(), (0,), (50,), (1, 1, 99), (100,)])
def test_pieces_hold_the_same_rows_as_the_whole(codec: TableCodec, media: str, cuts: tuple[int, ...]) -> None:
    rows = _rows(100)
    ends = [0, *cuts, 100]
    parts = [_cut(rows, a, b) for a, b in itertools.pairwise(ends)]
    assert _read(media, _body(codec, media, parts)) == _read(JSON, encoder(JSON, codec, FACTS).whole(rows))


@pytest.mark.parametrize("media", MEDIA.values())
def test_no_rows_at_all_are_a_whole_body(codec: TableCodec, media: str) -> None:
    assert _read(media, encoder(media, codec, FACTS).whole(_rows(0))) == []


def test_the_end_says_that_there_are_fewer_rows_where_the_format_can(codec: TableCodec) -> None:
    assert json.loads(_body(codec, JSON, [_rows(3)], True))["exhausted"] is True
    assert "exhausted" not in json.loads(_body(codec, JSON, [_rows(3)]))
    found = pa.parquet.ParquetFile(io.BytesIO(_body(codec, PARQUET, [_rows(3)], True)))
    assert found.metadata.metadata[b"genward.exhausted"] == b"true"


@pytest.mark.parametrize(
    ("accept", "media"),
    [("*/*", JSON), ("application/json", JSON), ("text/csv", CSV), ("TEXT/CSV", CSV), ("", JSON),
     ("application/*", JSON),
     ("image/png, text/csv", CSV), (f"text/csv;q=0.5, {ARROW}", ARROW), (f"{PARQUET};q=0.9,{JSON};q=0.8", PARQUET),
     ("text/csv;q=0, application/json;q=0.1", JSON), ("text/csv; charset=utf-8", CSV),
     ("text/csv;q=0.3;v=1,*/*;q=0.1", CSV)],
)  # fmt: skip
def test_accept_is_read_by_its_qualities(accept: str, media: str) -> None:
    assert media_type(accept) == media


@pytest.mark.parametrize("accept", ["image/png", "text/csv;q=0", "text/csv;q=high", "application/pickle", "text/*x"])
def test_an_accept_that_names_nothing_of_ours_is_refused(accept: str) -> None:
    with pytest.raises(UsageError):
        media_type(accept)


@given(st.text(max_size=60))
def test_any_accept_is_one_of_ours_or_refused(accept: str) -> None:
    try:
        assert media_type(accept) in MEDIA.values()
    except UsageError:
        return


@given(st.lists(st.integers(0, 3000), max_size=6), st.integers(0, 5000))
def test_a_digest_does_not_depend_on_the_pieces(cuts: list[int], n: int) -> None:
    rows, found = _rows(n), RowsDigest()
    ends = sorted({0, n, *(cut for cut in cuts if cut < n)})
    for start, stop in itertools.pairwise(ends):
        found.update(_cut(rows, start, stop))
    assert found.final() == digest_of(rows)
    assert found.rows == n


def test_a_digest_sees_every_change_but_the_bits_of_a_nan() -> None:
    rows = _rows(1500)
    changed = rows.numbers.copy()
    changed[1499, 1] = np.nextafter(changed[1499, 1], 99) if changed[1499, 1] == changed[1499, 1] else 1.0
    assert digest_of(Rows(changed, rows.codes, rows.slots)) != digest_of(rows)
    assert digest_of(_cut(rows, 0, 1499)) != digest_of(rows)
    other = np.where(np.isnan(rows.numbers), -np.nan, rows.numbers)
    assert digest_of(Rows(other, rows.codes, rows.slots)) == digest_of(rows)


def test_the_digest_of_known_rows_is_kept_forever() -> None:
    rows = Rows(np.array([[1.5, np.nan], [2.0, -0.25]]), np.array([[0], [-1]], np.int32), np.arange(2))
    assert digest_of(rows) == "sha256:4a87c2aba1cd93d95cb25b88d13feca10a733b49d7f3a17d80b3c6eecb78db12"
