"""A running server follows the registry, shares its state among workers, and gives way when it is full."""

from __future__ import annotations

import http.client
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

BUSY = "server: {queue: 1, deadline_s: 30}\n"


@pytest.fixture(scope="module")
def pair(make_world: Callable[..., Any], start_server: Callable[..., Any]) -> Any:
    """A server with two worker processes."""
    return start_server(make_world(), "--workers", "2")


def test_two_workers_never_give_the_same_rows(pair: Any) -> None:
    """Unfiltered pages of one tenant, 12 connections at once, from two processes: 900 places, none twice."""
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: pair.rows(25), range(36)))
    assert {reply.status for reply in replies} == {200}
    places = [(int(r.headers["genward-from"]) + i) % 3000 for r in replies for i in range(25)]
    assert len(set(places)) == 900
    rows = [tuple(row) for reply in replies for row in reply.json()["rows"]]
    assert len(set(rows)) > 890


def test_any_worker_gives_the_same_bytes(pair: Any) -> None:
    bodies = {pair.rows(50, start=77, accept="text/csv").body for _ in range(12)}
    assert len(bodies) == 1


def test_a_revoked_key_is_refused_at_the_next_request(pair: Any) -> None:
    key = pair.world.platform.create_key("acme", ["consumer"])
    assert {pair.rows(1, key=key).status for _ in range(6)} == {200}
    pair.world.platform.revoke_key(key.split("_")[1])
    assert {pair.rows(1, key=key).status for _ in range(6)} == {401}


def test_an_expired_key_is_refused(pair: Any) -> None:
    key = pair.world.platform.create_key("acme", ["consumer"], days=1.5 / 86_400)
    assert pair.rows(1, key=key).status == 200
    time.sleep(1.6)
    assert {pair.rows(1, key=key).status for _ in range(4)} == {401}


def test_a_grant_is_seen_at_the_next_request(pair: Any) -> None:
    key = pair.world.stranger
    assert pair.rows(1, key=key).status == 404
    assert pair.ask("GET", "/v1/models", key=key).status == 200
    assert pair.ask("GET", "/v1/models", key=key).json()["models"] == []
    pair.world.platform.grant("open:1", "other")
    assert {pair.rows(1, "open:1", key=key).status for _ in range(6)} == {200}
    mine, theirs = pair.rows(5, "open:1", start=0).json(), pair.rows(5, "open:1", start=0, key=key).json()
    assert mine["rows"] != theirs["rows"]


def test_a_policy_and_its_rollback_are_followed_without_a_restart(pair: Any) -> None:
    platform = pair.world.platform
    first = platform.registry.active_policy()[0]
    second = pair.world.activate(platform.policy_text().replace("generate: [consumer,", "generate: ["))
    replies = [pair.rows(1) for _ in range(6)]
    assert {reply.status for reply in replies} == {403}
    platform.rollback_policy(first)
    replies = [pair.rows(1) for _ in range(6)]
    assert {(reply.status, reply.headers.get("genward-policy-digest")) for reply in replies} == {(200, first)}
    assert first != second


def test_a_request_limit_holds_over_workers_and_says_when_to_come_back(pair: Any) -> None:
    platform = pair.world.platform
    first = platform.registry.active_policy()[0]
    pair.world.activate(platform.policy_text().replace("per_key_minute: 1000000", "per_key_minute: 20"))
    key = platform.create_key("acme", ["consumer"])
    if time.time() % 60 > 50:  # the window must not turn in between
        time.sleep(61 - time.time() % 60)
    replies = [pair.rows(1, key=key) for _ in range(30)]
    served = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    assert (len(served), len(refused)) == (20, 10)
    assert served[0].headers["x-ratelimit-requests-limit"] == "20"
    assert all(1 <= int(reply.headers["retry-after"]) <= 60 for reply in refused)
    assert b"20" not in refused[0].json()["detail"].encode()
    platform.rollback_policy(first)


def test_a_full_queue_answers_at_once_and_says_when_to_come_back(
    make_world: Callable[..., Any], start_server: Callable[..., Any]
) -> None:
    """A stream keeps its place while it lasts."""
    served = start_server(make_world(BUSY))
    connection = http.client.HTTPConnection(served.host, served.port, timeout=60)
    head = {"Authorization": f"Bearer {served.world.key}", "Content-Type": "application/json", "Accept": "text/csv"}
    try:
        connection.request("POST", "/v1/models/open:1/generate", b'{"n": 400000}', head)
        answer = connection.getresponse()
        full = served.rows(1)
        assert answer.read().count(b"\n") == 400_001
    finally:
        connection.close()
    assert (answer.status, full.status, full.headers["retry-after"]) == (200, 429, "1")
    assert served.rows(1).status == 200


def test_a_deadline_really_stops_a_request(make_world: Callable[..., Any], start_server: Callable[..., Any]) -> None:
    served = start_server(make_world("server: {deadline_s: 0.0001}\n"))
    begun = time.monotonic()
    reply = served.rows(10_000, "open:1")
    assert reply.status == 504
    assert reply.headers["content-type"] == "application/problem+json"
    assert time.monotonic() - begun < 5
    last = [entry for entry in served.world.log() if entry.get("event") == "refuse"][-1]
    assert last["status"] == "error"


def test_a_store_that_is_gone_is_503_until_it_is_back(
    make_world: Callable[..., Any], start_server: Callable[..., Any]
) -> None:
    """The counters' database becomes unreadable for a while: nothing leaves, and nothing needs a restart."""
    world = make_world()
    served = start_server(world)
    text = world.platform.policy_text().replace("per_key_day: 1000000000", "per_key_day: 64")
    world.activate(text)  # chunks of one row: every request asks the store
    assert served.rows(1).status == 200
    holder = sqlite3.connect(world.folder / "counters.db", isolation_level=None)
    try:
        holder.execute("ALTER TABLE limits RENAME TO elsewhere")
        replies = [served.rows(1) for _ in range(3)]
        assert {reply.status for reply in replies} == {503}
        assert all("retry-after" in reply.headers for reply in replies)
        holder.execute("ALTER TABLE elsewhere RENAME TO limits")
    finally:
        holder.close()
    assert served.rows(1).status == 200
