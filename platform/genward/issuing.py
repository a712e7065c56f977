"""API keys on a platform: made, recorded, shown once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from genward.apikey import Scope
from genward.errors import UsageError

if TYPE_CHECKING:
    from genward.api import Platform

_LONGEST = 36_500  # days


def create_key(
    platform: Platform,
    tenant: str,
    roles: Sequence[str],
    *,
    days: float | None = None,
    label: str = "",
    scope: Scope | None = None,
    parent: str | None = None,
    actor: str = "",
) -> str:
    """Make an API key.

    Args:
        days: until it expires; never when left out.
        label: a note for people.
        scope: actions, models and networks that it is narrowed to.
        parent: prefix of a key of the same tenant that has these roles: the new one opens no more, and falls with it.
        actor: prefix of the key of who makes it.

    Raises UsageError for a role, a scope or a time that is none, NotFound for a tenant or a parent that is not there,
    Denied for a role that the parent lacks, Conflict for a parent that is not valid.
    """
    if days is not None and not 0 < days <= _LONGEST:
        raise UsageError(f"days is {days}", remedy=f"give a number above 0, to {_LONGEST}, or leave it out")
    expires = None if days is None else time.time() + 86_400 * days
    narrowed = (scope or Scope()).checked()
    prefix, key = platform.registry.create_key(
        tenant, roles, expires=expires, label=label, scope=narrowed, parent=parent, actor=actor or "operator"
    )
    said = {name: text for name, text in {**narrowed.columns(), "parent": parent}.items() if text not in ("[]", None)}
    platform.record("key.create", actor, tenant, key=prefix, roles=sorted(roles), **said)
    return key
