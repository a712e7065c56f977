"""What a document must be before it is one: Cedar that parses and fits the schema, a permit, one grant for each
caller and model, test cases that come out as written, and for every forbid a case that expects its deny."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from genward.contracts import Principal, ReleaseInfo
from genward.errors import PolicyError
from genward_policies.access import terms
from genward_policies.access.cedar import text_of
from genward_policies.access.config import AccessConfig, Case
from genward_policies.access.rules import Decision, Rules
from genward_policies.access.terms import Question

_WHERE = "access"


def check(config: AccessConfig) -> None:
    """PolicyError says what is wrong with a document, and what to do."""
    twice = [name for name, count in Counter(grant.id for grant in config.grants).items() if count > 1]
    if twice:
        raise PolicyError(f"two grants are {twice[0]!r}", where=_WHERE, remedy="write one, with the values of both")
    rules = Rules(text_of(config))
    if not rules.effects("permit"):
        raise PolicyError("nothing is permitted: every request would be refused", where=_WHERE, remedy="add a permit")
    if failed := failures(rules, config.tests):
        raise PolicyError("; ".join(failed), where=f"{_WHERE}.tests", remedy="correct the policy or the case")
    if untested := _untested(rules, config.tests):
        what = f"no case expects the deny of {', '.join(untested)}"
        raise PolicyError(what, where=f"{_WHERE}.tests", remedy="add one with expect: deny and because: [its @id]")


def failures(rules: Rules, cases: Sequence[Case]) -> list[str]:
    """Cases that come out otherwise, one sentence each."""
    found = [_failure(number, case, rules.decide(question(case))) for number, case in enumerate(cases, 1)]
    return [sentence for sentence in found if sentence]


def question(case: Case) -> Question:
    """What a test case asks."""
    principal = Principal(case.principal.tenant, case.principal.key, frozenset(case.principal.roles))
    what, release = case.resource, None
    if what is not None:
        tenants = (principal.tenant,) if what.tenants is None else what.tenants
        release = ReleaseInfo(what.model, what.version, "", tenants)
    return Question(principal, case.action, release, terms.context(case.context.model_dump(exclude_none=True)))


def _failure(number: int, case: Case, decision: Decision) -> str:
    got = "allow" if decision.allow else "deny"
    if decision.errors:
        return f"case {number} cannot be decided: {decision.errors[0]}"
    if got != case.expect:
        return f"case {number} expects {case.expect}, and it is {got}{_by(decision)}"
    missing = sorted(set(case.because) - set(decision.because))
    return f"case {number} expects {', '.join(missing)} as a reason, and it is{_by(decision)}" if missing else ""


def _by(decision: Decision) -> str:
    return f" by {', '.join(decision.because)}" if decision.because else " by nothing"


def _untested(rules: Rules, cases: Sequence[Case]) -> list[str]:
    """Forbids of which no case expects the deny."""
    seen = {name for case in cases if case.expect == "deny" for name in case.because}
    return [name for name in rules.effects("forbid") if name not in seen]
