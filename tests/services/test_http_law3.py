"""Law 3: every route that gives rows gives them through the one pipeline, and the log says how many."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from genward_services.app import ROUTES

ROOT = Path(__file__).parents[2]
INFER = {"inputs": [{"name": "n", "datatype": "INT64", "shape": [1], "data": [3]}]}


def _settled(world: Any) -> int:
    entries = [entry for entry in world.log() if entry.get("event") == "settle"]
    return sum(entry["out"]["rows"] for entry in entries)


def _fill(pattern: str, request: str) -> str:
    return pattern.format(name="pool:1", request=request, path="checkpoint")


def _rows_in(body: Any) -> int:
    """Rows in a JSON answer of any route."""
    if "rows" in body:
        return len(body["rows"])
    return max((len(tensor["data"]) for tensor in body.get("outputs", []) if "data" in tensor), default=0)


@pytest.mark.parametrize(("method", "pattern", "content"), [(m, p, c) for m, p, _, c in ROUTES])
def test_what_a_route_gives_is_what_the_log_settled(server: Any, method: str, pattern: str, content: str) -> None:
    """Over every route, with every role: rows in the answers are rows of new settle entries, no more and no fewer."""
    request = server.rows(1).headers["genward-request"]
    before, given = _settled(server.world), 0
    for key in (server.world.key, server.world.auditor, server.world.stranger, "gw_nobody"):
        body = None if not content else (INFER if "infer" in pattern else {"n": 3})
        reply = server.ask(method, _fill(pattern, request), body, key=key)
        assert reply.status < 500
        if reply.status == 200 and reply.headers["content-type"].startswith("application/json"):
            given += _rows_in(reply.json())
    assert _settled(server.world) - before == given
    assert (given > 0) == (method == "POST" and pattern != "/v1/detect")


def test_only_pages_and_the_release_ask_an_engine_for_rows() -> None:
    """And only the pipeline and its streams ask pages. What policies measure is of the release: rows of a graph that is
    not sealed yet, under the public key; so do the suites for plugin authors."""
    measuring = {
        f"policies/genward_policies/{name}.py" for name in ("pruning/exact", "pruning/judge", "extraction/calibrate")
    }
    releasing = {"platform/genward/release.py", "platform/genward/testing.py", *measuring}
    direct, plans = re.compile(r"engine\.(rows|candidates)\("), re.compile(r"\.(fetcher|scan)\(")
    for folder in ("platform/genward", "services/genward_services", "policies/genward_policies"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            known = {"platform/genward/pages.py", *releasing}
            assert not direct.search(text) or path.relative_to(ROOT).as_posix() in known, path
            assert not plans.search(text) or path.name in {"pages.py", "request.py", "stream.py"}, path


def test_the_open_inference_protocol_speaks_of_the_same_rows(server: Any) -> None:
    inputs = [
        {"name": "n", "data": [4]},
        {"name": "from", "data": [11]},
        {"name": "where", "data": ["REFERENCE: year>2010"]},
    ]
    got = server.ask("POST", "/v2/models/pool:1/infer", {"inputs": inputs}).json()
    same = server.rows(4, start=11, where=["REFERENCE: year>2010"]).json()
    columns = [tensor["data"] for tensor in got["outputs"]]
    assert [list(row) for row in zip(*columns, strict=True)] == same["rows"]
    about = server.ask("GET", "/v2/models/pool:1").json()
    assert [tensor["name"] for tensor in about["outputs"]] == same["columns"]


@pytest.mark.parametrize(
    "inputs",
    [None, [3], [{"name": "m", "data": [1]}], [{"name": "n", "data": 1}], [{"name": "n", "data": [20_000]}],
     [{"name": "from", "data": [-1]}], [{"name": "where", "data": [1]}], [{"name": "n", "data": ["4"]}],
     [{"name": {}, "data": [1]}], [{"name": "n", "data": [1, 2]}], [{"name": "from", "data": []}],
     [{"name": "where", "data": ["REFERENCE: year>2010"] * 101}], [{"name": "n", "data": [1]}] * 4,
     [{"name": "n", "data": [1.5]}]],
)  # fmt: skip
def test_odd_tensors_are_refused(server: Any, inputs: Any) -> None:
    assert server.ask("POST", "/v2/models/pool:1/infer", {"inputs": inputs}).status == 400


def _new(world: Any, before: int) -> list[dict[str, Any]]:
    return world.log()[before:]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("body", "model", "who", "status"),
    [({"n": 0}, "pool:1", "key", 400), ({"m": 1}, "pool:1", "key", 400), ({"n": 1}, "none:1", "key", 404),
     ({"n": 1}, "pool:1", "stranger", 404), ({"n": 1}, "pool:1", "auditor", 403), ({"n": 1}, "pool:1", "", 401),
     ({"n": 10**12}, "pool:1", "key", 400), ({"n": 1, "where": ["x>1"]}, "pool:1", "key", 400)],
)  # fmt: skip
def test_a_refusal_is_an_entry_of_the_log(server: Any, body: Any, model: str, who: str, status: int) -> None:
    before = len(server.world.log())
    key = getattr(server.world, who) if who else "gw_wrong"
    assert server.ask("POST", f"/v1/models/{model}/generate", body, key=key).status == status
    (entry,) = _new(server.world, before)
    assert (entry["event"], entry["status"]) == ("refuse", "denied")
    assert "out" not in entry
    assert ("tenant" in entry) == bool(who)


def test_an_accept_header_that_cannot_be_met_is_refused_and_recorded(server: Any) -> None:
    before = len(server.world.log())
    assert server.rows(1, accept="image/png").status == 400
    assert _new(server.world, before)[0]["event"] == "refuse"


def test_receipts_wait_for_a_checkpoint_and_belong_to_their_tenant(server: Any) -> None:
    request = server.rows(2).headers["genward-request"]
    path = f"/v1/receipts/{request}"
    while (reply := server.ask("GET", path)).status == 202:
        assert reply.headers["retry-after"] == "1"
        time.sleep(0.2)
    assert reply.json()["format"] == "genward.receipt/1"
    assert server.ask("GET", path, key=server.world.auditor).status == 200
    before = len(server.world.log())
    assert server.ask("GET", path, key=server.world.stranger).status == 403
    assert server.ask("GET", "/v1/receipts/nothing").status == 404
    assert [(e["event"], e["tenant"]) for e in _new(server.world, before)] == [("refuse", "other"), ("refuse", "acme")]


@pytest.mark.parametrize("path", ["/v1/models/pool:1", "/v2/models/pool:1"])
def test_a_release_that_is_not_granted_is_not_there_and_the_question_is_recorded(server: Any, path: str) -> None:
    before = len(server.world.log())
    assert server.ask("GET", path, key=server.world.stranger).status == 404
    assert [(e["event"], e["tenant"]) for e in _new(server.world, before)] == [("refuse", "other")]
    assert server.ask("GET", path).status == 200


def test_the_log_itself_is_for_auditors(server: Any) -> None:
    assert server.ask("GET", "/v1/log/checkpoint").status == 403
    assert server.ask("GET", "/v1/log/checkpoint", key=server.world.auditor).body.startswith(b"genward.local/log\n")
    for path in ("../genward.yaml", "wal", "tile/0/zzz", "checkpoint.tmp"):
        assert server.ask("GET", f"/v1/log/{path}", key=server.world.auditor).status == 404
