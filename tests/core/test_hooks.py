"""Every hook has its effect: announced classes are found, and each policy's word counts where it should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from genward.contracts import (
    Detection,
    Evidence,
    Facts,
    Finding,
    Outcome,
    Principal,
    ReleaseInfo,
    Request,
    Rows,
    Verdict,
)
from genward.hookspecs import hookimpl
from genward.plugins import Plugins
from genward.policy import Policy
from genward.policyset import PolicySet

REQUEST = Request("r", "generate", "m", 2)
FACTS = Facts(Principal("acme", "key"), 0.0, "d")
ROWS = Rows(np.array([[1.0], [2.0]]), np.zeros((2, 0), np.int32), np.arange(2))


class _Announcer:
    """A plugin that brings one class of each kind."""

    class OneCodec:
        name = "one-codec"

    class OnePolicy(Policy):
        name = "one-policy"

    class OneAttacker:
        name = "one-attacker"

    @hookimpl
    def genward_codecs(self):
        return [self.OneCodec]

    @hookimpl
    def genward_policies(self):
        return [self.OnePolicy]

    @hookimpl
    def genward_attackers(self):
        return [self.OneAttacker]


def test_each_kind_of_class_is_found_by_its_name() -> None:
    plugins = Plugins.of(_Announcer())
    assert set(plugins.codecs) == {"one-codec"}
    assert set(plugins.policies) == {"one-policy"}
    assert set(plugins.attackers) == {"one-attacker"}
    assert plugins.families == {}


class _Everything:
    """A policy that takes part in everything and remembers it."""

    tariff = None

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, []

    @hookimpl
    def check_data(self, dataset):
        return [Finding("warning", f"{self.name} saw {dataset}")]

    @hookimpl
    def measure(self, candidate):
        return [Evidence(self.name, 1.0, f"of {candidate}")]

    @hookimpl
    def attach(self, candidate, evidence):
        return {f"{self.name}.txt": f"{candidate} {len(evidence)}".encode()}

    @hookimpl
    def screen(self, request, rows):
        return Rows(rows.numbers + 1, rows.codes, rows.slots)

    @hookimpl
    def mark(self, request, payload):
        return {**payload, self.name: request.id}

    @hookimpl
    def observe(self, request, outcome):
        self.seen.append(outcome.rows)
        raise RuntimeError("an observer that fails changes nothing")

    @hookimpl
    def detect(self, rows, releases, tenants):
        return [Detection(releases[0].digest, tenants[0], 1.0, 0.0, len(rows), {"by": self.name})]


def test_what_policies_say_is_gathered_in_the_document_s_order() -> None:
    both = PolicySet([_Everything("a"), _Everything("b")], "d")
    assert [finding.message for finding in both.check_data("data")] == ["a saw data", "b saw data"]
    assert both.attach("candidate", []) == {"a.txt": b"candidate 0", "b.txt": b"candidate 0"}
    assert [item.claim for item in both.measure("candidate")] == ["a", "b"]
    assert both.screen(REQUEST, FACTS, ROWS).numbers.tolist() == [[3.0], [4.0]]
    assert both.mark(REQUEST, FACTS, {"x": "y"}) == {"x": "y", "a": "r", "b": "r"}
    assert both.detects
    found = both.detect(ROWS, [ReleaseInfo("m", 1, "sha256:0")], ["acme"])
    assert [item.extra["by"] for item in found] == ["a", "b"]


def test_an_observer_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    one, two = _Everything("a"), _Everything("b")
    PolicySet([one, two], "d").observe(REQUEST, FACTS, Outcome("served", 7))
    assert (one.seen, two.seen) == ([7], [7])


class _Single:
    """A policy of one single-owner hook each."""

    tariff = None

    def __init__(self, name: str, verdict: Any = None) -> None:
        self.name, self.verdict = name, verdict

    @hookimpl
    def protect_training(self, training):
        return ("protected", training)

    @hookimpl
    def compress(self, candidate, progress):
        return ("cheaper", candidate)

    @hookimpl
    def score(self, request, rows):
        return rows.numbers[:, 0]

    @hookimpl
    def gate(self, evidence):
        return self.verdict


def test_single_owners_answer_alone() -> None:
    one = PolicySet([_Single("a")], "d")
    assert (one.protects, one.protect_training("training")) == (True, ("protected", "training"))
    assert (one.compresses, one.compress("candidate", None)) == (True, ("cheaper", "candidate"))
    assert one.scores
    assert one.score(REQUEST, FACTS, ROWS).tolist() == [1.0, 2.0]
    none = PolicySet([], "d")
    assert not none.protects
    assert none.compress("candidate", None) is None
    assert not none.scores


@pytest.mark.parametrize(("verdict", "allow"), [(Verdict(True), True), (Verdict(False, ("no",)), False), (None, False)])
def test_a_gate_that_is_silent_is_closed(verdict: Verdict | None, allow: bool) -> None:
    assert PolicySet([_Single("a", verdict)], "d").gate([]).allow is allow
