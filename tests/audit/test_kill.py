"""`kill -9` of the writer at random points, under load and while it starts: 50 times here, 1,000 in a campaign."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from genward_audit.checkpoint import Checkpoint
from genward_audit.client import AuditClient
from genward_audit.errors import NotFound, Unavailable
from genward_audit.reader import LogFolder

Join = Callable[..., AuditClient]
PRODUCERS = 4


class _Campaign:
    """What was acknowledged and which checkpoints were seen, over all rounds."""

    def __init__(self, folder: Path, join: Join) -> None:
        self.folder, self.join, self.rng = folder, join, random.Random(7)
        self.acknowledged: dict[int, bytes] = {}
        self.heads: list[Checkpoint] = []
        self.kills = 0

    def under_load(self, round_: int) -> None:
        """Kill it while several threads append."""
        client = self.join(period=0.02, every=10)
        threads = [threading.Thread(target=self._produce, args=(client, f"{round_}.{i}")) for i in range(PRODUCERS)]
        pid = client.stats()["pid"]
        client.close()
        for one in threads:
            one.start()
        time.sleep(self.rng.random() * 0.12)
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        for one in threads:
            one.join()
        self._look()

    def _produce(self, client: AuditClient, name: str) -> None:
        count = 0
        with suppress(Unavailable):
            while True:
                entry = f"{name}.{count}".encode()
                self.acknowledged[client.append(entry, stamp=False)] = entry
                if count == 0:
                    first = client.stats()["pid"]
                elif client.stats()["pid"] != first:
                    break
                count += 1
        client.close()

    def while_starting(self) -> None:
        """Kill it at a random point of its start, where it stands up on what the last one left."""
        words = [f"--log={self.folder / 'log'}", f"--run={self.folder / 'run'}", f"--key={self.folder / 'key.pem'}"]
        command = [sys.executable, "-m", "genward_audit.writer", *words, "--origin=test.example/log", "--period=0.02"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not self._is_locked_by(process.pid) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(self.rng.random() * 0.03)
        process.kill()
        process.wait()
        self.kills += 1
        self._look()

    def _is_locked_by(self, pid: int) -> bool:
        with suppress(OSError, ValueError):
            return int((self.folder / "log/wal/writer.lock").read_text()) == pid
        return False

    def _look(self) -> None:
        with suppress(NotFound):
            self.heads.append(LogFolder(self.folder / "log").head())


def _kill_at_random(folder: Path, join: Join, logs: Any, times: int) -> None:
    """Nothing acknowledged is lost, no checkpoint is taken back, and no restart needs a hand."""
    campaign = _Campaign(folder, join)
    while campaign.kills < times:
        campaign.while_starting() if campaign.kills % 4 == 3 else campaign.under_load(campaign.kills)
    client = join()
    last = client.append(b"last", stamp=False)
    until = time.monotonic() + 10
    while client.proof(last) is None and time.monotonic() < until:
        time.sleep(0.02)
    logs.derive(folder, campaign.acknowledged | {last: b"last"}, campaign.heads, client.vkey())
    print(f"{times} kills, {len(campaign.acknowledged)} acknowledged entries, {len(campaign.heads)} checkpoints seen")
    assert len(campaign.acknowledged) > times
    assert len({one.size for one in campaign.heads}) > times // 10


def test_killed_fifty_times(folder: Path, join: Join, logs: Any) -> None:
    _kill_at_random(folder, join, logs, 50)


@pytest.mark.soak
def test_killed_a_thousand_times(folder: Path, join: Join, logs: Any) -> None:
    _kill_at_random(folder, join, logs, 1000)
