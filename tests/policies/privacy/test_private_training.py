"""Private trainings from table to sealed bundle: charged, resumed, killed, refused; nothing leaks that must not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genward.api import Platform
from genward.errors import CheckFailed, Conflict, IntegrityError, Interrupted, PolicyError
from genward.policyset import PolicySet
from genward_policies.privacy import accounting as a
from genward_policies.privacy.ledger import Ledger
from genward_policies.privacy.policy import namer

ROWS = 1237
SEED = 918_273
STEPS = 24
POLICY = """
apiVersion: genward/v1
kind: Policy
name: private tests
access: {roles: {generate: [consumer]}}
quota: {}
privacy: {epsilon: %s, delta: 1.0e-5, budget: {dataset: %s}, canaries: 200}
"""
SCHEMA = """
columns:
  - {name: age, kind: integer, minimum: 0, maximum: 120}
  - {name: pay, kind: numeric, minimum: 0, maximum: 5000, step: 0.1}
  - {name: kind, kind: categorical, categories: [x, y, z]}
"""


def _activate(platform: Platform, text: str) -> None:
    digest = platform.propose_policy(text)
    platform.approve_policy(digest)
    platform.activate_policy(digest)


def _table(path: Path, rows: int = ROWS, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    ages = rng.integers(18, 90, rows)
    lines = [f"{age},{1000 + 20 * age + 200 * rng.normal():.1f},{'xyz'[rng.integers(3)]}" for age in ages]
    path.write_text("\n".join(["age,pay,kind", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def base(processes_of: Callable[[Path], list[int]]) -> Iterator[Path]:
    """A state with a table and one candidate trained privately on it; tests take copies."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="gw", dir="/tmp"))
    platform, _ = Platform.init(folder / "s", tenant="acme", single_operator=True)
    _activate(platform, POLICY % (3, 10))
    (folder / "people.yaml").write_text(SCHEMA)
    platform.add_dataset(_table(folder / "people.csv"), schema=folder / "people.yaml")
    platform.train("people", family="vae", steps=STEPS, seed=SEED, checkpoint_seconds=1e-6)
    platform.close()
    _kill(folder, processes_of)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _kill(folder: Path, processes_of: Callable[[Path], list[int]]) -> None:
    """End the log's writer of a state."""
    while left := processes_of(folder):
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


@pytest.fixture
def platform(base: Path, processes_of: Callable[[Path], list[int]]) -> Iterator[Platform]:
    folder = Path(tempfile.mkdtemp(prefix="gw", dir="/tmp"))
    shutil.copytree(base / "s", folder / "s", ignore=shutil.ignore_patterns("*.sock"))
    found = Platform.open(folder / "s")
    yield found
    found.close()
    _kill(folder, processes_of)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def trained(platform: Platform) -> Any:
    return platform.candidate(platform.candidates()[0]["id"])


def _ledger(platform: Platform) -> Ledger:
    return Ledger(platform.state.database_url, lambda: platform.audit, namer(platform.keys))


def _told(candidate: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((candidate.folder / "privacy.json").read_bytes())
    return found


def _everything(platform: Platform, candidate: Any) -> dict[str, bytes]:
    """Whatever leaves: the bundle's files, the candidate's that a release reads, the log's entries."""
    found = {f"bundle/{name}": data for name, data in platform._bundle("people").files.items()}
    found |= {
        f"candidate/{p.name}": p.read_bytes()
        for p in candidate.folder.iterdir()
        if p.suffix == ".json" and "owner" not in p.name
    }
    number = 0
    while True:
        try:
            found[f"log/{number}"] = platform.audit.entry(number)
        except Exception:
            return found
        number += 1


def test_a_private_release_is_charged_proved_and_tells_nothing_else(
    platform: Platform, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, release: evidence and statement are sealed; no seed, no exact count, no loss, no norm is anywhere, and no
    policy is shown a real row."""
    shown: list[Any] = []
    for name in ("shape", "measure", "attach"):
        asked = getattr(PolicySet, name)
        spy = lambda self, candidate, *more, asked=asked: shown.append(candidate) or asked(self, candidate, *more)  # noqa: E731
        monkeypatch.setattr(PolicySet, name, spy)
    told = _told(trained)
    assert told["epsilon_prv"] <= 3
    assert abs(told["epsilon_prv"] - told["epsilon_pld"]) <= 0.02
    assert told["constants"]["steps_done"] == STEPS
    (spending,) = _ledger(platform).of_run(trained.id)
    assert spending.state == "committed"
    assert spending.event == told["events"]
    released = platform.release(trained.id, "people", slots=200, evaluate_rows=200)
    bundle = platform._bundle("people")
    claims = {claim["claim"]: claim for claim in json.loads(bundle.files["evidence.json"])}
    assert claims["epsilon"]["value"] == max(told["epsilon_prv"], told["epsilon_pld"])
    assert claims["epsilon"]["low"] < claims["epsilon"]["value"]
    assert 0.5 < claims["privacy_attack"]["value"] < 0.7
    assert 0.9 < claims["privacy_noise"]["value"] < 1.1
    assert json.loads(bundle.files["statement.json"])["tier"] == 3
    assert b"of 100 such guesses" in bundle.files["privacy.md"]
    assert released.reference == "people:1"
    assert [(item.train, item.test, item.synthetic.num_rows) for item in shown] == [(None, None, 200)] * 3
    told_all = _everything(platform, trained)
    assert len(told_all) > 20
    for name, data in told_all.items():
        if name in ("candidate/recipe.json", "candidate/losses.json"):  # the owner's: the seed of the first weights
            data = data.replace(str(SEED).encode(), b"")
        for word in (str(SEED), str(ROWS), '"loss"', "grad_norm", "held_out_loss"):
            assert word.encode() not in data, f"{word} is in {name}"


def test_the_log_has_each_act_of_the_ledger_with_its_head(platform: Platform, trained: Any) -> None:
    entries = [json.loads(platform.audit.entry(index)) for index in platform.audit.find("ledger/0")]
    acts = [entry["act"] for entry in entries]
    assert acts[0] == "ledger.know"
    assert acts[1:] == ["ledger.reserve", *["ledger.ahead"] * (len(acts) - 3), "ledger.commit"]
    assert [entry["detail"]["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    assert entries[-1]["detail"]["head"] == _ledger(platform).head()


def test_a_training_over_the_budget_is_refused_before_it_touches_data(platform: Platform) -> None:
    _activate(platform, POLICY % (3, 3))
    folders, before = set(platform.state.candidates_dir.iterdir()), _ledger(platform).spendings()
    with pytest.raises(CheckFailed, match=r"would take the data set to epsilon .* of 3 are spent"):
        platform.train("people", family="vae", steps=STEPS)
    (left,) = set(platform.state.candidates_dir.iterdir()) - folders
    assert {path.name for path in left.iterdir()} == {"codec.json", "recipe.json"}
    assert _ledger(platform).spendings() == before


def test_a_data_set_whose_budget_is_spent_is_not_even_planned_for(platform: Platform) -> None:
    _activate(platform, POLICY % (1, 1.5))
    with pytest.raises(CheckFailed, match=r"budget of the data set is spent: epsilon 2\.\d\d of 1\.5"):
        platform.train("people", family="vae", steps=2)


def test_a_subset_that_nobody_declared_is_charged_to_the_data_it_came_from(
    platform: Platform, base: Path, tmp_path: Path
) -> None:
    _activate(platform, POLICY % (3, 3))
    lines = (base / "people.csv").read_text().splitlines()
    (tmp_path / "half.csv").write_text("\n".join(lines[:600]) + "\n")
    (tmp_path / "half.yaml").write_text(SCHEMA.replace("maximum: 5000", "maximum: 6000"))
    half = platform.add_dataset(tmp_path / "half.csv", schema=tmp_path / "half.yaml")
    with pytest.raises(CheckFailed, match="of 3 are spent"):
        platform.train(half.name, family="vae", steps=STEPS)


def test_the_ledger_comes_back_with_a_backup_and_not_without_its_log(
    platform: Platform, tmp_path: Path, processes_of: Callable[[Path], list[int]]
) -> None:
    """Restored whole, it goes on; the database alone, brought back from before a spending, is found out."""
    from genward.backup import backup, restore

    before = _ledger(platform).spendings()
    archive, folder = backup(platform.state, tmp_path / "a.tar", keys=True), Path(tempfile.mkdtemp(prefix="gw"))
    restore(archive, folder / "s")
    again = Platform.open(folder / "s")
    assert _ledger(again).spendings() == before
    again.close()
    _kill(folder, processes_of)
    old = (folder / "s" / "registry.db").read_bytes()
    spending = _ledger(platform).reserve("r", before[0].dataset, (), a.gaussian(9.0), 10.0, 1e-5)
    _ledger(platform).commit(spending, a.gaussian(9.0))
    platform.close()
    for path in platform.state.folder.glob("registry.db*"):
        path.unlink()
    (platform.state.folder / "registry.db").write_bytes(old)
    with pytest.raises(IntegrityError, match="brought back"):
        Platform.open(platform.state.folder).train("people", family="vae", steps=2)
    shutil.rmtree(folder)


# stopped and killed


_KILLED = """
import os, signal, sys
from pathlib import Path
from genward.api import Platform
from genward_policies.privacy.protected import Stepped
after, ahead = int(sys.argv[2]), Stepped._ahead
def counted(self, taken):
    ahead(self, taken)
    if self.taken > after:
        os.kill(os.getpid(), signal.SIGKILL)
Stepped._ahead = counted
import genward.train as t
platform = Platform.open(Path(sys.argv[1]))
platform.train("people", family="vae", steps=STEPS, checkpoint_seconds=1e-6)
"""


@pytest.mark.parametrize(
    "after", [17, *(pytest.param(n, marks=pytest.mark.soak) for n in (0, 1, 9, STEPS - 2, STEPS - 1))]
)
def test_a_training_killed_at_any_step_is_charged_and_can_be_resumed(platform: Platform, after: int) -> None:
    words = [sys.executable, "-c", _KILLED.replace("STEPS", str(STEPS)), str(platform.state.folder), str(after)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    name = platform.candidates()[-1]["id"]
    (open_,) = _ledger(platform).of_run(name)
    assert open_.state == "reserved"
    candidate = platform.resume(name)
    first, second = _ledger(platform).of_run(name)
    steps = {s.id: sum(n for q, _, n in a.parts(s.event) if q < 1) for s in (first, second)}
    assert (first.state, second.state) == ("forfeited", "committed")
    assert after < steps[first.id] <= STEPS  # counted ahead, in blocks
    assert steps[second.id] == STEPS - after  # from its checkpoint on
    told = _told(candidate)
    assert told["events"] == first.about["claim"]  # what the release rests on: all steps, each once
    assert told["epsilon_prv"] <= 3
    both = a.together([first.event, second.event])
    assert told["epsilon_dataset"] >= a.total(both, 1e-5) > told["epsilon_pld"] - 0.01


def test_a_checkpoint_under_another_name_is_not_resumed(platform: Platform, trained: Any) -> None:
    """A fork: its steps were charged to another run, and nobody may go on from there uncharged."""
    fork = trained.folder.with_name("vae-fork")
    shutil.copytree(trained.folder, fork)
    (fork / "network.safetensors").unlink()
    recipe = json.loads((fork / "recipe.json").read_bytes())
    (fork / "recipe.json").write_text(json.dumps({**recipe, "id": "vae-fork"}))
    assert (fork / "checkpoint.pt").is_file()
    with pytest.raises(IntegrityError, match="ledger knows of fewer"):
        platform.resume("vae-fork")


def test_a_training_that_runs_elsewhere_is_not_resumed(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    from genward_policies.privacy import ledger
    from genward_policies.privacy.protected import Stepped

    def stop(self: Any, taken: int) -> None:
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Stepped, "_ahead", stop)
        with pytest.raises(Interrupted):
            platform.train("people", family="vae", steps=4)
    name = platform.candidates()[-1]["id"]
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_owner", lambda: "somewhere else:1:1")
        with pytest.raises(Conflict, match="another process"):
            platform.resume(name)
    assert platform.resume(name).trained


# refused releases


def test_a_candidate_that_is_not_private_enough_is_not_released(platform: Platform, trained: Any) -> None:
    _activate(platform, POLICY % (1, 10))
    with pytest.raises(CheckFailed, match=r"epsilon is 2\.\d+, allowed is 1"):
        platform.release(trained.id, "people", slots=100, evaluate_rows=100)


def test_a_candidate_trained_without_privacy_is_not_released_with_it(platform: Platform) -> None:
    _activate(platform, (POLICY % (3, 10)).replace("privacy:", "quality: {}\n#"))
    candidate = platform.train("people", family="vae", steps=4)
    _activate(platform, POLICY % (3, 10))
    with pytest.raises(CheckFailed, match="not trained under differential privacy"):
        platform.release(candidate.id, "people", slots=100, evaluate_rows=200)


def test_a_candidate_that_tells_something_else_than_the_ledger_is_not_measured(
    platform: Platform, trained: Any
) -> None:
    from genward_policies.privacy import evidence

    ledger, told = _ledger(platform), _told(trained)
    assert evidence.read(trained.folder, ledger)["events"] == told["events"]
    changes = {"events": a.gaussian(50.0), "delta": 1e-9, "rows": 10**6, "reservation": "none", "run": "other"}
    for key, value in changes.items():
        (trained.folder / "privacy.json").write_text(json.dumps({**told, key: value}))
        with pytest.raises(IntegrityError, match="ledger"):
            evidence.read(trained.folder, ledger)
    (trained.folder / "privacy.json").write_text('{"format": "genward.privacy/1"}')
    with pytest.raises(IntegrityError, match="not what a private training writes"):
        evidence.read(trained.folder, ledger)


_BROKEN: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = [
    ("canaries prove", lambda t: {"canary": [{**t["canary"][0], "one_run": 4.0}]}),
    ("canaries prove", lambda t: {"canary": [{**t["canary"][0], "gdp": 9.0}]}),
    ("no canary", lambda t: {"canary": []}),
    ("measured noise", lambda t: {"telemetry": [{**t["telemetry"][0], "sound": False}]}),
    ("was not measured", lambda t: {"telemetry": []}),
    ("not tested", lambda t: {"conformance": []}),
    ("apart", lambda t: {"epsilon_pld": t["epsilon_prv"] - 0.03}),
    ("unit", lambda t: {"unit": "patient"}),
    ("delta", lambda t: {"delta": 1e-3}),
]


def test_the_gate_names_what_does_not_hold(platform: Platform, trained: Any) -> None:
    from genward_policies.privacy import evidence

    policy = platform.policies()._policies["privacy"]
    told = _told(trained)
    assert policy.gate(evidence.claims(told)).allow
    for word, change in _BROKEN:
        verdict = policy.gate(evidence.claims({**told, **change(told)}))
        assert not verdict.allow
        assert word in " ".join(verdict.reasons), word
    assert not policy.gate([]).allow
    assert not policy.gate(evidence.claims(told) * 2).allow


# bad input


_UNSOUND = [
    ("epsilon: 0, delta: 1.0e-5", "greater than 0"),
    ("epsilon: -1, delta: 1.0e-5", "greater than 0"),
    ("epsilon: .inf, delta: 1.0e-5", "finite"),
    ("epsilon: .nan, delta: 1.0e-5", "privacy.epsilon"),
    ("epsilon: 3, delta: 0", "greater than 0"),
    ("epsilon: 3, delta: 1", "less than 1"),
    ("epsilon: 3", "privacy.delta"),
    ("epsilon: 11, delta: 1.0e-5", "above the data set's budget"),
    ("epsilon: 3, delta: 1.0e-5, unit: patient", "one row a person"),
    ("epsilon: 3, delta: 1.0e-5, accountant: gdp", "unknown key"),
    ("epsilon: 3, delta: 1.0e-5, clipping: adaptive", "unknown key 'privacy.clipping'"),
    ("epsilon: 3, delta: 1.0e-5, sampling: shuffle", "unknown key"),
    ("epsilon: 3, delta: 1.0e-5, scheduler: exponential", "unknown key"),
]


def test_a_policy_that_promises_nothing_sound_is_refused(platform: Platform) -> None:
    for text, message in _UNSOUND:
        document = (POLICY % (3, 10)).split("privacy:")[0] + f"privacy: {{{text}}}\n"
        with pytest.raises(PolicyError, match=message):
            platform.propose_policy(document)


def test_a_delta_above_one_in_n_is_refused(platform: Platform) -> None:
    _activate(platform, (POLICY % (3, 10)).replace("1.0e-5", "1.0e-3"))
    with pytest.raises(CheckFailed, match=r"delta 0.001 is not below 1 / rows.*write privacy.delta: 8e-05 or less"):
        platform.train("people", family="vae", steps=4)
    assert len(platform.candidates()) == 1


def test_a_table_of_a_few_rows_is_refused(platform: Platform, base: Path, tmp_path: Path) -> None:
    few = platform.add_dataset(_table(tmp_path / "few.csv", rows=99, seed=5), schema=base / "people.yaml")
    with pytest.raises(CheckFailed, match="below 100 rows"):
        platform.train(few.name, family="vae", steps=4)


def test_a_schema_without_bounds_is_refused_with_the_line_to_add(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "open.yaml").write_text(SCHEMA.replace("minimum: 0, maximum: 5000, ", ""))
    platform.add_dataset(_table(tmp_path / "open.csv"), schema=tmp_path / "open.yaml")
    line = r"write - \{name: pay, kind: numeric, step: 0.1, minimum: \.\.\., maximum: \.\.\.\}"
    with pytest.raises(CheckFailed, match=line):
        platform.train("open", family="vae", steps=4)


def test_a_data_set_smaller_than_the_batch_is_refused(platform: Platform) -> None:
    _activate(platform, (POLICY % (3, 10)).replace("canaries", "batch: 5000, canaries"))
    with pytest.raises(CheckFailed, match="fewer than a batch of 5000"):
        platform.train("people", family="vae", steps=4)
    assert len(_ledger(platform).spendings()) == 1


def test_few_rows_for_a_deep_family_are_warned_of(platform: Platform, trained: Any) -> None:
    assert "below 5000" in _told(trained)["warnings"][0]


def test_a_training_with_a_time_budget_is_planned_before_it_is_charged(platform: Platform) -> None:
    candidate = platform.train("people", family="vae", max_cpu_seconds=1.5)
    told = _told(candidate)["constants"]
    assert told["steps_done"] == told["steps"][0] > 1
    assert _told(candidate)["epsilon_prv"] <= 3


# what cannot be private


class _Asked:
    """Just enough of a training to be refused."""

    def __init__(self, **given: Any) -> None:
        from genward.family import Spec

        self.spec, self.estimated, self.config, self.folder = Spec("table", ()), {}, None, Path()
        self.__dict__.update(given)


def test_what_looks_at_data_without_noise_is_refused() -> None:
    from genward.family import Family, Field, Objective, Phase, Spec
    from genward_policies.privacy.protected import protect

    class Reads(Objective):
        loss: Any = None

    class Given(Reads):
        reads_data = False

    class Named(Family):
        name = "named"
        build: Any = None
        graphs: Any = None

    Named.__abstractmethods__ = frozenset()
    for kind in (Reads, Given):
        kind.__abstractmethods__ = frozenset()
    field = Field("c", "number", 0, 1)
    cases = {
        "would be estimated": {"estimated": {"age": ["quantiles"]}, "phases": [Phase([Reads()])]},
        "statistics of records": {"phases": [Phase([Reads()], statistics=("norm",))]},
        "begins with": {"phases": [Phase([Reads()], begin=lambda network, record: None)]},
        "conditions of protected rows": {
            "phases": [Phase([Reads(), Given()])],
            "spec": Spec("table", (field,), (replace(field, column="d"),)),
        },
        "nothing to protect": {"phases": [Phase([Given()])]},
    }
    for message, given in cases.items():
        with pytest.raises(CheckFailed, match=message):
            protect(_Asked(family=Named(), **given), None, None)  # type: ignore[arg-type]


# one row more


def test_one_row_more_moves_no_other_row_across_the_split(platform: Platform, base: Path, tmp_path: Path) -> None:
    lines = (base / "people.csv").read_text().splitlines()
    (tmp_path / "more.csv").write_text("\n".join([lines[0], "33,1234.5,y", *lines[1:]]) + "\n")
    more = platform.add_dataset(tmp_path / "more.csv", schema=base / "people.yaml")
    sides = [
        [sorted(map(str, side.to_pylist())) for side in data.split_by_row(7)]
        for data in (platform.dataset("people"), more)
    ]
    differ = [len(b) - len(x) for x, b in zip(*sides, strict=True)]
    assert sorted(differ) == [0, 1]
    assert all(set(x) <= set(b) for x, b in zip(*sides, strict=True))
    assert 0.15 < len(sides[0][1]) / ROWS < 0.25
