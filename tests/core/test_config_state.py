"""Configuration and state folders: precedence, did-you-mean, versions, locks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward import config
from genward.errors import Conflict, GenwardError, IntegrityError, NotFound, UsageError
from genward.state import State, upgrade


def test_the_environment_wins_over_the_file() -> None:
    text = "server: {port: 1, workers: 3}\n"
    found = config.load(text, {"GENWARD_SERVER__PORT": "2", "GENWARD_STATE": "elsewhere"})
    assert (found.server.port, found.server.workers) == (2, 3)


def test_defaults_are_strict() -> None:
    found = config.load("", {})
    assert found.plugins == ("genward",)
    assert found.server.host == "127.0.0.1"
    assert not found.unsafe_single_operator
    assert config.unsafe(found) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pluggins: [genward]", "plugins"),
        ("server: {prot: 1}", "port"),
        ("server: {port: 99999999}", "port"),
        ("- a", "mapping"),
        ("a: [", "YAML"),
    ],
)
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config.load(text, {})


@given(st.text(max_size=60))
def test_only_our_error_leaves_the_reader(text: str) -> None:
    with suppress(GenwardError):
        config.load(text, {})


def test_what_is_unsafe_is_listed() -> None:
    found = config.load("unsafe_single_operator: true\nserver: {host: 0.0.0.0}", {})
    assert len(config.unsafe(found)) == 2


def test_a_state_folder_is_made_once(tmp_path: Path) -> None:
    State.init(tmp_path / "state")
    with pytest.raises(Conflict):
        State.init(tmp_path / "state")
    with pytest.raises(NotFound, match="init"):
        State.open(tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "error"), [('{"format": 2}', UsageError), ("{}", IntegrityError), ("x", IntegrityError)]
)
def test_a_version_that_is_not_ours_is_refused(tmp_path: Path, text: str, error: type[GenwardError]) -> None:
    State.init(tmp_path / "state")
    (tmp_path / "state" / "VERSION").write_text(text)
    with pytest.raises(error):
        State.open(tmp_path / "state")
    with pytest.raises(error):
        upgrade(tmp_path / "state")


def test_an_older_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    State.init(tmp_path / "state")
    (tmp_path / "state" / "VERSION").write_text('{"format": 0}')
    with pytest.raises(UsageError, match="upgrade"):
        State.open(tmp_path / "state")


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    state = State.init(tmp_path / "state")
    with state.locked("release"), pytest.raises(Conflict), state.locked("release"):
        raise AssertionError
    with state.locked("release"):
        pass
