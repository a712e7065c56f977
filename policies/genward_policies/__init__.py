"""The policies that ship: access, quota, quality, privacy, pruning. Each key of a policy document is one of them."""

from __future__ import annotations

from collections.abc import Sequence

from genward.hookspecs import hookimpl
from genward.policy import Policy


@hookimpl
def genward_policies() -> Sequence[type[Policy]]:
    from genward_policies.access import Access
    from genward_policies.privacy.policy import Privacy
    from genward_policies.pruning import Pruning
    from genward_policies.quality import Quality
    from genward_policies.quota import Quota

    return [Access, Quota, Quality, Privacy, Pruning]
