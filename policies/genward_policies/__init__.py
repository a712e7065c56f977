"""The policies that ship, each a key of a policy document: access, quota, quality, privacy, pruning, extraction,
watermark; and the attacks that `extraction` runs."""

from __future__ import annotations

from collections.abc import Sequence

from genward.attacker import Attacker
from genward.hookspecs import hookimpl
from genward.policy import Policy


@hookimpl
def genward_policies() -> Sequence[type[Policy]]:
    from genward_policies.access import Access
    from genward_policies.extraction import Extraction
    from genward_policies.privacy.policy import Privacy
    from genward_policies.pruning import Pruning
    from genward_policies.quality import Quality
    from genward_policies.quota import Quota
    from genward_policies.watermark import Watermark

    return [Access, Quota, Quality, Privacy, Pruning, Extraction, Watermark]


@hookimpl
def genward_attackers() -> Sequence[type[Attacker]]:
    from genward_policies.extraction.attackers.gmm import ClassMixture, Mixture
    from genward_policies.extraction.attackers.kde import Hoard
    from genward_policies.extraction.attackers.surrogate import Surrogate

    return [Hoard, Mixture, ClassMixture, Surrogate]
