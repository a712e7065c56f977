"""`genward ledger`: what was spent, what is left, what more would cost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genward.api import Platform
from genward_policies.privacy import accounting as a
from genward_policies.privacy.ledger import Ledger
from genward_policies.privacy.policy import namer

DELTA = 1e-5
ONE = a.gaussian(a.sigma_for(a.rho_for(1.0, DELTA)))


@pytest.fixture(scope="module")
def state(processes_of: Callable[[Path], list[int]]) -> Iterator[Path]:
    import os
    import shutil
    import signal
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="gw", dir="/tmp"))
    platform, _ = Platform.init(folder / "s", single_operator=True)
    shipped = Path(__file__).parents[3] / "policies" / "genward_policies" / "private.yaml"
    digest = platform.propose_policy(shipped.read_text())
    platform.approve_policy(digest)
    platform.activate_policy(digest)
    platform.registry.add_dataset("sha256:" + "a" * 64, "people", 1000)
    platform.registry.add_dataset("sha256:" + "b" * 64, "half", 500, ["sha256:" + "a" * 64])
    ledger = Ledger(platform.state.database_url, lambda: platform.audit, namer(platform.keys))
    for run, data, lineage in (("r1", "a", ()), ("r2", "b", ("sha256:" + "a" * 64,))):
        spending = ledger.reserve(run, "sha256:" + data * 64, lineage, ONE, 10.0, DELTA)
        ledger.commit(spending, ONE)
    platform.close()
    yield folder / "s"
    for pid in processes_of(folder):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _run(state: Path, *words: str) -> Any:
    command = [sys.executable, "-m", "genward.cli", "--state", str(state), "--json", "ledger", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else done.stderr


def test_ledger_commands(state: Path) -> None:
    code, rows = _run(state, "show", "people")
    assert code == 0
    assert [(row["run"], row["data sets"], row["state"]) for row in rows] == [
        ("r1", ["people"], "committed"),
        ("r2", ["half", "people"], "committed"),
    ]
    assert all(0.97 < row["epsilon"] <= 1.0 for row in rows)
    code, found = _run(state, "budget", "people")
    assert code == 0
    assert 1.3 < found["epsilon_spent"] < 1.5
    assert found["left"] == pytest.approx(10 - found["epsilon_spent"])
    code, found = _run(state, "compose", "half", "--epsilon", "3", "--times", "2")
    assert code == 0
    assert found["epsilon_now"] < 1.0 < found["epsilon_then"] < 7
    assert found["allowed"] is True
    code, found = _run(state, "compose", "people", "--epsilon", "9", "--times", "3")
    assert (code, found["allowed"]) == (0, False)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["show", "nobody"], 4),
        (["budget", "people", "--delta", "2"], 2),
        (["compose", "people", "--epsilon", "-1"], 2),
        (["compose", "people"], 2),
    ],
)
def test_mistakes_are_a_line_and_an_exit_code(state: Path, words: list[str], code: int) -> None:
    assert _run(state, *words)[0] == code
