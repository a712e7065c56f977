"""The command line and the index on real folders: answers, exit codes, one-line errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from genward_audit import entries as e
from genward_audit.cli import app
from genward_audit.index import Index, Query
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
    import time

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


def test_retain_needs_its_announcement_then_prunes(make_log: Any, tmp_path: Path) -> None:
    key = _write_key(tmp_path / "keys")
    story = _story()[:-2]
    log = make_log([*story, e.stamp(e.retain_entry(256), NOW + 400)], name="kept")
    assert "log.retain" in _run("retain", "--minimum", 255, "--log", log, "--key", key, code=2)
    assert "2 files deleted" in _run("retain", "--minimum", 256, "--log", log, "--key", key)
    _run("verify", log, "--vkey", VKEY, "--max-age", 1e12)
    assert len(_run("search", "--log", log, "--event", "settle", "--json").splitlines()) == 45
    assert b"log.retain" in _run("retain", "--minimum", 300, "--print-entry").encode()


def test_rotate_key_makes_either_key_enough(log: Path, tmp_path: Path) -> None:
    old, new = _write_key(tmp_path / "old"), _write_key(tmp_path / "new", 9)
    line = _run("rotate-key", "--new", new, "--log", log, "--key", old)
    policy = tmp_path / "policy"
    policy.write_text(line + "quorum none\n")
    _run("verify", log, "--policy", policy, "--max-age", 1e12)
    _run("verify", log, "--vkey", VKEY, "--max-age", 1e12)


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
