"""Learning from counts alone: what is asked, what is kept, what rows come out, and what privacy adds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genward import testing
from genward.contracts import Silent
from genward.data.codec import TableCodec
from genward.data.schema import Column, Schema
from genward.errors import CheckFailed, DataError
from genward.export import export_graph, parity
from genward.fitting import Exact, Place, counted, discretised, places
from genward.noise import draw
from genward.testing import small_codec, small_table
from genward.train import TrainOptions, load_network, train
from genward_families.marginal.grouping import grouped, smoothed
from genward_families.marginal.mixture import Marginals
from genward_families.marginal.network import normal_quantile
from genward_policies.privacy.accounting import rho_for
from genward_policies.privacy.mechanism import PrivateMechanism
from genward_policies.privacy.randomness import Randomness

SMALL: dict[str, Any] = {"fine": 16, "bins": 8, "components": 24, "steps": 10, "last": 60}
OPTIONS = TrainOptions(seed=1, device="cpu")


def sampled(network: Any, config: Any, codec: TableCodec, rows: int) -> pa.Table:
    graph = Marginals().graphs(network.eval(), config)["sample"]
    noise = draw(graph.noise, bytes(16), np.arange(rows, dtype=np.uint64))
    with torch.no_grad():
        numbers, codes = codec.decoder()(graph.module(*(torch.from_numpy(v) for v in noise.values())))
    return pa.Table.from_batches([codec.decode(numbers.numpy(), codes.numpy())])


def learnt(codec: TableCodec, x: Any, mechanism: Any = None, **settings: Any) -> tuple[Any, Any]:
    family, config = Marginals(), Marginals.Config(**{**SMALL, **settings})
    torch.manual_seed(0)
    network = family.build(codec.spec, config)
    family.fit(network, mechanism or Exact(codec.spec, x, config.fine), config, Silent())
    return network, config


def test_the_public_contract_suite_passes() -> None:
    """Budget, determinism, samples, export and parity, on a mixed table with gaps."""
    assert testing.check(Marginals, **SMALL) == list(testing.COUNTING_CHECKS)


SCHEMA = Schema(
    columns=(
        Column(name="mass", kind="numeric", minimum=1, maximum=1000, digits=4, scale="log", nullable=True),
        Column(name="grade", kind="categorical", categories=tuple("abcd"), nullable=True),
        Column(name="count", kind="integer", minimum=0, maximum=9),
        Column(name="good", kind="boolean"),
    )
)
CODEC = TableCodec.declared(SCHEMA)


def mixed(rows: int = 5000) -> pa.Table:
    """`good` is mass above 30; a missing mass comes with grade d; count follows mass."""
    rng = np.random.default_rng(0)
    mass = np.exp(rng.normal(3.4, 1.2, rows)).clip(1, 1000)
    gap = rng.random(rows) < 0.15
    grade = np.where(gap, "d", rng.choice(["a", "b", "c"], rows, p=[0.7, 0.2, 0.1]))
    count = np.rint(2 * np.log10(mass) + rng.normal(0, 0.5, rows)).clip(0, 9).astype(int)
    columns = {"mass": pa.array(mass, mask=gap), "grade": pa.array(grade, mask=rng.random(rows) < 0.05)}
    return pa.table({**columns, "count": count, "good": mass > 30})


X = CODEC.encode(mixed())["x"]


def judged(made: pa.Table) -> dict[str, float]:
    """How far rows are from what `mixed` promises."""
    mass = np.array(made["mass"].to_pylist(), dtype=float)
    there, good = ~np.isnan(mass), np.array(made["good"].to_pylist())
    grade = np.array(made["grade"].to_pylist(), dtype=object)
    count = np.array(made["count"].to_pylist())
    return {
        "gaps": abs(float((~there).mean()) - 0.15),
        "good": float((good[there] != (mass[there] > 30)).mean()),
        "grade": float(np.mean(grade[~there & (grade != None)] != "d")),  # noqa: E711
        "count": 1 - float(np.corrcoef(np.log(mass[there]), count[there])[0, 1]),
        "mean": abs(float(np.log(mass[there]).mean()) - 3.4),
    }


def test_exact_counts_give_a_table_like_the_real_one() -> None:
    found = judged(sampled(*learnt(CODEC, X, components=100, last=800), CODEC, 4000))
    real = judged(mixed())
    assert found["gaps"] < 0.02 and found["good"] < 0.08 and found["grade"] < 0.03 and found["mean"] < 0.08
    assert found["count"] < real["count"] + 0.08


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_private_counts_do_too(epsilon: float) -> None:
    """And shuffled columns would not: `good` would disagree in half of the rows."""
    config = Marginals.Config(**SMALL)
    rho = rho_for(epsilon, 1e-5)
    mechanism = PrivateMechanism(CODEC.spec, X, config.fine, 5000, rho, Randomness(), lambda *_: None)
    found = judged(sampled(*learnt(CODEC, X, mechanism), CODEC, 4000))
    assert found["gaps"] < 0.06 and found["good"] < 0.2 and found["mean"] < 0.3
    assert mechanism.rho == pytest.approx(0, abs=1e-9 * rho)


class Watched(Exact):
    """Counts exactly, and notes what was asked."""

    def __init__(self, x: Any, fine: int, rho: float) -> None:
        super().__init__(CODEC.spec, x, fine)
        self.rho, self.asked = rho, list[tuple[str, tuple[int, ...], float]]()

    def measure(self, fields: Any, rho: float) -> Any:
        self.asked.append(("measure", tuple(fields), rho))
        self.rho -= rho
        return super().measure(fields, rho)

    def select(self, candidates: Any, expected: Any, penalties: Any, rho: float) -> int:
        self.asked.append(("select", (), rho))
        self.rho -= rho
        return super().select(candidates, expected, penalties, rho)


@settings(max_examples=8, deadline=None)
@given(st.floats(-12, 3), st.integers(2, 64), st.integers(2, 32))
def test_a_budget_is_spent_whole_and_never_more(power: float, fine: int, bins: int) -> None:
    """Columns first, each once; no table twice in a round; tables no larger than allowed."""
    rho = 10.0**power
    watched = Watched(X[:500], fine, rho)
    learnt(CODEC, X, watched, fine=fine, bins=bins, components=5, steps=1, last=1, cells=300)
    assert sum(price for _, _, price in watched.asked) == pytest.approx(min(rho, 1e3), rel=1e-6)
    assert [fields for kind, fields, _ in watched.asked[:4] if kind == "measure"] == [(0,), (1,), (2,), (3,)]
    tables = [fields for kind, fields, _ in watched.asked[4:] if kind == "measure"]
    assert tables and all(2 <= len(fields) <= 3 for fields in tables)
    assert all(math.prod(watched.domain[field] for field in fields) <= 300 for fields in tables)


def test_the_same_answers_give_the_same_bytes_and_others_do_not(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder, rows in zip(folders, (X, X, X[:-500]), strict=True):
        train(Marginals(), Marginals.Config(**SMALL), CODEC.spec, {"x": rows}, folder, OPTIONS, Silent())
    first, second, other = ((folder / "network.safetensors").read_bytes() for folder in folders)
    assert first == second != other


def test_a_kept_network_samples_the_same_rows(tmp_path: Path) -> None:
    config = Marginals.Config(**SMALL)
    trained = train(Marginals(), config, CODEC.spec, {"x": X}, tmp_path, OPTIONS, Silent())
    loaded = load_network(Marginals(), config, CODEC.spec, tmp_path)
    assert sampled(trained.network, config, CODEC, 300).equals(sampled(loaded, config, CODEC, 300))


def test_the_graph_exports_with_parity_and_holds_no_random_op() -> None:
    network, config = learnt(CODEC, X)
    exported = export_graph(Marginals(), network, config, CODEC)
    assert parity(exported, rows=2048).max <= 1e-6
    assert [spec["law"] for spec in exported.meta["noise"]] == ["uniform"] * 3


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1.0] * 40},
        {"b": ["x"] * 40},
        {"a": [None] * 39 + [2.5]},
        {"a": [1.0, 2.0] * 20, "b": [None, "x"] * 20},
    ],
    ids=["constant number", "constant category", "almost only gaps", "half gaps"],
)
def test_awkward_columns_train_and_come_back(columns: dict[str, list[Any]], tmp_path: Path) -> None:
    table = pa.table(columns)
    known = {
        "a": Column(name="a", kind="numeric", minimum=0.0, maximum=9.0, step=0.5, nullable=True),
        "b": Column(name="b", kind="categorical", categories=("x", "y"), nullable=True),
    }
    codec = TableCodec.fit(Schema(columns=tuple(known[name] for name in columns)), table)
    config = Marginals.Config(**SMALL)
    trained = train(Marginals(), config, codec.spec, codec.encode(table), tmp_path, OPTIONS, Silent())
    made = sampled(trained.network, config, codec, 64)
    for column in columns:
        assert {v for v in made[column].to_pylist() if v is not None} <= {1.0, 1.5, 2.0, 2.5, "x", "y"}


def test_conditions_are_refused_by_name() -> None:
    codec = TableCodec.fit(Schema.infer(small_table()), small_table(), ("phase",))
    with pytest.raises(DataError, match="no conditions"):
        train(Marginals(), Marginals.Config(), codec.spec, codec.encode(small_table()), Path(), OPTIONS, Silent())


# grouping


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 1000), min_size=2, max_size=80), st.integers(2, 32), st.floats(0.1, 100), st.booleans())
def test_groups_are_few_whole_and_neighbours(counts: list[float], most: int, sigma: float, gap: bool) -> None:
    values = len(counts) + gap
    place = Place("a", 0, 1 if gap else None, tuple((np.arange(1, len(counts)) / len(counts)).tolist()), values)
    smooth = smoothed(place, np.array([*counts, *([5.0] if gap else [])]), sigma)
    groups = grouped(place, smooth, most)
    assert (smooth > 0).all() and len(smooth) == values
    assert sorted(set(groups.tolist())) == list(range(groups.max() + 1))
    assert groups.max() + 1 == min(most, len(counts)) + gap
    assert (np.diff(groups) >= 0).all()


def test_smoothing_keeps_what_stands_out_and_evens_what_does_not() -> None:
    place = Place("a", 0, None, tuple((np.arange(1, 64) / 64).tolist()), 64)
    rng = np.random.default_rng(0)
    truth = np.full(64, 20.0)
    truth[40] = 5000.0
    errors = []
    for _ in range(20):
        noisy = truth + rng.normal(0, 50, 64)
        smooth = smoothed(place, noisy, 50)
        assert smooth[40] == pytest.approx(5000, rel=0.1)
        errors.append((np.abs(smooth - truth).sum(), np.abs(np.maximum(noisy, 0) - truth).sum()))
    ours, theirs = np.mean(errors, axis=0)
    assert ours < 0.65 * theirs


def test_rare_categories_share_a_group_and_keep_their_frequencies() -> None:
    words = tuple(f"w{i}" for i in range(40))
    codec = TableCodec.declared(Schema(columns=(Column(name="w", kind="categorical", categories=words),)))
    share = 1.0 / np.arange(1, 41)
    rng = np.random.default_rng(0)
    table = pa.table({"w": rng.choice(words, 20000, p=share / share.sum())})
    network, config = learnt(codec, codec.encode(table)["x"], bins=6, last=300)
    assert network.domain == [6]
    made = np.bincount([words.index(w) for w in sampled(network, config, codec, 20000)["w"].to_pylist()], minlength=40)
    assert np.abs(made / 20000 - share / share.sum()).sum() < 0.06


def test_merging_must_be_a_grouping() -> None:
    mechanism = Exact(CODEC.spec, X, 16)
    before = mechanism.measure((2,), 1.0)
    mechanism.merge(2, [0] * 5 + [1] * 5)
    assert mechanism.domain[2] == 2 and mechanism.measure((2,), 1.0).tolist() == [before[:5].sum(), before[5:].sum()]
    for groups in ([0, 1, 2], [0, 2], [1, 1], [-1, 0]):
        with pytest.raises(CheckFailed, match="group"):
            mechanism.merge(2, groups)


def test_the_quantile_is_that_of_the_normal_law() -> None:
    shares = torch.linspace(1e-7, 1 - 1e-7, 100_001, dtype=torch.float64)
    assert float((normal_quantile(shares) - torch.special.ndtri(shares)).abs().max()) < 1e-7
    assert normal_quantile(torch.tensor([0.0, 1.0], dtype=torch.float64)).abs().max() < 7.1


def test_codes_and_counts_agree_with_plain_counting() -> None:
    codes, domain = discretised(small_codec().spec, small_codec().encode(small_table())["x"], 8)
    assert [place.values for place in places(small_codec().spec, 8)] == list(domain)
    table = counted(codes, domain, (0, 2))
    assert table.sum() == 200 and table[-1].sum() == small_table()["hardness"].null_count
    assert table[3, 1] == ((codes[:, 0] == 3) & (codes[:, 2] == 1)).sum()
