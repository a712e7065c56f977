"""Cosignatures, C2SP tlog-cosignature v1, type 0x04: a witness says when it found a checkpoint consistent.

blob = u64 big-endian seconds since the epoch || Ed25519("cosignature/v1\\ntime <seconds>\\n" || checkpoint text)
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from genward_audit.errors import SignatureError, UsageError
from genward_audit.note import COSIGNATURE, Signature, VerifierKey, cosigned_message


@dataclass(frozen=True, slots=True)
class Cosigner:
    """A witness's private key with its name."""

    name: str
    key: Ed25519PrivateKey

    @property
    def verifier(self) -> VerifierKey:
        """The public half."""
        return VerifierKey(self.name, COSIGNATURE, self.key.public_key().public_bytes_raw())

    def cosign(self, text: str, time: int) -> Signature:
        """Cosign a checkpoint's text at `time`, whole seconds since the epoch."""
        if not 0 <= time < 1 << 63:
            raise UsageError("a cosignature's time is seconds since the epoch")
        raw = self.key.sign(cosigned_message(time, text.encode("utf-8")))
        return Signature(self.name, self.verifier.key_id, time.to_bytes(8, "big") + raw)


def verify_cosignature(text: str, signature: Signature, key: VerifierKey) -> int:
    """The time a witness states, seconds since the epoch; raises SignatureError."""
    if key.kind != COSIGNATURE or not key.matches(signature):
        raise SignatureError("this is no cosignature of that witness", where=key.name)
    time = key.verify(text, signature)
    if time is None:
        raise SignatureError("a cosignature states a time", where=key.name)
    return time
