"""Trust policies, C2SP tlog-policy: which logs and witnesses are believed, and how many must agree.

    log <vkey> [url]
    witness <name> <vkey> [url]
    group <name> all|any|<k> <member> ...
    quorum <name>|none

Several `log` lines of one origin are the keys of a rotation: a signature by any of them serves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from genward_audit._text import decode_number, decode_utf8
from genward_audit.checkpoint import Checkpoint
from genward_audit.errors import AuditError, FormatError, PolicyUnmet
from genward_audit.note import COSIGNATURE, ED25519, Note, VerifierKey, open_note

MAX_POLICY = 1 << 20


@dataclass(frozen=True, slots=True)
class Party:
    """A log or a witness: its name in the policy, its key, where it answers ("" unknown)."""

    name: str
    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """At least `need` of `members` (witnesses or earlier groups) must have cosigned."""

    name: str
    need: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint whose signatures were checked. `times`: what each witness of the policy states, by its name."""

    checkpoint: Checkpoint
    note: Note
    times: dict[str, int]


@dataclass(frozen=True, slots=True)
class Policy:
    """Who is believed. Without `quorum` the log's own signature is enough."""

    logs: tuple[Party, ...]
    witnesses: tuple[Party, ...] = ()
    groups: tuple[Group, ...] = ()
    quorum: str | None = None

    @classmethod
    def of(cls, *vkeys: str) -> Policy:
        """Believe these log keys and ask for no witness."""
        keys = [VerifierKey.parse(one) for one in vkeys]
        return cls(tuple(Party(key.name, key) for key in keys))

    @classmethod
    def parse(cls, data: bytes) -> Policy:
        """Read a policy file; raises FormatError or SignatureError naming the line."""
        if len(data) > MAX_POLICY:
            raise FormatError("the policy is too long")
        reader = _Reader()
        for number, line in enumerate(decode_utf8(data, "a policy").split("\n"), 1):
            try:
                reader.line([] if line.lstrip().startswith("#") else line.split())
            except AuditError as error:
                raise type(error)(error.what, where=f"policy line {number}", remedy=error.remedy) from None
        return reader.policy()

    @property
    def keys(self) -> tuple[VerifierKey, ...]:
        """Every key the policy names."""
        return tuple(party.key for party in (*self.logs, *self.witnesses))

    def satisfied(self, cosigned: Collection[str]) -> bool:
        """Is the quorum met when these witnesses (by their names here) have cosigned?"""
        met = set(cosigned) & {one.name for one in self.witnesses}
        for group in self.groups:
            if sum(member in met for member in group.members) >= group.need:
                met.add(group.name)
        return self.quorum is None or self.quorum in met

    def open(self, data: bytes) -> SignedCheckpoint:
        """Check a signed checkpoint: a key of its origin signed it and the quorum cosigned it.

        Raises FormatError, SignatureError or PolicyUnmet.
        """
        note = open_note(data, self.keys)
        checkpoint = Checkpoint.parse(note.text)
        signed = {one.key for one in note.verified}
        if not any(log.key in signed and log.key.name == checkpoint.origin for log in self.logs):
            raise PolicyUnmet("no log key of the policy signed this checkpoint", where=checkpoint.origin)
        stated = {one.key: one.time or 0 for one in note.verified}
        times = {one.name: stated[one.key] for one in self.witnesses if one.key in stated}
        if not self.satisfied(times):
            have = ", ".join(times) or "no witness"
            raise PolicyUnmet(f"the quorum {self.quorum} is not met by {have}", where=checkpoint.origin)
        return SignedCheckpoint(checkpoint, note, times)


class _Reader:
    """Collects the lines of a policy; names must be defined before they are used."""

    def __init__(self) -> None:
        self.logs: list[Party] = []
        self.witnesses: list[Party] = []
        self.groups: list[Group] = []
        self.quorums: list[str] = []

    def line(self, words: list[str]) -> None:
        match words:
            case []:
                return
            case ["log", vkey, *url] if len(url) < 2:
                self._log(_key(vkey, ED25519), *url)
            case ["witness", name, vkey, *url] if len(url) < 2:
                self.witnesses.append(Party(self._new(name), _key(vkey, COSIGNATURE), *url))
            case ["group", name, need, *members] if members:
                self._group(name, need, members)
            case ["quorum", name]:
                self._quorum(name)
            case _:
                raise FormatError(f"cannot read {' '.join(words)[:80]!r}", remedy="log, witness, group or quorum")

    def _log(self, key: VerifierKey, url: str = "") -> None:
        if any(one.key == key for one in self.logs):
            raise FormatError("this log key is named twice")
        self.logs.append(Party(key.name, key, url))

    def _names(self) -> set[str]:
        return {one.name for one in self.witnesses} | {one.name for one in self.groups}

    def _new(self, name: str) -> str:
        if name == "none" or name in self._names():
            raise FormatError(f"the name {name} is taken")
        return name

    def _group(self, name: str, need: str, members: list[str]) -> None:
        unknown = [one for one in members if one not in self._names()]
        if unknown or len(set(members)) != len(members):
            raise FormatError(f"members of {name} must be defined above, each once: {', '.join(unknown or members)}")
        least = {"all": len(members), "any": 1}.get(need)
        least = decode_number(need, "a group's threshold") if least is None else least
        if not 0 < least <= len(members):
            raise FormatError(f"{name} asks for {least} of {len(members)}")
        self.groups.append(Group(self._new(name), least, tuple(members)))

    def _quorum(self, name: str) -> None:
        if name != "none" and name not in self._names():
            raise FormatError(f"the quorum {name} is not defined above")
        self.quorums.append(name)

    def policy(self) -> Policy:
        if len(self.quorums) != 1:
            raise FormatError(
                "a policy has exactly one quorum line", remedy="write 'quorum none' to ask for no witness"
            )
        if not self.logs:
            raise FormatError("a policy names at least one log")
        quorum = None if self.quorums[0] == "none" else self.quorums[0]
        return Policy(tuple(self.logs), tuple(self.witnesses), tuple(self.groups), quorum)


def _key(vkey: str, kind: int) -> VerifierKey:
    key = VerifierKey.parse(vkey)
    if key.kind != kind:
        raise FormatError(f"key type 0x{key.kind:02x} where 0x{kind:02x} belongs")
    return key


def as_policy(trust: Policy | Iterable[str]) -> Policy:
    """A policy, or the one that believes these vkeys."""
    return trust if isinstance(trust, Policy) else Policy.of(*trust)
