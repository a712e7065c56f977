"""Limits in a shared store are never passed, whoever dies, lowers them, turns the clock or loses the last writes."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from genward.counters import Counters
from genward.errors import NotFound, Unavailable
from genward.limits import DAY, EVER, KEPT, MINUTE, Window, limit_name, model_name

NOON = 1_764_115_200 + 43_200.0
TODAY = Window.at(DAY, NOON)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same suite on both stores; PostgreSQL is a real server."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'counters.db'}"


@pytest.fixture
def opened(url: str) -> Iterator[Any]:
    """Open a store as another worker would."""
    made: list[Counters] = []

    def open_() -> Counters:
        made.append(Counters(url))
        return made[-1]

    yield open_
    for counters in made:
        counters.close()


def test_windows_are_counted_apart_and_a_day_begins_at_midnight_utc(opened: Any) -> None:
    one = opened()
    for window in (Window(), TODAY, Window.at(DAY, NOON + DAY), Window.at(MINUTE, NOON)):
        assert one.reserve("x", 10, 10, window=window) == 0
        assert one.reserve("x", 1, 10, window=window) is None
    assert (TODAY.starts % DAY, TODAY.left(NOON), Window.at(MINUTE, NOON + 59).left(NOON + 59)) == (0, 43_200, 1)
    assert Window.at(EVER, NOON) == Window()
    assert Window().left(NOON) is None


def test_many_first_takers_at_once_fail_for_no_reason_but_the_limit(opened: Any) -> None:
    """The row of a new counter is made once: PostgreSQL lets two look for it at the same time."""
    workers = [opened() for _ in range(8)]
    for name in map(str, range(6)):
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda worker, name=name: worker.reserve(name, 3, 12), workers))
        assert sum(left is not None for left in got) == 4
        with ThreadPoolExecutor(8) as pool:
            ends = list(pool.map(lambda worker, name=name: worker.advance(f"cursor/{name}", 5), workers))
        assert sorted(ends) == list(range(0, 40, 5))


def test_random_work_of_three_workers_never_passes_a_limit_that_moves(opened: Any) -> None:
    """Reserve, refund, release and crash in any order, under limits that are raised and lowered: nothing is given while
    more than the limit is out, and what crashes held counts as spent."""
    rng, workers = random.Random(3), [opened() for _ in range(3)]
    limit, held, spent, refused = 400, Counter[int](), 0, 0
    for _ in range(600):
        who, amount = rng.randrange(3), rng.randint(1, 12)
        act = rng.random()
        if act < 0.6:
            out = spent + held.total()
            if workers[who].reserve("x", amount, limit, chunk=20) is not None:
                held[who] += amount
                assert out + amount <= limit
            else:
                refused += 1
        elif act < 0.9:
            done, given = held[who], rng.randint(0, held[who])
            workers[who].refund("x", done - given)
            held[who], spent = 0, spent + given
        elif act < 0.93:
            workers[who].release()
        elif act < 0.96:
            spent, held[who] = spent + held[who], 0
            workers[who] = opened()  # the one before is not closed until the test ends: its chunk is lost
        else:
            limit = rng.choice([100, 400, 700])
    assert refused > 20
    assert spent > 200


def test_a_limit_lowered_below_what_is_leased_gives_nothing_more(opened: Any) -> None:
    """The chunk at hand was taken under another limit and goes back; refunds do not open what is over the new one."""
    one, two = opened(), opened()
    assert one.reserve("x", 50, 1000, chunk=500) == 950
    assert two.reserve("x", 40, 1000, chunk=500) == 460
    assert one.reserve("x", 1, 60) is None
    assert two.reserve("x", 1, 60) is None
    one.refund("x", 20)
    assert one.reserve("x", 1, 60) is None  # 70 are out
    two.refund("x", 15)
    assert one.reserve("x", 5, 60) == 0  # 55 were
    assert two.reserve("x", 1, 60) is None
    assert two.reserve("x", 1, 61) == 0


def test_a_refund_after_the_chunk_was_returned_reaches_the_store(opened: Any) -> None:
    one, two = opened(), opened()
    assert one.reserve("x", 80, 100, chunk=100) is not None
    one.release()
    one.refund("x", 30)
    one.refund("x", 0)
    assert two.reserve("x", 50, 100) == 0


# the clock


def test_old_windows_are_forgotten_and_not_granted_again(opened: Any) -> None:
    """After days the rows of old windows are gone; a clock that goes back finds them closed, and the present open."""
    one = opened()
    minute = Window.at(MINUTE, NOON)
    for window in (minute, TODAY, Window()):
        one.reserve("x", 1, 5, window=window)
    assert one.prune(NOON + 120) == 0
    assert one.prune(NOON + MINUTE + KEPT[MINUTE] + 1) == 1
    assert one.prune(NOON + DAY + KEPT[DAY]) == 1
    two = opened()
    assert two.reserve("x", 1, 5, window=minute) is None
    assert two.reserve("x", 1, 5, window=Window.at(MINUTE, NOON - 600)) is None
    assert two.reserve("x", 1, 5, window=TODAY) is None
    assert two.reserve("x", 1, 5, window=Window.at(MINUTE, NOON + MINUTE)) == 4
    assert two.reserve("x", 1, 5, window=Window.at(DAY, NOON + DAY)) == 4
    assert two.reserve("x", 4, 5) == 0  # ever is not forgotten


_clock = st.lists(st.tuples(st.integers(-2 * DAY, 20 * DAY), st.integers(1, 4), st.booleans()), max_size=40)


@pytest.fixture(scope="module")
def one_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counters]:
    counters = Counters(f"sqlite:///{tmp_path_factory.mktemp('clock') / 'counters.db'}")
    yield counters
    counters.close()


@given(st.uuids(), _clock)
def test_however_the_clock_jumps_no_window_is_granted_twice(one_store: Counters, name: Any, jumps: Any) -> None:
    """Also with pruning at any moment the clock shows; a wait is never negative nor longer than the window."""
    given: dict[Window, int] = defaultdict(int)
    for now, amount, prune in jumps:
        for seconds in (MINUTE, DAY):
            window = Window.at(seconds, now)
            if one_store.reserve(str(name), amount, 5, chunk=2, window=window) is not None:
                given[window] += amount
            assert 0 < (window.left(now) or 0) <= seconds
        if prune:
            one_store.release()
            one_store.prune(now)
    assert max(given.values(), default=0) <= 5


# the log knows what was given


class Log:
    """A log of settle entries, of which the oldest may have been let go."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.kept, self.minimum, self.read = list(entries), 0, 0

    def entry(self, index: int) -> bytes:
        if index < self.minimum:
            raise NotFound("no such entry")
        return json.dumps(self.kept[index]).encode()

    def entries(self, start: int, most: int) -> list[tuple[int, bytes]]:
        first = max(start, self.minimum)
        self.read += 1
        return [(i, json.dumps(one).encode()) for i, one in enumerate(self.kept[first : first + most], first)]


def _settle(rows: int, **more: Any) -> dict[str, Any]:
    entry = {"v": 1, "t": "2025-11-26T12:00:00.000000Z", "event": "settle", "request": "r", "status": "served"}
    who = {"tenant": "acme", "actor": "k1", "model": "alloys:3@sha256:00", "out": {"rows": rows}}
    return {**entry, **who, **more}


def test_what_the_log_settled_counts_where_the_store_knows_less(opened: Any) -> None:
    log = Log({"event": "act"}, _settle(40), _settle(7, actor="k2", model="other:1@x"), _settle(3))
    one = opened()
    assert one.catch_up(log) == 4
    assert opened().catch_up(log) == 0
    used = {
        limit_name("rows", "key", "k1"): 43, limit_name("rows", "key", "k2"): 7,
        limit_name("rows", "tenant", "acme"): 50, limit_name("rows", "model", "alloys"): 43,
        limit_name("requests", "tenant", "acme"): 3, limit_name("requests", "key", "k1"): 2,
    }  # fmt: skip
    for window in (Window(), TODAY):
        assert {name: one.used(name, window) for name in used} == used
    name = limit_name("rows", "key", "k1")
    assert one.used(name, Window.at(DAY, NOON + DAY)) == 0
    assert one.reserve(name, 58, 100) is None
    assert one.reserve(name, 57, 100) == 0


def test_a_stream_is_charged_when_it_is_granted_and_corrected_when_it_is_settled(opened: Any) -> None:
    """On the day of its grant; a grant that nobody settled stays charged whole."""
    one, name = opened(), limit_name("rows", "key", "k1")
    plan = {"plan": {"start": 0, "n": 100, "segments": 1, "k": 1}}
    log = Log(_settle(0, event="grant", **plan), _settle(0, event="grant", request="r/1", **plan))
    one.catch_up(log)
    assert (one.used(name), one.used(name, TODAY), one.used(limit_name("requests", "key", "k1"))) == (200, 200, 1)
    log.kept.append(_settle(30, grant=0, t="2025-11-27T00:00:01.000000Z"))
    one.catch_up(log)
    assert (one.used(name), one.used(name, TODAY), one.used(limit_name("requests", "key", "k1"))) == (130, 130, 1)
    assert one.used(name, Window.at(DAY, NOON + DAY)) == 0
    log.minimum = 2
    log.kept.append(_settle(5, grant=1))
    one.catch_up(log)
    assert one.used(name) == 135


def test_what_was_charged_as_it_was_given_is_not_charged_again(opened: Any) -> None:
    one, name = opened(), limit_name("rows", "key", "k1")
    assert one.reserve(name, 40, 100) == 60
    log = Log(_settle(40))
    one.catch_up(log)
    assert one.reserve(name, 10, 100) == 50
    log.kept.append(_settle(10))
    one.catch_up(log)
    one.release()
    assert opened().reserve(name, 50, 100) == 0


def test_two_that_catch_up_at_once_count_each_entry_once(opened: Any) -> None:
    log = Log(*[_settle(1) for _ in range(3000)])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda counters: counters.catch_up(log), [opened(), opened()]))
    assert opened().used(limit_name("rows", "key", "k1")) == 3000


def test_a_sweep_reads_a_piece_at_a_time_and_passes_over_what_the_log_let_go(opened: Any) -> None:
    log = Log(*[_settle(1) for _ in range(900)])
    log.minimum = 256
    one = opened()
    assert one.catch_up(log, most=256) >= 256
    while one.catch_up(log, most=100):
        pass
    assert one.used(limit_name("rows", "key", "k1")) == 900 - 256
    log.read = 0
    assert one.catch_up(log) == 0
    assert log.read == 1


@pytest.mark.parametrize(
    ("reference", "name"), [("a:1@sha256:0", "a"), ("a-b:12@x", "a-b"), (None, ""), ("", ""), ("a", "")]
)
def test_a_models_name_is_read_from_its_reference(reference: Any, name: str) -> None:
    assert model_name(reference) == name


# the store


def test_a_server_that_is_away_is_unavailable_and_works_again_when_it_is_back(postgres: str, postgres_url: str) -> None:
    counters, name = Counters(postgres_url), postgres_url.rpartition("/")[2].partition("?")[0]
    counters.reserve("x", 1, 100)
    admin = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with admin.connect() as c:
        c.execute(text(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false"))
        c.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        with pytest.raises(Unavailable):
            counters.reserve("x", 1, 100)
        c.execute(text(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true"))
    assert counters.reserve("x", 1, 100) == 98
    counters.close()
    admin.dispose()
