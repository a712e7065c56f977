"""Every format: golden bytes, round trips, and that only our own error ever escapes a parser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from genward_audit import entries as e
from genward_audit import protocol
from genward_audit._story import tell
from genward_audit.checkpoint import Checkpoint
from genward_audit.cosignature import Cosigner, verify_cosignature
from genward_audit.errors import AuditError, FormatError, PolicyUnmet, SignatureError, UsageError
from genward_audit.merkle import EMPTY_ROOT
from genward_audit.note import Note, Signature, Signer, VerifierKey, open_note, parse_note, sign
from genward_audit.policy import Policy
from genward_audit.proof import Proof
from genward_audit.retention import Minimum
from genward_audit.segment import frame, read_frames
from genward_audit.tiles import (
    ENTRIES,
    Tile,
    decode_entries,
    encode_entries,
    entries_path,
    new_tiles,
    node_from_tile,
    parse_path,
    tile_path,
    tiles_of,
)
from genward_audit.witness import Submission

ED25519 = Path(__file__).parents[3] / "shared/vectors/ed25519/ed25519vectors.json"
GOLDEN = Path(__file__).parent / "golden"
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
LOG = Signer("log.example", KEY)
HEAD = Checkpoint("log.example", 5, b"\x05" * 32)
names = st.text(st.characters(codec="utf-8", exclude_characters="+", exclude_categories=("Z", "C")), min_size=1)


def _witness(i: int) -> Cosigner:
    return Cosigner(f"w{i}", Ed25519PrivateKey.from_private_bytes(bytes([i + 1]) * 32))


PARSERS: list[Callable[[bytes], Any]] = [
    parse_note,
    lambda data: open_note(data, [LOG.verifier]),
    Proof.parse,
    Policy.parse,
    decode_entries,
    e.parse,
    e.decode,
    lambda data: Checkpoint.parse(data.decode("utf-8", "replace")),
    lambda data: VerifierKey.parse(data.decode("utf-8", "replace")),
    lambda data: VerifierKey.parse(data.decode("utf-8", "surrogateescape")),
    lambda data: Signature.parse(data.decode("utf-8", "replace")),
    lambda data: parse_path(data.decode("utf-8", "replace")),
    lambda data: Minimum.parse(data.decode("utf-8", "replace")),
    lambda data: e.parse_time(data.decode("utf-8", "replace")),
    lambda data: read_frames(data, "segment"),
    lambda data: list(protocol.Parser().feed(data)),
    protocol.read_error,
    Submission.parse,
    lambda data: tell([data], 0),
]
SEEDS = [
    sign(HEAD.marshal(), LOG),
    HEAD.marshal().encode(),
    LOG.verifier.vkey.encode(),
    (GOLDEN / "policy").read_bytes(),
    Proof(3, (b"\x01" * 32, b"\x02" * 32), sign(HEAD.marshal(), LOG), b"x").marshal(),
    encode_entries([b"", b"a", b"b" * 300]),
    e.stamp(e.start_entry(0), 1.5),
    b"tile/entries/x001/234.p/7",
    b"2026-11-22T10:00:00.000000Z",
    b"[" * 2000,
    frame(7, [b"a", b"b" * 300]) + frame(9, [b"c"]),
    protocol.pack(protocol.APPEND, 5, b"entry"),
    protocol.pack_error(1, UsageError("no", where="here", remedy="do"))[protocol.HEAD_BYTES :],
    Submission(3, (b"\x01" * 32,), sign(HEAD.marshal(), LOG)).marshal(),
]


@given(st.sampled_from(SEEDS), st.data())
def test_only_our_errors_escape_any_parser(seed: bytes, data: st.DataObject) -> None:
    bent = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(bent)))
        end = data.draw(st.integers(at, min(len(bent), at + 9)))
        bent[at:end] = data.draw(st.binary(max_size=4))
    for parse in PARSERS:
        try:
            parse(bytes(bent))
        except AuditError:
            continue


@given(st.binary(max_size=300))
def test_only_our_errors_escape_on_noise(data: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except AuditError:
            continue


# --- notes -----------------------------------------------------------------------------------------------------------


def test_a_vkey_has_one_spelling() -> None:
    vkey = LOG.verifier.vkey
    assert VerifierKey.parse(vkey) == LOG.verifier
    for start in range(len(vkey)):
        for end in range(start, len(vkey) + 1):
            if (start, end) != (0, len(vkey)):
                with pytest.raises(AuditError):
                    VerifierKey.parse(vkey[start:end])


def test_every_one_byte_mutation_of_a_vkey_is_refused() -> None:
    vkey = LOG.verifier.vkey.encode()
    for at in range(len(vkey)):
        for byte in range(256):
            if byte != vkey[at]:
                with pytest.raises(AuditError):
                    VerifierKey.parse((vkey[:at] + bytes([byte]) + vkey[at + 1 :]).decode("utf-8", "replace"))


def test_low_order_keys_of_the_published_vectors_are_refused() -> None:
    if not ED25519.is_file():
        pytest.skip("published vectors are not at ../shared/vectors/ed25519")
    cases = json.loads(ED25519.read_text())
    low = {bytes.fromhex(case["key"]) for case in cases if "low_order_A" in (case["flags"] or ())}
    assert len(cases) == 914
    assert len(low) >= 8
    for public in low:
        with pytest.raises(SignatureError):
            VerifierKey("x", 1, public)
    fine = {bytes.fromhex(case["key"]) for case in cases if not case["flags"]}
    for public in fine:
        VerifierKey("x", 1, public)


def test_a_note_opens_with_its_key_and_unknown_keys_are_passed_over() -> None:
    other = Signer("other", _witness(0).key)
    note = open_note(sign("text\n", other, LOG), [LOG.verifier])
    assert note.text == "text\n"
    assert [one.key for one in note.verified] == [LOG.verifier]
    assert len(note.signatures) == 2
    with pytest.raises(SignatureError):
        open_note(sign("text\n", other), [LOG.verifier])


def test_a_known_keys_bad_signature_rejects_the_note_whoever_else_signed() -> None:
    other = Signer("other", _witness(0).key)
    bad = Signature(LOG.name, LOG.verifier.key_id, bytes(64))
    note = parse_note(sign("text\n", other)).with_signatures(bad)
    with pytest.raises(SignatureError):
        open_note(note.marshal(), [LOG.verifier, other.verifier])


def test_sixteen_signatures_and_more_are_read() -> None:
    signers = [Signer(f"s{i}", _witness(i).key) for i in range(40)]
    note = open_note(sign("text\n", *signers), [one.verifier for one in signers])
    assert len(note.verified) == 40


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=50), names)
def test_notes_round_trip(text: str, name: str) -> None:
    signer = Signer(name, KEY)
    data = sign(text + "\n", signer)
    note = open_note(data, [signer.verifier])
    assert note.text == text + "\n"
    assert note.marshal() == data


@pytest.mark.parametrize("text", ["no newline", "tab\there\n", "null\0\n", "\ud800\n", ""])
def test_texts_that_no_note_can_hold_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        sign(text, LOG)
    with pytest.raises(UsageError):
        sign("x\n")


# --- checkpoints -----------------------------------------------------------------------------------------------------


@given(names, st.integers(1, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_checkpoints_round_trip(origin: str, size: int, root: bytes) -> None:
    checkpoint = Checkpoint(origin, size, root)
    assert Checkpoint.parse(checkpoint.marshal()) == checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n1\n",
        "o\n01\nAAAA\n",
        "o\n-1\n" + "A" * 43 + "=\n",
        "o\n+1\n" + "A" * 43 + "=\n",
        "\n1\n" + "A" * 43 + "=\n",
        "o\n0\n" + "A" * 43 + "=\n",
        "o\n1\n" + "A" * 42 + "B=\n",
        "o\n1\n" + "A" * 43 + "=",
        "o\n1\n" + "A" * 43 + "=\n\n",
        "o\n99999999999999999999\n" + "A" * 43 + "=\n",
        "o\n\u0661\n" + "A" * 43 + "=\n",
    ],
)
def test_texts_that_are_no_checkpoint_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        Checkpoint.parse(text)


def test_the_empty_log_has_one_checkpoint() -> None:
    assert Checkpoint("o", 0, EMPTY_ROOT).marshal() == "o\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_paths_of_the_specification() -> None:
    assert tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert entries_path(1234067, 44) == "tile/entries/x001/x234/067.p/44"
    assert parse_path("tile/63/000.p/255") == Tile(63, 0, 255)


def test_a_log_of_70000_has_the_published_tiles() -> None:
    tiles = list(tiles_of(70_000))
    leaves = [one for one in tiles if one.level == 0]
    assert (len(leaves), leaves[-1]) == (274, Tile(0, 273, 112))
    assert [one for one in tiles if one.level == 1] == [Tile(1, 0), Tile(1, 1, 17)]
    assert [one for one in tiles if one.level == 2] == [Tile(2, 0, 1)]
    assert [one for one in tiles if one.level == ENTRIES] == [Tile(ENTRIES, one.index, one.width) for one in leaves]


@given(st.integers(0, 200_000), st.integers(0, 3000))
def test_new_tiles_are_what_the_larger_log_has_more(old: int, more: int) -> None:
    assert set(new_tiles(old, old + more)) == set(tiles_of(old + more)) - set(tiles_of(old))


@given(st.integers(ENTRIES, 63), st.integers(0, 2**63 - 1), st.integers(1, 256))
def test_paths_round_trip(level: int, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert parse_path(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/64/000",
        "tile/00/000",
        "tile/0/x000/001",
        "tile/0/1",
        "tile/0/000.p/256",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "/tile/0/000",
        "tile/0/000\n",
        "tile/0/../000",
        "tile/0/x\u0661\u0661\u0661/001",
        "tile/0/001/002",
        "tile//000",
    ],
)
def test_other_spellings_of_paths_are_refused(path: str) -> None:
    with pytest.raises(FormatError):
        parse_path(path)


@given(st.lists(st.binary(max_size=400), max_size=30))
def test_bundles_round_trip(entries: list[bytes]) -> None:
    data = encode_entries(entries)
    assert decode_entries(data) == entries
    if data:
        with pytest.raises(FormatError):
            decode_entries(data + b"\0")


def test_an_entry_of_65536_bytes_does_not_fit() -> None:
    assert decode_entries(encode_entries([b"x" * 65_535])) == [b"x" * 65_535]
    with pytest.raises(FormatError):
        encode_entries([b"x" * 65_536])


def test_a_tile_that_is_too_narrow_is_refused() -> None:
    with pytest.raises(FormatError):
        node_from_tile(b"\0" * 32 * 7, 2, 1)


# --- cosignatures, receipts, policies --------------------------------------------------------------------------------


def test_a_cosignature_states_its_time_and_covers_it() -> None:
    witness, text = _witness(1), HEAD.marshal()
    signature = witness.cosign(text, 1_790_000_000)
    assert verify_cosignature(text, signature, witness.verifier) == 1_790_000_000
    later = (1_790_000_001).to_bytes(8, "big") + signature.blob[8:]
    with pytest.raises(SignatureError):
        verify_cosignature(text, Signature(signature.name, signature.key_id, later), witness.verifier)
    with pytest.raises(SignatureError):
        verify_cosignature(text, signature, LOG.verifier)


@given(
    st.integers(0, 2**63),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.none() | st.binary(max_size=99),
)
def test_receipts_round_trip(index: int, hashes: list[bytes], extra: bytes | None) -> None:
    proof = Proof(index, tuple(hashes), sign(HEAD.marshal(), LOG), extra)
    assert Proof.parse(proof.marshal()) == proof


def _policy(quorum: str, groups: str = "") -> Policy:
    lines = [f"log {LOG.verifier.vkey} https://log.example"]
    lines += [f"witness w{i} {_witness(i).verifier.vkey}" for i in range(4)]
    return Policy.parse("\n".join(["# comment", "", *lines, groups, f"quorum {quorum}", ""]).encode())


@pytest.mark.parametrize(
    ("groups", "quorum", "have", "met"),
    [
        ("", "none", "", True),
        ("", "w1", "w0", False),
        ("", "w1", "w1", True),
        ("group g any w0 w1", "g", "w1", True),
        ("group g any w0 w1", "g", "w2 w3", False),
        ("group g all w0 w1", "g", "w0", False),
        ("group g 2 w0 w1 w2", "g", "w0 w2", True),
        ("group g 2 w0 w1\ngroup h any g w3", "h", "w0 w1", True),
        ("group g 2 w0 w1\ngroup h all g w3", "h", "w0 w1", False),
    ],
)
def test_a_quorum_is_met_exactly_as_its_groups_say(groups: str, quorum: str, have: str, met: bool) -> None:
    policy, text = _policy(quorum, groups), HEAD.marshal()
    note = parse_note(sign(text, LOG)).with_signatures(*(_witness(int(w[1])).cosign(text, 9) for w in have.split()))
    if met:
        assert policy.open(note.marshal()).times == dict.fromkeys(have.split(), 9)
    else:
        with pytest.raises(PolicyUnmet):
            policy.open(note.marshal())


@pytest.mark.parametrize(
    "text",
    [
        "quorum none",
        "log {log}",
        "log {log}\nquorum x",
        "log {log}\nquorum none\nquorum none",
        "log {w}\nquorum none",
        "log {log}\nwitness w {log}\nquorum w",
        "log {log}\nwitness none {w}\nquorum none",
        "log {log}\nlog {log}\nquorum none",
        "log {log}\nwitness w {w}\ngroup g 2 w\nquorum g",
        "log {log}\nwitness w {w}\ngroup g 0 w\nquorum g",
        "log {log}\nwitness w {w}\ngroup g all w w\nquorum g",
        "log {log}\ngroup g any later\nquorum g",
        "log\nquorum none",
    ],
)
def test_policies_that_say_too_little_or_too_much_are_refused(text: str) -> None:
    filled = text.replace("{log}", LOG.verifier.vkey).replace("{w}", _witness(0).verifier.vkey)
    with pytest.raises(FormatError):
        Policy.parse(filled.encode())


def test_a_checkpoint_of_another_origin_is_refused() -> None:
    foreign = sign(Checkpoint("elsewhere", 5, b"\x05" * 32).marshal(), LOG)
    with pytest.raises(PolicyUnmet):
        Policy.of(LOG.verifier.vkey).open(foreign)


# --- entries ---------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcXYZ09_", max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_canonical_json_round_trips(value: Any) -> None:
    try:
        data = e.canonical(value)
    except FormatError:
        return
    assert e.decode(data) == value
    assert e.canonical(e.decode(data)) == data


def test_canonical_json_has_the_bytes_of_rfc_8785() -> None:
    value = {"b": 1, "a": '\u20ac$\u000f\nA\'B"\\\\"/\x7f', "B": [None, True]}
    expected = '{"B":[null,true],"a":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f","b":1}'
    assert e.canonical(value) == expected.encode()


@pytest.mark.parametrize("value", [1.5, {"\u00e9": 1}, {1: 2}, 2**53, b"x", "\ud800", [[[[[[[[[[0]]]]]]]]]]])
def test_values_without_a_canonical_form_are_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        e.canonical(value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a": 1}',
        b"1.0",
        b"NaN",
        b'"\\u0041"',
        b"\xff",
        b"1e400",
    ],
)
def test_other_spellings_of_json_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        e.decode(data)


def test_an_entry_is_stamped_once_with_utc_time() -> None:
    entry = e.stamp(e.encode("grant", request="r", tenant="acme", plan={"start": 0, "n": 10, "k": 2}), 1_790_000_000.25)
    assert e.parse(entry)["t"] == "2026-09-21T14:13:20.250000Z"
    assert e.parse_time("2026-09-21T14:13:20.250000Z") == 1_790_000_000.25


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "grant"},
        {"event": "gift"},
        {"event": "act", "act": "x", "extra": 1},
        {"event": "settle", "request": "r"},
        {"event": "act", "act": "x", "detail": "y" * 5000},
        {"event": "act", "act": "x", "detail": {"y": "z" * 4096}},
        {"event": "settle", "request": "r", "status": "fine"},
        {"event": "settle", "request": "", "status": "lost"},
    ],
)
def test_entries_outside_the_schema_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        e.encode(**fields)


def test_a_commitment_needs_a_salt_and_depends_on_it() -> None:
    assert e.commit(b"s" * 16, {"n": 1}) == e.commit(b"s" * 16, {"n": 1})
    assert e.commit(b"s" * 16, {"n": 1}) != e.commit(b"t" * 16, {"n": 1})
    with pytest.raises(UsageError):
        e.commit(b"short", 1)


def test_acts_of_the_log_follow_the_schema() -> None:
    vkey = LOG.verifier.vkey
    for entry in (e.stop_entry(3), e.retain_entry(9, "admin"), e.rotate_entry(vkey, vkey), e.clock_entry(2.0, 1.0)):
        assert e.parse(e.stamp(entry, 5.0))["event"] == "act"


def test_a_note_is_not_changed_by_repeating_a_signature() -> None:
    note = parse_note(sign("x\n", LOG))
    assert note.with_signatures(*note.signatures) == Note(note.text, note.signatures)
