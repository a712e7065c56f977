"""Sketches are small and add up in any order; what looks like an extraction is flagged, recorded and forgiven."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import numpy as np
import pytest

from genward.contracts import Condition, Facts, Outcome, Principal, ReleaseInfo, Request
from genward.data.codec import TableCodec
from genward.data.schema import Schema
from genward.errors import IntegrityError, Unavailable
from genward.testing import small_table
from genward_policies.extraction import Extraction
from genward_policies.extraction.sketch import CELLS, Places, Query, Sketch
from genward_policies.extraction.suspicion import LEAST, evenness, suspicion
from genward_policies.extraction.traffic import Traffic
from genward_policies.extraction.watch import EVERY, Watch, level


def _sketch(queries: list[Query]) -> Sketch:
    found = Sketch()
    for query in queries:
        found.add(query)
    return found


def test_a_sketch_stays_small_and_comes_back(rows: Any) -> None:
    codec, traffic = rows
    places, sketch = Places(codec), Sketch()
    for asked in islice(traffic.uniform(np.random.default_rng(1)), 3000):
        sketch.add(places.of(asked))
    data = sketch.to_bytes()
    assert len(data) == len(Sketch().to_bytes()) <= 25_000
    again = Sketch.from_bytes(data)
    assert again.to_bytes() == data
    assert (again.queries, again.new) == (3000, sketch.new)
    with pytest.raises(IntegrityError):
        Sketch.from_bytes(data[:-1])


@pytest.fixture(scope="module")
def rows() -> tuple[TableCodec, Traffic]:
    """A release's codec, and traffic on it."""
    table = small_table(800)
    codec = TableCodec.fit(Schema.infer(table), table)
    return codec, Traffic(codec, table)


def test_the_order_of_conditions_does_not_count(rows: Any) -> None:
    codec, _ = rows
    name = codec.number_columns[0]
    low, high = codec.quantiles[name].ends
    both = (Condition(name, ">=", low), Condition(name, "<=", high))
    places = Places(codec)
    assert places.of(both) == places.of(both[::-1])
    assert places.of(both).exact != places.of(both[:1]).exact


def test_a_repeat_is_not_new_and_a_step_beside_it_is_a_probe(rows: Any) -> None:
    codec, _ = rows
    name = codec.number_columns[0]
    low, high = codec.quantiles[name].ends
    places, sketch = Places(codec), Sketch()
    values = [0.5, 0.5, 0.505, 0.9]
    for share in values:
        sketch.add(places.of((Condition(name, ">=", low + share * (high - low)),)))
    assert (sketch.queries, sketch.new, sketch.probes) == (4, 3, 1)


def test_evenness_of_uniform_cells_is_one() -> None:
    rng = np.random.default_rng(3)
    sketch = Sketch()
    np.add.at(sketch.cells, rng.integers(CELLS, size=2000), 1)
    assert evenness(sketch) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("kind", "flagged"), [("uniform", 1), ("sweep", 1), ("active", 1), ("honest", 0), ("bulk", 0)])
def test_streams_are_told_apart_by_200_queries(mpea: Any, kind: str, flagged: int) -> None:
    """Twenty streams of each kind on the alloys: attacks are flagged but for a few, customers are not but for one."""
    codec, traffic = mpea
    places, found = Places(codec), []
    for seed in range(20):
        sketch = Sketch()
        for asked in islice(traffic.kinds[kind](np.random.default_rng(seed)), 200):
            sketch.add(places.of(asked))
        found.append(suspicion(sketch) >= 1)
    assert sum(found) >= 18 if flagged else sum(found) <= 1


@pytest.fixture(scope="module")
def mpea() -> tuple[TableCodec, Traffic]:
    """The alloys' codec, and traffic on it."""
    return _example("mpea_alloys.csv", 2000)


def _example(file: str, rows: int) -> tuple[TableCodec, Traffic]:
    from pathlib import Path

    from genward.data.readers import read_table

    folder = Path(__file__).parents[3] / "examples" / "data"
    schema = Schema.from_yaml((folder / f"{file.split('.')[0]}.yaml").read_text(), file)
    table = read_table(folder / file, schema).slice(0, rows)
    codec = TableCodec.fit(schema, table)
    return codec, Traffic(codec, table.slice(0, 600))


def test_numbers_far_from_where_rows_lie_are_strange_and_typical_ones_are_not(rows: Any) -> None:
    codec, _ = rows
    name = "hardness"  # has a long tail
    low, high = codec.quantiles[name].ends
    places, typical, far = Places(codec), Sketch(), Sketch()
    for i in range(60):
        typical.add(places.of((Condition(name, ">=", low + i / 6000 * (high - low)),)))
        far.add(places.of((Condition(name, ">=", high - i / 600 * (high - low)),)))
    assert typical.surprise < 0.1 < 1.5 < far.surprise


def test_low_and_slow_is_found_where_ranges_have_long_tails() -> None:
    """Of twelve streams of 1,000 on the transport table, most are flagged, and of twelve customers hardly one."""
    codec, traffic = _example("mp_transport.csv.gz", 40_000)
    places = Places(codec)
    found = {"slow": 0, "honest": 0}
    for kind in found:
        for seed in range(12):
            sketch = Sketch()
            for asked in islice(traffic.kinds[kind](np.random.default_rng(seed)), 1000):
                sketch.add(places.of(asked))
            found[kind] += suspicion(sketch) >= 1
    assert found["slow"] >= 7
    assert found["honest"] <= 1


def test_nothing_is_said_before_there_are_enough_queries() -> None:
    assert suspicion(_sketch([Query(i, i, i % CELLS, ()) for i in range(LEAST - 1)])) == 0.0
    assert suspicion(_sketch([Query(i, i, i % CELLS, ()) for i in range(LEAST)])) > 1


def test_levels_rise_with_looks_in_a_row() -> None:
    assert [level(strikes) for strikes in range(6)] == [0, 1, 2, 2, 3, 3]


# through the policy, on a real release


def _facts(platform: Any, key: str = "k1") -> Facts:
    info = platform.registry.resolve("guarded")
    return Facts(Principal("acme", key), 1.8e9, "d", ReleaseInfo("guarded", 1, info.digest, ("acme",)))


def _policy(platform: Any) -> Extraction:
    return Extraction(Extraction.Config(max_risk={"key": 1.0}), platform._context)


def _sent(platform: Any, policy: Extraction, kind: str, n: int, key: str = "k1") -> None:
    codec = TableCodec.from_json(platform.bundle_file("guarded", "codec.json"))
    population = platform.dataset(platform.datasets()[0]["name"]).table().slice(0, 400)
    for i, asked in enumerate(islice(Traffic(codec, population).kinds[kind](np.random.default_rng(5)), n)):
        request = Request(f"{key}-{i}", "generate", "guarded", 1, asked)
        policy.observe(request, _facts(platform, key), Outcome("served", 1, 1))


def _flags(platform: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    index = 0
    while True:
        try:
            entry = json.loads(platform.audit.entry(index))
        except Exception:
            return [e for e in found if e.get("act", "").startswith("extraction.")]
        found.append(entry)
        index += 1


def test_a_sweeping_key_is_flagged_in_the_log_by_an_id_and_slowed(guarded: Any) -> None:
    policy = _policy(guarded)
    _sent(guarded, policy, "uniform", 200)
    flags = _flags(guarded)
    assert [flag["detail"]["level"] for flag in flags][:2] == ["record", "slow"]
    assert "k1" not in json.dumps(flags)
    assert len({flag["detail"]["key_id"] for flag in flags}) == 1
    refused = policy.admit(Request("x", "generate", "guarded", 500), _facts(guarded))
    assert refused.reasons == ("extraction: a limit is reached",)
    assert policy.admit(Request("y", "generate", "guarded", 500), _facts(guarded, "k2")).allow


def test_an_honest_key_is_left_alone(guarded: Any) -> None:
    policy = _policy(guarded)
    _sent(guarded, policy, "honest", 200)
    assert _flags(guarded) == []
    assert policy.admit(Request("x", "generate", "guarded", 500), _facts(guarded)).allow


def test_what_was_refused_or_had_no_condition_is_not_counted(guarded: Any) -> None:
    policy, asked = _policy(guarded), (Condition("PROPERTY: BCC/FCC/other", "=", "BCC"),)
    for i in range(EVERY + 1):
        policy.observe(Request(f"a{i}", "generate", "guarded", 1, asked), _facts(guarded), Outcome("denied", 0))
        policy.observe(Request(f"b{i}", "generate", "guarded", 1), _facts(guarded), Outcome("served", 1, 1))
    assert policy._watch.listed() == []


def test_two_workers_share_what_they_saw(guarded: Any) -> None:
    one, two = _policy(guarded), _policy(guarded)
    _sent(guarded, one, "uniform", 3 * EVERY)
    _sent(guarded, two, "uniform", EVERY)
    assert [row["queries"] for row in two._watch.listed()] == [4 * EVERY]


def test_what_another_worker_saw_counts_as_seen(guarded: Any) -> None:
    for _ in range(2):
        watch = Watch(guarded._context, guarded.counters)
        for i in range(EVERY):
            watch.add(_facts(guarded), Query(i, i, i, ()))
    (row,) = watch.listed()
    assert (row["queries"], row["new"]) == (2 * EVERY, EVERY)


def test_a_sketch_that_cannot_be_written_is_written_later(guarded: Any, monkeypatch: Any) -> None:
    watch = Watch(guarded._context, guarded.counters)
    for i in range(EVERY - 1):
        watch.add(_facts(guarded), Query(i, i, i, ()))
    with monkeypatch.context() as away:
        away.setattr(watch._store, "begin", _away)
        with pytest.raises(Unavailable):
            watch.add(_facts(guarded), Query(EVERY, 1, 1, ()))
    watch.add(_facts(guarded), Query(EVERY + 1, 1, 1, ()))
    assert [row["queries"] for row in watch.listed()] == [EVERY + 1]


def _away() -> Any:
    raise Unavailable("the store is away")


def test_a_reset_is_an_act_and_reaches_workers_that_hold_the_sketch(guarded: Any) -> None:
    from genward_policies.extraction.acts import reset

    policy = _policy(guarded)
    _sent(guarded, policy, "uniform", 200)
    assert policy._watch.level(_facts(guarded)) >= 2
    assert reset(guarded, "guarded", "acme", "k1", "gw_admin") == 1
    policy._watch._looked = float("-inf")
    assert policy._watch.level(_facts(guarded)) == 0
    _sent(guarded, policy, "uniform", EVERY)
    assert [row["queries"] for row in policy._watch.listed()] == [EVERY]
    assert _flags(guarded)[-1]["act"] == "extraction.reset"
    assert _flags(guarded)[-1]["actor"] == "gw_admin"


def test_a_flag_that_cannot_be_recorded_has_no_effect(guarded: Any) -> None:
    from dataclasses import replace

    context = replace(guarded._context, audit=None)
    watch = Watch(context, guarded.counters)
    with pytest.raises(Unavailable):
        for i in range(LEAST):
            watch.add(_facts(guarded), Query(i, i, i % CELLS, ()))
    assert all(row["level"] == "none" for row in watch.listed())


def test_conditions_of_requests_are_watched_through_the_pipeline(guarded: Any) -> None:
    client = guarded.client(guarded.create_key("acme", ["consumer"]))
    for i in range(EVERY):
        client.generate("guarded", n=1, where=[f"PROPERTY: Calculated Density (g/cm$^3$) > {2 + i / 10}"])
    (row,) = guarded.pipeline._active(None)._policies["extraction"]._watch.listed()
    assert (row["queries"], row["new"], row["tenant"]) == (EVERY, EVERY, "acme")


def test_a_worker_with_many_keys_writes_after_responses_and_forgets_nothing(guarded: Any, monkeypatch: Any) -> None:
    from genward_policies.extraction import watch as module

    monkeypatch.setattr(module, "_KEPT", 2)
    watch, keys = Watch(guarded._context, guarded.counters), [_facts(guarded, f"k{i}") for i in range(4)]

    def written() -> dict[str, int]:
        return {row["key"]: row["queries"] for row in watch.listed()}

    for key in keys[:2]:
        watch.add(key, Query(1, 1, 1, ()))
    assert [watch.level(key) for key in keys] == [0] * 4
    assert written() == {}
    for key in keys[2:]:
        watch.add(key, Query(1, 1, 1, ()))
    assert written() == {"k0": 1, "k1": 1}
    for key in keys:
        watch.add(key, Query(2, 2, 2, ()))
    assert written() == {"k0": 2, "k1": 2, "k2": 1, "k3": 1}
