"""Over HTTP: the red team asks a live server, a refusal is quiet, a raised pool reaches a running worker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@dataclass(frozen=True)
class Live:
    """A server on a copy of the release."""

    platform: Any
    served: Any
    key: str


@pytest.fixture
def live(guarded: Any, start_server: Callable[..., Any]) -> Iterator[Live]:
    key = guarded.create_key("acme", ["consumer"])
    served = start_server(SimpleNamespace(folder=guarded.state.folder, key=key))
    yield Live(guarded, served, key)
    served.process.terminate()
    served.process.wait(20)


def test_the_red_team_asks_a_live_server_and_a_raise_reaches_it(live: Live, under: Any, tmp_path: Path) -> None:
    url = f"http://{live.served.host}:{live.served.port}"
    words = ["redteam", "extract", "guarded", "--url", url, "--key", live.key, "--rows", "200", "--attack", "kde"]
    command = [sys.executable, "-m", "genward.cli", "--state", str(live.platform.state.folder), "--json", *words]
    done = subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True)
    assert {row["held"] for row in json.loads(done.stdout) if row["defence"] == "all on"} <= {100, 200}
    under(live.platform, "pool: auto, max_risk: {key: null, release: 0.6}")
    slots = json.loads((live.platform.bundle_folder("guarded") / "manifest.json").read_bytes())["table"]["slots"]
    assert live.served.rows(slots + 50, "guarded:1", start=0).headers["genward-rows"] == str(slots)
    live.platform.raise_pool("guarded", slots + 50)
    assert live.served.rows(slots + 50, "guarded:1", start=0).headers["genward-rows"] == str(slots + 50)
    under(live.platform, "pool: auto, max_risk: {key: 0.3, release: 0.6}, on_exceed: deny")
    refused = live.served.rows(slots, "guarded:1")
    assert refused.status == 403
    assert b"limit" not in refused.body
    assert b"extraction" not in refused.body
