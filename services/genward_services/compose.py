"""Putting the program together: which log records, which platform answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from genward.contracts import AuditSink
from genward.errors import GenwardError, IntegrityError, NotFound, Unavailable, UsageError
from genward.state import State
from genward_audit import errors as audit_errors
from genward_audit.client import AuditClient, connect
from genward_audit.reader import LogFolder
from genward_audit.retention import read_minimum

LINGER = 120.0  # seconds that a writer started by a lone command stays after its last client

_KINDS: dict[type[audit_errors.AuditError], type[GenwardError]] = {
    audit_errors.NotFound: NotFound,
    audit_errors.UsageError: UsageError,
    audit_errors.FormatError: UsageError,
    audit_errors.IntegrityError: IntegrityError,
}


class Log:
    """The transparency log as the core knows it: the client's calls, its errors as ours."""

    def __init__(self, client: AuditClient, vkey_file: Path, folder: LogFolder, origin: str) -> None:
        self._client, self._folder, self._origin = client, folder, origin
        self._vkey = self._asked(client.vkey)
        if not vkey_file.is_file() or vkey_file.read_text(encoding="utf-8").strip() != self._vkey:
            vkey_file.write_text(f"{self._vkey}\n", encoding="utf-8")

    def append(self, entry: bytes) -> int:
        return int(self._asked(self._client.append, entry))

    async def append_async(self, entry: bytes) -> int:
        try:
            return await self._client.append_async(entry)
        except audit_errors.AuditError as error:
            raise _ours(error) from None

    def entry(self, index: int) -> bytes:
        return bytes(self._asked(self._client.entry, index))

    def entries(self, start: int, most: int) -> list[tuple[int, bytes]]:
        """What is published comes from the log's files, a bundle of 256 entries at a time; the rest from the writer."""
        first = max(start, self._asked(read_minimum, self._folder, self._origin))
        found: list[tuple[int, bytes]] = self._asked(self._published, first, most)
        while len(found) < most:
            index = found[-1][0] + 1 if found else first
            try:
                found.append((index, self.entry(index)))
            except NotFound:
                break
        return found

    def _published(self, first: int, most: int) -> list[tuple[int, bytes]]:
        try:
            return list(self._folder.entries(first, first + most))
        except audit_errors.NotFound:  # no checkpoint yet, or a bundle that retention is taking away now
            return []

    def proof(self, index: int) -> bytes | None:
        found: bytes | None = self._asked(self._client.proof, index)
        return found

    def find(self, request: str) -> list[int]:
        return list(self._asked(self._client.find, request))

    def vkey(self) -> str:
        return str(self._vkey)

    def watch(self) -> None:
        """Ask the writer for a sign of life and start it where there is none; Unavailable with the reason it gave."""
        self._asked(self._client.start)

    async def detach(self) -> None:
        await self._client.detach()

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def _asked(call: Any, *given: Any) -> Any:
        try:
            return call(*given)
        except audit_errors.AuditError as error:
            raise _ours(error) from None


def _ours(error: audit_errors.AuditError) -> GenwardError:
    kind = next((ours for theirs, ours in _KINDS.items() if isinstance(error, theirs)), Unavailable)
    return kind(error.what, where=error.where, remedy=error.remedy)


def open_audit(state: State, passphrase: str | None = None) -> AuditSink:
    """Join the log's writer, or start it."""
    audit = state.config.audit
    options: dict[str, Any] = {
        "linger": LINGER,
        "head": audit.head,
        "second": audit.second_folder,
        "policy": audit.witnesses[0] if audit.witnesses else None,
    }
    before = os.environ.get("GENWARD_PASSPHRASE")
    if passphrase is not None:
        os.environ["GENWARD_PASSPHRASE"] = passphrase  # for the writer that is started below, and only it
    try:
        client = connect(state.log_dir, state.run_dir, state.keys_dir / "log.pem", audit.origin, **options)
        return Log(client, state.folder / "log.vkey", LogFolder(state.log_dir), audit.origin)
    except audit_errors.AuditError as error:
        raise _ours(error) from None
    finally:
        if before is None:
            os.environ.pop("GENWARD_PASSPHRASE", None)
