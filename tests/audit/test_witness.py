"""The witness protocol over a real server: every answer of tlog-witness, state that outlives it, quorums."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from genward_audit.checkpoint import Checkpoint
from genward_audit.cosignature import Cosigner, verify_cosignature
from genward_audit.errors import AuditError, PolicyUnmet, SignatureError, Unavailable, UsageError
from genward_audit.merkle import Frontier, consistency_proof, leaf_hash
from genward_audit.note import Signer, sign
from genward_audit.policy import Policy
from genward_audit.witness import (
    SIZE_TYPE,
    Behind,
    Quorum,
    Submission,
    Witness,
    collect_quorum,
    open_witness,
    serve,
    submit,
)

LOG = Signer("log.example", Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
NODES: dict[tuple[int, int], bytes] = {}
HEADS: list[bytes] = []
_frontier = Frontier()
for _i in range(300):
    HEADS.append(sign(Checkpoint(LOG.name, _i, _frontier.root()).marshal(), LOG))
    _frontier.append(leaf_hash(b"%d" % _i), lambda level, index, one: NODES.__setitem__((level, index), one))


def _proof(old: int, new: int) -> list[bytes]:
    return consistency_proof(old, new, lambda level, index: NODES[level, index])


def _cosigner(i: int) -> Cosigner:
    return Cosigner(f"w{i}.example", Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32))


class Running:
    """A witness behind a real server."""

    def __init__(self, state: Path, i: int = 1) -> None:
        self.cosigner = _cosigner(i)
        self.witness = Witness(state, self.cosigner, [LOG.verifier], clock=lambda: 1_790_000_000)
        self.server = serve(self.witness)
        self.port = int(self.server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def post(self, body: bytes, path: str = "/add-checkpoint", **headers: str) -> tuple[int, str, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        try:
            return answer.status, answer.headers["Content-Type"], answer.read()
        finally:
            connection.close()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        self.witness.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    one = Running(tmp_path / "witness.db")
    yield one
    one.stop()


def _body(old: int, new: int, proof: list[bytes] | None = None, note: bytes | None = None) -> bytes:
    hashes = (_proof(old, new) if 0 < old < new else []) if proof is None else proof
    return Submission(old, tuple(hashes), note or HEADS[new]).marshal()


def test_a_growing_log_is_cosigned_at_every_step(running: Running) -> None:
    for old, new in ((0, 0), (0, 5), (5, 5), (5, 6), (6, 256), (256, 299)):
        (signature,) = submit(running.url, old, _proof(old, new) if 0 < old < new else [], HEADS[new])
        text = HEADS[new].decode().split("\n\n")[0] + "\n"
        assert verify_cosignature(text, signature, running.cosigner.verifier) == 1_790_000_000
        assert running.witness.head(LOG.name)[0] == new


def test_another_old_size_is_answered_with_the_size_held(running: Running) -> None:
    running.post(_body(0, 5))
    assert running.post(_body(3, 9)) == (409, SIZE_TYPE, b"5\n")
    assert running.post(_body(0, 9))[0] == 409
    with pytest.raises(Behind) as caught:
        submit(running.url, 6, _proof(6, 9), HEADS[9])
    assert caught.value.size == 5


def test_a_fork_of_the_same_size_is_a_conflict(running: Running) -> None:
    running.post(_body(0, 5))
    fork = sign(Checkpoint(LOG.name, 5, b"\x05" * 32).marshal(), LOG)
    assert running.post(_body(5, 5, [], fork)) == (409, SIZE_TYPE, b"5\n")


def test_a_bad_proof_is_unprocessable_and_moves_nothing(running: Running) -> None:
    running.post(_body(0, 5))
    assert running.post(_body(5, 9, _proof(4, 9)))[0] == 422
    assert running.post(_body(5, 9, []))[0] == 422
    fork = sign(Checkpoint(LOG.name, 9, b"\x09" * 32).marshal(), LOG)
    assert running.post(_body(5, 9, _proof(5, 9), fork))[0] == 422
    assert running.witness.head(LOG.name)[0] == 5


def test_a_proof_from_size_zero_must_be_empty(running: Running) -> None:
    assert running.post(_body(0, 9, _proof(5, 9)))[0] == 422
    assert running.post(_body(0, 9))[0] == 200


def test_unsigned_unknown_and_malformed_are_told_apart(running: Running) -> None:
    stranger = Signer(LOG.name, _cosigner(9).key)
    text = HEADS[5].decode().split("\n\n")[0] + "\n"
    assert running.post(_body(0, 5, None, sign(text, stranger)))[0] == 403
    elsewhere = Signer("elsewhere", LOG.key)
    assert (
        running.post(_body(0, 5, None, sign(Checkpoint("elsewhere", 5, b"\x05" * 32).marshal(), elsewhere)))[0] == 404
    )
    assert running.post(_body(9, 5))[0] == 400
    for body in (b"", b"old x\n\n", b"old 1\n", b"old 0\n\nnot a note", b"old 0\nAAAA\n\n" + HEADS[5], b"\xff\n\n"):
        assert running.post(body)[0] == 400
    assert running.post(b"x", "/other")[0] == 404
    assert running.post(b"x" * (1 << 18) + b"x")[0] == 400


def test_the_state_outlives_the_process(tmp_path: Path) -> None:
    first = Running(tmp_path / "state.db")
    first.post(_body(0, 200))
    first.stop()
    second = Running(tmp_path / "state.db")
    assert second.post(_body(0, 100)) == (409, SIZE_TYPE, b"200\n")
    assert second.post(_body(200, 210))[0] == 200
    second.stop()


def test_of_two_forks_sent_at_once_one_is_cosigned(running: Running) -> None:
    forks = [sign(Checkpoint(LOG.name, 9, bytes([i]) * 32).marshal(), LOG) for i in range(8)]
    answers: list[int] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(running.post(_body(0, 9, [], n))[0])) for n in forks]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(answers) == [200] + [409] * 7


@given(st.binary(max_size=200))
def test_only_our_errors_escape_the_reader_of_submissions(data: bytes) -> None:
    for body in (data, b"old 1\n" + data, b"old 1\n\n" + data):
        try:
            assert Submission.parse(body).marshal() == body
        except AuditError:
            continue


def _policy(*urls: str, need: str = "all") -> Policy:
    lines = [f"log {LOG.verifier.vkey}"]
    lines += [f"witness w{i} {_cosigner(i).verifier.vkey} {url}" for i, url in enumerate(urls, 1)]
    names = " ".join(f"w{i}" for i in range(1, len(urls) + 1))
    return Policy.parse("\n".join([*lines, f"group g {need} {names}", "quorum g"]).encode())


def test_a_quorum_is_collected_though_witnesses_hold_other_sizes(tmp_path: Path) -> None:
    two = [Running(tmp_path / f"{i}.db", i) for i in (1, 2)]
    two[0].post(_body(0, 7))
    policy = _policy(*(one.url for one in two))
    quorum = Quorum(policy)
    for size in (20, 30, 30, 256):
        cosigned = quorum.collect(HEADS[size], lambda old, size=size: _proof(old, size))  # type: ignore[misc]
        assert set(policy.open(cosigned).times) == {"w1", "w2"}
    assert quorum.sizes == {"w1": 256, "w2": 256}
    for one in two:
        one.stop()


def test_a_quorum_lives_with_a_dead_witness_and_fails_without_enough(running: Running) -> None:
    dead = "http://127.0.0.1:1"
    cosigned = collect_quorum(_policy(running.url, dead, need="any"), HEADS[9], lambda old: _proof(old, 9))
    assert cosigned.startswith(HEADS[9])
    with pytest.raises(PolicyUnmet, match="no answer"):
        collect_quorum(_policy(running.url, dead), HEADS[9], lambda old: _proof(old, 9))


def test_a_refusal_and_a_silent_address_are_our_errors(running: Running) -> None:
    with pytest.raises(SignatureError):
        submit(running.url, 5, [b"x" * 32], HEADS[2])
    with pytest.raises(Unavailable):
        submit("http://127.0.0.1:1", 0, [], HEADS[2])
    with pytest.raises(UsageError):
        submit("file:///etc/passwd", 0, [], HEADS[2])


def test_a_witness_makes_its_key_once_and_keeps_it(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.write_text(f"log {LOG.verifier.vkey}\nquorum none\n")
    options: Any = (tmp_path / "w.db", tmp_path / "w.pem", "w.example", policy)
    vkeys = []
    for _ in range(2):
        witness, cosigner = open_witness(*options)
        witness.close()
        vkeys.append(cosigner.verifier.vkey)
    assert vkeys[0] == vkeys[1]
    (tmp_path / "w.pem").chmod(0o644)
    with pytest.raises(SignatureError, match="chmod"):
        open_witness(*options)
