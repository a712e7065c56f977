"""The engine: a row's bytes depend on bundle, key and row alone; deadlines really stop; providers are not guessed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from genward import engine as engines
from genward.engine import Engine, choose_block, digest
from genward.engine_session import Session, stopping
from genward.errors import CheckFailed, DeadlineExceeded, IntegrityError, Unavailable, UsageError
from genward.table import Predicate, Table, Walk, scan

Make = Callable[..., Engine]
KEY = b"0123456789abcdef"


def as_bytes(rows: Any) -> bytes:
    return bytes(rows.numbers.tobytes() + rows.codes.tobytes() + rows.slots.tobytes())


def test_shuffled_requests_and_any_cache_give_the_same_bytes(tiny: Make) -> None:
    whole = tiny().candidates(np.arange(1000))
    order = np.random.default_rng(0).permutation(1000)
    for cache in (256 << 20, 5000, 0):
        engine = tiny(cache_bytes=cache)
        found = engine.candidates(order)
        assert found.numbers.tobytes() == whole.numbers[order].tobytes()
        assert found.codes.tobytes() == whole.codes[order].tobytes()
        again = [engine.candidates(part) for part in np.array_split(order, 13)]
        assert np.concatenate([r.numbers for r in again]).tobytes() == found.numbers.tobytes()


def test_evicting_blocks_keeps_bytes_and_the_budget(tiny: Make) -> None:
    engine = tiny(slots=None, cache_bytes=5000)
    first = engine.candidates(np.arange(100))
    engine.candidates(np.arange(5000, 9000))
    assert engine._recent.nbytes <= 5000 and not engine.cached(np.arange(100))
    assert as_bytes(engine.candidates(np.arange(100))) == as_bytes(first)


def test_another_process_gives_the_same_bytes(tiny: Make, tmp_path: Path, tiny_bytes: bytes) -> None:
    (tmp_path / "g.onnx").write_bytes(tiny_bytes)
    script = """
        import hashlib, sys, runpy, numpy as np
        c = runpy.run_path(sys.argv[1])
        from genward.engine import Engine
        from genward.table import Table
        graph, table = open("g.onnx", "rb").read(), Table(1000, 1, 64)
        e = Engine(graph, c["TinyCodec"](), table, c["tiny_meta"](), pool_key=b"0123456789abcdef")
        r = e.candidates(np.arange(999, -1, -1))
        print(hashlib.sha256(r.numbers[::-1].tobytes() + r.codes[::-1].tobytes()).hexdigest())
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(Path(__file__).with_name("conftest.py"))]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = tiny().candidates(np.arange(1000))
    assert out.stdout.strip() == hashlib.sha256(rows.numbers.tobytes() + rows.codes.tobytes()).hexdigest()


@pytest.mark.parametrize("cache", [256 << 20, 1 << 14])
def test_concurrent_threads_agree_and_compute_each_block_once(tiny: Make, cache: int) -> None:
    whole = tiny().candidates(np.arange(1000))
    engine, counted = tiny(cache_bytes=cache), []
    run = engine._program.run
    engine._program.run = lambda *a: (counted.append(1), time.sleep(0.002), run(*a))[2]  # type: ignore[method-assign,func-returns-value]
    orders = [np.random.default_rng(i).permutation(1000) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for order, found in zip(orders, pool.map(engine.candidates, orders), strict=True):
            assert found.numbers.tobytes() == whole.numbers[order].tobytes()
    assert cache < 1 << 20 or len(counted) == 16


def test_candidates_of_a_slot_stand_side_by_side(tiny: Make) -> None:
    engine = tiny(candidates=4)
    flat = tiny(slots=4000).candidates(np.arange(4000))
    found = engine.candidates(np.array([7, 3]))
    assert found.slots.tolist() == [7] * 4 + [3] * 4
    assert found.numbers.tobytes() == flat.numbers[[28, 29, 30, 31, 12, 13, 14, 15]].tobytes()
    chosen = engine.rows(np.array([7, 3]), score=lambda r: np.array([0, 3, 1, 3, 9, 1, 1, 1]))
    assert chosen.numbers.tobytes() == found.numbers[[1, 4]].tobytes() and chosen.slots.tolist() == [7, 3]
    assert engine.rows(np.array([7, 3])).numbers.tobytes() == found.numbers[[0, 4]].tobytes()


@pytest.mark.parametrize("candidates", [1, 4])
def test_a_stream_is_the_same_rows_and_keeps_nothing(tiny: Make, candidates: int) -> None:
    engine = tiny(slots=None, candidates=candidates)
    parts = list(engine.stream(37, 300, key=b"t" * 16))
    assert engine._recent.nbytes == 0 and list(engine.stream(5, 0)) == []
    whole = engine.candidates(np.arange(37, 337), key=b"t" * 16)
    assert b"".join(p.numbers.tobytes() for p in parts) == whole.numbers.tobytes()
    assert np.concatenate([p.slots for p in parts]).tolist() == whole.slots.tolist()


def test_keys_of_tenants_give_unrelated_rows(tiny: Make) -> None:
    engine = tiny(slots=None)
    one, two = (engine.candidates(np.arange(200), key=key) for key in (b"a" * 16, b"b" * 16))
    assert not (one.numbers == two.numbers).any()


def test_each_slot_meets_its_cell(tiny: Make, tiny_schema: Any) -> None:
    engine = tiny(candidates=2, given=True)
    cell = engine.table.cell_of(np.arange(1000), KEY)
    assert (engine.rows(np.arange(1000)).codes[:, 0] == cell).all()
    predicate = Predicate.parse(["phase=bcc", "density>0"], tiny_schema)
    walk = Walk(engine.table, b"w" * 16, KEY, predicate.cells(engine.table))
    page = scan(walk, 11, 40, engine.rows, lambda r: predicate.mask(r.numbers, r.codes, engine.codec))
    assert len(page.rows) == 40 and (page.rows.codes == 1).all() and (page.rows.numbers[:, 0] > 0).all()


def test_random_pages_of_served_rows_honour_their_predicates(tiny: Make, tiny_schema: Any) -> None:
    _pages(tiny(2000, given=True), tiny_schema, 1_500)


@pytest.mark.soak
def test_a_million_random_pages_of_served_rows_honour_their_predicates(tiny: Make, tiny_schema: Any) -> None:
    _pages(tiny(2000, given=True), tiny_schema, 1_000_000)


CLAUSES = ((), ("phase=bcc",), ("phase!=fcc", "density>0"), ("density<=1.5",), ("hardness>=-1", "density!=0"))


def _pages(engine: Engine, schema: Any, count: int) -> None:
    """Pages of six tenants: none outside its predicate, none with a row twice, all equal to the whole table's rows."""
    whole = engine.rows(np.arange(2000))
    numbers, phase = whole.numbers, whole.codes[:, 0]
    x, y = numbers.T
    truth = [np.ones(2000, bool), phase == 1, (phase != 0) & (x > 0), x <= 1.5, (y >= -1) & ~np.isnan(x) & (x != 0)]
    predicates = [Predicate.parse(c, schema) for c in CLAUSES]
    walks = [[Walk(engine.table, bytes([t]) * 16, KEY, p.cells(engine.table)) for p in predicates] for t in range(6)]
    draws = np.random.default_rng(3).integers(0, 2**31, (count, 4))
    for tenant, which, start, n in draws.tolist():
        which %= len(CLAUSES)
        mask = predicates[which].mask
        page = scan(
            walks[tenant % 6][which], start, n % 25, engine.rows, lambda r, m=mask: m(r.numbers, r.codes, engine.codec)
        )
        slots = page.rows.slots
        assert len(slots) == n % 25 and truth[which][slots].all() and len(set(slots.tolist())) == len(slots)
        assert page.rows.numbers.tobytes() == numbers[slots].tobytes()


def test_prewarming_fills_the_pool(tiny: Make) -> None:
    engine = tiny()
    assert (engine.prewarm(130), engine.cached(np.arange(128)), engine.cached(np.arange(129))) == (2, True, False)
    assert engine.prewarm() == 16 and engine.cached(np.arange(1000))
    assert tiny(slots=None).prewarm() == 0


def test_slots_that_do_not_exist_are_refused(tiny: Make) -> None:
    for slots in ([1000], [-1]):
        with pytest.raises(UsageError, match="slots"):
            tiny().candidates(np.array(slots))
    assert len(tiny().candidates(np.empty(0, dtype=np.int64))) == 0


def endless(onnx_model: Callable[..., bytes], onnx_value: Callable[..., Any]) -> bytes:
    """A Loop of 2^62 iterations that never ends by itself."""
    scalar = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [scalar("i", TensorProto.INT64, []), scalar("go", TensorProto.BOOL, []), scalar("x", TensorProto.FLOAT, None)],
        [scalar("go_on", TensorProto.BOOL, []), scalar("y", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Loop", ["times", "true", "z"], ["out"], body=body),
        helper.make_node("Cast", ["out"], ["numbers"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["z"], ["codes"], to=TensorProto.INT32),
    ]
    outputs = [onnx_value("numbers", TensorProto.DOUBLE, 2), onnx_value("codes", TensorProto.INT32, 2)]
    constants = {"times": np.array(2**62), "true": np.array(True)}
    return onnx_model(nodes, [onnx_value("z", TensorProto.FLOAT, 2)], outputs, constants)


@pytest.fixture
def stuck(tiny: Make, onnx_model: Callable[..., bytes], onnx_value: Callable[..., Any]) -> Engine:
    noise = [{"name": "z", "shape": [2], "law": "normal"}]
    meta = {"noise": noise, "condition": 0, "outputs": ["numbers", "codes"], "loops": 1, "opset": 20}
    codec = tiny().codec
    return Engine(endless(onnx_model, onnx_value), codec, Table(100, 1, 16), meta, pool_key=KEY)


def test_a_deadline_stops_a_running_graph(stuck: Engine) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        stuck.candidates(np.arange(3), deadline=began + 0.3)
    assert 0.25 < time.monotonic() - began < 3
    with pytest.raises(DeadlineExceeded):
        next(stuck.stream(0, 5, deadline=time.monotonic() + 0.1))
    with pytest.raises(DeadlineExceeded):
        stuck.candidates(np.arange(3), deadline=began)


def test_who_waits_for_another_threads_block_keeps_his_own_deadline(stuck: Engine) -> None:
    def long() -> None:
        with pytest.raises(DeadlineExceeded):
            stuck.candidates(np.arange(3), deadline=time.monotonic() + 1.0)

    thread = threading.Thread(target=long)
    thread.start()
    time.sleep(0.2)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        stuck.candidates(np.arange(3), deadline=began + 0.2)
    assert time.monotonic() - began < 0.7
    thread.join()


def test_a_deadline_in_time_changes_nothing(tiny: Make) -> None:
    late = time.monotonic() + 60
    assert as_bytes(tiny().candidates(np.arange(99), deadline=late)) == as_bytes(tiny().candidates(np.arange(99)))
    with stopping(None) as stop:
        assert stop is None


def test_a_demanded_provider_that_is_missing_is_an_error(tiny: Make) -> None:
    for providers in (("TensorrtExecutionProvider", "CPUExecutionProvider"), ("NoSuchProvider",), ()):
        with pytest.raises(Unavailable, match="provider"):
            tiny(providers=providers)
    assert tiny().provider == "CPUExecutionProvider"
    assert set(tiny().fingerprint) == {"onnxruntime", "provider", "cpu"}


def test_what_onnxruntime_cannot_load_is_an_integrity_error() -> None:
    with pytest.raises(IntegrityError, match="refuses"):
        Session(b"not a graph")


def test_a_graph_that_does_not_fit_its_codec_is_refused(tiny: Make) -> None:
    engine = tiny()
    engine.codec.code_columns = ("phase", "more")
    with pytest.raises(CheckFailed, match="codec wants"):
        engine.candidates(np.arange(2))


def test_golden_blocks_are_checked_bit_for_bit_or_within_tolerance(tiny: Make) -> None:
    engine, other = tiny(), {"onnxruntime": "0", "provider": "CPUExecutionProvider", "cpu": "?"}
    golden = engine.golden(bytes(16))
    assert engine.check_golden(golden, engine.fingerprint, bytes(16))
    nudged = [{**golden[0], "sha256": "0" * 64}]
    assert engine.check_golden(nudged, other, bytes(16)) is False
    for runtime, key in ((engine.fingerprint, bytes(16)), (other, b"x" * 16)):
        with pytest.raises(IntegrityError, match="golden"):
            engine.check_golden(nudged, runtime, key)


def test_digests_see_every_value_and_one_kind_of_gap(tiny: Make) -> None:
    rows = tiny().candidates(np.arange(50))
    other = rows.numbers.copy()
    other[np.isnan(other)] = -np.nan
    assert digest(other, rows.codes) == digest(rows.numbers, rows.codes)
    other[3, 1] = np.nextafter(other[3, 1], 9)
    assert digest(other, rows.codes) != digest(rows.numbers, rows.codes)


def stepped(onnx_model: Callable[..., bytes], onnx_value: Callable[..., Any]) -> tuple[bytes, dict[str, Any]]:
    """x <- x + z, five times; numbers are x and the step's number."""
    nodes = [
        helper.make_node("Add", ["x", "z"], ["next_x"]),
        helper.make_node("Cast", ["step"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Expand", ["count", "shape_of_x"], ["counts"]),
        helper.make_node("Shape", ["x"], ["shape_of_x"]),
        helper.make_node("Concat", ["next_x", "counts"], ["both"], axis=1),
        helper.make_node("Cast", ["both"], ["numbers"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["x"], ["codes"], to=TensorProto.INT32),
    ]
    nodes = [nodes[0], nodes[1], nodes[3], nodes[2], *nodes[4:]]
    step = helper.make_tensor_value_info("step", TensorProto.INT64, [1])
    inputs = [onnx_value("z", TensorProto.FLOAT, 1), onnx_value("x", TensorProto.FLOAT, 1), step]
    outputs = [onnx_value("numbers", TensorProto.DOUBLE, 2), onnx_value("codes", TensorProto.INT32, 1)]
    outputs.append(onnx_value("next_x", TensorProto.FLOAT, 1))
    spec = {"shape": [1], "law": "normal"}
    meta = {"noise": [{"name": "z", **spec}], "state": [{"name": "x", **spec}], "steps": 5, "condition": 0}
    return onnx_model(nodes, inputs, outputs, {}), {**meta, "outputs": ["numbers", "codes"], "loops": 0, "opset": 20}


def test_stepped_graphs_get_noise_by_row_and_step(
    tiny: Make, onnx_model: Callable[..., bytes], onnx_value: Callable[..., Any]
) -> None:
    from genward import noise

    graph, meta = stepped(onnx_model, onnx_value)
    found = Engine(graph, tiny().codec, Table(100, 1, 16), meta, pool_key=KEY).candidates(np.array([70, 3]))
    x = noise.normal(KEY, np.array([70, 3]), noise.STATE, (1,))
    for step in range(5):
        x = x + noise.normal(KEY, np.array([70, 3]), 0, (1,), step)
    assert found.numbers[:, 0].tobytes() == x[:, 0].astype(float).tobytes() and (found.numbers[:, 1] == 4).all()


def test_block_size_is_chosen_by_cost_and_holds_whole_slots(tiny_bytes: bytes, tiny: Make) -> None:
    meta = {"noise": [{"name": "z", "shape": [4], "law": "normal"}, {"name": "u", "shape": [3], "law": "uniform"}]}
    meta |= {"condition": 0, "outputs": ["numbers", "codes"], "loops": 0, "opset": 20}  # type: ignore[dict-item]
    assert choose_block(tiny_bytes, meta) in engines.BLOCKS
    assert choose_block(tiny_bytes, meta, candidates=3) % 3 == 0
    assert choose_block(tiny_bytes, meta, budget=0.0) == engines.BLOCKS[0], "a heavy model gets small blocks"
