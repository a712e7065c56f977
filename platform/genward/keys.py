"""Keys in a local folder: one master from which everything keyed derives, and two signing keys.

    keys/master        32 random bytes, in JSON; under a passphrase wrapped by scrypt (RFC 7914) and AES-256-GCM
    keys/bundle.pem    ECDSA P-256, PKCS8: signs bundles        keys/bundle.pub   its public half
    keys/log.pem       Ed25519, PKCS8: signs the log's checkpoints; only the log's writer reads it
    keys/trusted/*.pub public keys of others whose bundles may be served here

The folder is 0700 and each file 0600; anything wider is refused. Memory is not wiped: Python's bytes cannot be.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from genward.errors import Conflict, GenwardError, IntegrityError, NotFound, Unauthenticated, Unavailable, UsageError
from genward.strictjson import canonical, parse

_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}  # 32 MiB, about 0.1 s
_MASTER_CONTEXT = b"genward/master/v1"
_FILE_LIMIT = 64 << 10
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)  # the registry of OMS v1.0


class LocalKeys:
    """A `KeyProvider` over one folder. Opening reads the master; the bundle key is read when first used.

    Raises NotFound for a missing file, Unauthenticated for a missing or wrong passphrase, IntegrityError for a mode
    that is too wide, for keys that stand open although a passphrase is given, and for what cannot be read.
    """

    def __init__(self, folder: Path, passphrase: str | None = None) -> None:
        self.folder = folder
        self._passphrase = passphrase
        _check_modes(folder)
        self._master = _open_master(_read(folder / "master"), passphrase, str(folder / "master"))

    @classmethod
    def create(cls, folder: Path, passphrase: str | None = None) -> LocalKeys:
        """Make all keys and open them. They appear by one rename: a crash leaves none. Conflict if some are there."""
        if passphrase == "":
            raise UsageError("the passphrase is empty", remedy="leave it out, or give one")
        if folder.exists() and any(folder.iterdir()):
            raise Conflict("keys are here already", where=str(folder), remedy="back them up and move them away first")
        temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _write_keys(temporary, passphrase)
            temporary.rename(folder)
            _sync_folder(folder.parent)
        except OSError as error:
            raise _unwritten(folder, error) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls(folder, passphrase)

    def derive(self, label: str, length: int = 16) -> bytes:
        """HKDF-SHA256 (RFC 5869) of the master with no salt and the label as `info`; 1 to 8160 bytes."""
        if not label or not 1 <= length <= 255 * 32:
            raise UsageError("a key needs a label and 1 to 8160 bytes", where=label)
        return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=label.encode()).derive(self._master)

    @property
    def pepper(self) -> bytes:
        """32 bytes that go into the stored hash of every API key."""
        return self.derive("api/pepper", 32)

    @property
    def log_key_file(self) -> Path:
        """The log's Ed25519 key; given to its writer by path, never read here."""
        return self.folder / "log.pem"

    def sign_bundle(self, message: bytes) -> bytes:
        """ECDSA P-256 with SHA-256, DER."""
        return self._bundle_key.sign(message, ec.ECDSA(hashes.SHA256()))

    def bundle_public_pem(self) -> bytes:
        return _public_pem(self._bundle_key.public_key())

    def trusted(self) -> tuple[bytes, ...]:
        """Public keys (PEM) whose bundles may be served: our own, then those under `trusted/`, by name."""
        others = sorted((self.folder / "trusted").glob("*.pub"))
        return (self.bundle_public_pem(), *(public_pem(_read(path), str(path)) for path in others))

    def trust(self, name: str, pem: bytes) -> Path:
        """Add somebody's public key to the trust store; Conflict if the name is taken."""
        if not name.replace("-", "").replace("_", "").isalnum():
            raise UsageError("a key's name is letters, digits, - and _", where=name)
        path = self.folder / "trusted" / f"{name}.pub"
        _add(path, public_pem(pem, name))
        return path

    @cached_property
    def _bundle_key(self) -> ec.EllipticCurvePrivateKey:
        path = self.folder / "bundle.pem"
        key = _load_private(_read(path), self._passphrase, str(path))
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise IntegrityError("not a P-256 key", where=str(path), remedy="restore it from a backup")
        return key


def public_pem(data: bytes, where: str = "") -> bytes:
    """A signer's public key in its one PEM form.

    IntegrityError unless it is a point on P-256, P-384 or P-521 (OpenSSL refuses points off the curve and infinity;
    these curves have prime order, so there are no low-order points). Other key types, Ed25519 too, are refused.
    """
    remedy = "give an ECDSA P-256 public key in PEM"
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise IntegrityError("not a public key", where=where, remedy=remedy) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise IntegrityError("not a key that can sign bundles", where=where, remedy=remedy)
    return _public_pem(key)


def key_id(pem: bytes) -> str:
    """Hex SHA-256 of a public key's PEM, as OMS names keys."""
    return hashlib.sha256(pem).hexdigest()


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _write_keys(folder: Path, passphrase: str | None) -> None:
    folder.mkdir(mode=0o700)
    (folder / "trusted").mkdir(mode=0o700)
    bundle, log = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    _write(folder / "master", _seal_master(secrets.token_bytes(32), passphrase))
    _write(folder / "bundle.pem", _private_pem(bundle, passphrase))
    _write(folder / "bundle.pub", _public_pem(bundle.public_key()))
    _write(folder / "log.pem", _private_pem(log, passphrase))
    _sync_folder(folder)


def _add(path: Path, data: bytes) -> None:
    """Write a new file whole, or leave none."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path, data)
        _sync_folder(path.parent)
    except FileExistsError:
        raise Conflict(f"{path.name} is here already", where=str(path), remedy="take another name") from None
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> GenwardError:
    if error.errno == errno.ENOTEMPTY:
        return Conflict("somebody else made keys here just now", where=str(path), remedy="use those")
    remedy = "free some space or make the folder writable, then do it again; nothing was left behind"
    return Unavailable(f"cannot write: {error.strerror}", where=str(path), remedy=remedy)


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, passphrase: str | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _load_private(data: bytes, passphrase: str | None, where: str) -> Any:
    encrypted = b"ENCRYPTED PRIVATE KEY" in data.partition(b"\n")[0]
    try:
        return serialization.load_pem_private_key(data, passphrase.encode() if encrypted and passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if encrypted:
            raise _wrong_passphrase(where) from None
        raise IntegrityError("the key cannot be read", where=where, remedy="restore it from a backup") from None


def _wrong_passphrase(where: str) -> GenwardError:
    what = "the passphrase is wrong or missing, or the file was changed"
    return Unauthenticated(what, where=where, remedy="set GENWARD_PASSPHRASE to the one the keys were made with")


def _wrapping_key(passphrase: str, salt: bytes, cost: Mapping[str, int]) -> AESGCM:
    return AESGCM(Scrypt(salt=salt, length=32, n=cost["n"], r=cost["r"], p=cost["p"]).derive(passphrase.encode()))


def _check_value(master: bytes) -> str:
    return hashlib.sha256(_MASTER_CONTEXT + master).hexdigest()[:16]


def _seal_master(master: bytes, passphrase: str | None) -> bytes:
    if passphrase is None:
        return canonical({"v": 1, "kdf": "none", "key": _text(master), "check": _check_value(master)})
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    box = _wrapping_key(passphrase, salt, _SCRYPT).encrypt(nonce, master, _MASTER_CONTEXT)
    return canonical({"v": 1, "kdf": "scrypt", "salt": _text(salt), "nonce": _text(nonce), "box": _text(box)})


def _open_master(data: bytes, passphrase: str | None, where: str) -> bytes:
    damaged = IntegrityError("the master key is damaged", where=where, remedy="restore it from a backup")
    try:
        stored = parse(data, where, _FILE_LIMIT)
        version, open_ = stored["v"], stored["kdf"] == "none"
        if version == 1 and not (open_ and passphrase):
            return _plain(stored) if open_ else _unwrap(stored, passphrase)
    except InvalidTag:
        raise _wrong_passphrase(where) from None
    except (KeyError, TypeError, ValueError, AttributeError, IntegrityError):
        raise damaged from None
    if version != 1:
        raise IntegrityError("written in a format unknown here", where=where, remedy="upgrade genward")
    what = "a passphrase is given, but these keys are stored without one"
    raise IntegrityError(what, where=where, remedy="leave the passphrase out, or make new keys under it")


def _plain(stored: Mapping[str, Any]) -> bytes:
    master = base64.b64decode(stored["key"], validate=True)
    if len(master) != 32 or _check_value(master) != stored["check"]:
        raise ValueError("check value")
    return master


def _unwrap(stored: Mapping[str, Any], passphrase: str | None) -> bytes:
    salt, nonce, box = (base64.b64decode(stored[name], validate=True) for name in ("salt", "nonce", "box"))
    if (len(salt), len(nonce), len(box), stored["kdf"]) != (16, 12, 48, "scrypt"):
        raise ValueError("lengths")
    if not passphrase:
        raise InvalidTag
    return _wrapping_key(passphrase, salt, _SCRYPT).decrypt(nonce, box, _MASTER_CONTEXT)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _check_modes(folder: Path) -> None:
    """Refuse the folder unless nobody but its owner can look in, and every key file stands there."""
    if not folder.is_dir():
        raise NotFound("no keys here", where=str(folder), remedy="`genward init` makes them")
    _narrow(folder, folder.lstat(), 0o700)
    for name in ("master", "bundle.pem", "bundle.pub", "log.pem"):
        path = folder / name
        if not os.path.lexists(path):
            raise NotFound("a key is missing", where=str(path), remedy="restore it from a backup")
        _narrow(path, path.lstat(), 0o600)
    if os.path.lexists(folder / "trusted"):
        _narrow(folder / "trusted", (folder / "trusted").lstat(), 0o700)


def _narrow(path: Path, info: os.stat_result, mode: int) -> None:
    kind = stat.S_ISDIR if mode == 0o700 else stat.S_ISREG
    if not kind(info.st_mode):
        raise IntegrityError("a link or something else stands where a key belongs", where=str(path), remedy="remove it")
    if stat.S_IMODE(info.st_mode) & ~mode:
        found = f"mode {stat.S_IMODE(info.st_mode):04o} lets others in"
        raise IntegrityError(found, where=str(path), remedy=f"chmod {mode:o} {path}, and ask who has read it")


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotFound(f"the key cannot be opened: {error.strerror}", where=str(path), remedy="restore it") from None
    with os.fdopen(handle, "rb") as file:
        _narrow(path, os.fstat(handle), 0o600)
        return file.read(_FILE_LIMIT)


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
