"""API keys: `gw_<prefix>_<secret>_<checksum>`.

The prefix (8 characters) is public and names the key; the secret is 256 random bits, base64url; the checksum is CRC-32
in hex, so that a mistyped key or a leaked string is recognised without a database. What is stored is
HMAC-SHA256(pepper, secret).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import zlib
from functools import lru_cache

from genward.errors import Unauthenticated

_FORM = re.compile(r"gw_([a-z0-9]{8})_([A-Za-z0-9_-]{43})_([0-9a-f]{8})", re.ASCII)
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


class ApiKeys:
    """Makes and reads keys under one pepper."""

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self.read = lru_cache(maxsize=4096)(self._read)

    def make(self) -> tuple[str, str, bytes]:
        """A new key: (prefix, key, hash to store)."""
        prefix = "".join(secrets.choice(_LETTERS) for _ in range(8))
        secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
        body = f"gw_{prefix}_{secret}"
        return prefix, f"{body}_{_checksum(body)}", self._hash(secret)

    def same(self, stored: bytes, computed: bytes) -> bool:
        """Constant-time comparison of two hashes."""
        return hmac.compare_digest(stored, computed)

    def _read(self, key: str) -> tuple[str, bytes]:
        """(prefix, hash) of a key; Unauthenticated if it has not the form of one."""
        found = _FORM.fullmatch(key)
        if found is None or _checksum(key.rpartition("_")[0]) != found[3]:
            raise Unauthenticated("the API key is not valid", remedy="check that it was copied whole")
        return found[1], self._hash(found[2])

    def _hash(self, secret: str) -> bytes:
        return hmac.new(self._pepper, secret.encode(), hashlib.sha256).digest()


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
