"""A training by counts: every answer is booked ahead of it, and all of them cost no more than epsilon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from genward.data.codec import TableCodec
from genward.data.schema import Schema
from genward.errors import CheckFailed
from genward.family import Family, Training
from genward.train import TrainOptions
from genward_policies.privacy import accounting as a
from genward_policies.privacy import evidence
from genward_policies.privacy.config import PrivacyConfig
from genward_policies.privacy.ledger import Ledger
from genward_policies.privacy.protected import Counted, protect

DELTA = 1e-5
CONFIG = PrivacyConfig(epsilon=1.0, delta=DELTA)
SCHEMA = Schema.from_yaml(
    "columns:\n"
    "  - {name: age, kind: integer, minimum: 0, maximum: 120}\n"
    "  - {name: kind, kind: categorical, categories: [x, y, z]}\n"
)


class Counts(Family):
    """Asks whatever a test asks."""

    name = "counts"

    def build(self, spec: Any, config: Any) -> Any:
        return torch.nn.Identity()

    def bins(self, config: Any) -> int:
        return 8

    def graphs(self, network: Any, config: Any) -> Any:
        return {}


@pytest.fixture
def training(tmp_path: Path) -> Training:
    rng = np.random.default_rng(0)
    columns = {"age": rng.integers(18, 90, 700), "kind": [str("xyz"[i]) for i in rng.integers(3, size=700)]}
    codec = TableCodec.declared(SCHEMA)
    (tmp_path / "codec.json").write_bytes(codec.to_json())
    records, family = codec.encode(pa.table(columns), rng), Counts()
    given: dict[str, Any] = {"run": "counts-1", "dataset": "d", "lineage": (), "rows": 700, "estimated": {}}
    given |= {"family": family, "config": None, "spec": codec.spec, "network": family.build(None, None), "phases": ()}
    return Training(**given, records=records, folder=tmp_path, device="cpu", options=TrainOptions())


@pytest.fixture
def own_ledger(open_ledger: Any, tmp_path: Path) -> Ledger:
    found: Ledger = open_ledger(f"sqlite:///{tmp_path}/registry.db")
    return found


def _begun(training: Training, ledger: Ledger) -> Counted:
    found = protect(training, CONFIG, ledger)
    assert isinstance(found, Counted)
    return found


def test_choices_and_counts_together_cost_no_more_than_epsilon(training: Training, own_ledger: Ledger) -> None:
    """The whole budget, half of it on choices: both accountants stay below the promise, and it is nearly used up."""
    counted = _begun(training, own_ledger)
    mechanism = counted.mechanism()
    assert list(mechanism.domain) == [8, 3]
    assert mechanism.rows == 700.0
    each = mechanism.rho / 40
    for _ in range(20):
        mechanism.select([(0,), (1,)], [np.full(8, 80.0), np.full(3, 230.0)], [0.0, 0.0], each)
        mechanism.measure([0, 1], each)
    with pytest.raises(CheckFailed, match="is left"):
        mechanism.measure([0], each)
    counted.finish()
    told = json.loads((training.folder / "privacy.json").read_bytes())
    assert told["constants"]["answers"] == 40
    assert told["epsilon_prv"] <= 1.0
    assert told["epsilon_pld"] > 0.96
    assert told["events"]["events"][0] == a.repeated(a.exponential(pytest.approx(a.choice_for(each))), 20)
    claim = next(c for c in evidence.claims(evidence.read(training.folder, own_ledger)) if c.claim == "epsilon")
    assert claim.value == pytest.approx(told["epsilon_prv"])
    public = json.loads((training.folder / "public_marginals.json").read_bytes())
    assert set(public["columns"]) == {"age", "kind"}


def test_answers_are_counted_ahead_in_shares_and_a_crash_is_charged_by_them(
    training: Training, own_ledger: Ledger, log: Any
) -> None:
    counted = _begun(training, own_ledger)
    mechanism = counted.mechanism()
    rho = mechanism.rho
    assert own_ledger.charged("d") == counted.spending.event  # whole, from the start
    for _ in range(100):
        mechanism.measure([0], rho / 1000)
    acts = [json.loads(entry)["act"] for entry in log.entries]
    assert acts.count("ledger.ahead") == 2  # a tenth of the budget, in twentieths
    charged = own_ledger.forfeit(counted.spending).event
    spent = 0.5 / charged["noise_multiplier"] ** 2
    assert rho / 10 * (1 - 1e-6) <= spent <= rho * 3 / 20


def test_an_answer_that_the_ledger_does_not_book_is_not_given(
    training: Training, own_ledger: Ledger, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = _begun(training, own_ledger)
    mechanism = counted.mechanism()

    def away(entry: bytes) -> int:
        raise CheckFailed("the log is away")

    monkeypatch.setattr(log, "append", away)
    with pytest.raises(CheckFailed, match="away"):
        mechanism.measure([0], mechanism.rho / 2)


def test_a_family_is_handed_what_it_trains_by_only(training: Training, own_ledger: Ledger) -> None:
    counted = _begun(training, own_ledger)
    assert counted.steps(0) == 0
    with pytest.raises(CheckFailed, match="trains by counts"):
        counted.turn(0, 0)
