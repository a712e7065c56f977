"""The policy from price to verdict: latency first, one training, and gates on what would be sealed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from genward.candidate import Candidate
from genward.contracts import Evidence, Silent
from genward.errors import CheckFailed
from genward_policies.pruning import cost, search
from genward_policies.pruning.quality import relative_loss
from genward_policies.pruning.recover import recovered


@dataclass(frozen=True)
class Pruned:
    """A candidate that went through `compress` and the export, the policy, and its evidence."""

    policy: Any
    candidate: Candidate
    child: Candidate
    compressed: Any
    evidence: list[Evidence]

    @property
    def claims(self) -> Mapping[str, Evidence]:
        return {item.claim: item for item in self.evidence}


@pytest.fixture(scope="session")
def pruned(
    make_candidate: Callable[..., Candidate],
    make_policy: Callable[..., Any],
    parent_price: Callable[[str], float],
    seal: Callable[[Candidate, Any], Candidate],
) -> Pruned:
    """A diffusion at less than half of its price."""
    candidate = make_candidate("diffusion")
    policy = make_policy(0.44 * parent_price("diffusion"))
    compressed = policy.compress(candidate, Silent())
    child = seal(candidate, compressed)
    return Pruned(policy, candidate, child, compressed, list(policy.measure(child)))


def _reasons(policy: Any, evidence: list[Evidence]) -> str:
    verdict = policy.gate(evidence)
    assert not verdict.allow
    return "; ".join(verdict.reasons)


def test_the_price_is_met_by_one_training_and_few_measurements(pruned: Pruned) -> None:
    claims = pruned.claims
    price = claims["pruning.cost_per_million_rows"]
    assert price.value is not None and price.reference is not None
    assert price.value <= pruned.policy.config.target.cost_per_million_rows < 0.5 * price.reference
    assert claims["pruning.trainings"].value == 1
    assert 3 <= (claims["pruning.latency_probes"].value or 99) <= 8
    assert claims["pruning.training_rows_read"].value == 0
    assert claims["pruning.wrong_widths"].value == 0
    assert claims["pruning.different_pages"].value == 0
    assert pruned.policy.gate(pruned.evidence).allow, pruned.policy.gate(pruned.evidence).reasons


def test_the_loss_has_an_interval_around_it(pruned: Pruned) -> None:
    loss = pruned.claims["pruning.relative_quality_loss"]
    assert loss.low is not None and loss.value is not None and loss.high is not None
    assert loss.low < loss.value < loss.high
    assert loss.extra["child_distance"] > 0


def test_the_least_pruning_that_meets_the_price_is_chosen(pruned: Pruned) -> None:
    """Of what was measured, whatever stands before the chosen rung on the ladder costs too much."""
    rungs = search.ladder(pruned.candidate, pruned.policy.config)
    told = json.loads((pruned.candidate.folder / "pruning.json").read_bytes())
    names = [search.described(rung) for rung in rungs]
    networks = [name.rpartition(", ")[0] for name in names]
    chosen = networks.index(told["chosen"]["recipe"].rpartition(", ")[0])  # perhaps in float32, where that is as cheap
    limit = search.MARGIN * pruned.policy.config.target.cost_per_million_rows / 1e6
    for probe in told["probes"]:
        if probe["recipe"] in names and names.index(probe["recipe"]) < chosen:
            assert probe["seconds"] > limit


def test_the_front_is_attached_as_json_and_plot(pruned: Pruned) -> None:
    files = pruned.policy.attach(pruned.child, pruned.evidence)
    told = json.loads(files["pruning_front.json"])
    kinds = {point["kind"] for point in told["points"]}
    assert {"parent", "probe", "steps", "released"} <= kinds
    steps = [point for point in told["points"] if point["kind"] == "steps"]
    assert len(steps) == len(pruned.candidate.family.quicker(pruned.candidate.config, False))
    assert all(point["loss"] is not None and point["estimated"] for point in steps)
    assert told["front"]
    assert files["pruning_front.png"].startswith(b"\x89PNG")
    assert not pruned.policy.attach(replace(pruned.child, parent=""), pruned.evidence)


def test_a_parent_is_gated_on_exactness_alone_and_says_what_it_is(pruned: Pruned) -> None:
    parent = replace(pruned.child, parent="")
    evidence = list(pruned.policy.measure(parent))
    claims = {item.claim: item for item in evidence}
    assert claims["pruning.form"].value == 0
    assert claims["pruning.relative_quality_loss"].value is None
    assert pruned.policy.gate(evidence).allow


def test_a_family_without_a_network_says_so(pruned: Pruned) -> None:
    class Counts(type(pruned.candidate.family)):  # type: ignore[misc]
        def can_be_cut(self, config: Any) -> bool:
            return False

    candidate = replace(pruned.child, family=Counts())
    assert pruned.policy.compress(candidate, Silent()) is None
    said = next(e for e in pruned.policy.measure(candidate) if e.claim == "pruning.relative_quality_loss")
    assert said.value is None
    assert "there is no network to cut" in said.method


def test_rows_that_were_trained_on_are_not_taken(pruned: Pruned) -> None:
    with pytest.raises(CheckFailed, match="trained on"):
        pruned.policy.compress(replace(pruned.candidate, train=pruned.candidate.test), Silent())


def test_a_price_that_is_met_already_changes_nothing(
    make_candidate: Callable[..., Candidate], make_policy: Callable[..., Any], seal: Any
) -> None:
    candidate, policy = make_candidate("vae"), make_policy(1e6)
    compressed = policy.compress(candidate, Silent())
    assert compressed.config == candidate.config
    assert compressed.quantise is None
    claims = {e.claim: e for e in policy.measure(seal(candidate, compressed))}
    assert claims["pruning.trainings"].value == 0
    assert claims["pruning.latency_probes"].value == 1
    assert claims["pruning.relative_quality_loss"].value == 0


def test_a_price_that_no_network_meets_trains_nothing_and_names_the_nearest(
    make_candidate: Callable[..., Candidate], make_policy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from genward_policies.pruning import recover

    monkeypatch.setattr(recover, "recovered", lambda *given: pytest.fail("trained"))
    policy = make_policy(0.01)
    with pytest.raises(CheckFailed, match=r"no network meets .*the nearest costs .* us a row .*hidden 8,") as failed:
        policy.compress(make_candidate("vae"), Silent())
    assert "set cost_per_million_rows to" in failed.value.remedy


# what is broken on purpose


def _weights(data: bytes, change: Callable[[Any], Any], kind: int = TensorProto.FLOAT, most: int = 99) -> bytes:
    """A graph with some of its stored matrices changed."""
    model = onnx.load_model_from_string(data)
    chosen = [t for t in model.graph.initializer if len(t.dims) == 2 and t.data_type == kind][:most]
    assert chosen
    for tensor in chosen:
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))
    return bytes(model.SerializeToString())


def _broken(pruned: Pruned, kind: str, rng: np.random.Generator) -> Candidate:
    """The child with one thing wrong."""
    child = pruned.child
    data = child.exported.data
    if kind == "noise":
        data = _weights(data, lambda w: (w + rng.normal(0, w.std() * rng.uniform(0.5, 3), w.shape)).astype(w.dtype))
    elif kind == "zeros":
        data = _weights(data, lambda w: w * (rng.random(w.shape) > rng.uniform(0.4, 1)).astype(w.dtype))
    elif kind == "shuffled":
        data = _weights(data, lambda w: rng.permutation(w.reshape(-1)).reshape(w.shape))
    elif kind == "sign":
        data = _weights(data, lambda w: -w, most=1 + int(rng.integers(3)))
    elif kind == "not a number":
        data = _weights(data, lambda w: np.full_like(w, np.nan), most=1)
    return replace(child, exported=replace(child.exported, data=data))


KINDS = ("noise", "zeros", "shuffled", "sign", "not a number")


@pytest.mark.parametrize("kind", ["noise", "sign"])
def test_corrupted_weights_are_refused(pruned: Pruned, kind: str) -> None:
    broken = _broken(pruned, kind, np.random.default_rng(3))
    assert "relative_quality_loss" in _reasons(pruned.policy, list(pruned.policy.measure(broken)))


def test_weights_that_are_no_numbers_end_the_release(pruned: Pruned) -> None:
    with pytest.raises(CheckFailed, match=r"cannot run|was not measured"):
        evidence = list(pruned.policy.measure(_broken(pruned, "not a number", np.random.default_rng(3))))
        raise CheckFailed(_reasons(pruned.policy, evidence))


def test_another_width_than_the_recipes_is_refused(pruned: Pruned, seal: Any) -> None:
    config = pruned.candidate.family.thinner(pruned.compressed.config)[0]
    spec = pruned.candidate.codec.spec
    narrow = pruned.candidate.family.cut(pruned.compressed.network, spec, config)
    # In float32: a network that is narrow already may have no layer left that is worth eight bits.
    other = seal(pruned.candidate, replace(pruned.compressed, network=narrow, config=config, quantise=None))
    assert "wrong_widths" in _reasons(pruned.policy, list(pruned.policy.measure(other)))


def test_a_lying_search_is_found_out_by_the_release_itself(
    make_candidate: Callable[..., Candidate],
    make_policy: Callable[..., Any],
    parent_price: Callable[[str], float],
    seal: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A search that is told a fifth of every time but the parent's chooses a network that does not meet the price."""
    candidate, policy = (
        make_candidate("vae"),
        make_policy(0.45 * parent_price("vae"), recovery_cpu_seconds=0.5, allow=["structured"]),
    )
    true, calls = cost.seconds_per_row, []

    def lying(*given: Any) -> float:
        calls.append(given)
        return true(*given) / (1 if len(calls) == 1 else 5)

    with monkeypatch.context() as patched:
        patched.setattr(cost, "seconds_per_row", lying)
        compressed = policy.compress(candidate, Silent())
    reasons = _reasons(policy, list(policy.measure(seal(candidate, compressed))))
    assert "cost_per_million_rows" in reasons
    assert "of what the search measured" in reasons


@pytest.mark.parametrize(
    "claim", ["form", "relative_quality_loss", "cost_per_million_rows", "different_pages", "tstr_drop"]
)
def test_a_claim_that_is_missing_or_was_not_measured_refuses(pruned: Pruned, claim: str) -> None:
    without = [item for item in pruned.evidence if item.claim != f"pruning.{claim}"]
    unmeasured = [replace(i, value=None) if i.claim == f"pruning.{claim}" else i for i in pruned.evidence]
    assert "pruning" in _reasons(pruned.policy, without)
    assert "pruning" in _reasons(pruned.policy, unmeasured)


def test_no_evidence_refuses(pruned: Pruned) -> None:
    assert not pruned.policy.gate([]).allow


# exactness


def test_rows_that_depend_on_more_than_their_block_are_found(pruned: Pruned, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that computes with another key stands for rows that another process makes otherwise."""
    from genward_policies.pruning import exact

    assert exact.replayed(pruned.child, cost.key("exact")).different == 0
    real = exact._elsewhere
    monkeypatch.setattr(exact, "_elsewhere", lambda c, t, k, p: real(c, t, bytes(16), p))
    assert exact.replayed(pruned.child, cost.key("exact")).different == exact.PAGES


def test_dynamic_scales_are_exact_because_blocks_are_run_whole(
    make_candidate: Callable[..., Candidate],
    make_policy: Callable[..., Any],
    parent_price: Callable[[str], float],
    seal: Any,
) -> None:
    """Their scale hangs on the neighbours in the block, and these are always the same."""
    candidate = make_candidate("vae")
    rung = search.Rung(candidate.config, "dynamic")
    from genward.contracts import Compressed

    noise = candidate.family.graphs(candidate.network(), candidate.config)["sample"].noise
    quantise: Any = lambda data: search.quantised(candidate, data, noise, "dynamic")  # noqa: E731
    child = seal(candidate, Compressed(candidate.network(), rung.config, quantise))
    assert b"MatMulInteger" in child.exported.data
    from genward_policies.pruning import exact

    assert exact.replayed(child, cost.key("exact")).different == 0


# the measure of what was lost


def test_the_loss_of_the_parent_itself_is_nothing_and_grows_with_distance() -> None:
    rng = np.random.default_rng(0)
    real, parent = rng.normal(size=(4000, 3)), rng.normal(size=(8000, 3))
    losses = [relative_loss(real, parent, parent + shift).value for shift in (0.0, 0.05, 0.2)]
    assert losses[0] == 0
    assert 0 < losses[1] < losses[2]


def test_the_loss_sees_what_means_and_covariances_do_not() -> None:
    """y = x^2 against a y of the same mean and variance that knows nothing of x."""
    rng = np.random.default_rng(1)

    def rows(n: int, tied: bool) -> Any:
        x, z = rng.normal(size=(2, n))
        return np.stack([x, (x if tied else z) ** 2], axis=1)

    assert relative_loss(rows(5000, True), rows(9000, True), rows(9000, False)).low > 0.5


def test_the_interval_covers_no_loss_in_most_repetitions() -> None:
    """Parent and child of one law, rows of their own: nothing is lost, and the interval knows in nine of ten."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(12):
        real, parent, child = (rng.normal(size=(n, 2)) for n in (1500, 3000, 3000))
        found = relative_loss(real, parent, child)
        covered += found.low <= 0 <= found.high
    assert covered >= 9


@pytest.mark.soak
def test_no_broken_candidate_is_released_in_two_hundred(pruned: Pruned, monkeypatch: pytest.MonkeyPatch) -> None:
    from genward_policies.pruning import exact

    monkeypatch.setattr(exact, "replayed", lambda *given: exact.Exactness(0, 1, 1))  # of correct bytes, and slow
    rng, released = np.random.default_rng(7), []
    for i in range(200):
        kind = KINDS[i % len(KINDS)]
        try:
            evidence = list(pruned.policy.measure(_broken(pruned, kind, rng)))
        except CheckFailed:
            continue
        released += [(i, kind)] if pruned.policy.gate(evidence).allow else []
    assert not released


@pytest.mark.soak
def test_widths_and_times_that_are_not_what_was_asked_are_never_released(pruned: Pruned, seal: Any) -> None:
    spec, family = pruned.candidate.codec.spec, pruned.candidate.family
    for config in family.thinner(pruned.candidate.config):
        if config.hidden == pruned.compressed.config.hidden:
            continue
        recipe = pruned.compressed.config.model_copy(update={"hidden": config.hidden})
        network = recovered(
            family, pruned.candidate.network(), pruned.candidate.config, recipe, pruned.candidate.codec, 3, Silent()
        )
        other = seal(pruned.candidate, replace(pruned.compressed, network=network, config=recipe))
        assert not pruned.policy.gate(list(pruned.policy.measure(other))).allow, spec
