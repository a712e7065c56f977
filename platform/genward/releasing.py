"""A release is whole or it is not there: reserve, build, seal, record, then show."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from genward import record
from genward.bundle import manifest_bytes, seal
from genward.contracts import Progress, ReleaseInfo
from genward.errors import CheckFailed
from genward.registry import check_name
from genward.release import Built, Plan, build, bundle_parts
from genward.served import bundle_folder

if TYPE_CHECKING:
    from genward.api import Platform, Released
    from genward.candidate import Candidate
    from genward.data.dataset import Dataset
    from genward.policyset import PolicySet


def release(
    platform: Platform,
    candidate: Candidate,
    plan: Plan,
    alias: str | None,
    grant: Sequence[str],
    actor: str,
    progress: Progress,
) -> Released:
    """Run the release pipeline; what fails leaves nothing that anybody can see.

    Under a policy that compresses, the trained network is released first and its cheaper form after it, with a link to
    its parent; the alias goes to the latter, which is returned. A family with nothing to cut is released once.
    """
    _allow_alias(platform, alias)
    for tenant in grant:
        platform.registry.require_tenant(tenant)
    policies = platform.policies()
    if not (policies.compresses and candidate.family.can_be_cut(candidate.config)):
        return _release(platform, candidate, plan, policies, alias, grant, actor, progress)
    parent = _release(platform, candidate, plan, policies, None, grant, actor, progress)
    cheaper = replace(plan, parent=parent.digest)
    return _release(platform, candidate, cheaper, policies, alias, grant, actor, progress)


def _release(
    platform: Platform,
    candidate: Candidate,
    plan: Plan,
    policies: PolicySet,
    alias: str | None,
    grant: Sequence[str],
    actor: str,
    progress: Progress,
) -> Released:
    """One release, whole or not there."""
    from genward.api import Released

    dataset = platform.dataset(candidate.recipe.dataset)
    version = platform.registry.reserve_release(plan.name, candidate.id)
    try:
        built = build(candidate, dataset, policies, plan, progress)
        digest = _seal(platform, built, plan, dataset, policies.digest)
        reference = f"{plan.name}:{version}"
        model = f"{reference}@{digest}"
        entry = record.entry("release", model=model, actor=actor or "operator", policy=policies.digest)
        index = platform.audit.append(entry)
        platform.registry.commit_release(plan.name, version, digest, tenants=grant, alias=alias)
    except BaseException:
        platform.registry.abandon_release(plan.name, version)
        raise
    return Released(reference, digest, index)


def _seal(platform: Platform, built: Built, plan: Plan, dataset: Dataset, policy: str) -> str:
    owner = platform.plugins.owners[f"families/{built.candidate.family.name}"]
    files, manifest = bundle_parts(built, plan, dataset, owner, policy, platform.keys)
    digest = f"sha256:{hashlib.sha256(manifest_bytes(files, manifest)).hexdigest()}"
    return seal(bundle_folder(platform.state.bundles_dir, digest), files, manifest, platform.keys)


def _allow_alias(platform: Platform, alias: str | None) -> None:
    """A new release was approved by nobody yet, so it cannot go to production at once unless one person does all."""
    if alias is not None:
        check_name(alias, "alias")
    if alias == "production" and not platform.state.config.unsafe_single_operator:
        raise CheckFailed(
            "production needs another administrator's approval first",
            remedy="release without --alias, then `genward model approve` and `genward model alias`",
        )


def require_approval(platform: Platform, info: ReleaseInfo, alias: str, actor: str) -> None:
    """Four eyes: production needs an approval of somebody other than who moves the alias; CheckFailed."""
    if alias != "production" or platform.state.config.unsafe_single_operator:
        return
    if not set(platform.registry.approvals(info.digest)) - {actor}:
        raise CheckFailed(
            f"{info.name}:{info.version} was approved by nobody else",
            remedy=f"another administrator runs `genward model approve {info.name}:{info.version} --as KEY`",
        )
