"""What the entries of schema v1 tell about completeness: grants and settles that pair, writers that start and stop,
times that run forward. Workers condense bundles to `Story`; one `Plot` reads the stories in order."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any

from genward_audit.entries import CLOCK, RETAIN, START, STOP, VERSION

MAX_FINDINGS = 20  # of one kind; the rest are counted

_decoder = json.JSONDecoder()


@dataclass(slots=True)
class Story:
    """What one run of entries says, as small as it can be: it travels between processes."""

    grants: list[tuple[int, int]] = field(default_factory=list)  # index, key of the request
    settles: list[tuple[int, int, int]] = field(default_factory=list)  # index, grant or -1, key of the request
    acts: list[tuple[int, str, Any]] = field(default_factory=list)  # index, verb, detail
    back: list[int] = field(default_factory=list)  # entries whose time is before their predecessor's
    first: str = ""  # time of the first and the last entry that states one
    last: str = ""
    first_at: int = -1
    known: int = 0
    foreign: int = 0


def _load(entry: bytes) -> dict[str, Any] | None:
    """The object in an entry, None where it is a stranger's. Speed matters: form is the writer's to check."""
    try:
        text = entry.decode("utf-8")
        value, end = _decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if end != len(text) or not isinstance(value, dict) or value.get("v") != VERSION:
        return None
    return value


def _key(request: Any) -> int:
    """64 bits that stand for a request id: two of a million collide once in forty million logs."""
    return int.from_bytes(sha256(str(request).encode("utf-8", "replace")).digest()[:8], "big")


def tell(entries: Sequence[bytes], first: int) -> Story:
    """Condense entries that begin at index `first`."""
    story = Story()
    for index, entry in enumerate(entries, first):
        value = _load(entry)
        if value is None:
            story.foreign += 1
            continue
        story.known += 1
        _tell_time(story, index, value.get("t"))
        _tell_event(story, index, value)
    return story


def _tell_time(story: Story, index: int, time: Any) -> None:
    if not isinstance(time, str):
        return
    if not story.first:
        story.first, story.first_at = time, index
    elif time < story.last:
        story.back.append(index)
    story.last = time


def _tell_event(story: Story, index: int, value: dict[str, Any]) -> None:
    event = value.get("event")
    if event == "settle":
        grant = value.get("grant", -1)
        story.settles.append((index, grant if type(grant) is int else -2, _key(value.get("request"))))
    elif event == "grant":
        story.grants.append((index, _key(value.get("request"))))
    elif event == "act":
        verb = value.get("act")
        if verb in (START, STOP, RETAIN, CLOCK):
            story.acts.append((index, verb, value.get("detail")))


class Plot:
    """Reads stories in order and holds what is still open; bytes of memory per entry, not objects."""

    def __init__(self, minimum: int) -> None:
        self.minimum = minimum
        self.failures: list[str] = []
        self.notes: list[str] = []
        self.known = self.foreign = 0
        self.last_time = ""
        self.open: dict[int, int] = {}
        self.retained: set[int] = set()
        self._granted = bytearray()
        self._inline = [array("Q") for _ in range(256)]
        self._running: bool | None = None
        self._counts: dict[str, int] = {}

    def read(self, story: Story) -> None:
        """Take the next story."""
        self.known += story.known
        self.foreign += story.foreign
        self._times(story)
        for index, key in story.grants:
            self.open[index] = key
            self._grow(index)
            self._granted[index >> 3] |= 1 << (index & 7)
        for index, grant, key in story.settles:
            self._settle(index, grant, key)
        for act in story.acts:
            self._act(*act)

    def fail(self, kind: str, text: str) -> None:
        """Record a failure; of one kind at most `MAX_FINDINGS` in full."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= MAX_FINDINGS:
            self.failures.append(text)

    def _grow(self, index: int) -> None:
        """One bit per entry seen so far, and none for what a checkpoint merely claims."""
        if index >> 3 >= len(self._granted):
            self._granted.extend(bytes(max(4096, (index >> 3) + 1 - len(self._granted))))

    def _times(self, story: Story) -> None:
        excused = {index for index, verb, _ in story.acts if verb in (CLOCK, START)}
        back = [*story.back]
        if story.first and story.first < self.last_time:
            back.insert(0, story.first_at)
        for index in back:
            if index not in excused:
                self.fail("time", f"entry {index}: its time is before its predecessor's")
        self.last_time = story.last or self.last_time

    def _settle(self, index: int, grant: int, key: int) -> None:
        if grant == -1:
            self._inline[key >> 56].append(key)
        elif 0 <= grant < self.minimum:
            return
        elif grant < 0 or grant >= index:
            self.fail("order", f"entry {index}: settles entry {grant}, which is not before it")
        elif grant not in self.open:
            self._grow(grant)
            again = self._granted[grant >> 3] >> (grant & 7) & 1
            why = "which is already settled" if again else "which is no grant"
            self.fail("settle", f"entry {index}: settles entry {grant}, {why}")
        elif self.open.pop(grant) != key:
            self.fail("settle", f"entry {index}: settles entry {grant}, a grant of another request")

    def _act(self, index: int, verb: str, detail: Any) -> None:
        stated = detail if isinstance(detail, dict) else {}
        if verb == RETAIN:
            self.retained.add(stated.get("minimum", -1))
        if verb not in (START, STOP):
            return
        if stated.get("size") != index:
            text = f"entry {index}: {verb} states a log of {stated.get('size')} entries; some are missing or moved"
            self.fail("size", text)
        if verb == START and self._running:
            self.notes.append(f"entry {index}: the writer before it ended without a stop")
        if verb == STOP and self._running is False:
            self.fail("stop", f"entry {index}: a writer stops and none ran")
        if verb == START and self._running is None and index > self.minimum == 0:
            self.fail("start", f"entries 0 to {index - 1} were written before any writer started")
        self._running = verb == START

    def finish(self) -> None:
        """Look at what only the whole shows: inline requests settled twice, findings that were too many."""
        for keys in self._inline:
            ordered = sorted(keys)
            twice = sum(left == right for left, right in pairwise(ordered))
            if twice:
                self.fail("twice", f"{twice} settles repeat a request that is already settled")
        for count in self._counts.values():
            if count > MAX_FINDINGS:
                self.failures.append(f"and {count - MAX_FINDINGS} more like it")
