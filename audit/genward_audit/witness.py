"""A witness, C2SP tlog-witness: it cosigns a checkpoint only after a proof that the log has not forked or shrunk.

`Witness` decides and remembers, `serve` answers HTTP, `submit` and `collect_quorum` are the log's side. A cosignature
leaves only after the new head is durable in the witness's own SQLite file.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from genward_audit._text import decode_hash, decode_number, decode_utf8, encode_base64
from genward_audit.checkpoint import Checkpoint
from genward_audit.cosignature import Cosigner, verify_cosignature
from genward_audit.errors import (
    AuditError,
    Conflict,
    FormatError,
    PolicyUnmet,
    ProofError,
    SignatureError,
    Unavailable,
    UsageError,
)
from genward_audit.keyfile import create_key, load_key
from genward_audit.merkle import verify_consistency
from genward_audit.note import Signature, VerifierKey, open_note, parse_note
from genward_audit.policy import Party, Policy
from genward_audit.reader import read_file

MAX_BODY = 1 << 18
MAX_HASHES = 63
PATH = "/add-checkpoint"
SIZE_TYPE = "text/x.tlog.size"
TEXT_TYPE = "text/plain; charset=utf-8"

ProofFrom = Callable[[int], Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Submission:
    """The body of add-checkpoint: the size the log believes we hold, a proof from there, the checkpoint."""

    old: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes

    def marshal(self) -> bytes:
        """The body's bytes."""
        lines = [f"old {self.old}", *map(encode_base64, self.hashes), ""]
        return ("\n".join(lines) + "\n").encode("ascii") + self.checkpoint

    @classmethod
    def parse(cls, body: bytes) -> Submission:
        """Read a body strictly; raises FormatError."""
        head, blank, checkpoint = body.partition(b"\n\n")
        lines = decode_utf8(head, "a submission").split("\n")
        if not blank or not lines[0].startswith("old ") or len(lines) > 1 + MAX_HASHES:
            raise FormatError("a submission is an old line, at most 63 hashes, a blank line and a checkpoint")
        old = decode_number(lines[0].removeprefix("old "), "the old size")
        return cls(old, tuple(decode_hash(one, "a hash") for one in lines[1:]), checkpoint)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: str
    type: str = TEXT_TYPE


class Witness:
    """Decides on submissions and remembers the newest head of each log, atomically, in one SQLite file."""

    def __init__(
        self, state: Path, cosigner: Cosigner, logs: Iterable[VerifierKey], clock: Callable[[], float] = time.time
    ) -> None:
        self._cosigner, self._clock = cosigner, clock
        self._logs = list(logs)
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(state, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("CREATE TABLE IF NOT EXISTS head (origin TEXT PRIMARY KEY, size INTEGER, root BLOB)")
        except sqlite3.Error as error:
            raise Unavailable(f"the witness cannot keep its state: {error}", where=str(state)) from error

    def close(self) -> None:
        """Close the state file."""
        self._db.close()

    def head(self, origin: str) -> tuple[int, bytes]:
        """(size, root) of the newest checkpoint cosigned; (0, b"") before the first."""
        row = self._db.execute("SELECT size, root FROM head WHERE origin = ?", (origin,)).fetchone()
        return (row[0], row[1]) if row else (0, b"")

    def add_checkpoint(self, body: bytes) -> Answer:
        """Answer one submission as tlog-witness says; raises Unavailable where the state cannot be kept."""
        try:
            submission = Submission.parse(body)
            checkpoint = Checkpoint.parse(parse_note(submission.checkpoint).text)
        except AuditError as error:
            return Answer(400, f"{error}\n")
        keys = [key for key in self._logs if key.name == checkpoint.origin]
        if not keys:
            return Answer(404, "this witness does not know the log\n")
        try:
            text = open_note(submission.checkpoint, keys).text
        except AuditError:
            return Answer(403, "no key of the log signed this checkpoint\n")
        if submission.old > checkpoint.size:
            return Answer(400, "the old size is larger than the checkpoint's\n")
        return self._advance(submission, checkpoint) or self._cosign(text)

    def _cosign(self, text: str) -> Answer:
        return Answer(200, self._cosigner.cosign(text, int(self._clock())).line())

    def _advance(self, submission: Submission, checkpoint: Checkpoint) -> Answer | None:
        """Check against the state and move it in one transaction; None when the checkpoint may be cosigned."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                refusal = self._refusal(submission, checkpoint)
                if refusal is None:
                    row = (checkpoint.origin, checkpoint.size, checkpoint.root)
                    self._db.execute("INSERT OR REPLACE INTO head VALUES (?, ?, ?)", row)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise Unavailable(f"the witness cannot keep its state: {error}") from error
        return refusal

    def _refusal(self, submission: Submission, checkpoint: Checkpoint) -> Answer | None:
        size, root = self.head(checkpoint.origin)
        fork = submission.old == checkpoint.size == size and bool(root) and root != checkpoint.root
        if submission.old != size or fork:
            return Answer(409, f"{size}\n", SIZE_TYPE)
        try:
            if size:
                verify_consistency(size, checkpoint.size, root, checkpoint.root, submission.hashes)
            elif submission.hashes:  # any tree continues the empty one, and the proof of that is empty
                raise ProofError("a proof from size 0 is empty")
        except ProofError as error:
            return Answer(422, f"{error}\n")
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    witness: Witness

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away; anything else is a fault and is shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10
    server: _Server

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != PATH:
            return self._send(Answer(404, "POST add-checkpoint\n"))
        if not (length.isascii() and length.isdecimal() and len(length) < 10) or int(length) > MAX_BODY:
            return self._send(Answer(400, f"a submission has a length of at most {MAX_BODY}\n"))
        try:
            return self._send(self.server.witness.add_checkpoint(self.rfile.read(int(length))))
        except AuditError:
            return self._send(Answer(503, "the witness cannot keep its state\n"))

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode("utf-8")
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a witness's record is its state."""


def serve(witness: Witness, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A bound server; call `serve_forever`. Port 0 takes a free one (`server_address`). Raises Unavailable."""
    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        raise Unavailable(f"cannot listen: {error.strerror}", where=f"{host}:{port}") from error
    server.witness = witness
    return server


class Behind(Conflict):
    """The witness holds another size than the log thought; `size` is the one it holds."""

    def __init__(self, size: int, where: str) -> None:
        super().__init__(f"the witness holds size {size}", where=where)
        self.size = size


def submit(
    url: str, old: int, proof: Sequence[bytes], checkpoint: bytes, *, timeout: float = 5.0
) -> tuple[Signature, ...]:
    """Submit a signed checkpoint; gives the cosignatures, unchecked. `url` is the witness's submission prefix.

    Raises Behind on 409, Unavailable where nobody answers, SignatureError on any other refusal.
    """
    status, body = _post(url, Submission(old, tuple(proof), checkpoint).marshal(), timeout)
    text = decode_utf8(body, "a witness's answer")
    if status == 409:
        raise Behind(decode_number(text.strip(), "a witness's size"), url)
    if status >= 500:
        raise Unavailable(f"the witness answered {status}", where=url)
    if status != 200:
        raise SignatureError(f"the witness refused with {status}: {text.strip()[:200]}", where=url)
    return tuple(Signature.parse(line) for line in text.removesuffix("\n").split("\n"))


def _post(url: str, body: bytes, timeout: float) -> tuple[int, bytes]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("a witness's address begins with http:// or https://", where=url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request("POST", parts.path.rstrip("/") + PATH, body, {"Content-Type": TEXT_TYPE})
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_BODY)
    except (OSError, HTTPException) as error:
        raise Unavailable(f"no answer: {type(error).__name__}", where=url) from error
    finally:
        connection.close()


@dataclass
class Quorum:
    """The log's side: asks every witness of a policy at once, and remembers which size each one holds."""

    policy: Policy
    timeout: float = 5.0
    sizes: dict[str, int] = field(default_factory=dict)

    def collect(self, checkpoint: bytes, proof_from: ProofFrom) -> bytes:
        """The checkpoint with the cosignatures that came; raises PolicyUnmet where they do not make the quorum.

        `proof_from(old)` gives the consistency proof from `old` to the checkpoint, old > 0.
        """
        note = parse_note(checkpoint)
        size = Checkpoint.parse(note.text).size
        asked = [one for one in self.policy.witnesses if one.url]
        with ThreadPoolExecutor(max(1, len(asked))) as pool:
            answers = list(pool.map(lambda one: self._ask(one, size, checkpoint, proof_from), asked))
        cosigned = note.with_signatures(*(one for one, _ in answers if one is not None)).marshal()
        try:
            self.policy.open(cosigned)
        except PolicyUnmet as error:
            reasons = "; ".join(reason for _, reason in answers if reason)
            raise PolicyUnmet(error.what, where=error.where, remedy=reasons) from None
        return cosigned

    def held(self, checkpoint: bytes) -> dict[str, int]:
        """How much each witness that answers has seen, by its name; asked with the log's own last checkpoint.

        Raises Conflict where one has seen another history of the same size. Who is silent is left out.
        """
        size = Checkpoint.parse(parse_note(checkpoint).text).size
        asked = [one for one in self.policy.witnesses if one.url]
        with ThreadPoolExecutor(max(1, len(asked))) as pool:
            answers = list(pool.map(lambda one: self._held(one, size, checkpoint), asked))
        self.sizes |= {one.name: held for one, held in zip(asked, answers, strict=True) if held is not None}
        return dict(self.sizes)

    def _held(self, party: Party, size: int, checkpoint: bytes) -> int | None:
        try:
            submit(party.url, size, (), checkpoint, timeout=self.timeout)
        except Behind as behind:
            if behind.size == size:
                raise Conflict(f"the witness {party.name} holds another history: a fork", where=party.url) from None
            return behind.size
        except AuditError:
            return None
        return size

    def _ask(self, party: Party, size: int, checkpoint: bytes, proof_from: ProofFrom) -> tuple[Signature | None, str]:
        """One witness's cosignature, or why there is none."""
        try:
            try:
                return self._once(party, size, checkpoint, proof_from), ""
            except Behind as behind:
                if behind.size > size:
                    raise
                self.sizes[party.name] = behind.size
                return self._once(party, size, checkpoint, proof_from), ""
        except AuditError as error:
            return None, str(error)

    def _once(self, party: Party, size: int, checkpoint: bytes, proof_from: ProofFrom) -> Signature:
        old = self.sizes.get(party.name, 0)
        proof = proof_from(old) if 0 < old < size else ()
        text = parse_note(checkpoint).text
        for signature in submit(party.url, old, proof, checkpoint, timeout=self.timeout):
            if party.key.matches(signature):
                verify_cosignature(text, signature, party.key)
                self.sizes[party.name] = size
                return signature
        raise SignatureError("the witness answered without its cosignature", where=party.url)


def collect_quorum(policy: Policy, checkpoint: bytes, proof_from: ProofFrom, *, timeout: float = 5.0) -> bytes:
    """One collection without memory; see `Quorum.collect`."""
    return Quorum(policy, timeout).collect(checkpoint, proof_from)


def open_witness(state: Path, key: Path, name: str, policy: Path) -> tuple[Witness, Cosigner]:
    """A witness for the logs of a policy file; makes its key at the first start."""
    cosigner = Cosigner(name, load_key(key) if key.exists() else create_key(key))
    logs = [one.key for one in Policy.parse(read_file(policy, MAX_BODY)).logs]
    return Witness(state, cosigner, logs), cosigner


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m genward_audit.witness`: run a witness until interrupted."""
    parser = argparse.ArgumentParser(prog="genward_audit.witness", description="Cosign consistent checkpoints.")
    parser.add_argument("--policy", type=Path, required=True, help="its log lines name the logs to witness")
    parser.add_argument("--state", type=Path, default=Path("witness.db"))
    parser.add_argument("--key", type=Path, default=Path("witness.pem"), help="made at the first start")
    parser.add_argument("--name", required=True, help="a URL without its scheme")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7380)
    chosen = parser.parse_args(arguments)
    try:
        run(chosen.state, chosen.key, chosen.name, chosen.policy, chosen.host, chosen.port)
    except AuditError as error:
        print(f"witness: {error}", file=sys.stderr)
        return 1
    return 0


def run(state: Path, key: Path, name: str, policy: Path, host: str, port: int) -> None:
    """Serve until interrupted; says the address and the vkey first."""
    witness, cosigner = open_witness(state, key, name, policy)
    with serve(witness, host, port) as server:
        print(f"witness {cosigner.verifier.vkey} http://{host}:{server.server_address[1]}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("witness: stopped", file=sys.stderr)
        finally:
            witness.close()


if __name__ == "__main__":
    sys.exit(main())
