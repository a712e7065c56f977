"""Verdicts: every one is gathered, deny wins, failure and silence refuse."""

from __future__ import annotations

from typing import Any

import pytest

from genward.contracts import Facts, Lease, Outcome, Principal, Request, Verdict
from genward.errors import PluginError, PolicyError, Unavailable
from genward.hookspecs import hookimpl
from genward.policyset import PolicySet

REQUEST = Request("r", "generate", "m", 5)
FACTS = Facts(Principal("t", "k"), 0.0, "sha256:0")


class _Policy:
    """Answers as told and remembers what it settled."""

    tariff = None

    def __init__(self, name: str, answer: Any) -> None:
        self.name, self.answer, self.settled = name, answer, []

    @hookimpl
    def admit(self, request, facts):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @hookimpl
    def settle(self, lease, outcome):
        self.settled.append((lease.request, outcome.status))


def _allow(**given: Any) -> Verdict:
    return Verdict(True, **given)


def test_all_allow_is_allowed_with_the_narrowest_obligations() -> None:
    one = _Policy("one", _allow(cells=frozenset({1, 2}), cap=10))
    two = _Policy("two", _allow(cells=frozenset({2, 3}), cap=7))
    found = PolicySet([one, two], "d").admit(REQUEST, FACTS)
    assert (found.allow, found.cells, found.cap) == (True, frozenset({2}), 7)


@pytest.mark.parametrize("order", [0, 1])
def test_deny_wins_in_any_order_and_gives_back_the_leases(order: int) -> None:
    lease = Lease("yes", "r", 5)
    yes, no = _Policy("yes", _allow(lease=lease)), _Policy("no", Verdict(False, ("because",)))
    found = PolicySet([yes, no][:: 1 if order else -1], "d").admit(REQUEST, FACTS)
    assert not found.allow
    assert found.reasons == ("because",)
    assert yes.settled == [("r", "denied")]
    assert found.leases == ()


def test_a_policy_that_fails_refuses_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    found = PolicySet([_Policy("a", _allow()), _Policy("b", ValueError("x"))], "d").admit(REQUEST, FACTS)
    assert not found.allow
    assert found.failed
    assert found.reasons == ("policy b failed: ValueError",)


def test_a_failure_beside_a_real_no_is_a_no(caplog: pytest.LogCaptureFixture) -> None:
    policies = [_Policy("a", Verdict(False, ("not yours",))), _Policy("b", Unavailable("store away"))]
    assert not PolicySet(policies, "d").admit(REQUEST, FACTS).failed


@pytest.mark.parametrize("answer", [None, True, "yes"])
def test_silence_and_loose_talk_refuse(answer: Any) -> None:
    assert not PolicySet([_Policy("a", answer)], "d").admit(REQUEST, FACTS).allow


def test_no_policy_at_all_refuses() -> None:
    assert not PolicySet([], "d").admit(REQUEST, FACTS).allow
    assert not PolicySet([], "d").gate([]).allow


def test_a_lease_goes_back_to_the_policy_that_made_it() -> None:
    one, two = _Policy("one", _allow()), _Policy("two", _allow())
    PolicySet([one, two], "d").settle([Lease("two", "r", 1)], Outcome("served", 1))
    assert (one.settled, two.settled) == ([], [("r", "served")])


def test_a_hook_that_does_not_exist_is_refused() -> None:
    class Odd(_Policy):
        @hookimpl
        def admitt(self, request):
            return Verdict(True)

    with pytest.raises(PluginError, match="admitt"):
        PolicySet([Odd("odd", _allow())], "d")


def test_two_owners_of_the_score_are_refused() -> None:
    class Scoring(_Policy):
        @hookimpl
        def score(self, request, rows):
            return rows

    with pytest.raises(PolicyError, match="score"):
        PolicySet([Scoring("a", _allow()), Scoring("b", _allow())], "d")


def test_waiting_is_offered_only_when_it_can_help() -> None:
    """A firm no beside a limit is a firm no; what failed may be back after the wait."""
    limit = _Policy("a", Verdict(False, ("a limit is reached",), retry_after=5.0))
    assert PolicySet([limit], "d").admit(REQUEST, FACTS).retry_after == 5.0
    assert PolicySet([limit, _Policy("b", Unavailable("away"))], "d").admit(REQUEST, FACTS).retry_after == 5.0
    assert (
        PolicySet([limit, _Policy("b", Verdict(False, ("not yours",)))], "d").admit(REQUEST, FACTS).retry_after is None
    )
