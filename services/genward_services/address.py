"""Where a request came from: the peer's own address, or, behind a proxy that the operator named, what it says.

`X-Forwarded-For` is believed from the right, as far as the hops are named proxies: whatever a client wrote there itself
stands further left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.types import Scope

ADDRESS = "genward.address"  # where a scope keeps it
Networks = Sequence[IPv4Network | IPv6Network]


def proxies(given: Sequence[str]) -> Networks:
    """The networks of the configuration."""
    return [ip_network(text) for text in given]


def client_address(scope: Scope, trusted: Networks) -> str:
    """The caller's IP address; empty when nobody can tell, which opens no key that is bound to a network."""
    client = scope.get("client")
    here = _plain(client[0]) if client else ""
    if not trusted or not _among(here, trusted):
        return here
    for hop in reversed(_forwarded(scope)):
        here = _plain(hop)
        if not _among(here, trusted):
            return here
    return here


def _forwarded(scope: Scope) -> list[str]:
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"x-forwarded-for"]
    return [hop.strip() for hop in ",".join(lines).split(",") if hop.strip()]


@lru_cache(4096)
def _plain(text: str) -> str:
    """One spelling of an address; an IPv4 one that came over IPv6 is itself (RFC 4291 section 2.5.5.2)."""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return str(mapped or found)


def _among(address: str, networks: Networks) -> bool:
    return bool(address) and any(ip_address(address) in network for network in networks)
