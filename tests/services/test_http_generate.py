"""POST /v1/models/{name}/generate on a real server."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from genward.contracts import Rows
from genward.digest import digest_of

JSON, CSV = "application/json", "text/csv"
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
BAD_COUNTS = ["0", "-1", "1000000000000", '"4"', "true", "1.5", "null", "[]"]


def _table(media: str, body: bytes) -> pa.Table:
    """A body of any format as a table of plain columns."""
    if media == ARROW:
        table = pa.ipc.open_stream(body).read_all()
    elif media == PARQUET:
        table = pa.parquet.read_table(io.BytesIO(body))
    else:
        raise AssertionError(media)
    return table


def _lists(media: str, body: bytes) -> list[list[Any]]:
    return [list(row.values()) for row in _table(media, body).to_pylist()]


def test_one_page_is_the_same_in_every_format(server: Any) -> None:
    as_json = server.rows(40, start=100, accept=JSON).json()["rows"]
    for media in (ARROW, PARQUET):
        assert _lists(media, server.rows(40, start=100, accept=media).body) == as_json
    csv = server.rows(40, start=100, accept=CSV).body
    assert len(csv.splitlines()) == 41


def test_every_response_names_an_entry_whose_digest_is_that_of_the_rows_received(server: Any) -> None:
    """Law 4: a client computes the digest from what arrived, by the documented rule, and finds it in the log."""
    reply = server.rows(1500, start=7, accept=ARROW)
    codec = server.world.platform.pipeline.shelf.get(server.world.platform.registry.resolve("pool:1")).codec
    table = _table(ARROW, reply.body)
    entry = json.loads(server.world.platform.audit.entry(int(reply.headers["genward-audit-index"])))
    assert entry["request"] == reply.headers["genward-request"]
    assert entry["out"] == {"rows": 1500, "digest": digest_of(_rows(codec, table))}
    assert entry["plan"]["start"] == 7
    assert entry["model"].endswith(reply.headers["genward-model-digest"])
    assert entry["policy"] == reply.headers["genward-policy-digest"]


def _rows(codec: Any, table: pa.Table) -> Rows:
    """Canonical rows out of received ones: numbers as float64, codes by place among the schema's categories."""
    import numpy as np

    numbers = [_floats(table[name]) for name in codec.number_columns]
    codes = []
    for name in codec.code_columns:
        words = list(codec.schema.column(name).categories) or [False, True]
        codes.append([-1 if v is None else words.index(v) for v in table[name].to_pylist()])
    n = table.num_rows
    return Rows(np.array(numbers).T.reshape(n, -1), np.array(codes, np.int32).T.reshape(n, -1), np.arange(n))


def _floats(column: pa.ChunkedArray) -> list[float]:
    return [float("nan") if v is None else float(v) for v in column.to_pylist()]


@pytest.mark.parametrize("n", BAD_COUNTS)
def test_a_count_that_is_none_is_refused_and_recorded(server: Any, n: str) -> None:
    body = f'{{"n": {n}}}'.encode()
    reply = server.ask("POST", "/v1/models/pool:1/generate", body, headers={"Content-Type": JSON})
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/problem+json"
    assert "n is" in reply.json()["detail"]


def test_consecutive_requests_bring_new_rows_and_from_brings_the_same(server: Any) -> None:
    one, two = server.rows(20), server.rows(20)
    assert one.json()["rows"] != two.json()["rows"]
    again = server.rows(20, start=int(one.headers["genward-from"]))
    assert again.json()["rows"] == one.json()["rows"]


def test_rate_limits_are_told_on_every_page(server: Any) -> None:
    first, second = server.rows(3), server.rows(3)
    assert int(first.headers["x-ratelimit-limit"]) == 1_000_000_000
    left = [int(reply.headers["x-ratelimit-remaining"]) for reply in (first, second)]
    assert left[1] <= left[0] - 3


def test_stages_are_timed(server: Any) -> None:
    timing = server.rows(1).headers["server-timing"]
    for stage in ("authenticate", "find", "admit", "run", "encode", "record", "total"):
        assert f"{stage};dur=" in timing
