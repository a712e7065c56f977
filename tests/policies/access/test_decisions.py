"""Decisions: whatever Cedar cannot decide cleanly is a deny, and each decision names who decided."""

from __future__ import annotations

import json
from typing import Any

import cedarpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward.contracts import LOCAL, Condition, Facts, Principal, ReleaseInfo, Request
from genward_policies.access import terms
from genward_policies.access.cedar import text_of
from genward_policies.access.config import AccessConfig
from genward_policies.access.rules import Rules
from genward_policies.access.terms import Question

_CEDAR = cedarpy.is_authorized
OWN = (
    '@id("own") permit(principal in Role::"consumer", action == Action::"generate", resource) '
    "when { resource.tenant == principal.tenant };"
)
ACME = Principal("acme", "k1", frozenset({"consumer"}))
ALLOYS = ReleaseInfo("alloys", 2, "sha256:0", ("acme",))


def _asked(principal: Principal = ACME, release: ReleaseInfo | None = ALLOYS, **context: Any) -> Question:
    return Question(principal, "generate", release, terms.context(context))


def _rules(*texts: str) -> Rules:
    return Rules("\n".join(texts))


def test_what_is_permitted_is_allowed_and_everything_else_denied() -> None:
    rules = _rules(OWN)
    assert rules.decide(_asked()) == rules.decide(_asked())
    assert (rules.decide(_asked()).allow, rules.decide(_asked()).because) == (True, ("own",))
    for other in (
        _asked(Principal("acme", "k2", frozenset({"auditor"}))),
        _asked(Principal("other", "k3", frozenset({"consumer"}))),
        _asked(release=ReleaseInfo("alloys", 2, "sha256:0", ())),
        Question(ACME, "audit", None, terms.context({})),
    ):
        decision = rules.decide(other)
        assert (decision.allow, decision.because, decision.errors) == (False, (), ())


def test_a_forbid_wins_and_is_named() -> None:
    decision = _rules(OWN, '@id("night") forbid(principal, action, resource) when { context.hour < 6 };')
    assert decision.decide(_asked(hour=3)).because == ("night",)
    assert not decision.decide(_asked(hour=3)).allow
    assert decision.decide(_asked(hour=7)).allow


@pytest.mark.parametrize("effect", ["permit", "forbid"])
def test_a_policy_that_errs_denies_though_cedar_skips_it(effect: str) -> None:
    """Cedar's own answer here is Allow: the erring policy is skipped. Ours is no, and names it."""
    erring = f'@id("overflow") {effect}(principal, action, resource) when {{ context.n * 9223372036854775807 > 3 }};'
    decision = _rules(OWN, erring).decide(_asked(n=5))
    assert not decision.allow
    assert "`overflow`" in decision.errors[0]
    assert _rules(OWN, erring).decide(_asked(n=0)).allow


@pytest.mark.parametrize(
    "broken",
    [
        {"hour": "three"},
        {"n": None},
        {"n": 1 << 70},
        {"address": "nowhere"},
        {"columns": [1]},
        {"extra": 1},
        {"n": 1.5},
    ],
)
def test_a_context_that_does_not_fit_the_schema_is_no_decision_and_a_deny(broken: dict[str, Any]) -> None:
    decision = _rules(OWN).decide(_asked(**broken))
    assert not decision.allow
    assert decision.errors


def test_a_context_with_a_gap_is_a_deny() -> None:
    for key in terms.context({}):
        given = {k: v for k, v in terms.context({}).items() if k != key}
        assert _rules(OWN).decide(Question(ACME, "generate", ALLOYS, given)).errors


def test_what_reads_no_context_is_decided_once_and_what_does_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context of values that nobody reads changes nothing; one policy in reach that reads it is asked every time."""
    night = '@id("night") forbid(principal, action, resource) when { context.hour < 6 };'
    for rules, times in ((_rules(OWN), 1), (_rules(OWN, night), 4)):
        asked: list[Any] = []
        monkeypatch.setattr(cedarpy, "is_authorized", lambda *given, into=asked: into.append(given) or _CEDAR(*given))
        said = [rules.decide(_asked(hour=hour)).allow for hour in (3, 9, 3, 9)]
        assert said == ([True] * 4 if times == 1 else [False, True] * 2)
        assert len(asked) == times


def test_an_action_or_a_pair_that_the_schema_lacks_is_a_deny() -> None:
    for action, release in (("fly", ALLOYS), ("generate", None)):
        decision = _rules(OWN).decide(Question(ACME, action, release, terms.context({})))
        assert (decision.allow, bool(decision.errors)) == (False, True)


def test_a_request_fills_every_key_of_the_context() -> None:
    """1970-01-01 was a Thursday; absent facts are sentinels."""
    request = Request("r", "generate", "alloys", 7, (Condition("b", ">", 1.0), Condition("a", "=", "x")), None)
    asked = terms.question(request, Facts(ACME, 3600.0 * 5, "sha256:1", ALLOYS, "10.0.0.9"))
    assert asked.context == {
        "n": 7, "start": -1, "columns": ["a", "b"], "now": 18_000, "hour": 5, "weekday": 3,
        "address": "10.0.0.9", "local": False,
    }  # fmt: skip
    for address, local in ((LOCAL, True), ("", False)):
        found = terms.question(request, Facts(ACME, 0.0, "", ALLOYS, address)).context
        assert (found["address"], found["local"]) == (terms.NOWHERE, local)
    assert found.keys() == terms.context({}).keys()


def test_networks_are_decided_in_cedar_too() -> None:
    rules = _rules(OWN, '@id("net") forbid(principal, action, resource) unless '
                   '{ context.local || context.address.isInRange(ip("10.0.0.0/8")) };')  # fmt: skip
    assert rules.decide(_asked(address="10.1.2.3")).allow
    assert rules.decide(_asked()).allow
    for address in ("11.0.0.1", terms.NOWHERE, "2001:db8::1"):
        assert rules.decide(_asked(address=address)).because == ("net",)


def test_a_recorded_question_is_the_same_question() -> None:
    for release in (ALLOYS, None):
        asked = _asked(release=release, n=9)
        again = terms.from_json(json.loads(json.dumps(terms.to_json(asked))))
        assert _rules(OWN).decide(again) == _rules(OWN).decide(asked)
        assert again.principal == asked.principal


TENANTS, MODELS, ROLES = ("t0", "t1", "t2"), ("m0", "m1"), ("consumer", "auditor")
_SCOPES = st.tuples(
    st.sampled_from(["permit", "forbid"]),
    st.sampled_from(["principal", *(f'principal in Tenant::"{t}"' for t in TENANTS), 'principal == Key::"k0"',
                     'principal in Role::"auditor"', 'principal is Key in Tenant::"t1"']),
    st.sampled_from(["action", 'action == Action::"generate"', 'action in [Action::"read", Action::"audit"]']),
    st.sampled_from(["resource", *(f'resource in Model::"{m}"' for m in MODELS), 'resource == Release::"m0:1"',
                     "resource is Release", 'resource is Release in Model::"m1"']),
    st.sampled_from(["", " when { context.n > 5 }", " unless { context.n * 4611686018427387904 > 3 }"]),
)  # fmt: skip


@given(
    st.lists(_SCOPES, min_size=1, max_size=8),
    st.sampled_from(TENANTS),
    st.sampled_from(MODELS),
    st.sets(st.sampled_from(ROLES)),
    st.sampled_from(["generate", "read"]),
    st.sampled_from([1, 9]),
)
def test_leaving_out_policies_that_cannot_apply_changes_no_decision(
    scopes: list[Any], tenant: str, model: str, roles: set[str], action: str, n: int
) -> None:
    """The policies prepared for a question decide as all of them do, errors included."""
    import cedarpy

    text = "\n".join(f'@id("p{i}") {e}({p}, {a}, {r}){w};' for i, (e, p, a, r, w) in enumerate(scopes))
    principal = Principal(tenant, "k0", frozenset(roles))
    release = ReleaseInfo(model, 1, "sha256:0", (tenant,))
    asked = Question(principal, action, release, terms.context({"n": n}))
    schema = cedarpy.Schema.from_str(terms.SCHEMA)
    entities = cedarpy.Entities.from_json_str(terms.entities(principal, release), schema)
    whole = cedarpy.is_authorized(terms.asked(asked), cedarpy.PolicySet.from_str(text), entities, schema)
    if not cedarpy.validate_policies(text, schema).validation_passed:
        return  # `read` on a scope that never holds: such a document is refused before it decides
    found = Rules(text).decide(asked)
    assert found.because == tuple(sorted(f"p{name.removeprefix('policy')}" for name in whole.diagnostics.reasons))
    assert len(found.errors) == len(whole.diagnostics.errors)
    assert found.allow == (whole.allowed and not whole.diagnostics.errors)


def test_roles_and_grants_allow_what_they_say_and_no_more() -> None:
    config = AccessConfig.model_validate({
        "roles": {"read": ["consumer"], "audit": ["auditor"]},
        "grants": [{"tenant": "acme", "model": "alloys"}, {"tenant": "beta", "model": "*", "key": "kb"}],
    })  # fmt: skip
    rules = _rules(text_of(config))
    beta = ReleaseInfo("other", 1, "sha256:0", ("beta", "acme"))
    assert rules.decide(_asked()).because == ("grants.acme.alloys",)
    assert not rules.decide(_asked(release=beta)).allow
    assert rules.decide(_asked(Principal("beta", "kb", frozenset({"consumer"})), beta)).because == (
        "grants.beta.all.kb",
    )
    for who in (Principal("beta", "kc", frozenset({"consumer"})), Principal("acme", "kb", frozenset({"consumer"}))):
        assert not rules.decide(_asked(who, beta)).allow
    assert not rules.decide(_asked(Principal("acme", "k1", frozenset({"auditor"})))).allow
    assert rules.decide(Question(ACME, "read", None, terms.context({}))).allow
    assert rules.decide(Question(ACME, "read", ALLOYS, terms.context({}))).allow
    assert not rules.decide(Question(ACME, "audit", None, terms.context({}))).allow
    foreign = ReleaseInfo("alloys", 1, "sha256:0", ("other",))
    assert not rules.decide(Question(ACME, "read", foreign, terms.context({}))).allow
