"""A family and a policy in one distribution. Allow it in `genward.yaml`: `plugins: [genward, genward-example]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genward.hookspecs import hookimpl


@hookimpl
def genward_families() -> Sequence[type[Any]]:
    from genward_example.gaussian import Gaussian

    return [Gaussian]


@hookimpl
def genward_policies() -> Sequence[type[Any]]:
    from genward_example.embargo import Embargo

    return [Embargo]
