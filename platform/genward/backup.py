"""Copy a whole state, or bring one back: log, head, registry, counters, bundles, data sets and candidates together.

A backup may run beside a server: databases are copied through SQLite's own online backup. Of the log the segments are
read first, then the head, then tiles: whatever was published meanwhile, no entry falls between them, and the checkpoint
in the archive is the head's own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from genward.errors import Conflict, IntegrityError, NotFound, Unavailable, UsageError
from genward.state import State
from genward.strictjson import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST = "backup.json"
FORMAT = "genward.backup/1"
_FOLDERS = ("datasets", "candidates", "bundles")
_FILES = ("VERSION", "genward.yaml", "log.vkey")
_HEAD = "log-head.db"
_LIMIT = 64 << 20


def backup(state: State, target: Path, *, keys: bool = False) -> Path:
    """Write an archive of a state; secret keys only when asked for.

    Raises UsageError when the registry is no SQLite file (copy it with its own tools), Conflict when the archive is
    there, Unavailable when the disk is full; then nothing is left.
    """
    if not state.database_url.startswith("sqlite"):
        raise UsageError("the registry is not in the state folder", remedy="copy it with pg_dump, then back up again")
    if target.exists():
        raise Conflict("the archive exists", where=str(target), remedy="choose another name")
    part = target.with_name(f".{target.name}.part")
    try:
        with _private(part) as file, tarfile.open(fileobj=file, mode="w") as archive:
            digests = {name: _add(archive, name, data) for name, data in _contents(state, keys)}
            _add(archive, MANIFEST, json.dumps({"format": FORMAT, "files": digests}, sort_keys=True).encode())
        part.replace(target)
    except OSError as error:
        raise Unavailable(f"cannot write: {error.strerror}", where=str(target), remedy="free some space") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def restore(archive: Path, folder: Path) -> None:
    """Unpack an archive into an empty folder; IntegrityError when a file is not what it was, and nothing is left."""
    if folder.exists() and any(folder.iterdir()):
        raise Conflict("the folder is not empty", where=str(folder), remedy="restore into a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(mode=0o700)
        _unpack(archive, temporary)
        (temporary / "run").mkdir(mode=0o700, exist_ok=True)
        for name in _FOLDERS:
            (temporary / name).mkdir(mode=0o700, exist_ok=True)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise Unavailable(f"cannot write: {error.strerror}", where=str(folder), remedy="free some space") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _private(path: Path) -> Iterator[BinaryIO]:
    """A new file that only its owner can read, on disk when the block ends: an archive may hold keys."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _contents(state: State, keys: bool) -> Iterator[tuple[str, bytes | Path]]:
    """(name, bytes or a file) of everything, in an order that is consistent beside a running server."""
    folder = state.folder
    yield from _log(folder)
    for path in sorted(folder.glob("*.db")):
        if path.name != _HEAD:
            yield path.name, _database(path)
    for name in _FILES:
        if (folder / name).is_file():
            yield name, (folder / name).read_bytes()
    for name in (*_FOLDERS, *(("keys",) if keys else ())):
        for path in sorted((folder / name).rglob("*")):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield str(path.relative_to(folder)), path


def _log(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Segments, head with its checkpoint, tiles: in this order, see above."""
    yield from _matching(folder, "wal/*.wal")
    if (folder / _HEAD).is_file():
        head = _database(folder / _HEAD)
        yield _HEAD, head
        yield from (("log/checkpoint", note) for note in _notes(head))
    yield from _matching(folder, "tile/**/*")


def _matching(folder: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted((folder / "log").glob(pattern)):
        if path.is_file() and not path.name.startswith("."):
            try:
                yield str(path.relative_to(folder)), path.read_bytes()
            except FileNotFoundError:
                continue  # a segment or a narrow tile that wider ones replaced meanwhile


def _notes(head: bytes) -> list[bytes]:
    """The checkpoint that a copy of the head holds, if any."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(head)
        return [bytes(row[0]) for row in connection.execute("SELECT value FROM head WHERE id = 1")]
    finally:
        connection.close()


def _database(path: Path) -> bytes:
    """A consistent copy of a SQLite file that others may be writing."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        source, target = sqlite3.connect(path), sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
        return copy.read_bytes()


def _add(archive: tarfile.TarFile, name: str, data: bytes | Path) -> str:
    """Add a file piece by piece, whatever its size; its SHA-256."""
    info = tarfile.TarInfo(name)
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as source:
        info.size, info.mode = source.seek(0, io.SEEK_END), 0o600
        source.seek(0)
        hashed = _Hashed(source)
        archive.addfile(info, hashed)  # type: ignore[arg-type]  # it only reads
    return hashed.digest.hexdigest()


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self.digest = source, hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


def _unpack(archive: Path, folder: Path) -> None:
    """Every file the archive lists, none else, each with the digest it had."""
    try:
        with tarfile.open(archive, "r:") as tar:
            listed = _manifest(tar, archive)
            for member in tar:
                if member.name == MANIFEST:
                    continue
                if not member.isfile() or member.name not in listed:
                    raise IntegrityError(f"{member.name!r} does not belong here", where=str(archive))
                _place(tar, member, folder, listed.pop(member.name))
    except FileNotFoundError:
        raise NotFound("no such archive", where=str(archive)) from None
    except tarfile.TarError as error:
        raise IntegrityError(f"not an archive: {error}", where=str(archive)) from None
    if listed:
        raise IntegrityError(f"{next(iter(listed))!r} is missing", where=str(archive))


def _manifest(tar: tarfile.TarFile, archive: Path) -> dict[str, str]:
    try:
        file = tar.extractfile(MANIFEST)
    except KeyError:
        file = None
    if file is None:
        raise IntegrityError("not a backup of genward", where=str(archive))
    found: Mapping[str, object] = parse(file.read(_LIMIT), MANIFEST, _LIMIT)
    files = found.get("files") if isinstance(found, dict) and found.get("format") == FORMAT else None
    if not isinstance(files, dict):
        raise IntegrityError("not a backup this version reads", where=str(archive))
    return {str(name): str(digest) for name, digest in files.items()}


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, digest: str) -> None:
    path = folder / member.name
    if ".." in Path(member.name).parts or Path(member.name).is_absolute():
        raise IntegrityError(f"{member.name!r} leads out of the folder", where=MANIFEST)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = _Hashed(tar.extractfile(member) or io.BytesIO())
    with _private(path) as target:
        while piece := file.read(1 << 20):
            target.write(piece)
    if file.digest.hexdigest() != digest:
        raise IntegrityError("is not what was backed up", where=member.name, remedy="take another copy of the archive")
