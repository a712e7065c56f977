"""The policies that ship: access, quota, quality, privacy, pruning, watermark. A key of a document is one."""

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
    from genward_policies.watermark import Watermark

    return [Access, Quota, Quality, Privacy, Pruning, Watermark]
