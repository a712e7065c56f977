"""What a row may cost: networks are cut, taught by noise and quantised until they meet a price, and judged after.

`Pruning` is the policy; `docs/pruning.md` says what it promises.
"""

from __future__ import annotations

from genward_policies.pruning.policy import Pruning

__all__ = ["Pruning"]
