"""Large responses of a real server: the last piece is held back, whatever breaks is charged and settled."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

N = 30_000
JSON, CSV = "application/json", "text/csv"
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"


def _open(served: Any, n: int, media: str = CSV, model: str = "open:1") -> tuple[Any, Any]:
    """A connection and an answer whose body has not been read."""
    connection = http.client.HTTPConnection(served.host, served.port, timeout=60)
    headers = {"Authorization": f"Bearer {served.world.key}", "Content-Type": JSON, "Accept": media}
    connection.request("POST", f"/v1/models/{model}/generate", json.dumps({"n": n, "from": 0}), headers)
    return connection, connection.getresponse()


def _settles(world: Any, request: str) -> list[dict[str, Any]]:
    return [entry for entry in world.entries(request) if entry["event"] == "settle"]


def _until(check: Callable[[], Any], seconds: float = 15.0) -> Any:
    """What `check` gives, as soon as it gives something."""
    end = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def pages(server: Any) -> pa.Table:
    """The rows 0 to 30,000 as pages that were held in memory."""
    got = [server.rows(10_000, "open:1", start=at, accept=ARROW).body for at in range(0, N, 10_000)]
    return pa.concat_tables([pa.ipc.open_stream(one).read_all() for one in got]).replace_schema_metadata(None)


@pytest.mark.parametrize("media", [JSON, CSV, ARROW, PARQUET])
def test_a_stream_is_the_concatenation_of_its_pages(server: Any, pages: pa.Table, media: str) -> None:
    reply = server.rows(N, "open:1", start=0, accept=media)
    assert reply.status == 200
    if media == JSON:
        found = reply.json()
        assert "exhausted" not in found
        assert found["rows"] == [list(row.values()) for row in pages.to_pylist()]
    elif media == CSV:
        whole = [server.rows(10_000, "open:1", start=at, accept=CSV).body for at in range(0, N, 10_000)]
        header, _, rest = whole[0].partition(b"\n")
        assert reply.body == b"\n".join([header, rest]) + b"".join(one.partition(b"\n")[2] for one in whole[1:])
    elif media == ARROW:
        assert pa.ipc.open_stream(reply.body).read_all().replace_schema_metadata(None).equals(pages)
    else:
        assert pa.parquet.read_table(io.BytesIO(reply.body)).to_pylist() == pages.to_pylist()


def test_a_stream_has_a_grant_and_one_settle_of_all_its_rows(server: Any) -> None:
    reply = server.rows(N, "open:1", start=0, accept=CSV)
    grant, settle = server.world.entries(reply.headers["genward-request"])
    assert (grant["event"], grant["plan"]["n"]) == ("grant", N)
    assert (settle["event"], settle["status"], settle["out"]["rows"]) == ("settle", "served", N)
    assert settle["grant"] == int(reply.headers["genward-audit-index"])


def test_a_stream_past_the_pool_says_it_is_exhausted(server: Any) -> None:
    """Never silently fewer rows: headers say so at the start, JSON and Parquet again at the end."""
    reply = server.rows(N, "pool:1", accept=JSON)
    assert reply.headers["genward-exhausted"] == "true"
    found = reply.json()
    assert (len(found["rows"]), found["exhausted"]) == (3000, True)
    parquet = pa.parquet.ParquetFile(io.BytesIO(server.rows(N, "pool:1", accept=PARQUET).body))
    assert parquet.metadata.metadata[b"genward.exhausted"] == b"true"


def test_a_filtered_stream_that_ends_early_says_so(server: Any) -> None:
    where = ["REFERENCE: year>2018"]
    found = server.rows(20_000, "pool:1", where=where).json()
    assert found["exhausted"] is True
    assert 0 < len(found["rows"]) < 3000
    year = found["columns"].index("REFERENCE: year")
    assert all(row[year] > 2018 for row in found["rows"])


def test_a_client_that_leaves_is_charged_the_whole_grant(server: Any) -> None:
    connection, answer = _open(server, 900_000)
    request = answer.headers["genward-request"]
    assert answer.read(20_000)
    answer.close()
    connection.close()
    (settle,) = _until(lambda: _settles(server.world, request))
    assert (settle["status"], settle["out"]["rows"]) == ("aborted", 900_000)
    time.sleep(0.3)
    assert len(_settles(server.world, request)) == 1


def test_the_last_piece_waits_for_the_settle(make_world: Any, start_server: Any) -> None:
    """With the log's writer stopped between grant and settle, everything but the last piece arrives."""
    served = start_server(make_world())
    whole = served.rows(N, "open:1", start=0, accept=CSV).body
    writer = _writer(served)
    connection, answer = _open(served, 400_000)
    os.kill(writer, signal.SIGSTOP)  # after the grant: headers are here
    try:
        answer.fp.raw._sock.settimeout(3)
        got = bytearray()
        with pytest.raises(TimeoutError):
            while piece := answer.read1(1 << 16):
                got += piece
        rows = got.count(b"\n") - 1
        assert 0 < rows < 400_000
        assert bytes(got).startswith(whole[: min(len(whole), len(got))])
        assert not _answered(served, answer.headers["genward-request"])
    finally:
        os.kill(writer, signal.SIGCONT)
        answer.close()
        connection.close()
    (settle,) = _until(lambda: _settles(served.world, answer.headers["genward-request"]))
    assert settle["out"]["rows"] >= rows


def _writer(served: Any) -> int:
    from genward_audit.client import AuditClient

    client = AuditClient(served.world.folder / "run", [])
    try:
        return int(client.stats()["pid"])
    finally:
        client.close()


def _answered(served: Any, request: str) -> bool:
    """Whether the log on disk, read past the stopped writer, holds more than the grant."""
    log = served.world.folder / "log" / "wal"
    found = b"".join(path.read_bytes() for path in log.rglob("*") if path.is_file())
    return found.count(request.encode()) > 1
