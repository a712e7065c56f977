"""Each call to the disk, one after the other, fails or is the last: full, read-only, broken, or the power goes."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genward_audit.checkpoint import Checkpoint
from genward_audit.errors import IntegrityError, Unavailable
from genward_audit.segment import Segment, frame, read_frames, segments
from genward_audit.sequencer import Sequencer
from genward_audit.storage import SqliteHead

CALLS = ("open", "write", "replace", "unlink", "rmdir", "mkdir", "fsync", "fdatasync")


class PowerCut(BaseException):
    """Nothing runs any more: no handler of ours may catch it."""


class Disk:
    """Counts the calls to the disk. From the `at`-th on, `lasting` of them fail: before they did anything (what was
    written and not yet synced is lost), or, `persisted`, after they did all of it."""

    def __init__(self, at: int, failure: Callable[[], BaseException], persisted: bool, lasting: int = 1) -> None:
        self.at, self.failure, self.persisted, self.lasting = at, failure, persisted, lasting
        self.calls = 0
        self.synced: dict[int, int] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Stand between the log and the disk."""
        for name in CALLS:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))
        patch.setattr(Segment, "write", staticmethod(os.write))
        patch.setattr(Segment, "sync", staticmethod(os.fdatasync))
        patch.setattr(SqliteHead, "swap", self._watched("swap", SqliteHead.swap))
        patch.setattr(SqliteHead, "read", self._watched("read", SqliteHead.read))

    def heal(self) -> int:
        """Fail no more; gives how many calls there were."""
        self.lasting = 0
        return self.calls

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if not self.at <= self.calls < self.at + self.lasting:
                return self._done(name, real, *given, **named)
            if self.persisted:
                result = self._done(name, real, *given, **named)
                if name == "open":
                    os.close(result)
            elif name in ("fsync", "fdatasync") and not os.path.isdir(f"/proc/self/fd/{given[0]}"):  # noqa: PTH112
                os.ftruncate(given[0], self.synced.get(os.fstat(given[0]).st_ino, 0))
            failure = self.failure()
            raise Unavailable("injected") if name in ("swap", "read") and isinstance(failure, OSError) else failure

        return call

    def _done(self, name: str, real: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if name not in ("fsync", "fdatasync"):
            return real(*given, **named)
        found = os.fstat(given[0])
        self.synced[found.st_ino] = found.st_size
        return None  # the real one would only take time


class _Story:
    """A log of 250 published entries and 3 that wait is opened, grows over a tile's edge, and is published twice."""

    def __init__(self, home: Path, logs: Any) -> None:
        self.home, self.logs = home, logs
        self.acknowledged = {index: b"%d" % index for index in range(253)}
        self.seen: list[Checkpoint] = []
        self.log: Sequencer | None = None

    def play(self, retry: bool) -> None:
        """With `retry`, each act is done again until it is done, and only our own error may escape."""
        acts = [self._open, lambda: self._commit(5), self._publish, lambda: self._commit(2), self._publish]
        for act in acts:
            while True:
                try:
                    act()
                    break
                except Unavailable:
                    if not retry:
                        raise
                    self._recover()

    def _open(self) -> None:
        self.log = self.logs.open(self.home)

    def _commit(self, count: int) -> None:
        assert self.log
        entries = [b"more %d" % i for i in range(count)]
        self.acknowledged |= dict(enumerate(entries, self.log.commit(entries)))

    def _publish(self) -> None:
        assert self.log
        self.seen.append(self.logs.publish(self.log))

    def _recover(self) -> None:
        while self.log is not None:
            try:
                self.log.recover()
                return
            except Unavailable:
                continue

    def end(self) -> None:
        """The process has gone, and with it its locks."""
        if self.log is not None:
            self.log.close()


def _full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def _read_only() -> OSError:
    return OSError(errno.EROFS, "Read-only file system")


def _broken() -> OSError:
    return OSError(errno.EIO, "Input/output error")


@pytest.fixture
def begun(folder: Path, logs: Any) -> Path:
    """The log that the story begins with."""
    logs.write(folder / "begun", *range(250))
    log = logs.open(folder / "begun")
    log.commit([b"250", b"251", b"252"])
    log.close()
    return folder / "begun"


@pytest.mark.parametrize("persisted", [False, True])
@pytest.mark.parametrize(("failure", "lasting"), [(_full, 1), (_read_only, 7), (_broken, 2)])
def test_each_call_to_the_disk_may_fail(
    begun: Path, folder: Path, logs: Any, failure: Callable[[], OSError], persisted: bool, lasting: int
) -> None:
    """Nothing acknowledged is lost, no hand is needed, and only our own error escapes."""
    at = 0
    while True:
        at += 1
        story = _Story(Path(shutil.copytree(begun, folder / str(at))), logs)
        disk = Disk(at, failure, persisted, lasting)
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            story.play(retry=True)
            story.end()
            calls = disk.heal()
            assert logs.recheck(story.home, story.acknowledged, story.seen).size >= 260
        shutil.rmtree(story.home)
        if calls < at:
            break
    assert at > 50


@pytest.mark.parametrize("persisted", [False, True])
def test_the_power_may_go_at_each_call_to_the_disk(begun: Path, folder: Path, logs: Any, persisted: bool) -> None:
    """What was acknowledged before is there after; the next writer starts as if nothing had been."""
    at, cuts = 0, 0
    while True:
        at += 1
        story = _Story(Path(shutil.copytree(begun, folder / str(at))), logs)
        disk = Disk(at, PowerCut, persisted)
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            try:
                story.play(retry=False)
            except PowerCut:
                cuts += 1
            story.end()
            calls = disk.heal()
            logs.recheck(story.home, story.acknowledged, story.seen)
        shutil.rmtree(story.home)
        if calls < at:
            break
    assert cuts > at - 10 > 40


def test_a_torn_write_at_every_byte_loses_no_acknowledged_entry(folder: Path, logs: Any) -> None:
    log = logs.open(folder)
    log.commit([b"one", b"two"])
    log.close()
    (path,) = segments(folder / "log" / "wal")
    whole = path.read_bytes()
    last = frame(2, [b"three", b"four"])
    for cut in range(len(last) + 1):
        home = folder / f"cut{cut}"
        shutil.copytree(folder / "log", home / "log")
        (home / "log" / "wal" / path.name).write_bytes(whole + last[:cut])
        again = logs.open(home)
        assert again.size == (4 if cut == len(last) else 2)
        again.close()
        logs.recheck(home, {0: b"one", 1: b"two"}, [])


def test_a_write_torn_between_sectors_is_dropped() -> None:
    """After a power cut a file may have its full length and sectors that were never written."""
    first = frame(0, [b"x" * 700])
    last = bytearray(frame(1, [b"y" * 3000]))
    for start in range(0, 3000, 512):
        torn = bytearray(first + last)
        begin = max(len(first), (len(first) + start) // 512 * 512)
        end = min((begin // 512 + 1) * 512, len(torn))
        torn[begin:end] = bytes(end - begin)
        frames, whole = read_frames(bytes(torn), "wal")
        assert (len(frames), whole) == (1, len(first))


def test_any_flipped_bit_of_a_segment_is_found_and_named(folder: Path, logs: Any) -> None:
    """Of the last frame too, which was acknowledged: it is no torn write, for nothing of it is missing."""
    log = logs.open(folder)
    log.commit([b"one"])
    log.commit([b"two", b"three"])
    log.close()
    (path,) = segments(folder / "log" / "wal")
    data, rng = path.read_bytes(), random.Random(5)
    for at in range(len(data)):
        bent = bytearray(data)
        bent[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(bent))
        with pytest.raises(IntegrityError, match=path.name):
            logs.open(folder)
    path.write_bytes(data)
    logs.recheck(folder, {0: b"one", 1: b"two", 2: b"three"}, [])


def test_a_segment_cut_short_before_the_last_one_is_named(folder: Path, logs: Any) -> None:
    (folder / "log" / "wal").mkdir(parents=True)
    first, second = (folder / "log" / "wal" / f"{at:016d}.wal" for at in (0, 2))
    first.write_bytes(frame(0, [b"one"])[:-1])
    second.write_bytes(frame(2, [b"three"]))
    with pytest.raises(IntegrityError, match=first.name):
        logs.open(folder)
    first.write_bytes(frame(0, [b"one"]))
    with pytest.raises(IntegrityError, match="entries 1 to 1 are missing"):
        logs.open(folder)
