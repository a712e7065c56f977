"""A process that dies at every single step between reservation and last byte: bytes, log and limits still agree."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from genward.api import Platform
from genward.stream import sweep

DAY = 1_000_000_000  # of the tests' own policy
DIES = textwrap.dedent("""
    import functools, inspect, os, signal, sys
    from dataclasses import replace
    from pathlib import Path
    from genward.api import Platform

    folder, key, out, n, fatal = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    passed = 0

    def step(name):
        global passed
        if passed == fatal:
            print(name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    def watched(owner, name):
        inner = getattr(owner, name)
        @functools.wraps(inner)
        async def later(*given, **named):
            step(f"before {name}")
            result = await inner(*given, **named)
            step(f"after {name}")
            return result
        @functools.wraps(inner)
        def now(*given, **named):
            step(f"before {name}")
            result = inner(*given, **named)
            step(f"after {name}")
            return result
        setattr(owner, name, later if inspect.iscoroutinefunction(inner) else now)

    platform = Platform.open(Path(folder))
    pipeline = platform.pipeline
    pipeline.limits = replace(pipeline.limits, held=10_000)
    for name in ("reserve", "advance", "open_grant", "claim_grant", "close_grant", "refund"):
        watched(pipeline.counters, name)
    watched(platform.audit, "append_async")

    class Client:
        def __init__(self):
            self.file = open(out, "wb", buffering=0)
        def write(self, data):
            step("before a piece")
            self.file.write(data)
            step("after a piece")

    platform.client(key).generate("open:1", n=n, start=None if n < 100 else 0, format="csv", into=Client())
    print("whole", flush=True)
""")


def _dies(world: Any, out: Path, n: int, fatal: int) -> str:
    """Where a process that is killed at its `fatal`-th step was; "whole" when it had fewer."""
    words = [sys.executable, "-c", DIES, str(world.folder), world.key, str(out), str(n), str(fatal)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (0 if done.stdout == "whole\n" else -9), done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("n", "least"), [(20, 7), (20_000, 16)])
def test_a_process_killed_at_any_step_gave_no_byte_unrecorded_and_none_uncharged(
    world: Any, tmp_path: Path, n: int, least: int
) -> None:
    given, seen, out = 0, [], tmp_path / "body.csv"
    while not seen or seen[-1] != "whole":
        before = len(world.log())
        out.unlink(missing_ok=True)
        seen.append(_dies(world, out, n, len(seen)))
        given += _agrees(world, out.read_bytes() if out.exists() else b"", before, n)
    assert len(seen) > least
    assert {"before append_async", "after append_async", "before a piece", "after a piece"} <= set(seen)
    left = Platform.open(world.folder)
    headers = left.client(world.key).generate("open:1", n=1).headers
    left.close()
    assert int(headers["x-ratelimit-remaining"]) <= DAY - given - 1


def _agrees(world: Any, body: bytes, before: int, n: int) -> int:
    """Check the log's new entries against what left; returns how many rows left."""
    rows = max(0, body.count(b"\n") - 1)
    world.platform.pipeline.clock = lambda: time.time() + 1e6
    new = world.log()[before:]
    events = [entry["event"] for entry in new]
    if body:
        assert events[0] == ("grant" if n > 10_000 else "settle")
    if rows == n:
        assert events[-1] == "settle"
    sweep(world.platform.pipeline)
    settles = [entry for entry in world.log()[before:] if entry["event"] == "settle"]
    assert len(settles) == (1 if events else 0)
    assert sum(entry["out"]["rows"] for entry in settles) >= rows
    return rows
