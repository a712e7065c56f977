"""Tokens of an issuer: a good one is a principal, and every known forgery is refused in the same words."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from genward.auth import Authenticator
from genward.config import Auth, load
from genward.contracts import LOCAL, Credential
from genward.errors import Denied, GenwardError, NotFound, Unauthenticated, UsageError
from genward.oidc import Tokens, is_token

NOW = 1_800_000_000
KEY = ECKey.generate_key("P-256", {"kid": "one"})
RSA = RSAKey.generate_key(2048, {"kid": "two"})
AUTH = {"issuer": "https://id.example", "audience": "genward", "jwks": "jwks.json", "algorithms": ["ES256"]}


def _claims(**more: Any) -> dict[str, Any]:
    found = {"iss": "https://id.example", "aud": "genward", "sub": "ann", "exp": NOW + 60, "iat": NOW - 5}
    found |= {"tenant": "acme", "roles": ["consumer", "king"]}
    return {name: value for name, value in (found | more).items() if value is not None}


def _signed(claims: Any, header: dict[str, Any] | None = None, key: Any = KEY) -> str:
    return jwt.encode({"alg": "ES256", "kid": "one", **(header or {})}, claims, key)


def _part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    (tmp_path / "jwks.json").write_text(json.dumps(KeySet([KEY, RSA]).as_dict(private=False)))
    return Tokens(Auth.model_validate(AUTH), tmp_path)


def test_a_token_names_tenant_subject_and_known_roles(tokens: Tokens) -> None:
    found = tokens.principal(_signed(_claims()), NOW)
    assert (found.tenant, found.key, found.roles) == ("acme", "oidc:ann", {"consumer"})
    assert tokens.principal(_signed(_claims(aud=["x", "genward"], nbf=NOW)), NOW).tenant == "acme"
    assert is_token(_signed(_claims()))
    assert not is_token("gw_aaaaaaaa_x_0")


def test_a_signature_is_checked_once_and_the_time_at_each_request(tokens: Tokens) -> None:
    token = _signed(_claims())
    assert tokens.principal(token, NOW + 59).tenant == "acme"
    for late in (NOW + 60, NOW + 1000):
        with pytest.raises(Unauthenticated):
            tokens.principal(token, late)


def _none() -> str:
    return f"{_part({'alg': 'none'})}.{_part(_claims())}."


def _confused(alg: str) -> str:
    """HMAC under the bytes of the public key, which everybody has."""
    head = f"{_part({'alg': alg, 'kid': 'one'})}.{_part(_claims())}"
    return f"{head}.{_part(hmac.new(KEY.as_pem(private=False), head.encode(), hashlib.sha256).digest())}"


def _embedded() -> str:
    """A stranger's key in the header that it signed."""
    stranger = ECKey.generate_key("P-256", {"kid": "one"})
    header = {"alg": "ES256", "kid": "one", "jwk": stranger.as_dict(private=False)}
    return jws.serialize_compact(header, json.dumps(_claims()), stranger, ["ES256"])


def _unencoded() -> str:
    """A payload that is not base64 (RFC 7797)."""
    head, payload = _part({"alg": "ES256", "kid": "one", "b64": False, "crit": ["b64"]}), _part(_claims())
    return f"{head}.{payload}.{_signed(_claims()).rpartition('.')[2]}"


def _crit() -> str:
    head = _part({"alg": "ES256", "kid": "one", "crit": ["exotic"], "exotic": True})
    return f"{head}.{_part(_claims())}.{_signed(_claims()).rpartition('.')[2]}"


def _tampered() -> str:
    head, _, signature = _signed(_claims()).split(".")
    return f"{head}.{_part(_claims(tenant='other'))}.{signature}"


HOSTILE: dict[str, Callable[[], str]] = {
    "alg none": _none,
    "HS256 under the public key": lambda: _confused("HS256"),
    "HS512 under the public key": lambda: _confused("HS512"),
    "an algorithm not listed": lambda: jwt.encode({"alg": "RS256", "kid": "two"}, _claims(), RSA, ["RS256"]),
    "unknown crit": _crit,
    "b64 false": _unencoded,
    "a key inside the header": _embedded,
    "a changed payload": _tampered,
    "a stranger's key": lambda: _signed(_claims(), key=ECKey.generate_key("P-256", {"kid": "one"})),
    "an unknown kid": lambda: _signed(_claims(), {"kid": "three"}),
    "no kid among two keys": lambda: jwt.encode({"alg": "ES256"}, _claims(), KEY),
    "expired": lambda: _signed(_claims(exp=NOW)),
    "no exp": lambda: _signed(_claims(exp=None)),
    "a string exp": lambda: _signed(_claims(exp=str(NOW + 60))),
    "a boolean exp": lambda: _signed(_claims(exp=True)),
    "an endless exp": lambda: f"{_part({'alg': 'ES256', 'kid': 'one'})}.{_part(b'{}')}.x",
    "another audience": lambda: _signed(_claims(aud="other")),
    "no audience": lambda: _signed(_claims(aud=None)),
    "another issuer": lambda: _signed(_claims(iss="https://evil.example")),
    "no issuer": lambda: _signed(_claims(iss=None)),
    "nbf in the future": lambda: _signed(_claims(nbf=NOW + 10)),
    "iat in the future": lambda: _signed(_claims(iat=NOW + 10)),
    "no subject": lambda: _signed(_claims(sub=None)),
    "a subject that is a number": lambda: _signed(_claims(sub=5)),
    "a subject without end": lambda: _signed(_claims(sub="a" * 201)),
    "no tenant": lambda: _signed(_claims(tenant=None)),
    "a tenant that is a list": lambda: _signed(_claims(tenant=["acme"])),
    "roles that are a string": lambda: _signed(_claims(roles="administrator")),
    "claims that are a list": lambda: jws.serialize_compact({"alg": "ES256", "kid": "one"}, "[1]", KEY, ["ES256"]),
    "too long": lambda: _signed(_claims(x="a" * 9000)),
    "no token": lambda: "ey..",
    "not base64": lambda: "ey!.ü.é",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_token_is_refused_in_the_same_words(tokens: Tokens, name: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        tokens.principal(HOSTILE[name](), NOW)
    assert str(caught.value) == "the token is not valid (ask the issuer for another)"


def test_a_tenant_that_is_not_registered_is_nobody(world: Any) -> None:
    folder = world.folder
    (folder / "jwks.json").write_text(json.dumps(KeySet([KEY]).as_dict(private=False)))
    tokens = Tokens(Auth.model_validate(AUTH), folder)
    authenticate = Authenticator(world.platform.registry, None, tokens)
    assert authenticate(_signed(_claims()), NOW).tenant == "acme"
    with pytest.raises(Unauthenticated):
        authenticate(_signed(_claims(tenant="nobody")), NOW)
    assert authenticate(world.key, time.time()).tenant == "acme"


def test_a_token_goes_the_whole_way_and_its_bearer_is_named_in_the_log(make_world: Callable[..., Any]) -> None:
    world = make_world(f"auth: {json.dumps(AUTH)}\n")
    (world.folder / "jwks.json").write_text(json.dumps(KeySet([KEY]).as_dict(private=False)))
    token = _signed(_claims(exp=int(time.time()) + 60, iat=int(time.time())))
    answer = world.platform.client(token).generate("pool:1", n=3)
    assert world.entries(answer.request)[0]["actor"] == "oidc:ann"
    assert json.loads(answer.receipt())["request"] == answer.request
    auditor = _signed(_claims(exp=int(time.time()) + 60, iat=int(time.time()), roles=["auditor"]))
    with pytest.raises(Denied):
        world.platform.client(auditor).generate("pool:1", n=3)
    with pytest.raises(Unauthenticated):
        world.platform.run(world.platform.pipeline.read(Credential(_none(), LOCAL), "read"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read it"),
        ("{}", "no key set"),
        ("[]", "no key set"),
        ("not json", "no key set"),
        ('{"keys": []}', "no key set"),
        (json.dumps({"keys": [OctKey.generate_key(256).as_dict(private=True)]}), "a secret key"),
        (json.dumps(KeySet([KEY]).as_dict(private=True)), "a secret key"),
    ],
    ids=["missing", "no keys", "a list", "not JSON", "empty", "symmetric", "private"],
)
def test_a_key_file_must_hold_public_keys_only(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "jwks.json").write_text(content)
    with pytest.raises((UsageError, NotFound), match=says):
        Tokens(Auth.model_validate(AUTH), tmp_path)


@pytest.mark.parametrize(
    "text",
    ["auth: {issuer: a}", "auth: {issuer: a, audience: b, jwks: c, algorithms: []}", "server: {proxies: [home]}",
     "auth: {issuer: a, audience: b, jwks: c, algorithms: [none]}", "auth: {isuer: a}",
     "auth: {issuer: a, audience: b, jwks: c, algorithms: [HS256]}"],
)  # fmt: skip
def test_a_configuration_that_would_trust_too_much_is_refused(text: str) -> None:
    with pytest.raises(GenwardError):
        load(text, {})
