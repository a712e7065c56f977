"""The request path in process: cursors, conditions, replay, streams that end in every way, counters."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genward.counters import Counters
from genward.engine_blocks import Recent
from genward.errors import (
    CheckFailed,
    DeadlineExceeded,
    Denied,
    GenwardError,
    IntegrityError,
    LimitReached,
    NotFound,
    Unauthenticated,
    Unavailable,
    UsageError,
)
from genward.request import Ask
from genward.stream import sweep

YEAR = "REFERENCE: year"


@pytest.fixture(scope="module")
def shared(make_world: Callable[..., Any]) -> Any:
    """A world that its tests leave usable for one another."""
    return make_world()


def _client(world: Any) -> Any:
    return world.platform.client(world.key)


# counts and names


@pytest.mark.parametrize("n", [0, -1, 10**12, "4", True, 1.5, None])
def test_a_count_that_is_none_is_refused(shared: Any, n: Any) -> None:
    with pytest.raises(UsageError, match="n is"):
        _client(shared).generate("pool:1", n=n)


@pytest.mark.parametrize("model", ["none", "pool:9", "pool@production", "", "../pool", "pool:x"])
def test_an_unknown_release_is_not_there(shared: Any, model: str) -> None:
    with pytest.raises(NotFound):
        _client(shared).generate(model, n=1)


def test_a_release_is_not_there_for_a_tenant_without_a_grant(shared: Any) -> None:
    with pytest.raises(NotFound):
        shared.platform.client(shared.stranger).generate("pool:1", n=1)


@pytest.mark.parametrize("key", ["", "gw_", "gw_aaaaaaaa_" + "A" * 43 + "_00000000"])
def test_a_wrong_key_is_refused_in_the_same_words(shared: Any, key: str) -> None:
    with pytest.raises(Unauthenticated, match="not valid"):
        shared.platform.client(key).generate("pool:1", n=1)


# cursors and conditions


def test_each_call_brings_new_rows_until_the_walk_begins_again(world: Any) -> None:
    """Ten pages of 300 over 3,000 slots: every place once, however many clients one process has."""
    places: list[int] = []
    for _ in range(10):
        start = int(_client(world).generate("pool:1", n=300).headers["genward-from"])
        places += [(start + i) % 3000 for i in range(300)]
    assert len(set(places)) == 3000


@pytest.mark.parametrize("where", [[f"{YEAR}>2012"], [f"{YEAR}>2012", "PROPERTY: BCC/FCC/other=FCC"]])
@pytest.mark.parametrize("model", ["pool:1", "open:1"])
def test_conditions_hold_in_every_row_and_the_yield_is_told(shared: Any, where: list[str], model: str) -> None:
    answer = _client(shared).generate(model, n=60, where=where)
    found = json.loads(answer.body)
    place = {name: i for i, name in enumerate(found["columns"])}
    assert len(found["rows"]) == 60
    assert all(row[place[YEAR]] > 2012 for row in found["rows"])
    assert len(where) == 1 or all(row[place["PROPERTY: BCC/FCC/other"]] == "FCC" for row in found["rows"])
    entry = shared.entries(answer.request)[0]
    assert float(answer.headers["genward-yield"]) == pytest.approx(60 / entry["plan"]["n"], abs=1e-4)
    assert YEAR not in json.dumps(entry)  # what was asked is committed to, not published


def test_filtered_pages_go_on_where_the_last_one_ended(world: Any) -> None:
    rows: list[Any] = []
    for _ in range(5):
        rows += json.loads(_client(world).generate("pool:1", n=40, where=[f"{YEAR}>2012"]).body)["rows"]
    assert len({tuple(row) for row in rows}) == 200


@pytest.mark.parametrize("held", [10_000, 1])
def test_filtered_pages_leave_no_place_out_and_look_at_none_twice(world: Any, held: int) -> None:
    """Whether a page is held in memory or streamed: each begins where the one before it stopped looking."""
    world.platform.pipeline.limits = replace(world.platform.pipeline.limits, held=held)
    at = 0
    for _ in range(6):
        request = _client(world).generate("pool:1", n=40, where=[f"{YEAR}>2012"]).request
        plan = next(entry["plan"] for entry in world.entries(request) if entry["event"] == "settle")
        assert plan["start"] == at % 3000
        at += plan["n"]
    assert at > 240


def test_a_condition_nothing_meets_says_so(shared: Any) -> None:
    answer = _client(shared).generate("pool:1", n=3, where=[f"{YEAR}>2018", f"{YEAR}<2018"])
    assert json.loads(answer.body)["rows"] == []
    assert json.loads(answer.body)["exhausted"] is True
    assert (answer.headers["genward-exhausted"], answer.headers["genward-yield"]) == ("true", "0.0000")


def test_more_than_the_pool_is_what_there_is_and_says_so(shared: Any) -> None:
    answer = _client(shared).generate("pool:1", n=3500)
    assert (answer.headers["genward-rows"], answer.headers["genward-exhausted"]) == ("3000", "true")


@pytest.mark.parametrize("clause", ["nothing>1", f"{YEAR}>>1", "", YEAR, f"{YEAR}=red", "PROPERTY: BCC/FCC/other=XYZ"])
def test_a_condition_that_cannot_be_read_is_refused(shared: Any, clause: str) -> None:
    with pytest.raises(UsageError):
        _client(shared).generate("pool:1", n=1, where=[clause])


# replay and receipts


@pytest.mark.parametrize(
    ("model", "n", "given"),
    [("pool:1", 70, {}), ("pool:1", 70, {"start": 2990}), ("pool:1", 50, {"where": [f"{YEAR}>2012"]}),
     ("pool:1", 5000, {}), ("open:1", 70, {}), ("open:1", 70, {"start": 5, "where": [f"{YEAR}>2012"]}),
     ("open:1", 25_000, {"start": 100}), ("pool:1", 12_000, {"where": [f"{YEAR}>2012"]})],
)  # fmt: skip
def test_a_response_is_computed_again_bit_for_bit(
    shared: Any, tmp_path: Path, model: str, n: int, given: dict[str, Any]
) -> None:
    answer = _client(shared).generate(model, n=n, format="csv", **given)
    file = tmp_path / "receipt.json"
    file.write_bytes(answer.receipt())
    assert shared.platform.replay(file)["replayed"] == answer.body.count(b"\n") - 1


def test_replay_needs_what_was_asked_and_the_right_entry(shared: Any, tmp_path: Path) -> None:
    answer = _client(shared).generate("pool:1", n=30, where=[f"{YEAR}>2016"])
    receipt = json.loads(answer.receipt())
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps({**receipt, "asked": {}}))
    with pytest.raises(CheckFailed):
        shared.platform.replay(file)
    file.write_text("{}")
    with pytest.raises(IntegrityError):
        shared.platform.replay(file)


def test_a_receipt_opens_the_conditions_the_log_committed_to(shared: Any, tmp_path: Path) -> None:
    from genward.verify import verify_path

    answer = _client(shared).generate("pool:1", n=3, where=[f"{YEAR}>2016", f"{YEAR}<2019"])
    receipt = json.loads(answer.receipt())
    file = tmp_path / "receipt.json"
    said = {}
    for name, where in (("kept", [f"{YEAR}<2019", f"{YEAR}>2016"]), ("lost", [])):
        file.write_text(json.dumps({**receipt, "asked": {"where": where}}))
        said[name] = verify_path(file, key=None, state=shared.folder)["conditions"]
    assert said == {"kept": "as the log committed to", "lost": "not kept beside the receipt"}
    file.write_text(json.dumps({**receipt, "asked": {"where": [f"{YEAR}>2015"]}}))
    with pytest.raises(IntegrityError, match="committed"):
        verify_path(file, key=None, state=shared.folder)


def test_a_receipt_is_verified_offline_and_a_changed_one_is_not(shared: Any, tmp_path: Path) -> None:
    from genward.verify import verify_path

    answer = _client(shared).generate("pool:1", n=30)
    file = tmp_path / "receipt.json"
    file.write_bytes(answer.receipt())
    found = verify_path(file, key=None, state=shared.folder)
    assert (found["status"], found["rows"]) == ("served", 30)
    file.write_bytes(answer.receipt().replace(b'\\"rows\\":30', b'\\"rows\\":31'))
    with pytest.raises(GenwardError):
        verify_path(file, key=None, state=shared.folder)


def test_a_long_stream_is_a_chain_of_grants_and_its_receipt_holds_them_all(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genward.stream.GRANT", 9000)
    answer = _client(world).generate("open:1", n=20_000, format="csv", start=0)
    assert answer.body.count(b"\n") == 20_001
    file = tmp_path / "receipt.json"
    file.write_bytes(answer.receipt())
    entries = [json.loads(item["entry"]) for item in json.loads(file.read_bytes())["entries"]]
    assert [entry["event"] for entry in entries] == ["grant", "settle"] * 3
    assert [entry["out"]["rows"] for entry in entries[1::2]] == [9000, 9000, 2000]
    assert world.platform.replay(file)["replayed"] == 20_000


# streams that end in every way


async def _broken_off(world: Any, after: int) -> str:
    response = await world.platform.pipeline.generate(Ask(world.key, "open:1", 60_000, (), 0, "text/csv"))
    pieces = response.pieces
    for _ in range(after):
        await anext(pieces)
    await pieces.aclose()
    return str(response.request)


@pytest.mark.parametrize("after", [1, 3])
def test_a_stream_that_is_broken_off_is_charged_whole_and_settled_once(world: Any, after: int) -> None:
    request = world.platform.run(_broken_off(world, after))
    grant, settle = world.entries(request)
    assert (settle["status"], settle["out"]["rows"]) == ("aborted", 60_000)
    assert settle["grant"] == world.platform.audit.find(request)[0]
    assert grant["event"] == "grant"
    world.platform.pipeline.clock = lambda: time.time() + 1e6
    assert sweep(world.platform.pipeline) == 0


def test_a_stream_that_is_never_read_is_lost_and_charged_whole(world: Any) -> None:
    request = world.platform.run(_broken_off(world, 0))
    pipeline = world.platform.pipeline
    assert sweep(pipeline) == 0  # not before its time
    pipeline.clock = lambda: time.time() + 1e6
    assert sweep(pipeline) == 1
    settle = world.entries(request)[-1]
    assert (settle["status"], settle["out"]["rows"]) == ("lost", 60_000)
    assert sweep(pipeline) == 0


def test_a_stream_that_was_taken_for_lost_gives_no_last_byte(world: Any) -> None:
    """Whoever settles first settles alone: a stream that outlived its deadline is broken off, not settled twice."""
    pipeline = world.platform.pipeline

    async def slow() -> str:
        response = await pipeline.generate(Ask(world.key, "open:1", 20_000, (), 0, "text/csv"))
        await anext(response.pieces)
        now, pipeline.clock = pipeline.clock, lambda: time.time() + 1e6
        await asyncio.to_thread(sweep, pipeline)
        pipeline.clock = now
        with pytest.raises(Unavailable, match="lost"):
            async for _ in response.pieces:
                pass
        return str(response.request)

    settles = [entry for entry in world.entries(world.platform.run(slow())) if entry["event"] == "settle"]
    assert [entry["status"] for entry in settles] == ["lost"]


def test_two_sweepers_settle_a_lost_grant_once(world: Any) -> None:
    requests = [world.platform.run(_broken_off(world, 0)) for _ in range(4)]
    pipeline = world.platform.pipeline
    pipeline.clock = lambda: time.time() + 1e6
    threads = [threading.Thread(target=sweep, args=(pipeline,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for request in requests:
        assert [entry["event"] for entry in world.entries(request)] == ["grant", "settle"]


def test_a_million_rows_stream_in_flat_memory(world: Any) -> None:
    _flat(world, 1_000_000)


@pytest.mark.soak
def test_ten_million_rows_stream_in_flat_memory(world: Any) -> None:
    _flat(world, 10_000_000)


def _flat(world: Any, n: int) -> None:
    """With a small block cache, the peak after a tenth of the stream is that of the whole, within 48 MiB."""
    engine = world.platform.pipeline.shelf.get(world.platform.registry.resolve("open:1")).engine
    engine._recent = Recent(8 << 20)

    async def drained() -> tuple[int, int, int]:
        response = await world.platform.pipeline.generate(
            Ask(world.key, "open:1", n, (), 0, "application/vnd.apache.arrow.stream")
        )
        size = early = 0
        async for piece in response.pieces:
            size += len(piece)
            if not early and size > 20 * n:
                early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size, early, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    size, early, peak = world.platform.run(drained())
    assert size > 100 * n
    assert peak - early < 48 * 1024  # KiB


# limits and failures


def test_a_full_queue_refuses_with_a_time_to_wait(shared: Any) -> None:
    pipeline = shared.platform.pipeline
    pipeline._under_way += pipeline.limits.queue
    try:
        with pytest.raises(LimitReached) as caught:
            _client(shared).generate("pool:1", n=1)
    finally:
        pipeline._under_way -= pipeline.limits.queue
    assert caught.value.retry_after == 1.0


def test_a_deadline_stops_a_request_and_a_stream(world: Any) -> None:
    world.platform.pipeline.limits = replace(world.platform.pipeline.limits, deadline=1e-4)
    for n in (9000, 30_000):
        with pytest.raises(DeadlineExceeded):
            _client(world).generate("open:1", n=n)
    last = world.log()[-1]
    assert (last["event"], last["status"]) == ("settle", "aborted")


def test_a_request_whose_caller_leaves_is_recorded_as_aborted(world: Any) -> None:
    async def left() -> None:
        working = asyncio.ensure_future(world.platform.pipeline.generate(Ask(world.key, "open:1", 9000)))
        await asyncio.sleep(0.005)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working

    world.platform.run(left())
    assert (world.log()[-1]["event"], world.log()[-1]["status"]) == ("refuse", "aborted")


def test_an_exception_of_nobodys_making_is_recorded_and_says_nothing(world: Any) -> None:
    world.platform.pipeline.shelf.at_hand = lambda info: {}["secret"]
    with pytest.raises(GenwardError, match="something went wrong") as caught:
        _client(world).generate("pool:1", n=1)
    assert "secret" not in str(caught.value)
    assert (world.log()[-1]["event"], world.log()[-1]["status"]) == ("refuse", "error")


QUOTA = textwrap.dedent("""
    import os, signal, sys, time
    from genward.counters import Counters
    counters = Counters(sys.argv[1])
    got = 0
    while counters.reserve("rows/x", 3, int(sys.argv[2]), chunk=40) is not None:
        got += 3
        print(got, flush=True)
        time.sleep(0.005)
        if sys.argv[3] == "die" and got > 100:
            os.kill(os.getpid(), signal.SIGKILL)
    counters.close()
""")


def test_a_quota_is_never_passed_by_four_processes_of_which_two_are_killed(tmp_path: Path) -> None:
    """What a killed process held counts as spent: at most the limit is given, and at least all but two chunks of it."""
    url, limit = f"sqlite:///{tmp_path / 'counters.db'}", 3000
    Counters(url).close()
    command = [sys.executable, "-c", QUOTA, url, str(limit)]
    fates = ("die", "live", "die", "live")
    started = [subprocess.Popen([*command, fate], stdout=subprocess.PIPE, text=True) for fate in fates]
    given = [int(process.communicate(timeout=60)[0].split()[-1]) for process in started]
    assert [process.returncode for process in started] == [-9, 0, -9, 0]
    assert limit - 2 * 40 - 4 * 3 <= sum(given) <= limit


def test_a_refund_can_be_spent_again_and_a_release_gives_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'counters.db'}"
    one, two = Counters(url), Counters(url)
    assert one.reserve("x", 80, 100, chunk=100) is not None
    assert two.reserve("x", 10, 100) is None
    one.refund("x", 30)
    one.release()
    assert two.reserve("x", 50, 100) == 0
    assert two.reserve("x", 1, 100) is None
    one.close()
    two.close()


def test_a_cursor_goes_on_where_a_process_left_it_unless_another_did(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'counters.db'}"
    one = Counters(url)
    assert one.advance("cursor/x", 10, 256) == 0
    one.close()
    two, three = Counters(url), Counters(url)
    assert two.advance("cursor/x", 10, 256) == 10
    assert three.advance("cursor/x", 10, 256) == 266
    two.close()
    assert three.advance("cursor/x", 10, 256) == 276
    three.close()
    four = Counters(url)
    assert four.advance("cursor/x", 1, 256) == 286
    four.close()


def test_a_policy_that_denies_is_recorded_with_its_reason_and_tells_no_number(world: Any) -> None:
    world.activate(world.platform.policy_text().replace("per_request: 20000000", "per_request: 77"))
    with pytest.raises(Denied):
        _client(world).generate("pool:1", n=78)
    last = world.log()[-1]
    assert (last["event"], last["status"], last["reasons"]) == (
        "refuse",
        "denied",
        ["quota: at most 77 rows a request"],
    )
