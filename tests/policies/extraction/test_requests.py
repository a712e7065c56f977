"""What a tenant and all tenants together can hold, and what a refusal tells."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow.csv as csv
import pytest

from genward.contracts import Facts, Outcome, Principal, ReleaseInfo, Request
from genward.errors import Denied, LimitReached
from genward_policies.extraction.profile import FILE, Profile

DENY = "pool: auto, max_risk: {key: 0.3, release: 0.6}, on_exceed: deny"


def _share(platform: Any) -> int:
    return Profile.from_json(platform.bundle_file("guarded", FILE)).rows_at(0.3)


def _slots(platform: Any) -> int:
    return int(json.loads((platform.bundle_folder("guarded") / "manifest.json").read_bytes())["table"]["slots"])


def _rows(answer: Any) -> list[tuple[Any, ...]]:
    table = csv.read_csv(io.BytesIO(answer.body))
    return list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def _client(platform: Any, tenant: str = "acme") -> Any:
    return platform.client(platform.create_key(tenant, ["consumer"]))


def test_a_tenant_holds_his_share_and_meets_it_again(guarded: Any) -> None:
    share, client = _share(guarded), _client(guarded)
    assert share < _slots(guarded)
    first = client.generate("guarded", n=share, start=0, format="csv")
    again = client.generate("guarded", n=share, start=share, format="csv")
    assert again.body == first.body
    assert int(client.generate("guarded", n=share + 1, start=0).headers["genward-rows"]) == share


def test_two_keys_of_a_tenant_hold_what_one_does(guarded: Any) -> None:
    share = _share(guarded)
    held = set()
    for client in (_client(guarded), _client(guarded)):
        for start in range(0, 4 * share, share):
            held |= set(_rows(client.generate("guarded", n=share, start=start, format="csv")))
    assert len(held) <= share


def test_colluders_hold_no_more_than_the_card_says(guarded: Any) -> None:
    """Thirty tenants, each with his whole share."""
    share, slots, held = _share(guarded), _slots(guarded), set()
    for i in range(30):
        guarded.add_tenant(f"t{i}")
        guarded.grant("guarded", f"t{i}")
        held |= set(_rows(_client(guarded, f"t{i}").generate("guarded", n=share, start=0, format="csv")))
    assert share < len(held) <= slots
    assert 30 * share > slots


def test_a_narrow_predicate_burns_nothing(guarded: Any) -> None:
    client, share = _client(guarded), _share(guarded)
    narrow = "PROPERTY: BCC/FCC/other='other'"
    few = client.generate("guarded", n=share, where=[narrow], start=0, format="csv")
    assert 0 < int(few.headers["genward-rows"]) < share
    everything = client.generate("guarded", n=share, start=0, format="csv")
    assert set(_rows(few)) <= set(_rows(everything))
    assert int(everything.headers["genward-rows"]) == share


def test_receipts_of_a_wrapped_walk_replay(guarded: Any, tmp_path: Any) -> None:
    answer = _client(guarded).generate("guarded", n=30, start=_share(guarded) - 10)
    (tmp_path / "receipt.json").write_bytes(answer.receipt())
    assert guarded.replay(tmp_path / "receipt.json")["replayed"] == 30


def test_deny_counts_down_says_exhausted_and_refuses(guarded: Any, under: Any) -> None:
    under(guarded, DENY)
    client, share = _client(guarded), _share(guarded)
    first = client.generate("guarded", n=10)
    assert first.headers["x-ratelimit-release-limit"] == str(share)
    assert first.headers["x-ratelimit-release-remaining"] == str(share - 10)
    last = client.generate("guarded", n=share - 10)
    assert last.headers["genward-exhausted"] == "true"
    with pytest.raises(Denied):
        client.generate("guarded", n=1)
    assert int(_client(guarded, "other").generate("guarded", n=1).headers["genward-rows"]) == 1


def test_deny_charges_what_was_examined(guarded: Any, under: Any) -> None:
    under(guarded, DENY)
    client, share = _client(guarded), _share(guarded)
    narrow = ["PROPERTY: BCC/FCC/other='FCC'", "PROPERTY: Processing method='CAST'"]
    some = client.generate("guarded", n=2, where=narrow)
    examined = round(int(some.headers["genward-rows"]) / float(some.headers["genward-yield"]))
    assert examined > 2
    left = int(client.generate("guarded", n=1).headers["x-ratelimit-release-remaining"])
    assert abs(share - examined - 1 - left) <= 1  # the share that passed is told in four digits


def test_a_refusal_tells_its_caller_nothing_of_the_limit_and_the_log_all(guarded: Any, under: Any) -> None:
    under(guarded, DENY)
    client = _client(guarded)
    with pytest.raises(Denied) as refused:
        client.generate("guarded", n=_share(guarded) + 1)
    assert refused.value.what == "a limit is reached"
    index = 0
    while True:
        try:
            entry = json.loads(guarded.audit.entry(index))
        except Exception:
            break
        index += 1
    assert entry["reasons"] == ["extraction: a limit is reached"]


def test_a_release_without_a_profile_is_refused(guarded: Any) -> None:
    with pytest.raises(Denied, match="without a profile"):
        _client(guarded).generate("pool", n=1)


def test_without_a_limit_of_the_key_nothing_is_asked_of_the_release(guarded: Any, under: Any) -> None:
    under(guarded, "pool: none, max_risk: {key: null, release: null}")
    assert int(_client(guarded).generate("pool", n=5).headers["genward-rows"]) == 5


def _policy(platform: Any, settings: str) -> Any:
    import yaml

    from genward_policies.extraction import Extraction

    return Extraction(Extraction.Config(**yaml.safe_load(f"{{{settings}}}")), platform._context)


def _facts(platform: Any, key: str = "k", now: float = 1.8e9) -> Facts:
    info = platform.registry.resolve("guarded")
    return Facts(Principal("acme", key), now, "sha256:0", ReleaseInfo("guarded", 1, info.digest, ("acme",)))


def test_a_request_admitted_twice_is_refused_the_second_time(guarded: Any) -> None:
    policy, request = _policy(guarded, DENY), Request("r", "generate", "guarded", 5)
    first = policy.admit(request, _facts(guarded))
    assert first.allow
    assert not policy.admit(request, _facts(guarded)).allow
    policy.settle(first.lease, Outcome("denied", 0))
    policy.settle(first.lease, Outcome("denied", 0))  # a second settle changes nothing
    left = policy.admit(Request("r2", "generate", "guarded", 1), _facts(guarded)).headers
    assert int(left["x-ratelimit-release-remaining"]) == _share(guarded) - 1


def test_a_scan_beyond_the_reserve_drains_and_never_passes_the_budget(guarded: Any) -> None:
    policy, share = _policy(guarded, DENY), _share(guarded)
    lease = policy.admit(Request("a", "generate", "guarded", 2), _facts(guarded)).lease
    policy.settle(lease, Outcome("served", 2, 10 * share))
    assert not policy.admit(Request("b", "generate", "guarded", 2), _facts(guarded)).allow


@pytest.mark.parametrize("request_action", ["read", "audit"])
def test_what_generates_nothing_is_left_alone(guarded: Any, request_action: str) -> None:
    verdict = _policy(guarded, DENY).admit(Request("r", request_action), Facts(Principal("acme", "k"), 0.0, "d"))
    assert verdict.allow


def test_a_request_for_rows_of_no_known_release_is_refused(guarded: Any) -> None:
    facts = Facts(Principal("acme", "k"), 0.0, "d")
    assert not _policy(guarded, DENY).admit(Request("r", "generate", "m", 1), facts).allow


# a flagged key


def _flagged(platform: Any, policy: Any, strikes: int) -> None:
    from sqlalchemy import update

    from genward_policies.extraction.sketch import Query
    from genward_policies.extraction.watch import EVERY, _watched

    facts = _facts(platform)
    for i in range(EVERY):
        policy._watch.add(facts, Query(i, i, i, ()))
    with platform.counters.store.begin() as c:
        c.execute(update(_watched).values(strikes=strikes))
    policy._watch._looked = float("-inf")


@pytest.mark.parametrize(
    ("respond", "strikes", "n", "allow", "waits"),
    [
        ("deny", 0, 500, True, False),
        ("deny", 1, 500, True, False),
        ("deny", 2, 500, False, True),
        ("deny", 2, 100, True, False),
        ("deny", 4, 1, False, False),
        ("slow", 4, 1, True, False),
        ("slow", 4, 500, False, True),
        ("record", 9, 500, True, False),
    ],
)
def test_responses_are_graded(guarded: Any, respond: str, strikes: int, n: int, allow: bool, waits: bool) -> None:
    policy = _policy(guarded, f"max_risk: {{key: 1.0}}, detection: {{respond: {respond}}}")
    _flagged(guarded, policy, strikes)
    verdict = policy.admit(Request("r", "generate", "guarded", n), _facts(guarded))
    assert (verdict.allow, verdict.retry_after is not None) == (allow, waits)
    assert policy.admit(Request("s", "generate", "guarded", n), _facts(guarded, key="another")).allow


def test_slowed_is_asked_to_wait_until_the_next_minute(guarded: Any) -> None:
    policy = _policy(guarded, "max_risk: {key: 1.0}")
    _flagged(guarded, policy, 2)
    now = 1.8e9 - 1.8e9 % 60 + 20
    verdict = policy.admit(Request("r", "generate", "guarded", 101), _facts(guarded, now=now))
    assert verdict.retry_after == pytest.approx(40)
    assert LimitReached.status == 429
