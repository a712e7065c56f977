"""A private step: what it computes, what it refuses, and that nothing it saw stays."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genward.errors import CheckFailed, DataError, IntegrityError, UsageError
from genward.family import NoiseSpec, Objective, Optimiser, Record
from genward.turns import learning_rate
from genward_policies.privacy.engine import Ghost, Vmap, shares, trained
from genward_policies.privacy.randomness import Randomness
from genward_policies.privacy.turn import Constants, PrivateTurn, Telemetry

WIDTH = 5
CONSTANTS = Constants(sigma=1.0, clip=0.7, q=0.2, batch=40, steps=50, canaries=100)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, WIDTH))
        self.other = nn.Linear(WIDTH, WIDTH)


class Fit(Objective):
    """|body(x + e) - other(x)|^2, `body` trained; keeps what modes it met."""

    trains: Sequence[str] = ("body",)
    noise = (NoiseSpec("e", (WIDTH,)), NoiseSpec("u", (), "uniform"))

    def __init__(self, **optimiser: Any) -> None:
        self.optimiser = Optimiser(**{"lr": 0.05, "schedule": "constant", "warmup": 0.0} | optimiser)
        self.modes: set[tuple[bool, bool]] = set()
        self.progress: list[float] = []

    def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
        body, other = network.get_submodule("body"), network.get_submodule("other")
        self.modes.add((body.training, other.training))
        self.progress.append(progress)
        found: Tensor = (body(record["x"] + 0.1 * noise["e"]) - other(record["x"])).square().sum(dim=1)
        return found * (1 + noise["u"])


def records(rows: int = 200) -> dict[str, Tensor]:
    return {"x": torch.randn((rows, WIDTH), generator=torch.Generator().manual_seed(3))}


def turn(network: nn.Module | None = None, objective: Objective | None = None, **changed: Any) -> PrivateTurn:
    made: dict[str, Any] = {
        "records": records(), "constants": CONSTANTS, "randomness": Randomness(), "device": "cpu",
        "before": lambda taken: None,
    } | changed  # fmt: skip
    return PrivateTurn(network or Net(), objective or Fit(), **made)


class Quiet(Randomness):
    """Batches as drawn, noise too small to see."""

    def normal(self, shape: int | Sequence[int] = ()) -> Any:
        return 1e-12 * super().normal(shape)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: a second thread waits more than it works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("engine", ["vmap", "ghost"])
def test_without_noise_a_step_is_adamw_on_the_mean_of_clipped_gradients(engine: Any) -> None:
    """Against brute force: every record's gradient by plain autograd, clipped, summed, divided by the public batch."""

    class Still(Fit):
        noise = ()

        def loss(self, network: nn.Module, record: Record, noise: Record, progress: float) -> Tensor:
            body, other = network.get_submodule("body"), network.get_submodule("other")
            found: Tensor = (body(record["x"]) - other(record["x"])).square().sum(dim=1)
            return found

    network, other = Net(), Net()
    constants = replace(CONSTANTS, q=1.0, batch=123.0, canaries=0)
    private = turn(network, Still(weight_decay=0.01), constants=constants, randomness=Quiet(), engine=engine)
    assert private.engine == engine
    optimiser = torch.optim.AdamW(other.body.parameters(), 0.05, weight_decay=0.01)
    for step in range(3):
        private.take(step, 50)
        parameters = list(other.body.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        for row in records()["x"]:
            loss = Still().loss(other, {"x": row[None]}, {}, 0.0).sum()
            parts = torch.autograd.grad(loss, parameters)
            norm = float(torch.cat([g.flatten() for g in parts]).norm())
            for t, g in zip(total, parts, strict=True):
                t += g * min(1.0, 0.7 / norm)
        for p, t in zip(parameters, total, strict=True):
            p.grad = t / 123.0
        optimiser.step()
    for mine, right in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, right, atol=2e-5)


@pytest.mark.parametrize("engine", ["vmap", "ghost"])
def test_only_what_is_trained_moves_and_is_in_train(engine: Any) -> None:
    network, objective = Net(), Fit()
    before = {name: p.clone() for name, p in network.named_parameters()}
    private = turn(network, objective, engine=engine)
    objective.modes.clear()
    private.take(10, 50)
    assert objective.modes == {(True, False)}
    assert objective.progress[-1] == 10 / 50
    for name, p in network.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("other")
        assert p.requires_grad


def tensors(value: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that can be reached from an object."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type, type(None))):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
        for name, part in value.__dict__.items():
            yield from tensors(part, f"{path}.{name}", seen)
        if value.grad is not None:
            yield f"{path}.grad", value.grad
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from tensors(part, f"{path}[{name!r}]", seen)
    elif isinstance(value, (list, tuple, set)):
        for i, part in enumerate(value):
            yield from tensors(part, f"{path}[{i}]", seen)
    elif hasattr(value, "__dict__"):
        for name, part in vars(value).items():
            yield from tensors(part, f"{path}.{name}", seen)


@pytest.mark.parametrize("engine", ["vmap", "ghost"])
def test_nothing_seen_stays_on_the_network_or_in_the_turn(engine: Any) -> None:
    """No activation, no per-record gradient, no norm, no hook: not for a pickle, not for a debugger."""
    network = Net()
    private = turn(network, engine=engine)
    private.take(0, 50)
    allowed = {id(p) for p in network.parameters()}
    assert {id(found) for _, found in tensors(network)} == allowed
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not module._forward_pre_hooks
    assert len(pickle.dumps(network)) == len(pickle.dumps(Net()))
    moments = {id(part) for kept in private._optimiser.state.values() for part in kept.values()}
    owned = allowed | moments | {id(part) for part in private._records.values()}
    left = {path for path, found in tensors(private) if id(found) not in owned and "theta" not in path}
    assert not left


def test_empty_batches_are_noise_and_a_step_like_any_other() -> None:
    network = Net()
    before = [p.clone() for p in network.body.parameters()]
    private = turn(network, constants=replace(CONSTANTS, q=1e-9, canaries=0))
    for step in range(5):
        private.take(step, 50)
    assert all(not torch.equal(p, b) for p, b in zip(network.body.parameters(), before, strict=True))
    assert private.telemetry.sound
    assert private.state_dict()["taken"] == 5


@pytest.mark.parametrize("kind", [Vmap, Ghost])
def test_a_record_without_a_finite_gradient_counts_for_nothing(kind: Any) -> None:
    network, objective = Net(), Fit()
    network.train()
    engine = kind(network, objective)
    record = records(6)
    noise = {"e": torch.zeros(6, WIDTH), "u": torch.zeros(6)}
    right = engine.clipped({"x": record["x"][:4]}, {n: v[:4] for n, v in noise.items()}, 0.0, 0.5)
    record["x"][4], record["x"][5] = float("nan"), 1e30
    found = engine.clipped(record, noise, 0.0, 0.5)
    assert torch.allclose(found, right, atol=1e-6)
    alone = engine.clipped({"x": record["x"][4:]}, {n: v[4:] for n, v in noise.items()}, 0.0, 0.5)
    assert not alone.any()
    assert len(alone) == sum(p.numel() for p in trained(network, objective).values())


def test_no_share_is_above_the_bound() -> None:
    norms = torch.tensor([0.0, 1e-30, 0.5, 0.7, 0.70001, 3.0, 1e20, float("inf"), float("nan")])
    found = shares(norms, 0.7)
    assert (found[:7] * norms[:7] <= 0.7).all()
    assert found[:3].tolist() == [1.0, 1.0, 1.0]
    assert found[7:].tolist() == [0.0, 0.0]


def test_many_records_go_in_pieces_to_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    network, objective = Net(), Fit()
    noise = {"e": torch.zeros(200, WIDTH), "u": torch.zeros(200)}
    whole = Vmap(network, objective).clipped(records(), noise, 0.0, 0.5)
    monkeypatch.setattr("genward_policies.privacy.engine._MEMORY", 7 * 4 * 93)
    assert torch.allclose(Vmap(network, objective).clipped(records(), noise, 0.0, 0.5), whole, atol=1e-5)


def test_the_schedule_is_the_unprotected_loops_own() -> None:
    objective = Fit(schedule="cosine", warmup=0.3)
    private = turn(objective=objective)
    for step in (0, 5, 49):
        private.take(step, 50)
        assert private._optimiser.param_groups[0]["lr"] == learning_rate(objective.optimiser, step, 50)


# what is refused


@pytest.mark.parametrize(
    "changed",
    [{"sigma": 0.0}, {"sigma": float("nan")}, {"sigma": -1.0}, {"clip": 0.0}, {"clip": float("inf")}, {"q": 0.0},
     {"q": 1.01}, {"batch": 0}, {"steps": 0}, {"canaries": -1}],
)  # fmt: skip
def test_constants_that_mean_nothing_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(CONSTANTS, **changed)


@pytest.mark.parametrize("bad", [{}, {"x": torch.zeros(0, WIDTH)}, {"x": torch.zeros(3, WIDTH), "c": torch.zeros(2)}])
def test_records_that_are_none_are_refused(bad: dict[str, Tensor]) -> None:
    with pytest.raises(DataError):
        turn(records=bad)


def test_an_objective_that_couples_is_refused_at_the_door() -> None:
    objective = Fit()
    objective.couples = True
    with pytest.raises(CheckFailed, match="couples"):
        turn(objective=objective)


def test_no_step_beyond_the_plan() -> None:
    network = Net()
    private = turn(network, constants=replace(CONSTANTS, steps=2))
    private.take(0, 2)
    private.take(1, 2)
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(CheckFailed, match="planned"):
        private.take(1, 2)
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


def test_a_step_is_announced_before_data_is_touched() -> None:
    told: list[int] = []

    def before(taken: int) -> None:
        told.append(taken)
        if taken == 2:
            raise CheckFailed("the budget is spent")

    network, objective = Net(), Fit()
    private = turn(network, objective, before=before)
    private.take(0, 50)
    private.take(1, 50)
    kept, looks = [p.clone() for p in network.parameters()], len(objective.progress)
    with pytest.raises(CheckFailed, match="spent"):
        private.take(2, 50)
    assert told == [0, 1, 2]
    assert len(objective.progress) == looks
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), kept, strict=True))


@pytest.mark.parametrize("name", ["sigma", "clip", "q", "batch", "steps"])
def test_a_schedule_of_any_constant_is_refused(name: str) -> None:
    """As Opacus' clip schedulers do it: the object is changed between two steps."""
    constants = replace(CONSTANTS)
    private = turn(constants=constants)
    private.take(0, 50)
    object.__setattr__(constants, name, getattr(constants, name) * 0.99)
    with pytest.raises(IntegrityError, match="constants"):
        private.take(1, 50)


@pytest.mark.parametrize("name", [field.name for field in fields(Constants)])
def test_a_checkpoint_goes_on_under_the_same_constants_only(name: str) -> None:
    private = turn()
    private.take(0, 50)
    state = private.state_dict()
    other = replace(CONSTANTS, **{name: getattr(CONSTANTS, name) // 2 or getattr(CONSTANTS, name) / 2})
    with pytest.raises(IntegrityError, match="another sigma, C"):
        turn(constants=other).load_state_dict(state)
    with pytest.raises(IntegrityError):
        turn().load_state_dict({})


def test_a_checkpoint_holds_no_randomness_and_two_continuations_differ() -> None:
    """Were the noise stored, the difference of two continuations would be a raw gradient."""
    network = Net()
    private = turn(network)
    for step in range(3):
        private.take(step, 50)
    file = io.BytesIO()
    torch.save(private.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert set(state) == {"optimiser", "contract", "taken", "canaries", "measured"}
    assert "generator" not in json.dumps(state, default=lambda part: type(part).__name__).lower()
    ends = []
    for _ in range(2):
        copied = Net()
        copied.load_state_dict(network.state_dict())
        resumed = turn(copied)
        resumed.load_state_dict(state)
        assert resumed.telemetry == private.telemetry
        assert np.array_equal(resumed.scores[1], private.scores[1])
        resumed.take(3, 50)
        ends.append(torch.cat([p.detach().flatten() for p in copied.body.parameters()]))
    assert not torch.allclose(ends[0], ends[1], atol=1e-6)


def test_seeds_of_torch_do_not_reproduce_a_private_run() -> None:
    """torch.manual_seed(77) reproduces Opacus' noised weights bit for bit; here it must not."""

    def run() -> Tensor:
        network = Net()
        torch.manual_seed(77)
        turn(network).take(0, 50)
        return torch.cat([p.detach().flatten() for p in network.body.parameters()])

    assert not torch.allclose(run(), run(), atol=1e-6)


# telemetry


def test_telemetry_measures_what_the_optimiser_got() -> None:
    private = turn()
    assert not private.telemetry.sound
    for step in range(40):
        private.take(step, 50)
    found = private.telemetry
    assert found.sound
    assert found.values == 40 * found.width
    assert found.width == 93 + 100
    assert found.least <= found.mean <= found.most
    assert abs(found.mean - 1) < 0.06


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.5, 0.97, 1.5])
def test_noise_that_is_not_the_claimed_one_is_seen(factor: float) -> None:
    class Less(Randomness):
        def normal(self, shape: int | Sequence[int] = ()) -> Any:
            return factor * super().normal(shape)

    private = turn(randomness=Less(), constants=replace(CONSTANTS, canaries=2000, clip=0.31))
    for step in range(20):
        private.take(step, 50)
    assert private.telemetry.mean == pytest.approx(factor, abs=0.02)
    assert not private.telemetry.sound


def test_one_step_without_noise_among_many_is_seen() -> None:
    assert Telemetry(1.0, 0.99, 1.01, 2_000_000, 20_000).sound
    assert not Telemetry(0.998, 0.0, 1.01, 2_000_000, 20_000).sound
    assert not Telemetry(1.0, 0.99, 1.2, 2_000_000, 20_000).sound


def _told(private: PrivateTurn) -> dict[str, Any]:
    return {name: getattr(private, name) for name in dir(private) if not name.startswith("_")}


def test_a_turn_tells_noise_canaries_and_engine_and_nothing_else() -> None:
    told = _told(turn())
    data: dict[str, Callable[..., Any]] = {k: v for k, v in told.items() if callable(v)}
    assert set(told) - set(data) == {"engine", "telemetry", "scores"}
    assert set(data) == {"take", "state_dict", "load_state_dict"}
    assert turn().take(0, 50) is None  # type: ignore[func-returns-value]
