"""What an access document may be: everything that could allow by accident is refused before it is a version."""

from __future__ import annotations

from typing import Any

import pytest

import genward_policies
from genward.errors import PolicyError
from genward.plugins import Plugins
from genward.policy import PolicyDocument
from genward_policies.access.cedar import text_of
from genward_policies.access.config import AccessConfig

HEAD = "apiVersion: genward/v1\nkind: Policy\nname: t\n"
PERMIT = '@id("own") permit(principal in Role::"consumer", action == Action::"generate", resource) when { %s };'
OWN = PERMIT % "resource.tenant == principal.tenant"
NIGHT = '@id("night") forbid(principal, action, resource) when { context.hour < 6 };'
CASE: dict[str, Any] = {"principal": {"tenant": "acme"}, "action": "generate", "resource": {"model": "m"}}
REFUSES = CASE | {"context": {"hour": 3}, "expect": "deny", "because": ["night"]}


def test_a_string_is_cedar_and_a_mapping_of_roles_comes_to_cedar() -> None:
    """One engine: both forms end as Cedar text, and the shipped form needs no change."""
    policies = Plugins.of(genward_policies).policies
    document = PolicyDocument.load(HEAD + "access: |\n  " + OWN + "\n", policies)
    assert document.parts["access"].cedar.strip() == OWN
    document = PolicyDocument.load(HEAD + "access: {roles: {generate: [consumer, publisher]}}\n", policies)
    text = policies["access"].rules(document.parts["access"])
    assert '@id("roles.generate.consumer")' in text
    assert '@id("roles.generate.publisher")' in text


def test_a_grant_in_yaml_comes_to_readable_cedar() -> None:
    grant = {"tenant": "acme", "model": "alloys", "where": {"phase": ["fcc", "bcc"], "density": [5, 9]}}
    text = text_of(AccessConfig.model_validate({"grants": [grant | {"rows_per_day": 10}]}))
    assert '@id("grants.acme.alloys")' in text
    assert '@slice("phase: [fcc, bcc]; density: [5, 9]")' in text
    assert '@rows_per_day("10")' in text
    assert 'permit (principal in Tenant::"acme", action == Action::"generate", resource in Model::"alloys")' in text


def test_a_name_that_would_break_out_of_its_string_is_no_name() -> None:
    for name in ('a"', "a b", "a\n", "*", ""):
        with pytest.raises(ValueError, match="tenant"):
            AccessConfig.model_validate({"grants": [{"tenant": name, "model": "m"}]})


def test_a_column_of_any_spelling_is_quoted_in_the_cedar_text() -> None:
    """The annotation is for people; nothing in it may end the string it stands in."""
    where = {'a" ) ; \\ permit \u0001 é': ['x"']}
    config = AccessConfig.model_validate({"grants": [{"tenant": "acme", "model": "m", "where": where}]})
    assert text_of(config).count("permit (") == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "nothing is permitted"),
        (NIGHT, "nothing is permitted"),
        ("permit(principal", "not Cedar"),
        ("permit(principal, action, resource);", "policy 1 has no @id"),
        (OWN + " permit(principal, action, resource);", "policy 2 has no @id"),
        ('@id("") permit(principal, action, resource);', "policy 1 has no @id"),
        (OWN + OWN, "two policies have the @id 'own'"),
        ('@id("t") permit(principal == ?principal, action, resource);', "open slot"),
        (PERMIT % "resource.tenannt == principal.tenant", "own: .*tenannt"),
        (PERMIT % "context.hour < principal.tenant", "own: "),
        (OWN.replace("generate", "fly"), "own: .*fly"),
        (OWN.replace("Role", "Roll"), "own: .*Roll"),
        ({"cedar": OWN + NIGHT}, "no case expects the deny of night"),
        ({"cedar": OWN + NIGHT, "tests": [CASE | {"expect": "deny"}]}, "case 1 expects deny, and it is allow by own"),
        ({"cedar": OWN + NIGHT, "tests": [REFUSES, CASE | {"expect": "allow", "because": ["x"]}]}, "case 2 expects x"),
        ({"cedar": OWN, "tests": [CASE | {"resource": None, "expect": "deny"}]}, "case 1 cannot be decided"),
        ({"grants": [{"tenant": "a", "model": "m"}] * 2}, "two grants are 'grants.a.m'"),
        ({"grants": [{"tenant": "a", "model": "m"}], "cedar": '@id("grants.a.m") ' + OWN[11:]}, "two policies"),
    ],
)
def test_what_is_wrong_is_said_and_is_no_document(given: Any, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        AccessConfig.model_validate(given)


@pytest.mark.parametrize(
    ("grant", "says"),
    [
        ({"where": {"phase": []}}, "nothing would be left"),
        ({"rows_per_day": 0}, "rows_per_day"),
        ({"wher": {}}, "wher"),
    ],
)
def test_a_grant_that_means_nothing_is_refused(grant: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AccessConfig.model_validate({"grants": [{"tenant": "acme", "model": "m", **grant}]})


def test_a_document_with_its_cases_is_one() -> None:
    config = AccessConfig.model_validate({"cedar": OWN + NIGHT, "tests": [REFUSES, CASE | {"expect": "allow"}]})
    assert len(config.tests) == 2


def test_the_shipped_documents_are_valid() -> None:
    from importlib.resources import files

    policies = Plugins.of(genward_policies).policies
    for name in ("default", "private", "pruned"):
        text = files("genward_policies").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        assert not [f for f in PolicyDocument.load(text, policies).lint() if f.level == "error"]
