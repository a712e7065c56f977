"""Receipts, C2SP tlog-proof v1 (`.tlog-proof`): one file that proves, offline, that an entry is in a log.

c2sp.org/tlog-proof@v1
[extra <base64>]
index <n>
<base64 hash> ...          the leaf's sibling first
<blank line>
<signed checkpoint>
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from genward_audit._text import decode_base64, decode_hash, decode_number, decode_utf8, encode_base64
from genward_audit.errors import FormatError
from genward_audit.merkle import leaf_hash, verify_inclusion
from genward_audit.policy import Policy, SignedCheckpoint, as_policy

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PROOF = 1 << 20
MAX_HASHES = 63


@dataclass(frozen=True, slots=True)
class Proof:
    """A receipt. `extra` is not covered by any signature: never decide by it."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def marshal(self) -> bytes:
        """The file's bytes."""
        extra = [] if self.extra is None else [f"extra {encode_base64(self.extra)}"]
        lines = [HEADER, *extra, f"index {self.index}", *map(encode_base64, self.hashes), ""]
        return ("\n".join(lines) + "\n").encode("ascii") + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> Proof:
        """Read a receipt's form; `verify` checks it. Raises FormatError."""
        head, blank, checkpoint = data.partition(b"\n\n")
        if len(data) > MAX_PROOF or not blank or not checkpoint:
            raise FormatError("a receipt is a proof, a blank line and a checkpoint")
        lines = decode_utf8(head, "a receipt").split("\n")
        if lines.pop(0) != HEADER:
            raise FormatError(f"a receipt begins with {HEADER}")
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = decode_base64(lines.pop(0).removeprefix("extra "), "the extra line of a receipt")
        if not lines or not lines[0].startswith("index ") or len(lines) > 1 + MAX_HASHES:
            raise FormatError("a receipt has an index line and at most 63 hashes")
        index = decode_number(lines[0].removeprefix("index "), "a receipt's index")
        return cls(index, tuple(decode_hash(one, "a hash of a receipt") for one in lines[1:]), checkpoint, extra)

    def verify(self, entry: bytes, trust: Policy | Iterable[str]) -> SignedCheckpoint:
        """Raise unless a checkpoint that `trust` (a policy, or vkeys) believes has this entry at this index."""
        return self.verify_leaf(leaf_hash(entry), trust)

    def verify_leaf(self, leaf: bytes, trust: Policy | Iterable[str]) -> SignedCheckpoint:
        """As `verify`, for a leaf hash."""
        signed = as_policy(trust).open(self.checkpoint)
        head = signed.checkpoint
        verify_inclusion(self.index, head.size, leaf, self.hashes, head.root)
        return signed
