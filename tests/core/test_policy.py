"""Policy documents: validated by their plugins, addressed by what they mean, not by how they are written."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward.errors import GenwardError, PolicyError
from genward.plugins import Plugins
from genward.policy import PolicyDocument

DEFAULT = (Path(__file__).parents[2] / "policies" / "genward_policies" / "default.yaml").read_text()
POLICIES = Plugins.load(["genward"]).policies
HEAD = "apiVersion: genward/v1\nkind: Policy\nname: p\n"


def _load(text: str) -> PolicyDocument:
    return PolicyDocument.load(text, POLICIES, "p.yaml")


def test_the_shipped_document_is_valid_and_clean() -> None:
    document = _load(DEFAULT)
    assert set(document.parts) == {"access", "quota", "quality"}
    assert [finding for finding in document.lint() if finding.level == "error"] == []


def test_the_digest_is_of_the_meaning() -> None:
    one = HEAD + "access: {roles: {generate: [consumer]}}\nquota: {rows: {per_request: 5}}\n"
    two = "# a comment\nquota:\n  rows:\n    per_request: 5\nname: p\nkind: Policy\napiVersion: genward/v1\n"
    two += "access:\n  roles:\n    generate: [consumer]\n"
    assert _load(one).digest == _load(two).digest
    assert _load(one).digest != _load(one.replace("5", "6")).digest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "qouta: {}\n", "quota"),
        (HEAD + "quota: {rows: {per_reqest: 5}}\n", "per_request"),
        (HEAD + "quota: {rows: {per_request: 0}}\n", "per_request"),
        (HEAD + "quota: {}\nquota: {}\n", "twice"),
        (HEAD + "access: {roles: {generate: [king]}}\n", "generate"),
        ("kind: Policy\nname: p\n", "apiVersion"),
        ("apiVersion: genward/v1\nkind: Pod\nname: p\n", "kind"),
        ("apiVersion: genward/v1\nkind: Policy\n", "name"),
        ("[]", "mapping"),
        ("a: [", "YAML"),
        ("? [a]\n: b\n", "mapping|YAML"),
    ],
)
def test_a_mistake_is_named_with_the_file(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said) as caught:
        _load(text)
    assert caught.value.where == "p.yaml"


@given(st.text(max_size=80))
def test_only_our_error_leaves_the_reader(text: str) -> None:
    with suppress(GenwardError):
        _load(HEAD + text)


def test_lint_sees_what_is_missing_and_unlimited() -> None:
    found = _load(HEAD + "quota: {rows: {per_request: 5}}\n").lint()
    assert found[0].level == "error"
    assert any("per_key_day" in finding.message for finding in found)


def test_diff_names_what_changed() -> None:
    one = _load(HEAD + "quota: {rows: {per_request: 5}}\n")
    two = _load(HEAD + "quota: {rows: {per_request: 6}}\n")
    assert two.diff(one) == [{"key": "quota.rows.per_request", "new": 6, "old": 5}]
    assert one.diff(one) == []
