"""What a release under the policy seals: curves, a pool, and what all keys together can hold."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from genward.attest import read_evidence
from genward.contracts import Evidence
from genward.errors import CheckFailed, Conflict, IntegrityError, UsageError
from genward_policies.extraction import Extraction
from genward_policies.extraction.profile import FILE, PLOT, Profile

RISK = "extraction.release_risk"


def _claims(platform: Any) -> dict[str, Evidence]:
    return {e.claim: e for e in read_evidence(platform.bundle_file("guarded", "evidence.json"))}


def _profile(platform: Any) -> Profile:
    return Profile.from_json(platform.bundle_file("guarded", FILE))


def _table(platform: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((platform.bundle_folder("guarded") / "manifest.json").read_bytes())["table"]
    return found


def test_the_pool_is_what_the_risk_of_the_release_allows(guarded: Any) -> None:
    profile, table, claims = _profile(guarded), _table(guarded), _claims(guarded)
    assert table["slots"] == profile.rows_at(0.6) < 100_000
    assert profile.risk(table["slots"]) <= 0.6 < profile.risk(table["slots"] + 1)
    assert claims[RISK].value == pytest.approx(profile.risk(table["slots"]))
    assert claims[RISK].low <= claims[RISK].value <= claims[RISK].high
    assert claims["extraction.colluders_release_key"].value == table["slots"]
    assert claims["extraction.colluders_tenant_keys"].value == table["slots"] * table["candidates"]


def test_the_profile_is_sealed_with_its_points_and_a_picture(guarded: Any) -> None:
    profile = _profile(guarded)
    assert {p[0] for p in profile.told["points"]} == {"kde", "gmm"}
    assert {p[1] for p in profile.told["points"]} == {100, 300, 1000}
    assert profile.accuracy is not None or profile.note
    assert guarded.bundle_file("guarded", PLOT).startswith(b"\x89PNG")
    assert Profile.from_json(profile.to_json()).table() == profile.table()


def test_the_card_prints_what_all_keys_together_can_hold(guarded: Any) -> None:
    text = guarded.card_text("guarded")
    assert "extraction.colluders_tenant_keys" in text
    assert "extraction.colluders_release_key" in text


@pytest.mark.parametrize("damage", [b"{}", b"[]", b"nonsense", b'{"format": "genward.extraction/1"}'])
def test_a_profile_that_is_none_is_refused(damage: bytes) -> None:
    with pytest.raises(IntegrityError):
        Profile.from_json(damage)


def test_a_curve_that_is_not_finite_is_refused(guarded: Any) -> None:
    given = json.loads(_profile(guarded).to_json())
    given["fidelity"]["curve"][1] = -1.0
    with pytest.raises(IntegrityError, match="negative"):
        Profile.from_json(json.dumps(given).encode())


@pytest.mark.parametrize(
    ("evidence", "allow"),
    [([], False), ([(RISK, None)], False), ([(RISK, 0.81)], False), ([(RISK, 0.8)], True), ([("other", 0.1)], False)],
)
def test_the_gate_wants_the_risk_and_holds_it_to_the_limit(evidence: list[Any], allow: bool) -> None:
    policy = Extraction(Extraction.Config(), None)  # type: ignore[arg-type]
    assert policy.gate([Evidence(claim, value, "m") for claim, value in evidence]).allow is allow


def test_an_attacker_that_is_not_installed_is_named(guarded: Any, under: Any) -> None:
    under(guarded, "attackers: [psychic]")
    with pytest.raises(CheckFailed, match="psychic"):
        guarded.policies()._policies["extraction"]._attackers()
    under(guarded, "attackers: [surrogate]")
    with pytest.raises(CheckFailed, match="every size"):
        guarded.policies()._policies["extraction"]._attackers()


# raising the pool


def test_a_raised_pool_is_recorded_with_its_risk_and_old_receipts_replay(guarded: Any, tmp_path: Any) -> None:
    client = guarded.client(guarded.create_key("acme", ["consumer"]))
    before = client.generate("guarded", n=20)
    (tmp_path / "receipt.json").write_bytes(before.receipt())
    was = _table(guarded)["slots"]
    found = guarded.raise_pool("guarded", was + 500)
    assert (found["was"], found["slots"], found["all_keys_can_hold"]) == (was, was + 500, was + 500)
    assert found["risk"]["risk"] > found["risk_was"]
    assert [n for n, *_ in found["curve"]] == [n for n, *_ in _profile(guarded).table()]
    assert guarded.replay(tmp_path / "receipt.json")["replayed"] == 20
    after = client.generate("guarded", n=20)
    (tmp_path / "receipt.json").write_bytes(after.receipt())
    assert guarded.replay(tmp_path / "receipt.json")["replayed"] == 20


def test_rows_of_the_new_segment_are_served_at_once(guarded: Any, under: Any) -> None:
    under(guarded, "pool: auto, max_risk: {key: null, release: 0.6}")
    client = guarded.client(guarded.create_key("acme", ["consumer"]))
    was = _table(guarded)["slots"]
    everything = client.generate("guarded", n=was + 100, start=0, format="csv")
    assert int(everything.headers["genward-rows"]) == was
    guarded.raise_pool("guarded", was + 100)
    more = client.generate("guarded", n=was + 100, start=0, format="csv")
    assert int(more.headers["genward-rows"]) == was + 100
    assert more.body.splitlines()[: was + 1] == everything.body.splitlines()


def test_a_pool_is_only_ever_raised(guarded: Any) -> None:
    was = _table(guarded)["slots"]
    for slots in (was, was - 1, 0):
        with pytest.raises(UsageError):
            guarded.raise_pool("guarded", slots)
    with pytest.raises(UsageError, match="no pool"):
        guarded.raise_pool("open", 10)
    guarded.raise_pool("guarded", was + 10)
    with pytest.raises(UsageError):
        guarded.raise_pool("guarded", was + 10)


def test_two_raises_at_once_do_not_both_hold(guarded: Any) -> None:
    info = guarded.registry.resolve("guarded")
    guarded.raise_pool("guarded", 5000)
    with pytest.raises(Conflict):
        guarded.registry.raise_pool(info, 6000, "{}")


def test_a_pool_that_the_registry_alone_says_was_raised_is_not_served(guarded: Any) -> None:
    from sqlalchemy import text

    was = _table(guarded)["slots"]
    guarded.raise_pool("guarded", was + 10)
    statement = json.loads(guarded.registry.resolve("guarded").raised)
    import base64

    said = json.loads(base64.b64decode(statement["payload"]))
    said["segments"][-1] = 90_000
    statement["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    with guarded.registry.store.begin() as c:
        c.execute(text("UPDATE pools SET statement = :s"), {"s": json.dumps(statement)})
    client = guarded.client(guarded.create_key("acme", ["consumer"]))
    guarded.add_tenant("later")  # so that the registry looks again
    with pytest.raises(IntegrityError, match="no trusted key"):
        client.generate("guarded", n=1)


def test_a_release_without_a_profile_is_raised_with_its_risk_not_measured(guarded: Any) -> None:
    assert guarded.raise_pool("pool", 4000)["risk"] == "not measured"


def test_a_statement_about_another_release_is_refused(guarded: Any) -> None:
    from genward.pool import raised, statement
    from genward.table import Table

    table, trusted = Table(100, 1, 1), guarded.keys.trusted()
    text = statement("sha256:a", table.raised(200), guarded.keys)
    assert raised(table, "sha256:a", text, trusted).segments == (100, 100)
    with pytest.raises(IntegrityError, match="not about"):
        raised(table, "sha256:b", text, trusted)
    with pytest.raises(IntegrityError, match="sealed"):
        raised(Table(50, 1, 1), "sha256:a", text, trusted)


def test_risk_between_two_points_of_a_curve() -> None:
    from genward.pool import on_curve

    curve = [[100, 0.0, 0.0, 0.1], [10_000, 1.0, 0.9, 1.0]]
    assert on_curve(curve, 1000)["risk"] == pytest.approx(0.5)
    assert np.isclose(on_curve(curve, 10)["risk"], 0.0)


def test_of_protected_rows_nothing_is_read(guarded: Any, under: Any, settings: str, monkeypatch: Any) -> None:
    """The calibration of a protected candidate is the same whatever its real rows are, and says so."""
    from dataclasses import replace

    from genward.contracts import Silent
    from genward.table import Table
    from genward_policies.extraction import calibrate

    monkeypatch.setattr(calibrate, "SIZES", calibrate.Sizes(2000, 500, 3, (100, 200, 400)))
    candidate = guarded.candidate(guarded.candidates()[0]["id"])
    graph, meta = guarded._bundle("guarded").graph("sample")
    exported = SimpleNamespace(data=graph, meta=meta)
    protected = replace(candidate, recipe=replace(candidate.recipe, protected=True), exported=exported)
    policy = guarded.policies()._policies["extraction"]
    shape = policy.shape(replace(protected, table=Table(1000, 1, 64), test="no table", train="none"), Silent())
    profile = Profile.from_json(shape.files[FILE])
    assert profile.accuracy is None
    assert "protected" in profile.note
    assert profile.told["own_real"] == []
    assert shape.rows == profile.rows_at(0.6)


def test_candidates_share_the_rows_that_the_risk_allows() -> None:
    from genward.contracts import Shape

    assert Shape(rows=1000).most_slots == 1000
    assert Shape(rows=1000, candidates=4).most_slots == 250
    assert Shape(slots=200, rows=1000, candidates=4).most_slots == 200
    assert Shape().most_slots is None
