"""Making a policy version the active one, and trying one that is not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genward.contracts import ReleaseInfo
from genward.errors import PolicyError

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.policy import PolicyDocument
    from genward.policyset import PolicySet

_log = logging.getLogger("genward.policy")


def activate(platform: Platform, digest: str, actor: str, verb: str, rollback: bool) -> str:
    """Make an approved version active. Of two activations at once one holds; the other is a Conflict: what it was to
    replace is no longer there.

    A document that cannot be instantiated is not activated, nor one that a served release contradicts. The log says so
    before the registry does (an activation that nobody can see did not happen), and not of one that is refused.
    """
    registry = platform.registry
    row = registry.policy(digest)
    full, before = str(row["digest"]), registry.active_digest()
    _check_releases(platform, platform.policies_of(full))
    with platform.state.locked("activation"):
        registry.check_activation(full, rollback=rollback, instead_of=before)
        platform.record(verb, actor, policy=full)
        registry.activate_policy(full, actor, rollback=rollback, instead_of=before)
    return full


def ship(platform: Platform, actor: str) -> None:
    """Activate the shipped policy; the installation vouches for it."""
    from genward.policy import PolicyDocument

    text = files("genward_policies").joinpath("default.yaml").read_text(encoding="utf-8")
    document = PolicyDocument.load(text, platform.plugins.policies, "default.yaml")
    platform.registry.propose_policy(document.digest, document.name, text, "shipped")
    platform.registry.approve_policy(document.digest, actor)
    platform.record("policy.activate", policy=document.digest)
    platform.registry.activate_policy(document.digest, actor)


def _check_releases(platform: Platform, policies: PolicySet) -> None:
    """PolicyError when a policy cannot hold for a release that is served."""
    rows = [row for row in platform.registry.releases() if row["stage"] == "ready"]
    served = [ReleaseInfo(r["name"], r["version"], r["digest"], tuple(r["tenants"])) for r in rows]
    for finding in policies.contradicts(served):
        if finding.level == "error":
            raise PolicyError(finding.message, where=finding.where, remedy="correct it, or retire the release")
        _log.warning("%s: %s", finding.where, finding.message)


def dry_run(platform: Platform, document: PolicyDocument, files: Sequence[Path]) -> dict[str, Any]:
    """Reports by policy: recorded decisions made again by a document that is not active."""
    classes, folder = platform.plugins.policies, platform.state.folder
    found = {key: classes[key].dry_run(part, folder, files) for key, part in document.parts.items()}
    return {key: dict(report) for key, report in found.items() if report is not None}
