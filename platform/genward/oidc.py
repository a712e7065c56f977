"""Bearer tokens of an OpenID Connect issuer: JWT (RFC 7519), explicit algorithms (RFC 8725), a static JWKS file.

What is refused by name in the tests: `alg: none`, an HMAC under the public key, an unknown `crit`, a key inside the
header, an `exp` that is missing, past or a string, another audience or issuer, an `nbf` or `iat` in the future.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genward.contracts import Principal
from genward.errors import NotFound, Unauthenticated, UsageError

if TYPE_CHECKING:
    from genward.config import Auth

ROLES = frozenset({"administrator", "publisher", "auditor", "consumer"})
_LONGEST = 8192  # characters of a token
_SUBJECT = 200


def is_token(credential: str) -> bool:
    """Whether a credential has the form of a JWT: three parts, the first a JSON object in base64url."""
    return credential.startswith("ey") and credential.count(".") == 2


class Tokens:
    """Reads tokens of one issuer. NotFound or UsageError when its key file cannot be used."""

    def __init__(self, auth: Auth, folder: Path) -> None:
        self._auth = auth
        self._keys = _read_keys(folder / auth.jwks)
        self._claims = lru_cache(4096)(self._decoded)  # a signature is checked once, its times at each request

    def principal(self, token: str, now: float) -> Principal:
        """Who a token speaks for; Unauthenticated, in the same words, for whatever is wrong with it."""
        from joserfc.errors import JoseError

        try:
            claims = self._claims(str(token))
            self._rules(int(now)).validate(dict(claims))
            return self._named(claims)
        except (JoseError, ValueError, KeyError, TypeError, RecursionError):
            raise Unauthenticated("the token is not valid", remedy="ask the issuer for another") from None

    def _decoded(self, token: str) -> Mapping[str, Any]:
        from joserfc import jwt

        if len(token) > _LONGEST:
            raise ValueError("too long")
        claims: Mapping[str, Any] = jwt.decode(token, self._keys, algorithms=list(self._auth.algorithms)).claims
        return claims

    def _rules(self, now: int) -> Any:
        from joserfc.jwt import JWTClaimsRegistry

        return JWTClaimsRegistry(
            now=now,
            iss={"essential": True, "value": self._auth.issuer},
            aud={"essential": True, "value": self._auth.audience},
            exp={"essential": True},
            sub={"essential": True},
        )

    def _named(self, claims: Mapping[str, Any]) -> Principal:
        tenant, roles, subject = claims[self._auth.tenant_claim], claims[self._auth.roles_claim], claims["sub"]
        if not isinstance(tenant, str) or not isinstance(roles, list) or len(subject) > _SUBJECT:
            raise ValueError("claims")
        return Principal(tenant, f"oidc:{subject}", ROLES & {role for role in roles if isinstance(role, str)})


def _read_keys(path: Path) -> Any:
    """The issuer's public keys. A secret among them is refused: it does not belong here, and an HMAC under a key that
    everybody may read proves nothing."""
    from joserfc.errors import JoseError
    from joserfc.jwk import KeySet

    remedy = "save the issuer's JWKS (its jwks_uri) in this file"
    try:
        data = json.loads(path.read_bytes())
        keys = KeySet.import_key_set(data)
    except OSError as error:
        raise NotFound(f"cannot read it: {error.strerror}", where=str(path), remedy=remedy) from None
    except (JoseError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"no key set: {type(error).__name__}", where=str(path), remedy=remedy) from None
    if any(key.key_type == "oct" or key.is_private for key in keys):
        raise UsageError("a secret key is in the set", where=str(path), remedy="leave only public keys in it")
    return keys
