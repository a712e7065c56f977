"""The red team against a served release that is both marked and bounded, with each of the two on and off.

Under a document that marks, a release that was sealed without a mark is refused; so what "mark off" is compared with is
a state of its own, asked in process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genward.api import Platform
from genward.client import HttpClient
from genward_policies.extraction import calibrate
from genward_policies.extraction.profile import FILE, Profile
from genward_policies.extraction.redteam import DEFENCES, Theft

MARK = "watermark: {power: {rows: 1000, under: [round-3]}}"
SHARE_OFF = "pool: auto, max_risk: {key: null, release: 0.6}"


def _attack(platform: Platform, model: str, folder: Path, rows: int, *where: str) -> dict[tuple[str, int], Any]:
    """What `genward redteam extract --json` prints, by defence and rows asked for."""
    words = ["redteam", "extract", model, *where, "--rows", str(rows), "--attack", "kde", "--out", str(folder)]
    command = [sys.executable, "-m", "genward.cli", "--state", str(platform.state.folder), "--json", *words]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert json.loads((folder / "theft.json").read_text()) == {"model": model, "thefts": printed}
    assert all(row.keys() == {field.name for field in fields(Theft)} for row in printed)
    return {(row["defence"], row["asked"]): row for row in printed}


def _sealed(platform: Platform, model: str) -> tuple[int, int, int]:
    """(rows a tenant may hold, slots, candidates of a slot) of a release."""
    manifest = json.loads((platform.bundle_folder(model) / "manifest.json").read_bytes())["table"]
    share = Profile.from_json(platform.bundle_file(model, FILE)).rows_at(0.3)
    return share, manifest["slots"], manifest["candidates"]


@dataclass(frozen=True)
class Live:
    """A server of `both:1`, which is marked and bounded, and a thief's key."""

    platform: Platform
    url: str
    key: str

    def attack(self, folder: Path, rows: int = 3000) -> dict[tuple[str, int], Any]:
        return _attack(self.platform, "both", folder, rows, "--url", self.url, "--key", self.key)

    def rows(self, n: int, path: Path) -> Path:
        """A thief's rows, as a file."""
        path.write_bytes(HttpClient(self.url, self.key).generate("both", n=n, format="csv").body)
        return path


@pytest.fixture(scope="module")
def live(
    calibrated: Path, start_server: Callable[..., Any], processes_of: Any, activate: Callable[..., str], settings: str
) -> Iterator[Live]:
    folder = Path(tempfile.mkdtemp(prefix="gw", dir="/tmp")) / "s"
    shutil.copytree(calibrated, folder, ignore=shutil.ignore_patterns("*.sock"))
    platform = Platform.open(folder)
    activate(platform, settings, MARK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "SIZES", calibrate.Sizes(4000, 1500, 3, (100, 300, 1000)))
        platform.release(platform.candidates()[0]["id"], "both", grant=["acme", "other"], evaluate_rows=300)
    key = platform.create_key("acme", ["consumer"])
    served = start_server(SimpleNamespace(folder=folder, key=key))
    yield Live(platform, f"http://{served.host}:{served.port}", key)
    served.process.terminate()
    served.process.wait(20)
    platform.close()
    for pid in processes_of(folder):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder.parent, ignore_errors=True)


def _each_defence_is_worth_something(found: dict[tuple[str, int], Any], sealed: tuple[int, int, int]) -> None:
    share, slots, candidates = sealed
    assert {defence for defence, _ in found} == set(DEFENCES)
    held, risks, distances = ([found[d, 3000][name] for d in DEFENCES] for name in ("held", "risk", "distance"))
    assert 100 < held[0] <= share < held[1] <= slots * candidates < held[2]
    assert 0 <= risks[0] < risks[-1] <= 1
    assert distances[0] > distances[-1]


def test_each_defence_is_worth_something_beside_the_mark(live: Live, tmp_path: Path) -> None:
    sealed = _sealed(live.platform, "both")
    assert sealed[2] == 2
    _each_defence_is_worth_something(live.attack(tmp_path), sealed)


def test_each_defence_is_worth_something_without_the_mark(guarded: Platform, tmp_path: Path) -> None:
    sealed = _sealed(guarded, "guarded")
    assert sealed[2] == 1
    _each_defence_is_worth_something(_attack(guarded, "guarded", tmp_path, 3000), sealed)


def test_a_share_that_is_off_leaves_the_pool_and_the_mark(
    live: Live, activate: Callable[..., str], settings: str, tmp_path: Path
) -> None:
    share, slots, _ = _sealed(live.platform, "both")
    activate(live.platform, SHARE_OFF, MARK)
    try:
        found = live.attack(tmp_path, rows=slots + 200)
        assert share < found["all on", slots + 200]["held"] <= slots
        (told,) = live.platform.detect(live.rows(slots, tmp_path / "all.csv"), "both")
        assert (told.tenant, told.extra["verdict"]) == ("acme", "marked")
    finally:
        activate(live.platform, settings, MARK)


def test_what_a_thief_holds_is_marked_where_the_mark_is_on(live: Live, guarded: Platform, tmp_path: Path) -> None:
    share, _, _ = _sealed(live.platform, "both")
    (told,) = live.platform.detect(live.rows(share, tmp_path / "both.csv"), "both")
    assert told.tenant == "acme"
    assert told.p < 1e-6
    client = guarded.client(guarded.create_key("acme", ["consumer"]))
    (tmp_path / "guarded.csv").write_bytes(client.generate("guarded", n=share, format="csv").body)
    (innocent,) = live.platform.detect(tmp_path / "guarded.csv", "both")
    assert innocent.extra["verdict"] != "marked"
    assert innocent.p > 1e-3
