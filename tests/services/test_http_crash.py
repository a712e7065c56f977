"""kill -9 at every point of a stream: never a byte without a grant, never a whole body without a settle."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genward.stream import sweep

N = 120_000
CSV = "text/csv"


def _killed(served: Any, kill: Callable[[], None], moment: float, n: int = N) -> tuple[bytes, str | None, bool]:
    """(what arrived, the request's id, whether the body came to its end) of a stream whose server is killed."""
    connection = http.client.HTTPConnection(served.host, served.port, timeout=20)
    headers = {"Authorization": f"Bearer {served.world.key}", "Content-Type": "application/json", "Accept": CSV}
    got, request, whole = bytearray(), None, False
    try:
        connection.request("POST", "/v1/models/open:1/generate", json.dumps({"n": n, "from": 0}), headers)
        begun = time.monotonic()
        if moment == 0:
            kill()
        answer = connection.getresponse()
        request = answer.headers["genward-request"]
        while piece := answer.read1(1 << 14):
            got += piece
            if time.monotonic() - begun > moment:
                kill()
        whole = answer.isclosed()
    except (http.client.HTTPException, OSError):
        pass
    finally:
        connection.close()
    return bytes(got), request, whole


def _kill(served: Any, processes_of: Callable[[Path], list[int]]) -> None:
    """All of a server at once; the log's writer lives on, as it would when the server alone crashes."""
    writers = _writers(served.world.folder, processes_of)
    for pid in set(processes_of(served.world.folder)) - set(writers) | {served.process.pid}:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _writers(folder: Path, processes_of: Callable[[Path], list[int]]) -> list[int]:
    return [pid for pid in processes_of(folder) if b"genward_audit.writer" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _check(world: Any, got: bytes, request: str | None, whole: bool, truth: bytes, n: int = N) -> str:
    """The invariants, before and after the sweeper; returns how the request stands in the log."""
    rows = max(0, got.count(b"\n") - 1)
    assert truth.startswith(got[: len(truth)]) or len(got) > len(truth)
    if request is None:
        return "nothing left"
    events = [entry["event"] for entry in world.entries(request)]
    assert events[0] == "grant"
    if whole:
        assert "settle" in events
        assert rows == n
    world.platform.pipeline.clock = lambda: time.time() + 10_000
    sweep(world.platform.pipeline)
    settles = [entry for entry in world.entries(request) if entry["event"] == "settle"]
    assert len(settles) == 1
    assert settles[0]["out"]["rows"] >= rows
    assert sweep(world.platform.pipeline) == 0
    return str(settles[0]["status"])


def _campaign(make_world: Any, start_server: Any, processes_of: Any, moments: list[float]) -> list[str]:
    world = make_world()
    truth = _truth(world)
    found = []
    for moment in moments:
        served = start_server(world)
        got, request, whole = _killed(served, lambda served=served: _kill(served, processes_of), moment)
        _kill(served, processes_of)
        served.process.wait(10)
        request = request or _last_grant(world)
        found.append(_check(world, got, request, whole, truth))
    return found


def _truth(world: Any) -> bytes:
    body: bytes = world.platform.client(world.key).generate("open:1", n=N, start=0, format="csv").body
    return body


def _last_grant(world: Any) -> str | None:
    """The request of a grant that nobody got to see."""
    granted = [entry["request"] for entry in world.log() if entry.get("event") == "grant"]
    settled = {entry["request"] for entry in world.log() if entry.get("event") == "settle"}
    return next((request for request in reversed(granted) if request not in settled), None)


def test_a_killed_server_leaves_a_grant_that_is_charged_whole(
    make_world: Any, start_server: Any, processes_of: Any
) -> None:
    found = _campaign(make_world, start_server, processes_of, [0, 0.02, 0.15, 5])
    assert found[-1] == "served"
    assert "lost" in found


@pytest.mark.soak
def test_a_hundred_kills_at_random_moments(make_world: Any, start_server: Any, processes_of: Any) -> None:
    rng = random.Random(7)
    found = _campaign(make_world, start_server, processes_of, [rng.uniform(0, 0.6) for _ in range(100)])
    assert {"lost"} <= set(found)


def test_with_the_writer_killed_nothing_leaves_until_it_is_back(world: Any, processes_of: Any) -> None:
    """Law 4: 503 while the log cannot be written, and a recovery without anybody's help."""
    from genward.errors import Unavailable
    from genward.request import Ask

    pipeline, run = world.platform.pipeline, world.folder / "run"
    ask = Ask(world.key, "pool:1", 5)
    assert world.platform.run(pipeline.generate(ask)).body
    for pid in _writers(world.folder, processes_of):
        os.kill(pid, signal.SIGKILL)
    wal = world.folder / "log" / "wal"
    hidden = wal.rename(wal.with_name("gone"))
    wal.write_bytes(b"in the way")
    try:
        for asked in (ask, replace(ask, model="open:1", n=30_000), replace(ask, key="gw_nobody")):
            with pytest.raises(Unavailable):
                world.platform.run(pipeline.generate(asked))
    finally:
        wal.unlink()
        hidden.rename(wal)
    assert run.is_dir()
    assert world.platform.run(pipeline.generate(ask)).body


def test_serve_starts_a_killed_writer_again_unasked(make_world: Any, start_server: Any, processes_of: Any) -> None:
    served = start_server(make_world())
    before = _writers(served.world.folder, processes_of)
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while not set(_writers(served.world.folder, processes_of)) - set(before) and time.monotonic() < until:
        time.sleep(0.1)
    assert set(_writers(served.world.folder, processes_of)) - set(before)
    assert served.rows(5).status == 200


def test_a_writer_that_hangs_is_503_within_ten_seconds_and_then_at_once(
    make_world: Any, start_server: Any, processes_of: Any
) -> None:
    """Law 4 with a writer that is stopped, not dead: nothing leaves, and it goes on when the writer does."""
    served = start_server(make_world())
    assert served.rows(5).status == 200
    pids = _writers(served.world.folder, processes_of)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        reply = served.rows(5)
        assert (reply.status, "retry-after" in reply.headers) == (503, True)
        assert 9 < time.monotonic() - begun < 25  # APPEND_SECONDS, once: the refusal is not waited for again
        begun = time.monotonic()
        assert {served.rows(5).status for _ in range(3)} == {503}
        assert time.monotonic() - begun < 9
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + 20
    while served.rows(5).status != 200 and time.monotonic() < until:
        time.sleep(0.2)
    assert served.rows(5).status == 200
