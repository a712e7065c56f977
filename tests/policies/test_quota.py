"""Limits are charged by what was delivered: no command, activation or end of a process keeps rows to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from genward.api import Platform
from genward.errors import UsageError

DAY = 1_000_000_000  # of the tests' own policy


def _left(platform: Platform, key: str, n: int = 5) -> int:
    """Ask for some rows; what the day's limit still allows afterwards."""
    return int(platform.client(key).generate("pool:1", n=n).headers["x-ratelimit-remaining"])


def test_a_process_that_ends_gives_back_what_it_did_not_spend(world: Any) -> None:
    assert _left(world.platform, world.key) == DAY - 5
    world.platform.close()
    again = Platform.open(world.folder)
    assert _left(again, world.key) == DAY - 10
    again.close()


def test_an_activation_loses_no_rows_of_any_limit(world: Any) -> None:
    for round in range(1, 4):
        assert _left(world.platform, world.key) == DAY - 5 * round
        world.activate(world.platform.policy_text().replace("name: tests", f"name: tests-{round}"))


def test_a_command_is_charged_for_the_rows_it_brought(world: Any) -> None:
    words = ["--state", str(world.folder), "generate", "pool:1", "-n", "7", "--key", world.key]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "genward.cli", *words], env={**os.environ}, check=True, capture_output=True
        )
        assert done.stdout.count(b"\n") == 8
    assert _left(world.platform, world.key) == DAY - 19


def test_a_request_that_cannot_be_read_is_not_charged(world: Any) -> None:
    with pytest.raises(UsageError):
        world.platform.client(world.key).generate("pool:1", n=5, where=["nothing>1"])
    assert _left(world.platform, world.key) == DAY - 5
