"""The writer in this process, where its clock can jump, its disk can hang and its own faults can be made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from genward_audit.client import AuditClient
from genward_audit.entries import act_entry, parse
from genward_audit.errors import AuditError, Unavailable
from genward_audit.policy import Policy
from genward_audit.reader import LogFolder
from genward_audit.sequencer import Sequencer
from genward_audit.verify import verify_folder
from genward_audit.writer import Options, Writer

Act = Callable[[AuditClient, Writer], Coroutine[Any, Any, None]]


def _run(folder: Path, log: Sequencer, act: Act) -> None:
    """Run a writer in this process' loop while `act` uses it."""

    async def both() -> None:
        (folder / "run").mkdir(exist_ok=True)
        writer = Writer(log, Options(folder / "log", folder / "run", folder / "key.pem", log.signer.name, period=0.05))
        running = asyncio.create_task(writer.run())
        while not (folder / "run/audit.sock").exists():
            await asyncio.sleep(0.01)
        client = AuditClient(folder / "run", ["--no-other-writer"])
        try:
            await act(client, writer)
        finally:
            await client.detach()
            writer.stopping.set()
            await asyncio.wait_for(running, 20)

    asyncio.run(both())


def _acts(folder: Path) -> list[dict[str, Any]]:
    return [parse(entry) for _, entry in LogFolder(folder / "log").entries()]


def test_times_never_fall_when_the_clock_jumps_back_an_hour(
    folder: Path, logs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while it runs nor across a restart; an entry says what happened, once until the clock has caught up."""
    now = [1_790_000_000.0]
    monkeypatch.setattr("genward_audit.writer.time.time", lambda: now[0])

    async def jump(client: AuditClient, _: Writer) -> None:
        for step in (10.0, -3600.0, 1.0, 1.0, 3700.0, 1.0):
            now[0] += step
            await client.append_async(act_entry("test.clock"))

    _run(folder, logs.open(folder), jump)
    now[0] -= 7200.0
    _run(folder, logs.open(folder), jump)
    times = [one["t"] for one in _acts(folder)]
    assert times == sorted(times)
    assert len(set(times)) >= len(times) - 3
    jumps = [one["detail"] for one in _acts(folder) if one["act"] == "log.clock"]
    assert len(jumps) == 2
    assert jumps[0]["before"] == "2026-09-21T14:13:30.000000Z"
    assert jumps[0]["after"] == "2026-09-21T13:13:30.000000Z"
    report = verify_folder(folder / "log", Policy.of(logs.vkey), now=now[0])
    assert report.completeness.state == "ok", report.completeness


def test_a_fault_of_the_writer_s_own_ends_it_and_leaves_no_producer_waiting(
    folder: Path, logs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(client: AuditClient, writer: Writer) -> None:
        await client.append_async(b"kept", stamp=False)
        commit = writer.sequencer.commit
        writer.sequencer.commit = _fault  # type: ignore[method-assign]
        asking = asyncio.ensure_future(client.append_async(b"lost", stamp=False))
        await asyncio.wait_for(writer.stopping.wait(), 10)
        writer.sequencer.commit = commit  # type: ignore[method-assign]
        asking.cancel()

    _run(folder, logs.open(folder), fail)
    assert "the writer failed: ZeroDivisionError" in capsys.readouterr().err
    assert logs.recheck(folder, {1: b"kept"}, []).size == 3


def _fault(entries: list[bytes]) -> int:
    raise ZeroDivisionError


def test_a_writer_whose_head_was_moved_acknowledges_nothing_more(folder: Path, logs: Any) -> None:
    log = logs.open(folder)
    own: list[bytes] = []

    async def move(client: AuditClient, writer: Writer) -> None:
        await client.append_async(b"one", stamp=False)
        while not writer.sequencer.published:
            await asyncio.sleep(0.01)
        own.append(log.head.read())
        log.head.swap(own[0], b"another writer's")
        refused = 0
        for _ in range(200):
            try:
                await client.append_async(b"two", stamp=False)
            except AuditError:
                refused += 1
            await asyncio.sleep(0.01)
            if refused > 3:
                break
        assert refused > 3
        with pytest.raises(AuditError):
            await client.append_async(b"three", stamp=False)
        log.head.swap(b"another writer's", own[0])

    _run(folder, log, move)


def test_a_failed_publication_is_done_again_without_a_restart(
    folder: Path, logs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head took the checkpoint and then said it had not: the next attempt asks it."""
    log = logs.open(folder)
    swap = log.head.swap
    failures: list[bytes] = []

    def persisted(old: bytes | None, new: bytes) -> None:
        swap(old, new)
        if len(failures) < 2:
            failures.append(new)
            raise Unavailable("injected")

    monkeypatch.setattr(log.head, "swap", persisted)

    async def use(client: AuditClient, writer: Writer) -> None:
        index = await client.append_async(b"one", stamp=False)
        for _ in range(1000):
            if writer.sequencer.published > index:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("never published")

    _run(folder, log, use)
    assert len(failures) == 2
    assert logs.recheck(folder, {1: b"one"}, []).size == 3
