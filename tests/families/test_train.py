"""The training loop: what is kept, what is refused, and that stopping changes nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genward import train as training
from genward.contracts import Silent
from genward.errors import DataError, Interrupted, NotFound, UsageError
from genward.family import Family, Spec
from genward.plugins import Plugins
from genward.testing import small_codec, small_table
from genward.train import TrainOptions, load_network, train

Records = Callable[[int], dict[str, Any]]
OPTIONS = TrainOptions(seed=5, steps=60, batch=16, held_out=0.2, checkpoint_seconds=0.0, device="cpu")


class StopAt(Silent):
    """Presses Ctrl-C when the loop reports for the n-th time."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    def update(self, done: float, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


class Killed(Exception):
    """Stands for a crash that nobody handles."""


class KillAt(StopAt):
    def update(self, done: float, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("reports", [1, 7, 29, 31, 55])
@pytest.mark.parametrize("how", [StopAt, KillAt])
def test_stopped_and_resumed_ends_in_the_same_bytes(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path, how: Any, reports: int
) -> None:
    """In either phase, by Ctrl-C or by a crash, the moving average and the optimisers go on as if nothing had been."""
    config, data = linear.Config(), records(100)
    train(linear, config, linear_spec, data, tmp_path / "whole", OPTIONS, Silent())
    with pytest.raises((Interrupted, Killed)):
        train(linear, config, linear_spec, data, tmp_path / "cut", OPTIONS, how(reports))
    assert (tmp_path / "cut" / "checkpoint.pt").exists() or reports == 1
    assert not (tmp_path / "cut" / "network.safetensors").exists()
    train(linear, config, linear_spec, data, tmp_path / "cut", OPTIONS, Silent(), resume=True)
    bytes_ = [(tmp_path / side / "network.safetensors").read_bytes() for side in ("whole", "cut")]
    assert bytes_[0] == bytes_[1]


@pytest.mark.parametrize("name", ["vae", "diffusion"])
def test_table_families_resume_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    family, codec = Plugins.load(["genward"]).family(name)(), small_codec()
    config, data = family.Config(hidden=16), codec.encode(small_table())
    options = replace(OPTIONS, steps=40)
    train(family, config, codec.spec, data, tmp_path / "whole", options, Silent())
    with pytest.raises(Interrupted, match="--resume"):
        train(family, config, codec.spec, data, tmp_path / "cut", options, StopAt(13))
    train(family, config, codec.spec, data, tmp_path / "cut", options, Silent(), resume=True)
    bytes_ = [(tmp_path / side / "network.safetensors").read_bytes() for side in ("whole", "cut")]
    assert bytes_[0] == bytes_[1]


CHILD = """
import sys
from pathlib import Path
from genward.contracts import Silent
from genward.plugins import Plugins
from genward.testing import small_codec, small_table
from genward.train import TrainOptions, train
folder, name, steps, resume = sys.argv[1:]
family, codec = Plugins.load(["genward"]).family(name)(), small_codec()
options = TrainOptions(seed=5, steps=int(steps), batch=16, held_out=0.2, checkpoint_seconds=0.0, device="cpu")
train(family, family.Config(hidden=16), codec.spec, codec.encode(small_table()), Path(folder), options, Silent(),
      resume == "resume")
"""


def child(folder: Path, name: str, steps: int, resume: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), name, str(steps), resume])


@pytest.mark.parametrize("name", ["vae", "diffusion"])
def test_a_process_killed_at_any_moment_resumes_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    """SIGKILL, twice, at random moments after a checkpoint: in a step or in the middle of writing the next one."""
    steps, moment = 600, random.Random()
    assert child(tmp_path / "whole", name, steps).wait() == 0
    for resume in ("", "resume"):
        checkpoint = tmp_path / "cut" / "checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if resume else 0
        process = child(tmp_path / "cut", name, steps, resume)
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 0 < torch.load(checkpoint, weights_only=True)["at"][1] < steps
    assert child(tmp_path / "cut", name, steps, "resume").wait() == 0
    bytes_ = [(tmp_path / side / "network.safetensors").read_bytes() for side in ("whole", "cut")]
    assert bytes_[0] == bytes_[1]


def test_a_budget_becomes_steps_that_a_resumed_run_keeps(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path
) -> None:
    options = replace(OPTIONS, steps=None, max_cpu_seconds=0.5)
    with pytest.raises(Interrupted):
        train(linear, linear.Config(), linear_spec, records(100), tmp_path, options, StopAt(3))
    steps = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["at"][2]
    trained = train(linear, linear.Config(), linear_spec, records(100), tmp_path, options, Silent(), resume=True)
    assert trained.history["steps"][0]["step"] == -(-steps // 40)


class Clock:
    """Time that passes only when the loop works: so much a step, so much a look at held-out records."""

    def __init__(self, step: float, look: float) -> None:
        self.now, self.step, self.look = 0.0, step, look

    def process_time(self) -> float:
        return self.now

    monotonic = process_time

    def attach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        take, look = training.OpenTurn.take, training.Run._held_out

        def slow_take(turn: Any, *given: Any) -> float:
            self.now += self.step
            return take(turn, *given)

        def slow_look(run: Any, *given: Any) -> float:
            self.now += self.look
            return look(run, *given)

        monkeypatch.setattr(training, "time", self)
        monkeypatch.setattr(training.OpenTurn, "take", slow_take)
        monkeypatch.setattr(training.Run, "_held_out", slow_look)


BUDGETS = [{"max_cpu_seconds": 60.0}, {"max_minutes": 1.0}, {"max_minutes": 1.0, "max_cpu_seconds": 1e6}]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize(("step", "look"), [(0.05, 0.0), (0.05, 0.2), (0.3, 0.1), (1.0, 0.5)])
def test_a_budget_is_kept_within_a_quarter(
    linear: Family,
    linear_spec: Spec,
    records: Records,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: dict[str, float],
    step: float,
    look: float,
) -> None:
    """A minute over two phases, on a clock of our own: looks at held-out records and the calibration are paid for."""
    clock = Clock(step, look)
    clock.attach(monkeypatch)
    options = replace(OPTIONS, steps=None, patience=10**6, checkpoint_seconds=1e9, **budget)
    train(linear, linear.Config(), linear_spec, records(100), tmp_path, options, Silent())
    assert 45.0 <= clock.now <= 75.0


def test_a_machine_that_slows_down_stops_at_the_budget(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times slower after the calibration: what is kept is the average so far."""
    clock = Clock(0.05, 0.0)
    clock.attach(monkeypatch)
    begin = training.Run._begin

    def slower(run: Any, phase: Any) -> None:
        clock.step = 0.05
        begin(run, phase)
        clock.step = 0.5

    monkeypatch.setattr(training.Run, "_begin", slower)
    options = replace(OPTIONS, steps=None, max_minutes=1.0, patience=10**6, checkpoint_seconds=1e9)
    train(linear, linear.Config(), linear_spec, records(100), tmp_path, options, Silent())
    assert 60.0 <= clock.now <= 60.0 * 1.15 + 2 * 20 * 0.5 + 5


def test_held_out_records_are_bounded(linear: Family, linear_spec: Spec, records: Records, tmp_path: Path) -> None:
    run = training.Run(linear, linear.Config(), linear_spec, records(200_000), tmp_path, OPTIONS)
    assert len(run.held["x"]) == 4096


def test_the_moving_average_is_what_is_kept(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path
) -> None:
    """Adopted at the end: not the last weights, which the last checkpoint holds beside it."""
    options = replace(OPTIONS, held_out=0.0)
    train(linear, linear.Config(), linear_spec, records(100), tmp_path, options, Silent())
    kept = load_network(linear, linear.Config(), linear_spec, tmp_path).state_dict()["first.weight"]
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert last["at"][:3] == [1, 30, 30]
    assert torch.equal(last["average"][0], kept)
    assert not torch.equal(last["network"]["first.weight"], kept)


def test_training_stops_when_held_out_records_gain_nothing(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path
) -> None:
    """A linear map is learnt soon; then only the steps' own noise moves the held-out loss."""
    options = replace(OPTIONS, steps=2000, patience=3, ema=0.0, checkpoint_seconds=30.0)
    trained = train(linear, linear.Config(), linear_spec, records(50), tmp_path, options, Silent())
    first = [point for point in trained.history["steps"] if point["phase"] == 0]
    assert first[-1]["step"] < 1000
    assert trained.network.training is False


def test_curves_are_on_disk(linear: Family, linear_spec: Spec, records: Records, tmp_path: Path) -> None:
    train(linear, linear.Config(), linear_spec, records(100), tmp_path, OPTIONS, Silent())
    points = json.loads((tmp_path / "losses.json").read_text())["steps"]
    assert points[-1]["held_out"] < points[0]["held_out"]
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_is_not_finite_says_where(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"Fit, step \d+: the loss is not finite \(lower the learning rate"):
        train(linear, linear.Config(lr=1e30), linear_spec, records(100), tmp_path, OPTIONS, Silent())


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_records_are_refused(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path, rows: int
) -> None:
    with pytest.raises(DataError, match=f"{rows} records are nothing to learn from"):
        train(linear, linear.Config(), linear_spec, records(rows), tmp_path, OPTIONS, Silent())


def test_a_table_of_conditions_only_is_refused(linear: Family, records: Records, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column is left to generate"):
        train(linear, linear.Config(), Spec("table", ()), records(50), tmp_path, OPTIONS, Silent())


def test_two_records_are_enough(linear: Family, linear_spec: Spec, records: Records, tmp_path: Path) -> None:
    train(linear, linear.Config(), linear_spec, records(2), tmp_path, OPTIONS, Silent())


def test_a_record_that_is_not_finite_is_refused(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path
) -> None:
    data = records(50)
    data["x"][7, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        train(linear, linear.Config(), linear_spec, data, tmp_path, OPTIONS, Silent())


@pytest.mark.parametrize("change", ["options", "records", "config"])
def test_a_checkpoint_of_something_else_is_refused(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path, change: str
) -> None:
    with pytest.raises(Interrupted):
        train(linear, linear.Config(), linear_spec, records(100), tmp_path, OPTIONS, StopAt(3))
    options = replace(OPTIONS, seed=6) if change == "options" else OPTIONS
    config = linear.Config(lr=0.01) if change == "config" else linear.Config()
    data = records(99 if change == "records" else 100)
    with pytest.raises(UsageError, match=r"another family|other options"):
        train(linear, config, linear_spec, data, tmp_path, options, Silent(), resume=True)


def test_a_network_that_is_not_there_says_how_to_go_on(linear: Family, linear_spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="training has not finished"):
        load_network(linear, linear.Config(), linear_spec, tmp_path)


def test_a_device_that_is_not_there_is_refused(
    linear: Family, linear_spec: Spec, records: Records, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="device 'cuda:99' cannot be used"):
        options = replace(OPTIONS, device="cuda:99")
        train(linear, linear.Config(), linear_spec, records(50), tmp_path, options, Silent())
