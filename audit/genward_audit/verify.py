"""Checking a log offline: `verify_folder` recomputes everything and gives three separate verdicts.

integrity     every file is what the signed checkpoint commits to; a damaged one is named.
completeness  no entry that the schema lets one miss is missing: starts and stops state the sizes they stood at, every
              grant has one settle, times run forward. What was never written cannot be seen; a witness cannot either.
freshness     how old the newest thing is that states a time, a witness's cosignature before the log's own entries.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from genward_audit._story import Plot
from genward_audit._tree import Scan, Tree, check_leftovers, scan_range
from genward_audit.entries import format_time, parse, parse_time
from genward_audit.errors import AuditError, FormatError
from genward_audit.policy import Policy, SignedCheckpoint
from genward_audit.progress import Progress, Silent
from genward_audit.proof import Proof
from genward_audit.reader import CHECKPOINT, MINIMUM, LogFolder
from genward_audit.retention import read_minimum, tile_files
from genward_audit.tiles import TILE_WIDTH

State = Literal["ok", "failed", "unknown"]
MAX_AGE = 86_400.0
OPEN_SECONDS = 3_600.0
MAX_DAMAGED = 1000
_TASK = 64  # bundles per task
_SKEW = 300.0  # seconds by which another clock may be ahead
_ALONE = 200_000  # entries below which starting workers costs more than they give


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer. `failures` say why not; `notes` are worth knowing and change nothing."""

    state: State
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found. `minimum`: the first index that is kept and was checked."""

    origin: str
    size: int
    root: str
    minimum: int
    integrity: Verdict
    completeness: Verdict
    freshness: Verdict
    seconds: float

    @property
    def ok(self) -> bool:
        """No verdict failed; unknown is not a failure."""
        return "failed" not in (self.integrity.state, self.completeness.state, self.freshness.state)

    @property
    def exit_code(self) -> int:
        """5 for integrity, 1 for the others, 0."""
        if self.integrity.state == "failed":
            return 5
        return 0 if self.ok else 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        verdicts = {"integrity": self.integrity, "completeness": self.completeness, "freshness": self.freshness}
        plain = {
            name: {"state": one.state, "failures": list(one.failures), "notes": list(one.notes)}
            for name, one in verdicts.items()
        }
        head = {"origin": self.origin, "size": self.size, "root": self.root, "minimum": self.minimum}
        return head | plain | {"ok": self.ok, "seconds": round(self.seconds, 3)}


def verify_receipt(proof: bytes, entry: bytes, trust: Policy | Iterable[str]) -> SignedCheckpoint:
    """Raise unless the `.tlog-proof` proves that `entry` is in a log that `trust` (a policy, or vkeys) believes."""
    return Proof.parse(proof).verify(entry, trust)


def verify_folder(
    path: Path | str,
    policy: Policy,
    progress: Progress | None = None,
    *,
    workers: int = 1,
    max_age: float = MAX_AGE,
    open_seconds: float = OPEN_SECONDS,
    now: float | None = None,
) -> Report:
    """Recompute a log folder, live or copied, and judge it.

    Args:
        policy: whose keys are believed and which quorum must have cosigned.
        workers: processes that hash; 0 takes up to four. Short logs are checked in this one.
        max_age: seconds after which the newest stated time is stale.
        open_seconds: seconds a grant may stand without a settle, against the newest entry's time.
        now: seconds since the epoch; the clock where None.

    Raises NotFound where there is no log. Damage is no exception: it is what the report tells.
    """
    begun = time.monotonic()
    folder = LogFolder(path)
    note = folder.checkpoint_note()
    try:
        signed = policy.open(note)
    except AuditError as error:
        return _unsigned(error, time.monotonic() - begun)
    check = _Check(folder, signed, policy, progress or Silent())
    check.run(workers)
    now = time.time() if now is None else now
    head = signed.checkpoint
    return Report(
        head.origin,
        head.size,
        head.root.hex(),
        check.minimum,
        check.integrity(),
        check.completeness(open_seconds),
        _freshness(signed, check.plot.last_time, now, max_age),
        time.monotonic() - begun,
    )


def _unsigned(error: AuditError, seconds: float) -> Report:
    reason = Verdict("failed", (f"{CHECKPOINT}: {error}",))
    other = Verdict("unknown", (), ("not looked at: the checkpoint is not believed",))
    return Report("", 0, "", 0, reason, other, other, seconds)


class _Check:
    """One pass over a folder."""

    def __init__(self, folder: LogFolder, signed: SignedCheckpoint, policy: Policy, progress: Progress) -> None:
        self.folder, self.head, self.progress = folder, signed.checkpoint, progress
        self.damaged: list[str] = []
        self.notes: list[str] = []
        self.minimum = self._read_minimum(policy)
        self.plot = Plot(self.minimum)

    def _read_minimum(self, policy: Policy) -> int:
        try:
            minimum = read_minimum(self.folder, self.head.origin, policy)
            if minimum > self.head.size:
                raise FormatError(f"a minimum of {minimum} in a log of {self.head.size}")
        except AuditError as error:
            self.damaged.append(f"{MINIMUM}: {error}")
            return 0
        return minimum // TILE_WIDTH * TILE_WIDTH

    def run(self, workers: int) -> None:
        """Scan every kept bundle in order; climb the tree; look at leftovers."""
        size, first = self.head.size, self.minimum // TILE_WIDTH
        tree = Tree(self.folder, size, first)
        self.progress.start("verify", size - self.minimum)
        for scans in _scans(self.folder.path, first, size, workers):
            for scan in scans:
                tree.add(scan)
                self.plot.read(scan.story)
            self.progress.update(min(size, (scans[-1].index + 1) * TILE_WIDTH) - self.minimum)
            if len(tree.damaged) > MAX_DAMAGED:
                tree.damaged.append(f"stopped after {MAX_DAMAGED} damaged files; entries from here on were not read")
                break
        else:
            tree.finish(self.head.root)
        self.plot.finish()
        self.damaged.extend(dict.fromkeys(tree.damaged))
        self._leftovers()
        self.progress.finish(f"{size - self.minimum} entries")

    def _leftovers(self) -> None:
        named = {one.partition(": ")[0] for one in self.damaged}
        files = list(tile_files(self.folder.path))
        strange = [path for path, tile in files if tile is None]
        if strange:
            self.notes.append(f"{len(strange)} files belong to no tile, for example {strange[0]}")
        for text in check_leftovers(self.folder, self.head.size, iter(files)):
            if text.partition(": ")[0] not in named:
                self.damaged.append(text)

    def integrity(self) -> Verdict:
        """Are the files what the checkpoint commits to?"""
        if self.minimum:
            self.notes.append(f"entries below {self.minimum} were pruned; their hashes are taken from the tree")
        return Verdict("failed" if self.damaged else "ok", tuple(self.damaged), tuple(self.notes))

    def completeness(self, open_seconds: float) -> Verdict:
        """Is anything missing that the entries themselves speak of?"""
        plot = self.plot
        if not plot.known:
            return Verdict("unknown", (), ("no entry follows schema v1; only integrity can be judged",))
        self._open_grants(open_seconds)
        stated = read_quietly(self.folder, self.head.origin)
        if stated and stated not in plot.retained:
            plot.fail("retain", f"{MINIMUM}: no log.retain entry announces the minimum {stated}")
        if plot.foreign:
            plot.notes.append(f"{plot.foreign} entries do not follow schema v1 and were passed over")
        return Verdict("failed" if plot.failures else "ok", tuple(plot.failures), tuple(plot.notes))

    def _open_grants(self, open_seconds: float) -> None:
        young = 0
        for index in self.plot.open:
            age = self._age(index)
            if age is None or age <= open_seconds:
                young += 1
            else:
                self.plot.fail("open", f"entry {index}: a grant without a settle after {age:.0f} s")
        if young:
            self.plot.notes.append(f"{young} grants are still open")

    def _age(self, index: int) -> float | None:
        """Seconds from a grant to the newest entry, None where one states no time."""
        try:
            granted = parse_time(parse(self.folder.entry(index, self.head.size))["t"])
            return parse_time(self.plot.last_time) - granted
        except (AuditError, KeyError):
            return None


def read_quietly(folder: LogFolder, origin: str) -> int:
    """The minimum index as the file states it, 0 where it cannot be read; its form was judged before."""
    try:
        return read_minimum(folder, origin)
    except AuditError:
        return 0


def _freshness(signed: SignedCheckpoint, last_time: str, now: float, max_age: float) -> Verdict:
    if signed.times:
        newest, source = float(max(signed.times.values())), "the newest cosignature"
    else:
        try:
            newest, source = parse_time(last_time), "the newest entry, by the log's own clock"
        except AuditError:
            return Verdict("unknown", (), ("nothing in the log states a time",))
    age = now - newest
    text = f"{source} is of {format_time(newest)}, {age:.0f} s ago"
    if age < -_SKEW:
        return Verdict("failed", (f"{source} is of {format_time(newest)}, which is still to come",))
    if age > max_age:
        return Verdict("failed", (f"{text}; at most {max_age:.0f} s were asked for",))
    return Verdict("ok", (), (text,))


def _scans(path: Path, first: int, size: int, workers: int) -> Iterator[list[Scan]]:
    """Scans of all bundles from `first`, in order, in tasks of 64."""
    end = (size + TILE_WIDTH - 1) // TILE_WIDTH
    tasks = ((path, at, min(at + _TASK, end), size, True) for at in range(first, end, _TASK))
    workers = workers or min(4, os.cpu_count() or 1)
    if workers < 2 or (end - first) * TILE_WIDTH < _ALONE:
        for task in tasks:
            yield scan_range(*task)
        return
    yield from _in_processes(tasks, workers)


def _in_processes(tasks: Iterable[tuple[Path, int, int, int, bool]], workers: int) -> Iterator[list[Scan]]:
    """At most three tasks per worker are under way, so memory does not grow with the log."""
    waiting: deque[Future[list[Scan]]] = deque()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task in tasks:
            waiting.append(pool.submit(scan_range, *task))
            if len(waiting) >= 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
