"""Roles and grants as Cedar text: what an administrator wrote comes to this, and this is what decides."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from genward_policies.access.config import AccessConfig, Grant, Value

_OWN = "resource.tenant == principal.tenant"
_OWN_OR_NONE = f"resource is Platform || (resource is Release && {_OWN})"


def text_of(config: AccessConfig) -> str:
    """All of a configuration's policies, Cedar text."""
    parts = [config.cedar.strip()]
    parts += [_role(action, role) for action, roles in sorted(config.roles.items()) for role in dict.fromkeys(roles)]
    parts += [_grant(grant) for grant in config.grants]
    return "\n\n".join(part for part in parts if part) + "\n"


def _role(action: str, role: str) -> str:
    when = _OWN if action == "generate" else _OWN_OR_NONE
    scope = f"principal in {_entity('Role', role)}, action == {_entity('Action', action)}, resource"
    return f"{_id(f'roles.{action}.{role}')}\npermit ({scope})\nwhen {{ {when} }};"


def _grant(grant: Grant) -> str:
    who = _entity("Key", grant.key) if grant.key else _entity("Tenant", grant.tenant)
    what = "resource" if grant.model == "*" else f"resource in {_entity('Model', grant.model)}"
    scope = f"principal {'==' if grant.key else 'in'} {who}, action == {_entity('Action', 'generate')}, {what}"
    roles = ", ".join(_entity("Role", role) for role in grant.roles)
    tenant = f"principal.tenant == {_text(grant.tenant)} && " if grant.key else ""
    when = f"{tenant}principal in [{roles}] && {_OWN}"
    return "\n".join([_id(grant.id), *_notes(grant), f"permit ({scope})", f"when {{ {when} }};"])


def _notes(grant: Grant) -> list[str]:
    """What Cedar does not decide, in sight of who reads it: rows outside the slice are left out, rows are counted."""
    found = []
    if grant.where:
        found.append(f"@slice({_text('; '.join(f'{c}: {_listed(v)}' for c, v in grant.where.items()))})")
    if grant.rows_per_day is not None:
        found.append(f"@rows_per_day({_text(str(grant.rows_per_day))})")
    return found


def _listed(values: Sequence[Value]) -> str:
    return "[" + ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values) + "]"


def _id(name: str) -> str:
    return f"@id({_text(name)})"


def _entity(kind: str, name: str) -> str:
    return f"{kind}::{_text(name)}"


def _text(value: str) -> str:
    """A Cedar string: JSON's escapes, but for code points, which Cedar writes in braces."""
    return re.sub(r"\\u([0-9a-f]{4})", r"\\u{\1}", json.dumps(value, ensure_ascii=False))
