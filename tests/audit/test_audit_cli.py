"""The command line and the index on real folders: answers, exit codes, one-line errors."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from genward_audit import entries as e
from genward_audit.cli import app
from genward_audit.client import connect
from genward_audit.index import Index, Query
from genward_audit.keyfile import create_key
from genward_audit.reader import LogFolder

GOLDEN = Path(__file__).parent / "golden"
PAGE = Path(__file__).parents[2] / "docs/audit.md"
VKEY = (GOLDEN / "policy").read_text().split()[1]
NOW = 1_790_000_100.0


def _story() -> list[bytes]:
    entries = [e.stamp(e.start_entry(0, writer="w1"), NOW)]
    for i in range(300):
        plan = {"start": i, "n": 1, "k": 1}
        fields: dict[str, Any] = {"request": f"r{i}", "tenant": "acme" if i % 2 else "bolt", "model": f"m:{i % 3}"}
        entry = e.encode("settle", status="served" if i % 5 else "error", plan=plan, **fields)
        entries.append(e.stamp(entry, NOW + i))
    entries.append(e.stamp(e.act_entry("key.create", actor="=cmd()"), NOW + 300))
    entries.append(b"\x00a stranger's entry")
    return entries


@pytest.fixture
def log(make_log: Any, tmp_path: Path) -> Path:
    return make_log(_story(), name="state/log")


def _run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def _write_key(folder: Path, seed: int = 1) -> Path:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.pem"
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


def test_verify_says_three_verdicts_and_its_exit_code(log: Path) -> None:
    text = _run("verify", log, "--vkey", VKEY, "--max-age", 1e12)
    for name in ("integrity    ok", "completeness ok", "freshness    ok"):
        assert name in text
    report = json.loads(
        _run("verify", "--log", log, "--vkey", VKEY, "--json", "--max-age", 1, code=_stale()).split("verify:")[0]
    )
    assert report["size"] == 303
    assert report["integrity"]["state"] == "ok"
    (log / "tile/0/000").write_bytes(b"\0" * 8192)
    assert "tile/0/000: " in _run("verify", log, "--vkey", VKEY, code=5)


def _stale() -> int:
    return 1 if time.time() - NOW > 301 else 0


def test_verify_with_a_policy_file_asks_for_its_quorum(log: Path) -> None:
    assert "quorum" in _run("verify", log, "--policy", GOLDEN / "policy", code=5)
    _run("verify", GOLDEN / "log300", "--policy", GOLDEN / "policy", "--max-age", 1e12)


def test_verify_trusts_its_own_key_on_the_logs_machine_only(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_key(log.parent / "keys")
    monkeypatch.setenv("GENWARD_STATE", str(log.parent))
    _run("verify", "--max-age", 1e12)
    assert _run("vkey").strip() == VKEY
    assert "whom to trust" in _run("verify", GOLDEN / "log15", code=2)


def test_a_missing_log_or_entry_is_not_found_in_one_line(tmp_path: Path, log: Path) -> None:
    text = _run("tail", "--log", tmp_path / "nowhere", code=4)
    assert text.count("\n") == 1
    assert "no checkpoint here" in text
    assert "no entry 303" in _run("show", 303, "--log", log, code=4)


def test_errors_stay_one_line_when_mounted_under_another_root(tmp_path: Path) -> None:
    root = typer.Typer()
    root.add_typer(app, name="audit")
    root.command("other")(lambda: None)
    result = CliRunner().invoke(root, ["audit", "tail", "--log", str(tmp_path)])
    assert result.exit_code == 4
    assert result.output.startswith("genward audit: ")


def test_a_file_that_cannot_be_written_is_one_line(log: Path, tmp_path: Path) -> None:
    text = _run("receipt", 1, "--log", log, "-o", tmp_path / "no" / "where", code=1)
    assert "No such file" in text


def test_every_command_and_option_of_the_page_exists() -> None:
    group = typer.main.get_command(app)
    commands: Any = group.commands  # type: ignore[attr-defined]
    lines = [line.split() for line in PAGE.read_text().splitlines() if line.startswith("genward audit ")]
    assert len(lines) > 8
    for words in lines:
        options = {name for one in commands[words[2]].params for name in one.opts}
        assert {word for word in words[3:] if word.startswith("-")} <= options, words
    assert set(commands) == {words[2] for words in lines} | {"rotate-key", "vkey"}


def test_tail_and_show_read_entries(log: Path) -> None:
    assert len(_run("tail", "--log", log, "-n", 4).splitlines()) == 4
    assert json.loads(_run("show", 0, "--log", log))["act"] == "log.start"
    assert json.loads(_run("show", 302, "--log", log))["bytes"].startswith("00")


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--tenant", "acme"], 150),
        (["--model", "m:1", "--tenant", "bolt"], 50),
        (["--status", "error"], 60),
        (["--request", "r7"], 1),
        (["--event", "act"], 2),
        (["--act", "key.create"], 1),
        (["--since", e.format_time(NOW + 290), "--event", "settle"], 10),
        (["--until", e.format_time(NOW + 10), "--event", "settle"], 10),
        (["--tenant", "' OR 1=1 --"], 0),
    ],
)
def test_search_finds_by_each_field(words: list[str], count: int, log: Path) -> None:
    found = _run("search", "--log", log, "--json", "--limit", 1000, *words).splitlines()
    assert len(found) == count


@pytest.mark.parametrize(
    "words", [["--since", "yesterday"], ["--until", "2026-13"], ["--event", "gift"], ["--status", "fine"]]
)
def test_search_for_what_no_entry_can_have_is_refused(words: list[str], log: Path) -> None:
    """An empty answer would look like proof that nothing happened."""
    assert " is no " in _run("search", "--log", log, *words, code=2)
    assert " is no " in _run("export", "--log", log, *words, code=2)


def test_export_writes_jsonl_and_csv_of_the_same_entries(log: Path, tmp_path: Path) -> None:
    _run("export", tmp_path / "x.jsonl", "--log", log, "--tenant", "acme")
    _run("export", tmp_path / "x.csv", "--log", log, "--tenant", "acme")
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line["index"] for line in lines] == [int(row["index"]) for row in rows]
    assert json.loads(rows[0]["plan"]) == lines[0]["plan"]
    assert "'=cmd()" in _run("export", "--log", log, "--event", "act", "--format", "csv")
    assert "not known" in _run("export", tmp_path / "x.pdf", "--log", log, code=2)


def test_a_receipt_is_made_and_checked(log: Path, tmp_path: Path) -> None:
    proof, entry = tmp_path / "e.tlog-proof", tmp_path / "e"
    _run("receipt", 7, "--log", log, "-o", proof)
    entry.write_bytes(LogFolder(log).entry(7))
    assert "303 entries" in _run("receipt", "--check", proof, "--entry", entry, "--vkey", VKEY)
    entry.write_bytes(b"other")
    assert "genward audit: " in _run("receipt", "--check", proof, "--entry", entry, "--vkey", VKEY, code=5)
    _run("receipt", "--check", proof, code=2)
    _run("receipt", 900, "--log", log, code=4)


def _writer(folder: Path) -> Any:
    """A client of a writer on a state folder, as a program would have one."""
    words = (folder / "log", folder / "run", folder / "keys/log.pem", "audit.example/golden")
    return connect(*words, linger=5, period=0.05)


def _end(client: Any, folder: Path) -> None:
    """Stop the writer, and wait until it has let go of the log."""
    os.kill(client.stats()["pid"], signal.SIGTERM)
    client.close()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with (folder / "log/wal/writer.lock").open() as file, suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)


def test_retain_announces_its_minimum_in_the_log_and_then_prunes(folder: Path) -> None:
    """What is deleted was announced by an entry that the checkpoint covers, whatever ran before."""
    _write_key(folder / "keys")
    client = _writer(folder)
    last = [client.append(e.act_entry("test.fill")) for _ in range(300)][-1]
    while client.proof(last) is None:
        time.sleep(0.02)
    log = folder / "log"
    words = ("--log", log, "--key", folder / "keys/log.pem")
    assert "cannot be 9999" in _run("retain", "--minimum", 9999, *words, code=2)
    assert "2 files deleted" in _run("retain", "--minimum", 256, *words)
    assert "sink" in _run("retain", "--minimum", 255, *words, code=1)
    report = json.loads(_run("verify", log, "--vkey", VKEY, "--json").split("verify:")[0])
    assert (report["minimum"], report["integrity"]["state"], report["completeness"]["state"]) == (256, "ok", "ok")
    assert len(_run("search", "--log", log, "--act", "log.retain", "--json").splitlines()) == 1
    assert "0 files deleted" in _run("retain", "--minimum", 256, *words)
    _end(client, folder)


def test_rotate_key_lets_both_keys_sign_until_the_old_one_is_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through real writers: the old key's, both keys', the new key's; no receipt and no verifier is left behind."""
    monkeypatch.setenv("GENWARD_STATE", str(folder))
    _write_key(folder / "keys")
    client = _writer(folder)
    client.append(e.act_entry("test.old"))
    _end(client, folder)
    assert not (folder / "keys/log.old.pem").exists()
    line = _run("rotate-key").splitlines()[0]
    new = line.removeprefix("log ")
    assert new != VKEY
    assert "not over" in _run("rotate-key", code=1)
    client = _writer(folder)
    assert client.vkey() == new
    index = client.append(e.act_entry("test.both"))
    while client.proof(index) is None:
        time.sleep(0.02)
    _end(client, folder)
    for vkey in (VKEY, new):
        _run("verify", folder / "log", "--vkey", vkey)
    (folder / "keys/log.old.pem").unlink()
    client = _writer(folder)
    client.append(e.act_entry("test.new"))
    _end(client, folder)
    _run("verify", folder / "log", "--vkey", new)
    _run("verify", folder / "log", "--vkey", VKEY, code=5)
    (rotation,) = _run("search", "--act", "log.rotate", "--json").splitlines()
    assert json.loads(rotation)["detail"] == {"old": VKEY, "new": new}


def test_a_key_behind_a_passphrase_is_opened_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENWARD_STATE", str(folder))
    monkeypatch.setenv("GENWARD_PASSPHRASE", "a word")
    create_key(folder / "keys/log.pem", b"a word")
    client = _writer(folder)
    client.append(e.act_entry("test.one"))
    vkey = client.vkey()
    _end(client, folder)
    assert _run("vkey").strip() == vkey
    _run("verify")
    _run("rotate-key")
    monkeypatch.delenv("GENWARD_PASSPHRASE")
    assert "passphrase" in _run("verify", code=5)


def test_an_index_follows_its_log_and_starts_anew_on_another(make_log: Any, tmp_path: Path) -> None:
    story = _story()
    with Index(tmp_path / "index.db") as index:
        log = make_log(story[:100])
        assert index.update(LogFolder(log)) == 100
        make_log(story)
        assert index.update(LogFolder(log)) == 203
        assert index.update(LogFolder(log)) == 0
        assert list(index.search(Query(request="r9"))) == [10]
        other = make_log(story[::-1], name="other")
        assert index.update(LogFolder(other)) == 303
        assert list(index.search(Query(request="r9"))) == [292]
