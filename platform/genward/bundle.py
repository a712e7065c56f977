"""Bundles: a folder of files that is sealed once, and read only from verified bytes.

    manifest.json     canonical JSON; lists every payload file with size and SHA-256; its own SHA-256 is the bundle's id
    bundle.oms.sig    detached OMS v1.0 signature over the manifest and every payload file
    ...               the payload

`seal` makes the folder appear whole by one rename. `Bundle.open` reads signature and manifest first, opens nothing that
they do not list, follows no link, and hands out the very bytes that it hashed, so nothing can change in between.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from genward import oms
from genward.contracts import KeyProvider
from genward.errors import Conflict, GenwardError, IntegrityError, NotFound, Unavailable, UsageError
from genward.manifest import FORMAT, Manifest, validate_manifest
from genward.strictjson import canonical, parse

MANIFEST = "manifest.json"
SIGNATURE = "bundle.oms.sig"
FILE_LIMIT = 1 << 30  # bytes of one payload file
_MANIFEST_LIMIT = 16 << 20
_TEMPORARY = ".sealing-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory. `files` is the payload by name; nothing of it is read from disk again."""

    digest: str  # "sha256:" and the manifest's hex SHA-256
    manifest: dict[str, Any]
    files: Mapping[str, bytes] = field(repr=False)
    signer: str  # hex SHA-256 of the signer's public key (PEM)

    @classmethod
    def open(cls, folder: Path, trusted: Sequence[bytes], limit: int = FILE_LIMIT) -> Bundle:
        """Verify a bundle's folder against trusted public keys (PEM) and read it.

        Raises NotFound when there is no such folder, and IntegrityError that names the first thing wrong: a stranger's
        signature; a changed, missing, extra, linked or oversized (over `limit` bytes) file; a bad name; a bad manifest.
        """
        try:
            with _folder(folder) as root:
                return _read_bundle(root, trusted, limit)
        except IntegrityError as error:
            raise IntegrityError(error.what, where=f"{folder}: {error.where}", remedy=error.remedy) from None

    @cached_property
    def details(self) -> Manifest:
        """The manifest as typed values."""
        return validate_manifest(self.manifest)

    @property
    def name(self) -> str:
        return self.details.name

    @property
    def codec(self) -> bytes:
        """The codec's JSON."""
        return self.files[self.details.codec]

    def graph(self, name: str = "sample") -> tuple[bytes, dict[str, Any]]:
        """A graph's ONNX bytes and its meta data; NotFound if the bundle has none of that name."""
        if name not in self.manifest["graphs"]:
            raise NotFound(f"the bundle has no graph {name!r}", where=self.name)
        meta = dict(self.manifest["graphs"][name])
        return self.files[meta.pop("file")], meta


def seal(folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any], keys: KeyProvider) -> str:
    """Write, sign and publish a bundle; returns its digest.

    `manifest` says everything but `format` and `files`, which are filled in. Sealing the same again is no error;
    Conflict when another bundle stands at `folder`; Unavailable when the disk is full or cannot be written, and
    then nothing is left. A crash at any moment leaves nothing or the whole bundle.
    """
    document = manifest_bytes(files, manifest)
    digest = _digest(document)
    if _already(folder, digest, keys):
        return digest
    payload = {**files, MANIFEST: document}
    payload[SIGNATURE] = oms.sign(payload, keys, str(manifest["name"]))
    try:
        _publish(folder, payload)
    except OSError as error:
        if folder.exists() and _already(folder, digest, keys):  # somebody else was faster
            return digest
        remedy = "free some space or make the folder writable, then do it again; nothing was left behind"
        raise Unavailable(f"cannot write: {error.strerror}", where=str(folder), remedy=remedy) from None
    return digest


def manifest_bytes(files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> bytes:
    """The `manifest.json` that `seal` would write; its SHA-256 is the bundle's id."""
    oms.check_names(files)
    if {MANIFEST, SIGNATURE} & files.keys() or "files" in manifest:
        raise UsageError(f"{MANIFEST}, {SIGNATURE} and the list of files are written by seal", remedy="leave them out")
    if large := [name for name, data in files.items() if len(data) > FILE_LIMIT]:
        raise UsageError(f"a file of more than {FILE_LIMIT} bytes could not be opened again", where=large[0])
    listed = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    document = canonical({"format": FORMAT, **manifest, "files": listed})
    validate_manifest(parse(document, MANIFEST, _MANIFEST_LIMIT))
    return document


def _digest(document: bytes) -> str:
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


def _already(folder: Path, digest: str, keys: KeyProvider) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if folder.is_dir() and Bundle.open(folder, [keys.bundle_public_pem()]).digest == digest:
        return True
    raise Conflict("something else stands here", where=str(folder), remedy="seal it under another name")


def _publish(folder: Path, payload: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(folder.parent) as temporary:
        for name, data in payload.items():
            _write(temporary / name, data)
        for path in [*(child for child in temporary.rglob("*") if child.is_dir()), temporary]:
            _sync(path)
        temporary.rename(folder)
    _sync(folder.parent)


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A locked temporary folder, gone afterwards unless renamed; removes those that dead processes left."""
    path = parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
    with _folder(parent, follow=True) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # nobody sweeps between the making and the locking of ours
        _sweep(parent)
        path.mkdir(mode=0o755)
        mine = os.open(path, _FOLDER)
        fcntl.flock(mine, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(mine)


def _sweep(parent: Path) -> None:
    for path in parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError, GenwardError), _folder(path) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its maker lives
            shutil.rmtree(path)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _sync(folder: Path) -> None:
    with _folder(folder, follow=True) as handle:
        os.fsync(handle)


@contextmanager
def _folder(path: Path | str, *, follow: bool = False, dir_fd: int | None = None) -> Iterator[int]:
    try:
        handle = os.open(path, _FOLDER & ~os.O_NOFOLLOW if follow else _FOLDER, dir_fd=dir_fd)
    except FileNotFoundError:
        raise NotFound("no such folder", where=str(path)) from None
    except OSError as error:
        what = f"not a folder, or a symbolic link to one ({error.strerror})"
        raise IntegrityError(what, where=Path(path).name, remedy="name the folder itself") from None
    try:
        yield handle
    finally:
        os.close(handle)


def _read_bundle(root: int, trusted: Sequence[bytes], limit: int) -> Bundle:
    signature = oms.check(oms.parse_signature(_read(root, SIGNATURE, oms.SIZE_LIMIT)), trusted)
    document = _read(root, MANIFEST, _MANIFEST_LIMIT)
    digest = _digest(document)
    if signature.digests.get(MANIFEST) != digest.removeprefix("sha256:"):
        raise IntegrityError("the manifest is not the one that was signed", where=MANIFEST)
    manifest = parse(document, MANIFEST, _MANIFEST_LIMIT)
    details = validate_manifest(manifest)
    if canonical(manifest) != document:
        raise IntegrityError("not in canonical form", where=MANIFEST)
    listed = {name: part.sha256 for name, part in details.files.items()}
    oms.compare(signature.digests, {**listed, MANIFEST: digest.removeprefix("sha256:")})
    _exactly(root, {*listed, MANIFEST, SIGNATURE})
    files = {name: _verified(root, name, part.size, part.sha256, limit) for name, part in details.files.items()}
    return Bundle(digest, manifest, MappingProxyType(files), signature.hint)


def _exactly(root: int, expected: set[str]) -> None:
    """Raise IntegrityError unless the folder holds exactly these files, and folders only on the way to them."""
    found = set(_walk(root))
    if extra := sorted(found - expected):
        raise IntegrityError("an extra file that the manifest does not list", where=extra[0], remedy="remove it")
    if missing := sorted(expected - found):
        raise IntegrityError("a listed file is missing", where=missing[0], remedy="get the bundle again")


def _walk(root: int, base: str = "") -> Iterator[str]:
    """Names of everything that is not a folder, and `name/` of an empty folder; no link is followed."""
    entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    if base and not entries:
        yield base
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            with _folder(entry.name, dir_fd=root) as handle:
                yield from _walk(handle, f"{base}{entry.name}/")
        else:
            yield f"{base}{entry.name}"


def _verified(root: int, name: str, size: int, sha256: str, limit: int) -> bytes:
    if size > limit:
        raise IntegrityError(f"oversized: {size} bytes, at most {limit} are read", where=name, remedy="raise the limit")
    data = _read(root, name, size)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError("the file was changed after it was sealed", where=name, remedy="get the bundle again")
    return data


def _read(root: int, name: str, limit: int) -> bytes:
    """Read one file of at most `limit` bytes below a folder's handle, through no link anywhere on the way."""
    try:
        handle = _open(root, name.split("/"))
    except FileNotFoundError:
        raise IntegrityError("a needed file is missing", where=name, remedy="get the bundle again") from None
    except OSError as error:
        what = f"a symbolic link or not a plain file ({error.strerror})"
        raise IntegrityError(what, where=name, remedy="get the bundle again") from None
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise IntegrityError("not a regular file", where=name, remedy="get the bundle again")
        if info.st_nlink != 1:
            raise IntegrityError("a hard link: another name leads to it", where=name, remedy="copy the bundle anew")
        if info.st_size > limit:
            raise IntegrityError(
                f"oversized: longer than the {limit} bytes that are allowed", where=name, remedy="get the bundle again"
            )
        return file.read(limit + 1)


def _open(root: int, parts: Sequence[str]) -> int:
    """Open a file one component at a time; O_NOFOLLOW would else guard only the last one."""
    folder = os.dup(root)
    try:
        for part in parts[:-1]:
            folder, previous = os.open(part, _FOLDER, dir_fd=folder), folder
            os.close(previous)
        return os.open(parts[-1], _FILE, dir_fd=folder)
    finally:
        os.close(folder)
