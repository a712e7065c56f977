"""Every hook, implemented by a policy or a plugin of a test's own: what it says is what happens."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel

import genward_families
import genward_policies as shipped
from genward import receipt as receipts
from genward.candidate import Candidate
from genward.contracts import (
    Compressed,
    Condition,
    Detection,
    Evidence,
    Facts,
    Finding,
    Outcome,
    Principal,
    ReleaseInfo,
    Request,
    Rows,
    Shape,
    Silent,
    Verdict,
)
from genward.data.codec import TableCodec
from genward.engine import Engine
from genward.errors import CheckFailed, Denied, IntegrityError, NotFound, PluginError, PolicyError
from genward.hookspecs import hookimpl
from genward.plugins import Plugins
from genward.policy import Policy
from genward.policyset import PolicySet
from genward.table import Table

REQUEST = Request("r", "generate", "pool", 5)
FACTS = Facts(Principal("acme", "key"), 0.0, "sha256:0")
WITH = "\n{name}: {{}}\n"


class _Mine(Policy):
    """A policy without settings; each test derives one hook."""

    name: ClassVar[str] = "mine"


def _announcing(*classes: type[Policy]) -> types.SimpleNamespace:
    @hookimpl
    def genward_policies() -> Sequence[type[Policy]]:
        return classes

    return types.SimpleNamespace(genward_policies=genward_policies, __name__="mine")


def _clauses(world: Any) -> tuple[Condition, ...]:
    """Half of the categories of the widest categorical column."""
    schema = world.platform.pipeline.shelf.get(world.platform.registry.resolve("open:1")).codec.schema
    column = max((c for c in schema.columns if c.kind == "categorical"), key=lambda c: len(c.categories))
    return (Condition(column.name, "in", tuple(sorted(column.categories)[::2])),)


def _with(world: Any, policy: type[Policy]) -> str:
    """Install a policy beside the shipped ones and activate a document that names it; the document's digest."""
    world.platform.__dict__["plugins"] = Plugins.of(shipped, genward_families, _announcing(policy))
    digest: str = world.activate(world.platform.policy_text() + WITH.format(name=policy.name))
    return digest


def _alone(policy: type[Policy]) -> PolicySet:
    return PolicySet([policy(None, None)], "sha256:0")  # type: ignore[arg-type]


# announcing


def test_a_policy_that_is_announced_can_be_named_in_a_document() -> None:
    plugins = Plugins.of(_announcing(_Mine))
    assert plugins.policies == {"mine": _Mine}
    assert plugins.owners["policies/mine"].distribution == "local"


def test_two_plugins_with_one_policy_name_are_refused() -> None:
    with pytest.raises(PluginError, match="mine"):
        Plugins.of(_announcing(_Mine), _announcing(_Mine))


def test_a_codec_that_is_announced_is_found_by_its_name() -> None:
    class Other(TableCodec):
        name = "other"

    @hookimpl
    def genward_codecs() -> Sequence[type[TableCodec]]:
        return [Other]

    assert Plugins.of(types.SimpleNamespace(genward_codecs=genward_codecs)).codecs == {"other": Other}


def test_an_attacker_that_is_announced_is_found_by_its_name() -> None:
    class Copier:
        name = "copier"

    @hookimpl
    def genward_attackers() -> Sequence[type[Any]]:
        return [Copier]

    assert Plugins.of(types.SimpleNamespace(genward_attackers=genward_attackers)).attackers == {"copier": Copier}


# request side


def test_score_chooses_among_the_candidates_of_a_slot(world: Any) -> None:
    """With three candidates a slot, the one with the highest score is the slot's row, and the only one seen."""

    class Scoring(_Mine):
        @hookimpl
        def score(self, request: Request, rows: Rows) -> Any:
            return np.nan_to_num(rows.numbers).sum(axis=1)

    served = world.platform.pipeline.shelf.get(world.platform.registry.resolve("pool:1"))
    graph, meta = served.bundle.graph("sample")
    table = Table(50, 3, 3 * 64)
    engine = Engine(graph, served.codec, table, meta, pool_key=b"0123456789abcdef")
    policies, slots = _alone(Scoring), np.arange(50)
    assert policies.scores
    rows = engine.rows(slots, lambda given: policies.score(REQUEST, FACTS, given))
    every = engine.candidates(slots)
    sums = np.nan_to_num(every.numbers).sum(axis=1).reshape(50, 3)
    assert np.array_equal(np.nan_to_num(rows.numbers).sum(axis=1), sums.max(axis=1))
    assert not np.array_equal(sums.max(axis=1), sums[:, 0])


def test_score_has_one_owner() -> None:
    class Scoring(_Mine):
        @hookimpl
        def score(self, request: Request, rows: Rows) -> Any:
            return np.zeros(len(rows))

    class Second(Scoring):
        name = "second"

    with pytest.raises(PolicyError, match="mine, second"):
        PolicySet([Scoring(None, None), Second(None, None)], "d")  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["pool:1", "open:1"])
def test_screen_changes_rows_before_they_are_digested_and_replay_knows(world: Any, tmp_path: Any, model: str) -> None:
    """Coarsened numbers and dropped rows leave, are logged and replayed as such, also under a later policy."""

    class Coarse(_Mine):
        @hookimpl
        def screen(self, request: Request, rows: Rows) -> Rows:
            keep = rows.codes[:, 2] != 0
            return Rows(np.round(rows.numbers[keep], -1), rows.codes[keep], rows.slots[keep])

    before = world.platform.registry.active_policy()[0]
    _with(world, Coarse)
    for n in (300, 12_000 if model == "open:1" else 2000):
        answer = world.platform.client(world.key).generate(model, n=n, start=0, format="csv")
        assert 0 < answer.body.count(b"\n") - 1 <= n
        file = tmp_path / f"{n}.json"
        file.write_bytes(answer.receipt())
        assert world.platform.replay(file)["replayed"] == answer.body.count(b"\n") - 1
    world.platform.rollback_policy(before)
    assert world.platform.replay(file)["rows"] == "the same bit for bit"


class _Picky(_Mine):
    """Leaves one row of some, by its slot."""

    one_of: ClassVar[int] = 4

    @hookimpl
    def screen(self, request: Request, rows: Rows) -> Rows:
        keep = rows.slots % self.one_of == 0
        return Rows(rows.numbers[keep], rows.codes[keep], rows.slots[keep])


@pytest.mark.parametrize(("model", "n"), [("pool:1", 300), ("open:1", 300), ("open:1", 11_000)])
def test_pages_and_streams_are_filled_again_when_a_screen_drops_rows(
    world: Any, tmp_path: Any, model: str, n: int
) -> None:
    """All n rows come, the yield counts what was looked at, the next page goes on behind it, and each replays."""
    _with(world, _Picky)
    client, seen = world.platform.client(world.key), []
    for number in range(2):
        answer = client.generate(model, n=n, format="csv")
        assert answer.body.count(b"\n") - 1 == n
        assert "genward-exhausted" not in answer.headers
        seen.append(answer.body.split(b"\n")[1:-1])
        file = tmp_path / f"{number}.json"
        file.write_bytes(answer.receipt())
        assert world.platform.replay(file)["replayed"] == n
        settle = world.entries(answer.headers["genward-request"])[-1]
        assert settle["out"]["rows"] == n < settle["plan"]["n"]
    if n < 10_000:
        assert answer.headers["genward-yield"] == f"{n / settle['plan']['n']:.4f}"
    assert len({*seen[0], *seen[1]}) > 1.9 * n


@pytest.mark.parametrize("n", [1000, 12_000])
def test_a_screened_walk_that_ends_says_so_and_gives_no_slot_twice(world: Any, n: int) -> None:
    _with(world, _Picky)
    answer = world.platform.client(world.key).generate("pool:1", n=n, where=["REFERENCE: year>1990"])
    found = json.loads(answer.body)
    assert found["exhausted"] is True
    settle = world.entries(answer.headers["genward-request"])[-1]
    assert (settle["plan"]["n"], settle["out"]["rows"]) == (3000, len(found["rows"]))
    assert 0 < len(found["rows"]) <= 750


def test_a_screen_that_leaves_nothing_ends_too(world: Any) -> None:
    class Closed(_Picky):
        one_of = 1 << 40

    _with(world, Closed)
    client = world.platform.client(world.key)
    pooled, opened = client.generate("pool:1", n=5), client.generate("open:1", n=5, start=1)
    assert (pooled.headers["genward-exhausted"], opened.headers["genward-exhausted"]) == ("true", "true")
    assert json.loads(opened.body)["rows"] == []


def test_a_stream_of_a_pool_meets_each_slot_once(world: Any) -> None:
    """Also where its last piece would reach beyond the end of the walk."""
    from genward.stream import PIECE
    from genward.table import Table

    served = world.platform.pipeline.shelf.get(world.platform.registry.resolve("pool:1"))
    graph, meta = served.bundle.graph("sample")
    served.engine = Engine(graph, served.codec, Table(PIECE + 500, 1, 64), meta, pool_key=b"0123456789abcdef")
    answer = world.platform.client(world.key).generate("pool:1", n=2 * PIECE)
    found = json.loads(answer.body)
    assert (len(found["rows"]), found["exhausted"]) == (PIECE + 500, True)


def test_mark_travels_beside_the_rows(world: Any) -> None:
    class Marking(_Mine):
        @hookimpl
        def mark(self, request: Request, payload: Mapping[str, str]) -> Mapping[str, str]:
            return {**payload, "sign": f"made for {request.model}"}

    _with(world, Marking)
    client = world.platform.client(world.key)
    arrow = pa.ipc.open_stream(client.generate("pool:1", n=3, format="arrow").body).schema
    assert arrow.metadata[b"genward.sign"] == b"made for pool"
    assert b'"sign":"made for pool"' in client.generate("pool:1", n=3).body


def test_observe_sees_how_each_request_ended_and_may_fail(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[int, str, int]] = []

    class Watching(_Mine):
        @hookimpl
        def observe(self, request: Request, outcome: Outcome) -> None:
            seen.append((request.n, outcome.status, outcome.rows))
            raise RuntimeError("nobody minds")

    _with(world, Watching)
    client = world.platform.client(world.key)
    client.generate("pool:1", n=7)
    client.generate("open:1", n=11_000)
    assert seen == [(7, "served", 7), (11_000, "served", 11_000)]


def test_detect_gathers_what_every_policy_found() -> None:
    class Detecting(_Mine):
        @hookimpl
        def detect(self, rows: Any, releases: Sequence[ReleaseInfo], tenants: Sequence[str]) -> Sequence[Detection]:
            return [Detection(info.digest, tenants[0], 0.01, 3.1, len(rows)) for info in releases]

    class Second(Detecting):
        name = "second"

    both = PolicySet([Detecting(None, None), Second(None, None)], "d")  # type: ignore[arg-type]
    found = both.detect([1, 2, 3], [ReleaseInfo("a", 1, "sha256:a"), ReleaseInfo("b", 1, "sha256:b")], ["acme"])
    assert [item.release for item in found] == ["sha256:a", "sha256:b"] * 2
    assert both.detects
    assert not _alone(_Mine).detects


@pytest.mark.parametrize("n", [300, 12_000])
def test_clauses_that_a_policy_adds_are_honoured_told_committed_to_and_replayed(
    world: Any, tmp_path: Any, n: int
) -> None:
    """A key's slice: every row lies in it, also where the caller asked for nothing, and the receipt opens on it."""
    where = _clauses(world)

    class Slicing(_Mine):
        seen: ClassVar[list[Any]] = []

        @hookimpl
        def admit(self, request: Request, facts: Facts) -> Verdict:
            return Verdict(True, where=where)

        @hookimpl
        def observe(self, request: Request, facts: Facts, outcome: Outcome) -> None:
            self.seen.append((request.where, facts.principal.tenant))

    before = world.platform.registry.active_policy()[0]
    _with(world, Slicing)
    answer = world.platform.client(world.key).generate("open:1", n=n, start=0, format="arrow")
    values = pa.ipc.open_stream(answer.body).read_all()[where[0].column].to_pylist()
    assert len(values) == n
    assert set(values) <= set(where[0].value)  # type: ignore[arg-type]
    assert json.loads(answer.headers["genward-added"]) == [[where[0].column, "in", list(where[0].value)]]  # type: ignore[arg-type]
    assert Slicing.seen[0][1] == "acme"
    assert Slicing.seen[0][0][0].column == where[0].column
    world.platform.rollback_policy(before)
    file = tmp_path / "receipt.json"
    file.write_bytes(answer.receipt())
    assert receipts.verify(receipts.read(file.read_bytes()))["conditions"] == "as the log committed to"
    assert world.platform.replay(file)["replayed"] == n
    told = json.loads(file.read_bytes())
    told["asked"]["added"][0][2] = told["asked"]["added"][0][2][:1]
    with pytest.raises(IntegrityError, match="committed"):
        receipts.verify(told)


def test_a_walk_that_a_policy_cuts_short_brings_no_other_row_however_it_is_asked(world: Any, tmp_path: Any) -> None:
    class Short(_Mine):
        @hookimpl
        def admit(self, request: Request, facts: Facts) -> Verdict:
            return Verdict(True, reach=40)

    _with(world, Short)
    client = world.platform.client(world.key)
    pages = [client.generate("pool:1", n=15, format="csv").body.split(b"\r\n")[1:16] for _ in range(6)]
    assert len({row for page in pages for row in page}) <= 40
    whole = client.generate("pool:1", n=100, start=3, format="csv")
    assert whole.body.count(b"\n") == 41
    assert whole.headers["genward-exhausted"] == "true"
    file = tmp_path / "receipt.json"
    file.write_bytes(whole.receipt())
    assert world.platform.replay(file)["replayed"] == 40


def test_shape_decides_on_slots_and_candidates_and_seals_files(world: Any) -> None:
    """What policies shape is sealed, signed, measured as it will be, and there for the policies that serve it."""

    class Shaping(_Mine):
        @hookimpl
        def shape(self, candidate: Any, progress: Any) -> Shape:
            assert candidate.exported is not None
            return Shape(250, 2, {"mine.json": b"{}"}, [Evidence("mine.slots", 250.0, "asked")])

        @hookimpl
        def measure(self, candidate: Any) -> Sequence[Evidence]:
            assert candidate.sealed["mine.json"] == b"{}"
            return [Evidence("mine.candidates", float(candidate.table.candidates), "counted")]

        @hookimpl
        def score(self, request: Request, facts: Facts, rows: Rows) -> Any:
            assert self.context.sealed is not None
            assert facts.release is not None
            assert self.context.sealed(facts.release.digest, "mine.json") == b"{}"
            return np.nan_to_num(rows.numbers).sum(axis=1)

    before = world.platform.registry.active_policy()[0]
    _with(world, Shaping)
    candidate = world.platform.candidates()[0]["id"]
    released = world.platform.release(candidate, "shaped", slots=300, evaluate_rows=600, grant=["acme"])
    served = world.platform.pipeline.shelf.get(world.platform.registry.resolve(released.reference))
    assert (served.table.slots, served.table.candidates, served.table.block % 2) == (250, 2, 0)
    claims = {item["claim"] for item in json.loads(served.bundle.files["evidence.json"])}
    assert {"mine.slots", "mine.candidates"} <= claims
    answer = world.platform.client(world.key).generate(released.reference, n=250, start=0, format="arrow")
    numbers = pa.ipc.open_stream(answer.body).read_all()
    assert numbers.num_rows == 250
    with pytest.raises(NotFound, match=r"no file 'other\.json'"):
        world.platform._context.sealed(released.digest, "other.json")
    world.platform.rollback_policy(before)
    with pytest.raises(Denied, match="no active policy chooses"):
        world.platform.client(world.key).generate(released.reference, n=3)


def test_two_policies_cannot_shape_one_thing() -> None:
    def shaping(label: str, shape: Shape) -> Policy:
        class Shaping(_Mine):
            name = label

            @hookimpl
            def shape(self, candidate: Any, progress: Any) -> Shape:
                return shape

        return Shaping(None, None)  # type: ignore[arg-type]

    candidate = Candidate(None, None, None, None, None)  # type: ignore[arg-type]

    def together(one: Shape, two: Shape) -> Shape:
        return PolicySet([shaping("a", one), shaping("b", two)], "d").shape(candidate, Silent())

    found = together(Shape(500, None, {"a": b"1"}), Shape(300, 2, {"b": b"2"}))
    assert (found.slots, found.candidates, found.files) == (300, 2, {"a": b"1", "b": b"2"})
    with pytest.raises(PolicyError, match="candidates"):
        together(Shape(candidates=2), Shape(candidates=2))
    with pytest.raises(PolicyError, match="'a'"):
        together(Shape(files={"a": b""}), Shape(files={"a": b""}))


# release side


def test_check_data_stops_a_training_before_it_begins(world: Any) -> None:
    class Checking(_Mine):
        @hookimpl
        def check_data(self, dataset: Any) -> Sequence[Finding]:
            return [Finding("warning", "fine so far"), Finding("error", f"{dataset.rows} rows are too few", "rows")]

    _with(world, Checking)
    before = world.platform.candidates()
    name = world.platform.datasets()[0]["name"]
    with pytest.raises(CheckFailed, match="rows are too few"):
        world.platform.train(name, family="vae", steps=2)
    assert world.platform.candidates() == before


def test_protect_training_is_asked_of_one_owner_only() -> None:
    class Protecting(_Mine):
        @hookimpl
        def protect_training(self, training: Any) -> Any:
            return ("protected", training)

    class Second(Protecting):
        name = "second"

    assert _alone(Protecting).protects
    assert _alone(Protecting).protect_training("a training") == ("protected", "a training")  # type: ignore[arg-type]
    assert not _alone(_Mine).protects
    with pytest.raises(PolicyError, match="protect_training"):
        PolicySet([Protecting(None, None), Second(None, None)], "d")  # type: ignore[arg-type]


def test_compress_measure_and_gate_decide_on_a_release(world: Any) -> None:
    """The compressed network is what is exported, what was measured reaches the gate, and its no leaves no release."""

    class Deciding(_Mine):
        @hookimpl
        def compress(self, candidate: Any, progress: Any) -> Any:
            import torch

            assert candidate.train is None
            assert candidate.test.num_rows > 0
            network = candidate.network()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.zero_()
            return Compressed(network, candidate.config)

        @hookimpl
        def measure(self, candidate: Any) -> Sequence[Evidence]:
            words = candidate.synthetic["PROPERTY: Microstructure"].drop_null().to_pylist()
            return [Evidence("top", max(words.count(word) for word in words) / len(words), "counting", len(words))]

        @hookimpl
        def gate(self, evidence: Sequence[Evidence]) -> Verdict:
            (top,) = [item.value for item in evidence if item.claim == "top"]
            return Verdict(bool(top and top > 0.12), (f"the commonest of 40 categories has {top:.3f}",))

    _with(world, Deciding)
    before = world.platform.releases()
    candidate = world.platform.candidates()[0]["id"]
    with pytest.raises(CheckFailed, match=r"has 0\.0\d"):
        world.platform.release(candidate, "empty", slots=300, evaluate_rows=600)
    after = [row for row in world.platform.releases() if row["stage"] == "ready" and row not in before]
    assert [row["name"] for row in after] == ["empty"]  # the parent, which nobody compressed


def test_a_policys_settings_are_its_own_model(world: Any) -> None:
    class Settings(BaseModel):
        least: int = 3

    class Least(_Mine):
        Config = Settings

        @hookimpl
        def admit(self, request: Request, facts: Any) -> Verdict:
            return Verdict(request.n >= self.config.least, ("too few",))

    _with(world, Least)
    client = world.platform.client(world.key)
    assert client.generate("pool:1", n=3).body
    with pytest.raises(Denied, match="too few"):
        client.generate("pool:1", n=2)
