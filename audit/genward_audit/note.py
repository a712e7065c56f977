"""Signed notes, C2SP signed-note v1.0: a text, a blank line, and one line per signature.

    — <name> base64(keyID[4] || signature)

`VerifierKey.parse` reads a public vkey, `Signer` signs, `open_note` checks. A key ID is the first four bytes of
SHA-256(name || 0x0A || type || public key). Type 0x01 is Ed25519 over the text, type 0x04 the timestamped Ed25519
cosignature of C2SP tlog-cosignature v1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from genward_audit._text import decode_base64, decode_utf8, encode_base64
from genward_audit.errors import FormatError, SignatureError, UsageError

ED25519 = 0x01
COSIGNATURE = 0x04
MAX_NOTE = 1 << 20
MAX_SIGNATURES = 100

_MARK = "\u2014 "
_P = 2**255 - 19
# y coordinates of the eight points whose order divides 8 (RFC 7748 section 6 discusses such points); two of order 8.
_Y8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_LOW_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


def check_name(name: str) -> str:
    """A key name is not empty and holds neither space nor plus; raises FormatError."""
    if not name or "+" in name or any(c.isspace() or c < " " for c in name) or not _is_utf8(name):
        raise FormatError(f"{name!r} is not a key name")
    return name


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """Four bytes that pick a key among many; not a security boundary."""
    return sha256(name.encode("utf-8") + b"\n" + bytes([kind]) + public).digest()[:4]


def check_public(public: bytes) -> bytes:
    """Refuse Ed25519 keys of low order and encodings that are not canonical (RFC 8032 section 5.1.3).

    Under a low-order key one signature fits many messages, and OpenSSL does not refuse them.
    """
    if len(public) != 32:
        raise SignatureError("an Ed25519 public key is 32 bytes")
    y = int.from_bytes(public, "little") & ~(1 << 255)
    if y >= _P or y in _LOW_ORDER_Y:
        raise SignatureError("the Ed25519 public key has low order or is not canonical", remedy="make a new key")
    return public


def cosigned_message(time: int, body: bytes) -> bytes:
    """What a 0x04 cosignature signs (C2SP tlog-cosignature): two lines, then the note's text."""
    return b"cosignature/v1\ntime %d\n" % time + body


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line, not yet checked. `blob` is what follows the key ID."""

    name: str
    key_id: bytes
    blob: bytes

    def line(self) -> str:
        """The line, with its newline."""
        return f"{_MARK}{self.name} {encode_base64(self.key_id + self.blob)}\n"

    @classmethod
    def parse(cls, line: str) -> Signature:
        """Read a line without its newline; raises FormatError."""
        name, space, packed = line.removeprefix(_MARK).partition(" ")
        if not line.startswith(_MARK) or not space:
            raise FormatError("a signature line does not read '\u2014 name base64'")
        data = decode_base64(packed, "a signature")
        if len(data) < 5:
            raise FormatError("a signature is too short")
        return cls(check_name(name), data[:4], data[4:])


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key of a log or a witness, with the name that belongs to it."""

    name: str
    kind: int
    public: bytes

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.kind not in (ED25519, COSIGNATURE):
            raise FormatError(f"key type 0x{self.kind:02x} is not supported", where=self.name)
        check_public(self.public)

    @property
    def key_id(self) -> bytes:
        """Four bytes."""
        return key_id(self.name, self.kind, self.public)

    @property
    def vkey(self) -> str:
        """`name+hex(keyID)+base64(type || public)`."""
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(bytes([self.kind]) + self.public)}"

    @classmethod
    def parse(cls, vkey: str) -> VerifierKey:
        """Read a vkey strictly: one spelling per key; raises FormatError or SignatureError."""
        parts = vkey.split("+", 2)
        if len(parts) != 3:
            raise FormatError("a vkey reads name+keyid+base64")
        data = decode_base64(parts[2], "the key of a vkey")
        if len(data) != 33:
            raise FormatError("the key of a vkey is a type byte and 32 bytes")
        key = cls(parts[0], data[0], data[1:])
        if key.vkey != vkey:
            raise FormatError("the key ID of a vkey does not fit its name and key", where=parts[0])
        return key

    def matches(self, signature: Signature) -> bool:
        """Does the line claim to be this key's?"""
        return signature.name == self.name and signature.key_id == self.key_id

    def verify(self, text: str, signature: Signature) -> int | None:
        """Check one signature; gives the time a cosignature states, seconds since the epoch. Raises SignatureError."""
        message, raw, time = text.encode("utf-8"), signature.blob, None
        if self.kind == COSIGNATURE:
            time, raw = int.from_bytes(raw[:8], "big"), raw[8:]
            message = cosigned_message(time, message)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(raw, message)
        except (InvalidSignature, ValueError):
            raise SignatureError("the signature is wrong", where=self.name) from None
        return time


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key with its name; signs texts with type 0x01."""

    name: str
    key: Ed25519PrivateKey

    @property
    def verifier(self) -> VerifierKey:
        """The public half."""
        return VerifierKey(self.name, ED25519, self.key.public_key().public_bytes_raw())

    def sign(self, text: str) -> Signature:
        """One signature over the note's text."""
        return Signature(self.name, self.verifier.key_id, self.key.sign(text.encode("utf-8")))


@dataclass(frozen=True, slots=True)
class Verified:
    """A signature that was checked; `time` is a cosignature's, else None."""

    key: VerifierKey
    signature: Signature
    time: int | None


@dataclass(frozen=True, slots=True)
class Note:
    """A note's text (ends in a newline), all signatures, and those that a known key verified."""

    text: str
    signatures: tuple[Signature, ...]
    verified: tuple[Verified, ...] = ()

    def marshal(self) -> bytes:
        """The note's bytes."""
        return (self.text + "\n" + "".join(one.line() for one in self.signatures)).encode("utf-8")

    def with_signatures(self, *more: Signature) -> Note:
        """The same text with more signatures; a line already there is not repeated."""
        return Note(self.text, tuple(dict.fromkeys((*self.signatures, *more))), self.verified)


def check_text(text: str) -> str:
    """A note's text is UTF-8, ends in a newline and has no control characters but newlines; raises FormatError."""
    if not text.endswith("\n"):
        raise FormatError("a note's text ends in a newline")
    if any((c < " " and c != "\n") for c in text) or not _is_utf8(text):
        raise FormatError("a note's text has control characters")
    return text


def sign(text: str, *signers: Signer) -> bytes:
    """The signed note of a text."""
    if not signers:
        raise UsageError("a note needs at least one signer")
    return Note(check_text(text), tuple(one.sign(text) for one in signers)).marshal()


def parse_note(data: bytes) -> Note:
    """Read a note's form and check no signature; raises FormatError."""
    if len(data) > MAX_NOTE:
        raise FormatError(f"a note has at most {MAX_NOTE} bytes")
    text, blank, block = decode_utf8(data, "a note").rpartition("\n\n")
    if not blank or not block.endswith("\n"):
        raise FormatError("a note is a text, a blank line and signature lines")
    lines = block[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise FormatError(f"a note has at most {MAX_SIGNATURES} signatures")
    return Note(check_text(text + "\n"), tuple(Signature.parse(line) for line in lines))


def open_note(data: bytes, verifiers: Iterable[VerifierKey]) -> Note:
    """Read and check a note. Signatures by unknown keys are passed over; a known key's bad signature rejects the
    whole note; at least one known key must have signed. Raises FormatError or SignatureError."""
    note = parse_note(data)
    known = {(key.name, key.key_id): key for key in verifiers}
    verified: dict[VerifierKey, Verified] = {}
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is not None and key not in verified:
            verified[key] = Verified(key, signature, key.verify(note.text, signature))
    if not verified:
        raise SignatureError("no key that is known has signed", remedy="check the vkeys or the policy file")
    return Note(note.text, note.signatures, tuple(verified.values()))
