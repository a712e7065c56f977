"""Who asks: API keys of the registry, tokens of an issuer. The one door to a principal, for every route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genward.contracts import Principal
from genward.errors import Unauthenticated
from genward.oidc import is_token

if TYPE_CHECKING:
    from genward.lastuse import LastUse
    from genward.oidc import Tokens
    from genward.registry import Registry


class Authenticator:
    """Turns a credential into a principal; Unauthenticated for whatever is wrong with it."""

    def __init__(self, registry: Registry, uses: LastUse | None = None, tokens: Tokens | None = None) -> None:
        self._registry, self._uses, self._tokens = registry, uses, tokens

    def __call__(self, credential: str, now: float, at: int | None = None) -> Principal:
        """`at`: the registry's change counter, read just now."""
        if self._tokens is not None and is_token(credential):
            found = self._tokens.principal(credential, now)
            if not self._registry.has_tenant(found.tenant, at):
                raise Unauthenticated("the token is not valid", remedy="ask the issuer for another")
            return found
        found = self._registry.authenticate(credential, now, at)
        if self._uses is not None:
            self._uses.saw(found.key, now)
        return found
