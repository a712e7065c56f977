"""Where a request came from: the peer, unless the operator named it a proxy; nobody's own word for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genward.apikey import Scope
from genward_services.address import client_address, proxies

TRUSTED = proxies(["10.0.0.0/8", "::1/128"])


def _scope(peer: str | None, *forwarded: str) -> dict[str, Any]:
    headers = [(b"X-Forwarded-For", value.encode("latin-1")) for value in forwarded]
    return {"client": None if peer is None else (peer, 5), "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.9"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.9"], "198.51.100.9"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.9, 10.9.9.9"], "198.51.100.9"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.9"], "198.51.100.9"),
        ("10.0.0.1", ["nonsense"], ""),
        ("10.0.0.1", ["1.1.1.1, nonsense"], ""),
        ("10.0.0.1", [], "10.0.0.1"),
        ("::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("fe80::1%eth0", [], "fe80::1"),
        (None, ["198.51.100.9"], ""),
        ("unix", [], ""),
    ],
)
def test_the_caller_is_the_last_who_is_no_proxy(peer: str | None, forwarded: list[str], found: str) -> None:
    assert client_address(_scope(peer, *forwarded), TRUSTED) == found


def test_without_proxies_no_header_is_believed() -> None:
    assert client_address(_scope("192.0.2.1", "10.0.0.1"), []) == "192.0.2.1"


def test_a_key_bound_to_a_network_is_opened_by_the_peer_s_address_alone(server: Any) -> None:
    """A served platform: the loopback may, another network may not, and saying so in a header changes nothing."""
    platform = server.world.platform
    here = platform.create_key("acme", ["consumer"], scope=Scope(networks=("127.0.0.0/8",)))
    there = platform.create_key("acme", ["consumer"], scope=Scope(networks=("198.51.100.0/24",)))
    for path in ("/v1/models", "/v1/models/pool:1"):
        assert server.ask("GET", path, key=here).status == 200
        assert server.ask("GET", path, key=there).status == 401
        forged = {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7", "X-Real-IP": "198.51.100.7"}
        assert server.ask("GET", path, key=there, headers=forged).status == 401
    assert server.rows(2, key=here).status == 200
    assert server.rows(2, key=there).status == 401


def test_models_outside_a_key_s_scope_are_not_listed(server: Any) -> None:
    key = server.world.platform.create_key("acme", ["consumer"], scope=Scope(models=("open",)))
    assert [m["name"] for m in server.ask("GET", "/v1/models", key=key).json()["models"]] == ["open"]
    assert server.ask("GET", "/v1/models/pool:1", key=key).status == 403
    assert server.rows(1, "pool:1", key=key).status == 403
    assert server.rows(1, "open:1", key=key).status == 200


def test_a_server_whose_issuer_s_keys_are_missing_does_not_start(tmp_path: Path) -> None:
    from genward.api import Platform

    platform, _ = Platform.init(tmp_path / "s", single_operator=True)
    platform.close()
    with (tmp_path / "s" / "genward.yaml").open("a") as file:
        file.write("auth: {issuer: a, audience: b, jwks: jwks.json, algorithms: [ES256]}\n")
    words = [sys.executable, "-m", "genward.cli", "--state", str(tmp_path / "s"), "serve", "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert "jwks.json: cannot read it" in done.stderr
