"""The red team goes through the live path, and its picture shows what each defence is worth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genward.contracts import Silent
from genward.errors import NotFound, UsageError
from genward_policies.extraction.attackers.kde import Hoard
from genward_policies.extraction.profile import FILE, Profile
from genward_policies.extraction.redteam import RedTeam, as_plot


def _thefts(platform: Any, grid: list[int]) -> dict[tuple[str, int], Any]:
    client = platform.client(platform.create_key("acme", ["consumer"]))
    found = RedTeam(platform, "guarded", client, [Hoard]).run(Silent(), grid)
    assert as_plot(found, "a $ in the title").startswith(b"\x89PNG")
    return {(theft.defence, theft.asked): theft for theft in found}


def test_each_defence_bounds_what_is_held(guarded: Any) -> None:
    share = Profile.from_json(guarded.bundle_file("guarded", FILE)).rows_at(0.3)
    slots = json.loads((guarded.bundle_folder("guarded") / "manifest.json").read_bytes())["table"]["slots"]
    found = _thefts(guarded, [100, 3000])
    held = {defence: found[defence, 3000].held for defence in ("all on", "share off", "pool off")}
    assert held["all on"] <= share < held["share off"] <= slots < held["pool off"]
    risks = [found[defence, 3000].risk for defence in ("all on", "share off", "pool off")]
    assert risks == sorted(risks)
    assert risks[0] < risks[-1]


def test_deny_ends_the_theft_and_the_red_team_lives_with_it(guarded: Any, under: Any) -> None:
    under(guarded, "pool: auto, max_risk: {key: 0.3, release: 0.6}, on_exceed: deny")
    assert _thefts(guarded, [100, 3000])["all on", 3000].held <= 300


def test_the_command_makes_a_sandbox_and_leaves_no_key_behind(guarded: Any, tmp_path: Path) -> None:
    words = ["redteam", "extract", "guarded", "--rows", "300", "--attack", "kde", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "genward.cli", "--state", str(guarded.state.folder), "--json", *words]
    done = subprocess.run(command, check=True, capture_output=True)
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "theft.json").read_text())["thefts"]
    assert {row["defence"] for row in printed} == {"all on", "share off", "pool off"}
    assert (tmp_path / "theft.png").read_bytes().startswith(b"\x89PNG")
    assert all(key["revoked"] for key in guarded.keys_of("sandbox"))


def _cli(platform: Any, *words: str) -> Any:
    command = [sys.executable, "-m", "genward.cli", "--state", str(platform.state.folder), *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["redteam", "extract", "guarded", "--attack", "psychic"], 2, "there are: "),
        (["redteam", "extract", "guarded", "--url", "http://127.0.0.1:1"], 2, "key"),
        (["redteam", "extract", "nothing"], 4, "nothing"),
        (["extraction", "reset", "guarded", "acme", "nobody"], 4, "watched"),
        (["model", "raise-pool", "guarded", "1"], 2, "raised"),
    ],
)
def test_commands_say_what_is_wrong(guarded: Any, words: list[str], code: int, says: str) -> None:
    done = _cli(guarded, *words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr


def test_commands_list_and_raise(guarded: Any) -> None:
    assert "no watched keys" in _cli(guarded, "extraction", "watched").stdout
    raised = _cli(guarded, "model", "raise-pool", "guarded", "9000").stdout
    assert "all_keys_can_hold" in raised
    assert "95 %" in raised


def test_a_release_that_no_attack_fits_is_told(guarded: Any) -> None:
    class Never(Hoard):
        name = "never"

        @classmethod
        def cannot(cls, target: Any) -> str:
            return "never"

    client = guarded.client(guarded.create_key("acme", ["consumer"]))
    with pytest.raises(UsageError, match="no attack"):
        RedTeam(guarded, "guarded", client, [Never])
    with pytest.raises(NotFound):
        RedTeam(guarded, "nothing", client, [Hoard])
