"""Verification of whole folders: sound logs pass, every damaged file is found and named, three verdicts stay apart."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genward_audit import entries as e
from genward_audit.errors import AuditError, NotFound, ProofError, SignatureError
from genward_audit.policy import Policy
from genward_audit.reader import LogFolder
from genward_audit.retention import prune, read_minimum
from genward_audit.verify import Report, verify_folder, verify_receipt

GOLDEN = Path(__file__).parent / "golden"
NOW = 1_790_000_100.0


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _bend(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "flipped":
        data[len(data) // 2] ^= 1
    if how == "longer":
        data += b"\0"
    path.write_bytes(bytes(data[: len(data) // 2] if how == "cut" else data))


@pytest.fixture(scope="module")
def kit() -> Any:
    """The builder's constants, without importing a conftest by name."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("audit_logs", Path(__file__).parent / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def policy(kit: Any) -> Policy:
    return Policy.of(kit.SIGNER.verifier.vkey)


def _entry(t: float, event: str, **fields: Any) -> bytes:
    return e.stamp(e.encode(event, **fields), t)


def _story(pairs: int = 20, start: float = NOW - 100) -> list[bytes]:
    """A writer starts, serves `pairs` requests, stops."""
    entries = [e.stamp(e.start_entry(0), start)]
    for i in range(pairs):
        plan = {"start": i, "n": 1, "k": 1}
        entries.append(_entry(start + i, "grant", request=f"r{i}", tenant="acme", plan=plan))
        entries.append(_entry(start + i, "settle", request=f"r{i}", status="served", grant=len(entries) - 1))
    return [*entries, e.stamp(e.stop_entry(len(entries)), start + pairs)]


def test_the_golden_logs_verify_for_ever() -> None:
    policy = Policy.parse((GOLDEN / "policy").read_bytes())
    report = verify_folder(GOLDEN / "log300", policy, now=NOW)
    assert report.integrity.state == "ok"
    assert report.completeness.state == "unknown"
    assert report.freshness.state == "ok"
    assert report.size == 300
    assert report.exit_code == 0
    lone = Policy.of("audit.example/golden+" + policy.logs[0].key.vkey.split("+", 1)[1])
    assert verify_folder(GOLDEN / "log15", lone, now=NOW).integrity.state == "ok"


def test_golden_logs_are_reproduced_to_the_byte(tmp_path: Path, kit: Any) -> None:
    for name, size, witnesses in (("log15", 15, ()), ("log300", 300, kit.WITNESSES)):
        kit.build_log(tmp_path / name, [b"entry %d" % i for i in range(size)], witnesses=witnesses)
        ours = {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        kept = {p.relative_to(GOLDEN / name): p.read_bytes() for p in (GOLDEN / name).rglob("*") if p.is_file()}
        assert ours == kept


def test_the_300_leaf_log_crosses_the_tile_boundary() -> None:
    names = {p.relative_to(GOLDEN / "log300").as_posix() for p in (GOLDEN / "log300").rglob("*") if p.is_file()}
    tiles = {"tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/44"}
    assert names == {"checkpoint", *tiles}


@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "longer"])
def test_each_damaged_file_is_found_and_named(how: str, tmp_path: Path, policy: Policy, kit: Any) -> None:
    source = kit.build_log(tmp_path / "whole", [b"e%d" % i for i in range(66_000)])
    picked = [name for name in _files(source) if "/000" in name or ".p/" in name or name.endswith("/255")]
    assert len(picked) > 7
    for name in picked:
        saved = (source / name).read_bytes()
        _bend(source / name, how)
        report = verify_folder(source, policy, now=NOW)
        assert report.exit_code == 5, (name, how)
        assert [one.split(": ")[0] for one in report.integrity.failures] == [name], report.integrity.failures
        (source / name).write_bytes(saved)
    assert verify_folder(source, policy, now=NOW).integrity.state == "ok"


def test_each_file_of_a_small_log_at_each_damage_is_named(tmp_path: Path) -> None:
    policy = Policy.parse((GOLDEN / "policy").read_bytes())
    for name in _files(GOLDEN / "log300"):
        for how in ("flipped", "cut", "missing", "longer"):
            copy = tmp_path / "copy"
            shutil.copytree(GOLDEN / "log300", copy)
            _bend(copy / name, how)
            try:
                failures: Sequence[str] = verify_folder(copy, policy, now=NOW).integrity.failures
            except NotFound as error:
                assert name == "checkpoint"
                failures = [f"checkpoint: {error}"]
            assert [one.split(": ")[0] for one in failures] == [name]
            shutil.rmtree(copy)


@given(st.sampled_from(_files(GOLDEN / "log300")), st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_of_any_file_is_found_and_named(name: str, data: st.DataObject) -> None:
    policy = Policy.parse((GOLDEN / "policy").read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(GOLDEN / "log300", Path(folder, "log")))
        content = bytearray((copy / name).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        (copy / name).write_bytes(bytes(content))
        failures = verify_folder(copy, policy, now=NOW).integrity.failures
        assert [one.split(": ")[0] for one in failures] == [name]


def test_an_empty_log_verifies(tmp_path: Path, policy: Policy, kit: Any) -> None:
    report = verify_folder(kit.build_log(tmp_path / "log", []), policy, now=NOW)
    assert (report.integrity.state, report.size) == ("ok", 0)


def test_a_head_that_claims_far_too_much_is_refused_soon(tmp_path: Path, policy: Policy, kit: Any) -> None:
    log = kit.build_log(tmp_path / "log", [b"x"])
    head = kit.Checkpoint(kit.ORIGIN, 2**62, b"\x01" * 32)
    (log / "checkpoint").write_bytes(kit.sign(head.marshal(), kit.SIGNER))
    report = verify_folder(log, policy, now=NOW)
    assert report.exit_code == 5
    assert report.integrity.failures[-1].startswith("stopped after")


def test_a_log_from_the_future_is_not_fresh(tmp_path: Path, policy: Policy, kit: Any) -> None:
    report = verify_folder(kit.build_log(tmp_path / "log", _story()), policy, now=NOW - 5000)
    assert report.freshness.state == "failed"


def test_two_damaged_files_are_both_named(tmp_path: Path, policy: Policy, kit: Any) -> None:
    log = kit.build_log(tmp_path / "log", [b"e%d" % i for i in range(1200)])
    for name in ("tile/0/001", "tile/entries/003"):
        _bend(log / name, "flipped")
    failures = verify_folder(log, policy, now=NOW).integrity.failures
    assert sorted(one.split(": ")[0] for one in failures) == ["tile/0/001", "tile/entries/003"]


def test_a_rewritten_log_fails_though_its_files_agree(tmp_path: Path, policy: Policy, kit: Any) -> None:
    log = kit.build_log(tmp_path / "a", [b"e%d" % i for i in range(300)])
    other = kit.build_log(tmp_path / "b", [b"f%d" % i for i in range(300)])
    shutil.copy(log / "checkpoint", other / "checkpoint")
    report = verify_folder(other, policy, now=NOW)
    assert report.exit_code == 5
    assert report.integrity.failures[0].startswith("checkpoint: ")


def test_a_stale_partial_tile_that_lies_is_named(tmp_path: Path, policy: Policy, kit: Any) -> None:
    entries = [b"e%d" % i for i in range(300)]
    log = kit.build_log(tmp_path / "log", entries[:100])
    kit.build_log(log, entries)
    assert verify_folder(log, policy, now=NOW).integrity.state == "ok"
    _bend(log / "tile/0/000.p/100", "flipped")
    failures = verify_folder(log, policy, now=NOW).integrity.failures
    assert [one.split(": ")[0] for one in failures] == ["tile/0/000.p/100"]


def test_a_partial_tile_is_cut_from_the_full_one_when_gone(tmp_path: Path, policy: Policy, kit: Any) -> None:
    entries = [b"e%d" % i for i in range(512)]
    log = kit.build_log(tmp_path / "log", entries)
    kit.build_log(log, entries[:300])
    for gone in ("tile/0/001.p/44", "tile/entries/001.p/44"):
        (log / gone).unlink()
    assert verify_folder(log, policy, now=NOW).integrity.state == "ok"
    folder = LogFolder(log)
    assert folder.entry(299) == b"e299"
    verify_receipt(folder.proof(299) or b"", b"e299", policy)


def test_a_whole_story_is_complete(tmp_path: Path, policy: Policy, kit: Any) -> None:
    report = verify_folder(kit.build_log(tmp_path / "log", _story()), policy, now=NOW)
    assert (report.integrity.state, report.completeness.state, report.freshness.state) == ("ok", "ok", "ok")
    assert json.dumps(report.to_json())


def _judge(entries: list[bytes], folder: Path, policy: Policy, kit: Any, **options: Any) -> Report:
    return verify_folder(kit.build_log(folder, entries), policy, now=NOW, **options)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s[:3] + s[4:], "which is no"),
        (lambda s: [*s[:2], s[2], s[2], *s[3:]], "already settled"),
        (lambda s: [*s[:-1], e.stamp(e.stop_entry(len(s) + 5), NOW)], "states a log of"),
        (lambda s: [s[0], *s[3:5], *s[1:3], *s[5:]], "time is before"),
        (lambda s: [*s, s[-1].replace(b'"size":41', b'"size":42')], "none ran"),
        (lambda s: [s[1], *s], "before any writer started"),
        (lambda s: [*s, *[_entry(NOW, "settle", request="x", status="served")] * 2], "repeat a request"),
        (lambda s: [*s, _entry(NOW, "settle", request="x", status="served", grant=900)], "not before it"),
        (lambda s: [*s, _entry(NOW, "settle", request="x", status="served", grant=0)], "no grant"),
    ],
)
def test_each_gap_fails_completeness_and_not_integrity(
    change: Any, expected: str, tmp_path: Path, policy: Policy, kit: Any
) -> None:
    report = _judge(change(_story()), tmp_path / "log", policy, kit)
    assert report.integrity.state == "ok"
    assert report.completeness.state == "failed"
    assert report.exit_code == 1
    assert any(expected in one for one in report.completeness.failures), report.completeness.failures


def test_an_open_grant_is_noted_while_young_and_fails_when_old(tmp_path: Path, policy: Policy, kit: Any) -> None:
    story = _story()
    story[2] = e.stamp(e.act_entry("policy.activate"), NOW - 100)
    assert _judge(story, tmp_path / "young", policy, kit).completeness.state == "ok"
    old = _judge(story, tmp_path / "old", policy, kit, open_seconds=5)
    assert old.completeness.failures == ("entry 1: a grant without a settle after 20 s",)


def test_a_crash_is_noted_and_is_no_gap(tmp_path: Path, policy: Policy, kit: Any) -> None:
    story = _story()[:-1]
    story.append(e.stamp(e.start_entry(len(story)), NOW))
    report = _judge(story, tmp_path / "log", policy, kit)
    assert report.completeness.state == "ok"
    assert any("ended without a stop" in one for one in report.completeness.notes)


def test_an_old_log_is_stale_and_only_stale(tmp_path: Path, policy: Policy, kit: Any) -> None:
    report = verify_folder(kit.build_log(tmp_path / "log", _story()), policy, now=NOW + 90_000)
    assert (report.integrity.state, report.completeness.state, report.freshness.state) == ("ok", "ok", "failed")
    assert report.exit_code == 1


def test_a_strangers_signature_or_no_quorum_fails_at_the_checkpoint(tmp_path: Path, kit: Any) -> None:
    log = kit.build_log(tmp_path / "log", _story())
    stranger = Policy.of(kit.Signer("other", kit.SIGNER.key).verifier.vkey)
    assert verify_folder(log, stranger).integrity.failures[0].startswith("checkpoint: ")
    strict = Policy.parse((GOLDEN / "policy").read_bytes())
    report = verify_folder(log, strict)
    assert "quorum" in report.integrity.failures[0]
    assert report.completeness.state == "unknown"


def test_workers_give_the_same_report(
    tmp_path: Path, policy: Policy, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = kit.build_log(tmp_path / "log", _story(2000))
    one = verify_folder(log, policy, now=NOW + 2000).to_json()
    monkeypatch.setattr("genward_audit.verify._ALONE", 0)
    two = verify_folder(log, policy, now=NOW + 2000, workers=2).to_json()
    assert one | {"seconds": 0} == two | {"seconds": 0}


def test_receipts_hold_for_their_entry_alone(tmp_path: Path, policy: Policy, kit: Any) -> None:
    story = _story(200)
    folder = LogFolder(kit.build_log(tmp_path / "log", story))
    for index in (0, 1, 255, 256, 400, 401):
        proof = folder.proof(index) or b""
        verify_receipt(proof, story[index], policy)
        with pytest.raises(ProofError):
            verify_receipt(proof, b"other", policy)
        with pytest.raises(AuditError):
            verify_receipt(proof.replace(b"index %d\n" % index, b"index %d\n" % (index + 1)), story[index], policy)
    assert folder.proof(402) is None


def test_a_pruned_log_verifies_above_its_signed_minimum(tmp_path: Path, policy: Policy, kit: Any) -> None:
    story = _story(50_000, NOW - 50_100)[:-1]
    story.append(e.stamp(e.retain_entry(70_000), NOW))
    log = kit.build_log(tmp_path / "log", story)
    folder = LogFolder(log)
    deleted = prune(folder, 70_000, kit.SIGNER)
    assert deleted == 2 * (70_000 // 256) + 1
    assert read_minimum(folder, kit.ORIGIN, policy) == 70_000
    report = verify_folder(log, policy, now=NOW)
    assert (report.integrity.state, report.completeness.state) == ("ok", "ok"), report.to_json()
    assert report.minimum == 70_000 // 256 * 256
    verify_receipt(folder.proof(90_000) or b"", story[90_000], policy)
    with pytest.raises(NotFound):
        folder.entry(5)
    with pytest.raises(AuditError):
        prune(folder, 60_000, kit.SIGNER)


def test_a_minimum_nobody_announced_or_signed_is_refused(tmp_path: Path, policy: Policy, kit: Any) -> None:
    log = kit.build_log(tmp_path / "log", _story(300))
    prune(LogFolder(log), 256, kit.SIGNER)
    assert "no log.retain" in verify_folder(log, policy, now=NOW + 300).completeness.failures[-1]
    other = kit.Signer(kit.ORIGIN, kit.WITNESSES[0].key)
    prune(LogFolder(log), 257, other)
    report = verify_folder(log, policy, now=NOW + 300)
    assert report.integrity.failures[0].startswith("minimum: ")
    with pytest.raises(SignatureError):
        read_minimum(LogFolder(log), kit.ORIGIN, policy)


def test_two_keys_sign_during_a_rotation_and_either_is_enough(tmp_path: Path, kit: Any) -> None:
    new = kit.Signer(kit.ORIGIN, kit.WITNESSES[1].key)
    log = kit.build_log(tmp_path / "log", _story())
    text = kit.parse_note((log / "checkpoint").read_bytes()).text
    (log / "checkpoint").write_bytes(kit.sign(text, kit.SIGNER, new))
    for signer in (kit.SIGNER, new):
        assert verify_folder(log, Policy.of(signer.verifier.vkey), now=NOW).integrity.state == "ok"
