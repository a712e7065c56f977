"""The policy at work: slices and rows a day behind the whole request path, activation, recorded decisions."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from genward.errors import Conflict, DataError, Denied, GenwardError, LimitReached, NotFound, PolicyError, UsageError
from genward_policies.access import contexts

PHASE, YEAR = "PROPERTY: BCC/FCC/other", "REFERENCE: year"
DOCUMENT = """
apiVersion: genward/v1
kind: Policy
name: sliced
access:
  roles: {read: [consumer], audit: [auditor]}
  grants: [%s]
quota:
  rows: {per_request: 1000000, per_key_day: 1000000}
quality: {}
"""
GRANT = f'{{tenant: acme, model: "*", where: {{"{PHASE}": [FCC, BCC], "{YEAR}": [2005, 2015]}}}}'


@pytest.fixture(scope="module")
def shared(make_world: Callable[..., Any]) -> Any:
    """A world under one slice that its tests leave usable for one another."""
    found = make_world()
    found.activate(DOCUMENT % GRANT)
    return found


def _rows(world: Any, n: int = 40, model: str = "pool:1", **more: Any) -> list[dict[str, Any]]:
    answer = world.platform.client(world.key).generate(model, n=n, **more)
    found = json.loads(answer.body)
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def _inside(row: dict[str, Any]) -> bool:
    return row[PHASE] in ("FCC", "BCC") and 2005 <= row[YEAR] <= 2015


@pytest.mark.parametrize("model", ["pool:1", "open:1"])
@pytest.mark.parametrize("where", [[], [f"{PHASE}=FCC"], [f"{YEAR}>2010"], [f"{PHASE}!=BCC", f"{YEAR}<=2006"]])
def test_every_row_lies_in_the_slice_and_in_what_was_asked(shared: Any, model: str, where: list[str]) -> None:
    rows = _rows(shared, model=model, where=where)
    assert rows
    assert all(_inside(row) for row in rows)
    assert len({row[PHASE] for row in rows}) == (1 if f"{PHASE}=FCC" in where or f"{PHASE}!=BCC" in where else 2)


@pytest.mark.parametrize("where", [[f"{PHASE}=other"], [f"{YEAR}>2015"], [f"{PHASE}=FCC", f"{YEAR}<2005"]])
def test_a_request_that_cannot_meet_the_slice_is_denied_and_charged_nothing(shared: Any, where: list[str]) -> None:
    def left() -> int:
        answer = shared.platform.client(shared.key).generate("pool:1", n=1)
        return int(answer.headers["x-ratelimit-remaining"])

    before = left()
    with pytest.raises(Denied, match=r"outside the slice of grants\.acme\.all"):
        _rows(shared, 500, where=where)
    assert left() == before - 1
    refused = [entry for entry in shared.log() if entry["event"] == "refuse"][-1]
    assert refused["reasons"] == ["access: outside the slice of grants.acme.all"]


def test_the_log_says_which_policy_allowed(shared: Any) -> None:
    _rows(shared, 1)
    settled = [entry for entry in shared.log() if entry["event"] == "settle"][-1]
    assert settled["reasons"] == ["access: allowed by grants.acme.all"]


def test_a_sliced_response_is_replayed_bit_for_bit(shared: Any, tmp_path: Any) -> None:
    answer = shared.platform.client(shared.key).generate("pool:1", n=50, where=[f"{YEAR}>2008"])
    path = tmp_path / "receipt.json"
    path.write_bytes(answer.receipt())
    assert shared.platform.replay(path)["replayed"] == 50


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (f'{{"{PHASE}": [FCC, liquid]}}', "no category 'liquid'"),
        ("{phase: [FCC]}", "no column 'phase'"),
        (f'{{"{YEAR}": [3000, 4000]}}', "no value can be >= 3000"),
    ],
)
def test_a_grant_for_what_the_schema_lacks_is_not_activated(shared: Any, where: str, says: str) -> None:
    before = shared.platform.registry.active_policy()
    with pytest.raises(PolicyError, match=says) as caught:
        shared.activate(DOCUMENT % f"{{tenant: acme, model: pool, where: {where}}}")
    assert "pool:1" in caught.value.where
    assert shared.platform.registry.active_policy() == before
    assert [e for e in shared.log() if e.get("act") == "policy.activate"][-1]["detail"]["policy"] == before[0]


def test_a_release_that_came_later_and_lacks_a_value_is_refused_its_rows(world: Any) -> None:
    """The release was not there at activation (here: retired, and brought back): its requests fail closed."""
    from sqlalchemy import update

    from genward import models

    registry = world.platform.registry
    for name in ("pool:1", "open:1"):
        registry.retire(registry.resolve(name))
    world.activate(DOCUMENT % '{tenant: acme, model: "*", where: {nowhere: [x]}}')
    registry._write(lambda c: c.execute(update(models.releases).values(stage="ready")))
    with pytest.raises(Denied, match=r"policy_error.*nowhere"):
        _rows(world, 1)


def test_a_key_s_slice_narrows_its_tenant_s(world: Any) -> None:
    key = world.key.split("_")[1]
    own = f'{{tenant: acme, model: pool, key: {key}, where: {{"{PHASE}": FCC}}}}'
    world.activate(DOCUMENT % f"{GRANT}, {own}")
    assert {(row[PHASE], _inside(row)) for row in _rows(world)} == {("FCC", True)}
    with pytest.raises(Denied, match=r"outside the slice of grants\.acme\.pool\."):
        _rows(world, where=[f"{PHASE}=BCC"])


def test_rows_a_day_are_counted_down_and_given_back(world: Any) -> None:
    """20 a day: what is not delivered is refunded, and a limit that is reached says nothing of its size."""
    world.activate(DOCUMENT % "{tenant: acme, model: pool, rows_per_day: 20}, {tenant: acme, model: open}")
    assert len(_rows(world, 15)) == 15
    with pytest.raises(LimitReached, match="a limit is reached") as caught:
        _rows(world, 6)
    assert 0 < (caught.value.retry_after or 0) <= 86_400
    assert _rows(world, 5, where=[f"{YEAR}>2015", f"{YEAR}<2010"]) == []
    assert len(_rows(world, 5)) == 5
    with pytest.raises(LimitReached):
        _rows(world, 1)
    assert len(_rows(world, 30, "open:1")) == 30


def test_of_two_activations_at_once_one_holds_and_the_other_is_told(world: Any) -> None:
    registry = world.platform.registry
    digests = []
    for name in ("one", "two"):
        digests.append(
            world.platform.propose_policy(world.platform.policy_text().replace("name: tests", f"name: {name}"))
        )
        world.platform.approve_policy(digests[-1])
    before = registry.active_digest()
    registry.activate_policy(digests[0], "ann", instead_of=before)
    with pytest.raises(Conflict, match="another version became active meanwhile"):
        registry.activate_policy(digests[1], "bob", instead_of=before)
    assert registry.active_digest() == digests[0]
    assert world.platform.activate_policy(digests[1]) == digests[1]


def test_activations_from_many_threads_leave_one_active_and_a_true_log(world: Any) -> None:
    """Each ends as active or as a Conflict; the last one the log names is the one that is active."""
    platform, ends = world.platform, []
    for name in "abcd":
        digest = platform.propose_policy(platform.policy_text().replace("name: tests", f"name: {name}"))
        platform.approve_policy(digest)
        ends.append(digest)
    _ = platform.audit, platform.plugins, platform._context
    outcomes: list[str] = []

    def activate(digest: str) -> None:
        try:
            outcomes.append(platform.activate_policy(digest))
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=activate, args=(digest,)) for digest in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [outcome for outcome in outcomes if outcome != "conflict"]
    assert won
    assert len(outcomes) == 4
    active = [row["digest"] for row in platform.registry.policies() if row["stage"] == "active"]
    assert active == [platform.registry.active_digest()]
    named = [e["detail"]["policy"] for e in world.log() if e.get("act") == "policy.activate"]
    assert named[-1] == active[0]
    assert len(named) - len(won) == len([d for d in named if d not in won])


# recorded decisions


def test_decisions_are_recorded_only_when_asked_and_made_again_by_another_document(world: Any) -> None:
    _rows(world, 1)
    with pytest.raises(NotFound, match="no decision was recorded"):
        world.platform.dry_run_policy(world.platform.policy_text())
    text = world.platform.policy_text().replace("access:", "access:\n  record: true", 1)
    world.activate(text)
    for n in (1, 2, 3):
        _rows(world, n, where=[f"{YEAR}>2010"])
    with pytest.raises(Denied):
        world.platform.client(world.auditor).generate("pool:1", n=1)
    lines = (world.folder / "contexts" / contexts.NEW).read_text()
    assert YEAR in lines
    assert not {"2010", 2010} & set(_values([json.loads(line) for line in lines.splitlines()]))
    assert world.key.split("_", 2)[2] not in lines
    same = world.platform.dry_run_policy(text)["access"]
    assert (same["decisions"], same["flipped"], same["errors"]) == (4, 0, 0)
    other = text.replace("generate: [consumer, administrator]", "generate: [auditor]")
    found = world.platform.dry_run_policy(other)["access"]
    assert (found["flipped"], {row["flip"]: row["decisions"] for row in found["flips"]}) == (
        4, {"allow -> deny": 3, "deny -> allow": 1}
    )  # fmt: skip
    by = {row["flip"]: row["by"] for row in found["flips"]}
    assert by == {
        "allow -> deny": "nothing permits it (before: roles.generate.consumer)",
        "deny -> allow": "roles.generate.auditor",
    }


def _values(found: Any) -> list[Any]:
    if isinstance(found, dict):
        return [*found, *_values(list(found.values()))]
    return [value for one in found for value in _values(one)] if isinstance(found, list) else [found]


def test_the_record_is_bounded(tmp_path: Any) -> None:
    from genward.contracts import Principal
    from genward_policies.access import terms
    from genward_policies.access.rules import Decision

    recorder = contexts.Recorder(tmp_path, largest=4000)
    asked = terms.Question(Principal("acme", "k", frozenset()), "read", None, terms.context({}))
    for _ in range(100):
        recorder.add(asked, Decision(True, ("a",)), "sha256:0")
    files = contexts.recorded(tmp_path)
    assert [path.name for path in files] == [contexts.OLD, contexts.NEW]
    assert all(path.stat().st_size <= 4000 for path in files)
    assert all(again == asked for again, _ in contexts.read(files))


@pytest.mark.parametrize("line", [b"{}", b"[]", b"not json", b'{"decision": 1}', b"\xff"])
def test_a_line_that_is_no_decision_is_named(tmp_path: Any, line: bytes) -> None:
    path = tmp_path / "lines"
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match="no recorded decision") as caught:
        list(contexts.read([path]))
    assert caught.value.where == f"{path}:1"


def test_the_command_line_shows_the_rules_and_what_flips(
    world: Any, tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genward.cli import common, main

    world.activate(world.platform.policy_text().replace("access:", "access:\n  record: true", 1))
    _rows(world, 1)
    path = tmp_path / "new.yaml"
    path.write_text(world.platform.policy_text().replace("generate: [consumer, administrator]", "generate: [auditor]"))

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["genward", "--state", str(world.folder), *words])
        with pytest.raises(SystemExit) as end:
            main()
        common.close()
        assert not end.value.code
        return str(capsys.readouterr().out)

    assert '@id("roles.generate.consumer")' in run("policy", "show", "--rules")
    assert "access: 1 decisions, 1 flip, 0 policy errors" in run("policy", "dry-run", str(path))


def test_a_policy_that_cannot_be_asked_is_no_answer(world: Any) -> None:
    """The store of rows a day away: nothing is allowed on its word."""
    world.activate(DOCUMENT % "{tenant: acme, model: pool, rows_per_day: 20}")
    policies = world.platform.policies()
    access = policies._policies["access"]
    object.__setattr__(access, "context", type(access.context)("", None, world.folder))
    world.platform.pipeline._policies = (policies.digest, policies)
    with pytest.raises(GenwardError) as caught:
        _rows(world, 1)
    assert caught.value.status == 503


def _clause(draw: Any) -> str:
    """A clause of either sliced column, in any spelling that the parser takes, sensible or not."""
    if draw.random() < 0.5:
        some = draw.sample(["FCC", "BCC", "other"], draw.randint(1, 3))
        return draw.choice([f"{PHASE}={some[0]}", f"{PHASE}!={some[0]}", f"{PHASE} in {{{', '.join(some)}}}"])
    year = draw.choice([str(draw.randint(2000, 2022)), "2005", "2015", "2015.0000000001", "1e4", "-1"])
    return f"{YEAR}{draw.choice(['<', '<=', '=', '!=', '>', '>='])}{year}"


@pytest.mark.parametrize("requests", [80, pytest.param(20_000, marks=pytest.mark.soak)])
def test_no_fuzzed_request_leaves_its_slice(shared: Any, requests: int) -> None:
    """Random predicates, counts and places: every row of every answer lies in the slice; all else is refused."""
    draw, client, answered = random.Random(requests), shared.platform.client(shared.key), 0
    for _ in range(requests):
        where = [_clause(draw) for _ in range(draw.randint(0, 3))]
        start = draw.choice([None, None, draw.randint(0, 10_000)])
        try:
            answer = client.generate(draw.choice(["pool:1", "open:1"]), n=draw.randint(1, 20), where=where, start=start)
        except (UsageError, Denied):
            continue
        found = json.loads(answer.body)
        rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
        assert all(_inside(row) for row in rows), where
        answered += bool(rows)
    assert answered > requests // 8
