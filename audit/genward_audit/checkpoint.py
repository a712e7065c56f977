"""Checkpoints, C2SP tlog-checkpoint v1.0: the text by which a log commits to its first `size` entries.

origin
size
base64(root)
"""

from __future__ import annotations

from dataclasses import dataclass

from genward_audit._text import decode_hash, decode_number, encode_base64
from genward_audit.errors import FormatError
from genward_audit.merkle import EMPTY_ROOT, MAX_SIZE


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log. `origin` names it for ever (a URL without its scheme); `root` is 32 bytes.

    Extension lines are read, since the specification allows a stranger's log to have them, and never written by us.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.origin or any(c < " " for c in self.origin):
            raise FormatError("a checkpoint needs an origin on one line")
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != 32:
            raise FormatError("a checkpoint has a size below 2**63 and a root of 32 bytes", where=self.origin)
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise FormatError("the root of an empty log is the hash of nothing", where=self.origin)

    def marshal(self) -> str:
        """The note text, newline at its end."""
        lines = [self.origin, str(self.size), encode_base64(self.root), *self.extensions]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note's text strictly; raises FormatError."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[3:-1]):
            raise FormatError("a checkpoint is three lines: origin, size, root")
        size = decode_number(lines[1], "a checkpoint's size")
        return cls(lines[0], size, decode_hash(lines[2], "a checkpoint's root"), tuple(lines[3:-1]))
