"""Recorded decisions: opt-in, one JSON line each, in STATE/contexts, bounded. Values of conditions are never in them.

Two files of at most 64 MiB each (some 150,000 decisions) are kept for all workers: when the newer is full it takes the
older one's place.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from genward.errors import DataError, NotFound
from genward_policies.access import terms
from genward_policies.access.rules import Decision
from genward_policies.access.terms import Question

FOLDER = "contexts"
NEW, OLD = "decisions.jsonl", "decisions.old.jsonl"
LARGEST = 64 << 20  # bytes of one file


class Recorder:
    """Appends decisions. What cannot be written is lost: recording decides nothing."""

    def __init__(self, state: Path, largest: int = LARGEST) -> None:
        self._folder, self._largest = state / FOLDER, largest
        self._lock = threading.Lock()

    def add(self, question: Question, decision: Decision, policy: str) -> None:
        """One line."""
        said = {"allow": decision.allow, "because": list(decision.because), "policy": policy}
        line = orjson.dumps({**terms.to_json(question), "decision": said}) + b"\n"
        with self._lock, suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._append(line)

    def _append(self, line: bytes) -> None:
        path = self._folder / NEW
        with _locked(path) as handle:
            here = os.fstat(handle)
            if here.st_size + len(line) <= self._largest or not here.st_size:
                os.write(handle, line)
                return
            if here.st_ino == path.stat().st_ino:  # no other worker was quicker
                path.rename(self._folder / OLD)
        with _locked(path) as handle:
            os.write(handle, line)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # of other workers
        yield handle
    finally:
        os.close(handle)


def recorded(state: Path) -> list[Path]:
    """The files of a state's recorded decisions, oldest first; NotFound says how to have some."""
    found = [path for name in (OLD, NEW) if (path := state / FOLDER / name).is_file()]
    if not found:
        raise NotFound(
            "no decision was recorded",
            where=str(state / FOLDER),
            remedy="activate a policy with access: {record: true}",
        )
    return found


def read(paths: Sequence[Path]) -> Iterator[tuple[Question, Decision]]:
    """Recorded decisions; DataError names file and line of what is none."""
    for path in paths:
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    yield _decoded(line, f"{path}:{number}")
        except OSError as error:
            raise NotFound(f"cannot read it: {error.strerror}", where=str(path)) from None


def _decoded(line: bytes, where: str) -> tuple[Question, Decision]:
    try:
        data: dict[str, Any] = json.loads(line)
        said = data["decision"]
        allow, because = said["allow"], tuple(str(name) for name in said["because"])
        if not isinstance(allow, bool):
            raise TypeError
        return terms.from_json(data), Decision(allow, because)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError("is no recorded decision", where=where, remedy="give files that `record: true` wrote") from None
