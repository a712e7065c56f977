"""Acts that give somebody something stand in the log before they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from genward.api import Platform
from genward.errors import NotFound, Unavailable


@pytest.mark.parametrize(
    ("act", "holds"),
    [
        (lambda p: p.grant("pool:1", "other"), lambda p: "other" in p.registry.resolve("pool:1").tenants),
        (lambda p: p.set_alias("pool:1", "best"), lambda p: bool(p.registry.releases()[0]["aliases"])),
        (
            lambda p: p.approve_release("pool:1"),
            lambda p: bool(p.registry.approvals(p.registry.resolve("pool:1").digest)),
        ),
    ],
)
def test_an_act_that_the_log_cannot_keep_does_not_hold(
    world: Any, monkeypatch: pytest.MonkeyPatch, act: Callable[[Platform], Any], holds: Callable[[Platform], bool]
) -> None:
    def full(entry: bytes) -> int:
        raise Unavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(world.platform.audit, "append", full)
        with pytest.raises(Unavailable):
            act(world.platform)
    assert not holds(world.platform)
    act(world.platform)
    assert holds(world.platform)


def test_a_grant_to_nobody_is_no_entry(world: Any) -> None:
    before = len(world.log())
    with pytest.raises(NotFound):
        world.platform.grant("pool:1", "nobody")
    assert len(world.log()) == before
