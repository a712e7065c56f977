"""The log as the core knows it reads in bulk what the writer keeps."""

from __future__ import annotations

import json
from typing import Any

from genward import record


def test_entries_in_bulk_are_those_read_one_by_one_to_the_very_last(world: Any) -> None:
    """Published ones come from files, the newest from the writer; pieces of any size join."""
    audit = world.platform.audit
    for number in range(300):
        audit.append(record.act("x", n=number))
    every = audit.entries(0, 10_000)
    assert len(every) > 300
    assert [index for index, _ in every] == list(range(len(every)))
    assert every[-1][1] == audit.entry(len(every) - 1)
    assert json.loads(every[-1][1])["detail"] == {"n": 299}
    joined, at = [], 0
    while piece := audit.entries(at, 97):
        joined += piece
        at = piece[-1][0] + 1
    assert joined == every
    assert audit.entries(len(every), 5) == []


def test_a_log_without_a_checkpoint_is_read_from_the_writer(world: Any, monkeypatch: Any) -> None:
    from genward_audit.errors import NotFound

    def none(*_: Any) -> Any:
        raise NotFound("no checkpoint here")

    every = world.platform.audit.entries(0, 1000)
    monkeypatch.setattr(world.platform.audit._folder, "entries", none)
    assert world.platform.audit.entries(0, 1000) == every
