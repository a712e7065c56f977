"""A policy set that Cedar has parsed and checked, and its decisions.

Three rules (the traps behind them are known issues of Cedar's users, see docs/access.md): the schema is always passed;
an error in any diagnostic is a deny, though Cedar itself would skip the policy that erred; each policy has an `@id`, by
which a refusal names it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from genward.errors import PolicyError
from genward_policies.access import terms
from genward_policies.access.terms import Question

_WHERE = "access"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, by which policies' ids. With `errors` it is a deny, whatever Cedar said."""

    allow: bool
    because: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a key, an action and a release come to. `decision`: it is this in every context."""

    policies: Any
    entities: Any
    decision: Decision | None


class Rules:
    """Cedar policies under the shipped schema; PolicyError lists everything that is wrong with them."""

    def __init__(self, text: str) -> None:
        self.policies = _parsed(text)
        self.ids = {name: str(policy["annotations"]["id"]) for name, policy in self.policies.items()}
        _validate(text, self.ids)
        self._by_principal = _by_principal(self.policies)
        self._timely = {name for name, policy in self.policies.items() if _reads_context(policy)}
        self._prepared = lru_cache(16_384)(self._prepare)
        self._sets: dict[tuple[str, ...], Any] = {}

    def effects(self, effect: str) -> list[str]:
        """Ids of the policies of an effect, permit or forbid."""
        return [self.ids[name] for name, policy in self.policies.items() if policy["effect"] == effect]

    def decide(self, question: Question) -> Decision:
        """Allow only if Cedar allows and nothing erred."""
        try:
            prepared = self._prepared(question.principal, question.action, question.release)
            known = prepared.decision if terms.fits(question.context) else None
            return known or self._asked(question, prepared.policies, prepared.entities)
        except (ValueError, TypeError, KeyError) as error:  # what cannot even be asked
            return Decision(False, (), (str(error),))

    def _asked(self, question: Question, policies: Any, entities: Any) -> Decision:
        import cedarpy

        answer = cedarpy.is_authorized(terms.asked(question), policies, entities, _schema())
        found = answer.diagnostics
        because = tuple(sorted(self.ids[name] for name in found.reasons))
        errors = tuple(self._named(error) for error in found.errors)
        if answer.decision is cedarpy.Decision.NoDecision and not errors:
            errors = ("no decision",)
        return Decision(answer.decision is cedarpy.Decision.Allow and not errors, because, errors)

    def _named(self, error: str) -> str:
        """An error with the ids that people gave in the place of the parser's."""
        for name, given in self.ids.items():
            error = error.replace(f"`{name}`", f"`{given}`")
        return error

    def _prepare(self, principal: Any, action: str, release: Any) -> _Prepared:
        """The policies whose scope this question can meet, and its entities, parsed once for a key and a release; and
        the decision itself, where none of those policies reads the context.

        Leaving out the others changes nothing: Cedar evaluates no condition of a policy whose scope does not match
        (sound policy slicing, arXiv:2403.04651).
        """
        import cedarpy

        question = Question(principal, action, release, terms.context({}))
        around = terms.around(question)
        near = [self._by_principal.get(entity, ()) for entity in (None, *around["principal"])]
        names = tuple(sorted(n for some in near for n in some if _in_scope(self.policies[n], around)))
        found = self._sets.get(names)
        if found is None:
            if len(self._sets) > 4096:
                self._sets.clear()
            some = {"templates": {}, "templateLinks": [], "staticPolicies": {n: self.policies[n] for n in names}}
            found = self._sets[names] = cedarpy.PolicySet.from_json_str(json.dumps(some))
        entities = cedarpy.Entities.from_json_str(terms.entities(principal, release), _schema())
        always = None if any(name in self._timely for name in names) else self._asked(question, found, entities)
        return _Prepared(found, entities, always)


def _reads_context(policy: Mapping[str, Any]) -> bool:
    """Whether a policy may read the context: the word alone, as a value anywhere in its conditions, is enough."""
    return '"context"' in json.dumps(policy.get("conditions", []))


def _in_scope(policy: Mapping[str, Any], around: Mapping[str, set[tuple[str, str]]]) -> bool:
    return all(_meets(policy[variable], known) for variable, known in around.items())


def _by_principal(policies: Mapping[str, Any]) -> dict[tuple[str, str] | None, list[str]]:
    """Policies by the one entity that their scope wants the principal to be or to be in; under None all others."""
    found: dict[tuple[str, str] | None, list[str]] = {}
    for name, policy in policies.items():
        entity = policy["principal"].get("entity") if policy["principal"]["op"] in ("==", "in") else None
        found.setdefault((entity["type"], entity["id"]) if entity else None, []).append(name)
    return found


def _meets(scope: Mapping[str, Any], known: set[tuple[str, str]]) -> bool:
    """Whether a part of a scope can hold; a form that is not understood can."""
    named = [scope["entity"]] if "entity" in scope else scope.get("entities", [])
    if scope["op"] not in ("==", "in") or not named:
        return True
    return any((entity["type"], entity["id"]) in known for entity in named)


@cache
def _schema() -> Any:
    import cedarpy

    return cedarpy.Schema.from_str(terms.SCHEMA)


def _parsed(text: str) -> dict[str, Any]:
    """Policies by the parser's names; each has an @id of its own."""
    import cedarpy

    try:
        found = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        raise PolicyError(f"not Cedar: {error}", where=_WHERE) from None
    if found["templates"]:
        raise PolicyError("a policy has an open slot (?principal or ?resource)", where=_WHERE, remedy="name the entity")
    policies: dict[str, Any] = found["staticPolicies"]
    given = {name: policy.get("annotations", {}).get("id") for name, policy in policies.items()}
    if nameless := [name for name, value in given.items() if not value]:
        place = min(int(name.removeprefix("policy")) + 1 for name in nameless)
        raise PolicyError(f"policy {place} has no @id", where=_WHERE, remedy='write @id("a-name") before it')
    if long := [value for value in given.values() if value and len(value) > 100]:
        raise PolicyError(
            f"the @id {long[0][:40]!r}... is too long", where=_WHERE, remedy="give it 100 letters at most"
        )
    if twice := [value for value, count in Counter(given.values()).items() if count > 1]:
        raise PolicyError(f"two policies have the @id {twice[0]!r}", where=_WHERE, remedy="give each its own")
    return policies


def _validate(text: str, ids: Mapping[str, str]) -> None:
    """PolicyError with all that does not fit the schema: attributes, types, actions, scopes."""
    import cedarpy

    result = cedarpy.validate_policies(text, _schema())
    if not result.validation_passed:
        found = [f"{ids.get(e.policy_id, e.policy_id)}: {e.error}" for e in result.errors]
        raise PolicyError("; ".join(found), where=_WHERE, remedy="docs/access.md has every name")
