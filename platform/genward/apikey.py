"""API keys: `gw_<prefix>_<secret>_<checksum>`.

The prefix (8 characters) is public and names the key; the secret is 256 random bits, base64url; the checksum is CRC-32
in hex, so that a mistyped key or a leaked string is recognised without a database. What is stored is
HMAC-SHA256(pepper, secret).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from genward.config import networks
from genward.contracts import Principal
from genward.errors import Unauthenticated, UsageError

ACTIONS = ("generate", "read", "audit", "detect")  # what a key may be narrowed to

_FORM = re.compile(r"gw_([a-z0-9]{8})_([A-Za-z0-9_-]{43})_([0-9a-f]{8})", re.ASCII)
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a key is narrowed to; empty is not narrowed. `networks` in CIDR form."""

    actions: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    def checked(self) -> Scope:
        """The same, its networks in one spelling; UsageError for what names nothing."""
        for name in self.models:
            if not name.isascii() or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise UsageError(f"{name!r} is no model's name", remedy="give it without version or alias")
        if unknown := set(self.actions) - set(ACTIONS):
            raise UsageError(f"no action {min(unknown)!r}", remedy=f"there are {', '.join(ACTIONS)}")
        return replace(self, networks=networks(self.networks, "networks"))

    def columns(self) -> dict[str, str]:
        """As the registry keeps it."""
        found = {"actions": self.actions, "models": self.models, "networks": self.networks}
        return {name: json.dumps(sorted(set(values))) for name, values in found.items()}


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key, and what its line of parents leaves of it: the earliest end, the narrowest scope, every network."""

    principal: Principal
    hash: bytes
    revoked: bool
    expires: float | None
    networks: tuple[tuple[IPv4Network | IPv6Network, ...], ...]  # the address must lie in one of each
    line: int = 1  # keys in the line

    def valid(self, now: float, address: str) -> bool:
        """Whether it opens anything, now and from there."""
        if self.revoked or (self.expires is not None and now >= self.expires):
            return False
        return not self.networks or _inside(self.networks, address)


def key_of(line: Sequence[Mapping[str, Any]]) -> Key:
    """A key from its row and those of its parents, nearest first."""
    own = line[0]
    ends = [row["expires"] for row in line if row["expires"] is not None]
    places = [json.loads(row["networks"]) for row in line]
    actions, models = (_narrowest([json.loads(row[name]) for row in line]) for name in ("actions", "models"))
    return Key(
        Principal(own["tenant"], own["prefix"], frozenset(json.loads(own["roles"])), actions, models),
        own["hash"],
        any(row["revoked"] is not None for row in line) or actions is _NOTHING or models is _NOTHING,
        min(ends, default=None),
        tuple(tuple(ip_network(text) for text in some) for some in places if some),
        len(line),
    )


_NOTHING: frozenset[str] = frozenset({""})  # scopes that have nothing in common: a key that opens nothing


def _narrowest(scopes: Sequence[Sequence[str]]) -> frozenset[str]:
    given = [frozenset(scope) for scope in scopes if scope]
    return (frozenset.intersection(*given) or _NOTHING) if given else frozenset()


def _inside(networks: Sequence[Sequence[IPv4Network | IPv6Network]], address: str) -> bool:
    try:
        found = ip_address(address)
    except ValueError:  # nobody knows where from, or from this process: not from a network
        return False
    return all(any(found in network for network in some) for some in networks)


class ApiKeys:
    """Makes and reads keys under one pepper."""

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self.read = lru_cache(maxsize=16_384)(self._read)

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
