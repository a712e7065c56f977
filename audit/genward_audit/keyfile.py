"""Ed25519 private keys in PKCS 8 PEM files (RFC 8410), mode 0600."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from genward_audit.errors import Conflict, FormatError, SignatureError
from genward_audit.reader import read_file
from genward_audit.storage import sync_folder

MAX_KEY = 16_384


def load_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Read a key; raises NotFound, SignatureError where others may read it, FormatError."""
    data = read_file(path, MAX_KEY)
    if path.stat().st_mode & 0o077:
        raise SignatureError("others may read this key", where=str(path), remedy=f"chmod 600 {path}")
    try:
        key = load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FormatError("not a PEM private key, or its passphrase is wrong", where=str(path)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise FormatError("not an Ed25519 key", where=str(path))
    return key


def create_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Make a key file that did not exist; raises Conflict where it does."""
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Conflict("the key file exists already", where=str(path), remedy="name another file") from None
    with open(handle, "wb") as file:  # noqa: PTH123 - the descriptor is already open
        sealed = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed))
        file.flush()
        os.fsync(file.fileno())
    return key


def keys_of(path: Path) -> list[Path]:
    """A log's key, and behind it the key it took over from (`log.old.pem` beside `log.pem`) while both still sign."""
    old = _old(path)
    return [path, old] if old.exists() else [path]


def succeed(path: Path, new: Path) -> Path:
    """Put a new key in a key's place, atomically; the old one stays beside it. Gives where. Raises Conflict while the
    overlap of an earlier rotation lasts."""
    old = _old(path)
    if not old.exists():
        os.link(path, old)
    elif not old.samefile(path):  # the same file: an attempt that ended here
        remedy = f"delete {old} when everybody who verifies has the present key"
        raise Conflict("the last rotation is not over: the key before this one still signs", remedy=remedy)
    new.replace(path)
    sync_folder(path.parent)
    return old


def _old(path: Path) -> Path:
    return path.with_name(f"{path.stem}.old{path.suffix}")
