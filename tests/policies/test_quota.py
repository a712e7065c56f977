"""Limits are charged by what was delivered: no command, activation or end of a process keeps rows to itself, and no
process, clock or lost store gives more than a limit allows."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genward.api import Platform
from genward.contracts import Facts, Lease, Outcome, Principal, ReleaseInfo, Request, Verdict
from genward.counters import Counters
from genward.errors import Denied, LimitReached, PolicyError, Unavailable, UsageError
from genward.limits import DAY as A_DAY
from genward.limits import Window
from genward.policy import PolicyContext
from genward_policies.quota import Quota, QuotaConfig

DAY = 1_000_000_000  # of the tests' own policy
NOON = 1_764_115_200 + 43_200.0
RELEASE = ReleaseInfo("alloys", 3, "sha256:0", ("acme",))


def _left(platform: Platform, key: str, n: int = 5) -> int:
    """Ask for some rows; what the day's limit still allows afterwards."""
    return int(platform.client(key).generate("pool:1", n=n).headers["x-ratelimit-remaining"])


def test_a_process_that_ends_gives_back_what_it_did_not_spend(world: Any) -> None:
    assert _left(world.platform, world.key) == DAY - 5
    world.platform.close()
    again = Platform.open(world.folder)
    assert _left(again, world.key) == DAY - 10
    again.close()


def test_an_activation_loses_no_rows_of_any_limit(world: Any) -> None:
    for round in range(1, 4):
        assert _left(world.platform, world.key) == DAY - 5 * round
        world.activate(world.platform.policy_text().replace("name: tests", f"name: tests-{round}"))


def test_a_command_is_charged_for_the_rows_it_brought(world: Any) -> None:
    words = ["--state", str(world.folder), "generate", "pool:1", "-n", "7", "--key", world.key]
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "genward.cli", *words], env={**os.environ}, check=True, capture_output=True
        )
        assert done.stdout.count(b"\n") == 8
    assert _left(world.platform, world.key) == DAY - 19


def test_a_request_that_cannot_be_read_is_not_charged(world: Any) -> None:
    with pytest.raises(UsageError):
        world.platform.client(world.key).generate("pool:1", n=5, where=["nothing>1"])
    assert _left(world.platform, world.key) == DAY - 5


@pytest.mark.parametrize("lost", ["rolled back", "gone"])
def test_a_store_that_lost_its_writes_knows_again_what_the_log_says_was_given(world: Any, lost: str) -> None:
    """The counters of an older day are put in place of the newest, or none at all: nobody gets his rows again."""
    rows = "rows: {per_request: 20000000, per_key_day: 1000, per_tenant_lifetime: 1500}"
    limits = {"per_key_day": 900, "lifetime": 400}
    world.activate(world.platform.policy_text().replace("rows: {per_request: 20000000, per_key_day: 1000000000}", rows))
    assert _left(world.platform, world.key, 100) == 900
    world.platform.close()
    store, kept = world.folder / "counters.db", world.folder / "older.db"
    shutil.copy(store, kept)
    again = Platform.open(world.folder)
    assert _left(again, world.key, 700) == 200
    again.close()
    for path in world.folder.glob("counters.db*"):
        path.unlink()
    if lost == "rolled back":
        kept.rename(store)
    third = Platform.open(world.folder)
    with pytest.raises(LimitReached):
        _left(third, world.key, 201)
    assert _left(third, world.key, 200) == 0
    other = third.create_key("acme", ["consumer"])
    assert _left(third, other, 100) == limits["lifetime"]  # 1000 of the tenant's 1500 were given before
    third.close()


# the policy by itself


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same suite on both stores; PostgreSQL is a real server."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'counters.db'}"


Make = Callable[..., Quota]


@pytest.fixture
def quota(url: str) -> Iterator[Make]:
    """Make a policy as one worker has it, from limits on rows and requests."""
    made: list[Counters] = []

    def make(rows: dict[str, int] | None = None, requests: dict[str, int] | None = None, like: Any = None) -> Quota:
        counters = like._counters if like else Counters(url)
        made.append(counters)
        config = QuotaConfig.model_validate({"rows": rows or {}, "requests": requests or {}})
        return Quota(config, PolicyContext(url, None, Path(), counters=counters))  # type: ignore[arg-type]

    yield make
    for counters in made:
        counters.close()


def _ask(policy: Quota, id: str, n: int, *, key: str = "k1", tenant: str = "acme", now: float = NOON) -> Verdict:
    facts = Facts(Principal(tenant, key), now, "sha256:p", RELEASE)
    found: Verdict = policy.admit(Request(id, "generate", "alloys@production", n), facts)
    return found


def _served(policy: Quota, verdict: Verdict, rows: int) -> None:
    assert verdict.lease is not None
    policy.settle(verdict.lease, Outcome("served", rows))


@pytest.mark.parametrize("what", ["rows", "requests"])
@pytest.mark.parametrize("kind", ["key", "tenant", "model"])
@pytest.mark.parametrize(("period", "seconds"), [("minute", 60), ("day", A_DAY), ("lifetime", None)])
def test_each_limit_of_the_table_stops_whom_it_names_for_as_long_as_it_says(
    quota: Make, what: str, kind: str, period: str, seconds: int | None
) -> None:
    limit = 30 if what == "rows" else 3
    policy = quota(**{what: {f"per_{kind}_{period}": limit}})
    others = {"key": {"key": "k2"}, "tenant": {"key": "k2", "tenant": "b"}, "model": {}}[kind]
    same = {"key": {"key": "k1"}, "tenant": {"key": "k2"}, "model": {"key": "k2", "tenant": "b"}}[kind]
    for i in range(3):
        assert _ask(policy, f"a{i}", 10).allow
    refused = _ask(policy, "b", 10, **same, now=NOON + 20)
    assert (refused.allow, refused.reasons) == (False, ("quota: a limit is reached",))
    assert refused.retry_after == (None if seconds is None else {60: 40, A_DAY: A_DAY / 2 - 20}[seconds])
    if others:
        assert _ask(policy, "c", 10, **others).allow
    later = _ask(policy, "d", 10, now=NOON + (seconds or 400 * A_DAY))
    assert later.allow == (seconds is not None)


def test_what_was_not_delivered_goes_back_once_and_a_request_stays_counted(quota: Make) -> None:
    policy = quota({"per_key_day": 100}, {"per_key_day": 10})
    verdict = _ask(policy, "a", 60)
    for _ in range(3):
        _served(policy, verdict, 20)
    again = _ask(policy, "b", 80)
    assert again.allow
    assert not _ask(policy, "c", 1).allow
    assert again.headers["x-ratelimit-requests-remaining"] == "8"


def test_one_id_has_one_lease_at_a_time(quota: Make) -> None:
    policy = quota({"per_key_day": 100})
    first = _ask(policy, "a", 60)
    second = _ask(policy, "a", 10)
    assert (second.allow, second.lease) == (False, None)
    _served(policy, first, 0)
    assert _ask(policy, "a", 100).allow


def test_a_lease_of_another_process_counts_as_spent(quota: Make) -> None:
    """Settled where it was not made it changes nothing; nor does a lease that nobody made."""
    one, two = quota({"per_key_day": 100}), quota({"per_key_day": 100})
    verdict = _ask(one, "a", 60)
    _served(two, verdict, 0)
    two.settle(Lease("quota", "never", 50), Outcome("served", 0))
    assert not _ask(two, "b", 41).allow
    _served(one, verdict, 10)
    assert _ask(one, "c", 90).allow


def test_several_refusing_limits_say_the_longest_wait_and_none_where_waiting_helps_nothing(quota: Make) -> None:
    rows = {"per_key_minute": 10, "per_tenant_day": 10}
    policy = quota(rows, {"per_key_minute": 1})
    assert _ask(policy, "a", 10).allow
    assert _ask(policy, "b", 1).retry_after == A_DAY / 2
    assert _ask(policy, "c", 11).retry_after is None  # more than the limit ever allows at once
    ever = quota(rows | {"per_key_lifetime": 10}, like=policy)
    assert _ask(ever, "d", 10, now=NOON + A_DAY).allow
    assert _ask(ever, "e", 1, now=NOON + A_DAY).retry_after is None


def test_a_refusal_takes_nothing_from_the_limits_that_would_have_allowed_it(quota: Make) -> None:
    policy = quota({"per_key_minute": 5, "per_key_day": 100}, {"per_key_day": 3})
    for i in range(20):
        assert not _ask(policy, f"a{i}", 6).allow
    assert _ask(policy, "b", 5).headers["x-ratelimit-requests-remaining"] == "2"
    assert _ask(policy, "c", 5, now=NOON + 60).allow


def test_the_plain_headers_are_of_the_rows_limit_that_is_nearest_to_its_end(quota: Make) -> None:
    policy = quota({"per_key_minute": 50, "per_key_day": 100, "per_tenant_lifetime": 1000}, {"per_model_day": 7})
    stem = "x-ratelimit"
    first = _ask(policy, "a", 40, now=NOON + 5).headers
    names = ("limit", "remaining", "reset", "scope")
    assert [first[f"{stem}-{name}"] for name in names] == ["50", "10", "55", "key-minute"]
    assert [first[f"{stem}-requests-{name}"] for name in names] == ["7", "6", str(A_DAY // 2 - 5), "model-day"]
    second = _ask(policy, "b", 40, now=NOON + 60).headers
    assert (second[f"{stem}-scope"], second[f"{stem}-remaining"]) == ("key-minute", "10")
    third = _ask(policy, "c", 15, now=NOON + 120).headers
    assert (third[f"{stem}-scope"], third[f"{stem}-remaining"]) == ("key-day", "5")
    ever = _ask(quota({"per_key_lifetime": 9}), "d", 1, key="k9").headers
    assert (ever[f"{stem}-scope"], f"{stem}-reset" in ever) == ("key-lifetime", False)


def test_a_quota_lowered_below_what_is_leased_gives_nothing_and_breaks_nothing(quota: Make) -> None:
    policy = quota({"per_tenant_lifetime": 1000})
    under_way = _ask(policy, "a", 600)
    lower = quota({"per_tenant_lifetime": 500}, like=policy)
    refused = _ask(lower, "b", 1)
    assert (refused.allow, refused.retry_after) == (False, None)
    _served(policy, under_way, 500)
    assert not _ask(lower, "c", 1).allow
    raised = quota({"per_tenant_lifetime": 501}, like=policy)
    assert _ask(raised, "d", 1).headers["x-ratelimit-remaining"] == "0"


def test_a_store_that_fails_half_way_takes_nothing_and_is_no_refusal(quota: Make, monkeypatch: Any) -> None:
    policy = quota({"per_key_day": 100}, {"per_key_day": 5})
    real = policy._counters.reserve

    def half(name: str, *given: Any) -> Any:
        if name.startswith("rows/"):
            raise Unavailable("the store is away")
        return real(name, *given)

    monkeypatch.setattr(policy._counters, "reserve", half)
    with pytest.raises(Unavailable):
        _ask(policy, "a", 1)
    monkeypatch.undo()
    assert _ask(policy, "a", 1).headers["x-ratelimit-requests-remaining"] == "4"


def test_reading_is_not_metered_and_a_request_without_a_release_is_refused(quota: Make) -> None:
    policy = quota({"per_model_day": 1, "per_request": 5})
    facts = Facts(Principal("acme", "k1"), NOON, "sha256:p")
    assert policy.admit(Request("a", "read"), facts).allow
    assert not policy.admit(Request("a", "generate", "alloys", 1), facts).allow
    assert not _ask(policy, "b", 6).allow


def test_limits_are_whole_numbers_and_names_are_those_of_the_table(world: Any) -> None:
    text = world.platform.policy_text()
    for bad in ("per_key_day: 0", "per_key_day: -5", "per_key_day: 1.5", "per_key_week: 5", "per_keys_day: 5"):
        with pytest.raises(PolicyError):
            world.platform.lint_policy(text.replace("per_key_day: 1000000000", bad))
    with pytest.raises(PolicyError, match="per_request"):
        world.platform.lint_policy(text.replace("per_key_minute: 1000000", "per_request: 5"))
    (found,) = world.platform.lint_policy(text.replace("per_key_minute: 1000000", ""))
    assert "requests are unlimited" in found.message


def test_the_longest_wait_reaches_the_caller_and_a_lifetime_is_no_wait(world: Any) -> None:
    world.activate(world.platform.policy_text().replace("per_key_day: 1000000000", "per_key_day: 40"))
    client = world.platform.client(world.key)
    client.generate("pool:1", n=40)
    with pytest.raises(LimitReached) as caught:
        client.generate("pool:1", n=1)
    assert 0 < (caught.value.retry_after or 0) <= A_DAY
    assert world.log()[-1]["reasons"] == ["quota: a limit is reached"]
    world.activate(world.platform.policy_text().replace("per_key_day: 40", "per_tenant_lifetime: 40"))
    with pytest.raises(Denied) as ended:
        client.generate("pool:1", n=1)
    assert not isinstance(ended.value, LimitReached)


# worker processes

WORKER = textwrap.dedent("""
    import os, random, sys, threading, time
    from pathlib import Path
    from genward.contracts import Facts, Outcome, Principal, ReleaseInfo, Request
    from genward.counters import Counters
    from genward.policy import PolicyContext
    from genward_policies.quota import Quota, QuotaConfig

    url, seed, now, limits = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), eval(sys.argv[4])
    counters = Counters(url)
    policy = Quota(QuotaConfig.model_validate(limits), PolicyContext(url, None, Path(), counters=counters))
    release = ReleaseInfo("alloys", 3, "sha256:0")

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def client(number):
        rng, refused = random.Random(1000 * seed + number), 0
        key = f"k{number % 4}"
        facts = Facts(Principal(f"t{number % 2}", key), now, "p", release)
        for turn in range(10_000):
            request, n = f"{seed}-{number}-{turn}", rng.randint(1, 20)
            verdict = policy.admit(Request(request, "generate", "alloys", n), facts)
            if not verdict.allow:
                refused += 1
                if refused == 5:
                    return
                continue
            say("lease", request, key, f"t{number % 2}", n)
            time.sleep(rng.random() / 500)
            given = n if rng.random() < 0.7 else rng.randint(0, n)
            policy.settle(verdict.lease, Outcome("served", given))
            policy.settle(verdict.lease, Outcome("served", 0))
            say("given", request, given)

    clients = [threading.Thread(target=client, args=(i,)) for i in range(16)]
    [one.start() for one in clients]
    [one.join() for one in clients]
    counters.close()
""")


def _campaign(url: str, limits: dict[str, dict[str, int]], seed: int) -> None:
    """64 clients over 4 processes, of which two are killed while leases are out: no limit is passed, and all that is
    missing is what the killed ones held."""
    Counters(url).close()
    rng = random.Random(seed)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, url, str(10 * seed + i), str(NOON), repr(limits)], stdout=subprocess.PIPE
        )
        for i in range(4)
    ]
    killed = [_read_until(process, rng.randint(10, 60)) for process in started[:2]]
    rest = [process.communicate(timeout=120)[0] for process in started[2:]]
    assert [process.wait() for process in started] == [-9, -9, 0, 0]
    rows, requests = _sums(killed + rest)
    left = _store(url, limits)
    for (what, kind, period), (limit, used) in left.items():
        sums = rows if what == "rows" else requests
        for who, spent in ((who, n) for (k, who), n in sums.items() if k == kind):
            assert spent <= used[who] <= limit, (what, kind, period, who)
            lost = 2 * max(1, limit // 64) + 2 * 16 * (20 if what == "rows" else 1)
            assert used[who] - spent <= lost
    assert any(limit - n < 20 for (what, _, _), (limit, used) in left.items() if what == "rows" for n in used.values())


def _read_until(process: subprocess.Popen[bytes], lines: int) -> bytes:
    """What a process said until it was killed, some leases into its work and with one of them out."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    while not said[-1].startswith(b"lease"):
        said.append(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    said.append(process.stdout.read())
    process.stdout.close()
    return b"".join(said)


def _sums(outputs: list[bytes]) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """(rows, requests) by whom; a lease that was not settled may have been delivered whole."""
    leases: dict[str, tuple[str, str, int]] = {}
    for line in b"".join(outputs).decode().splitlines():
        word, request, *more = line.split()
        if word == "lease":
            leases[request] = (more[0], more[1], int(more[2]))
        else:
            leases[request] = (*leases[request][:2], int(more[0]))
    rows: Counter[tuple[str, str]] = Counter()
    requests: Counter[tuple[str, str]] = Counter()
    for key, tenant, n in leases.values():
        for who in (("key", key), ("tenant", tenant), ("model", "alloys")):
            rows[who] += n
            requests[who] += 1
    return rows, requests


def _store(url: str, limits: dict[str, dict[str, int]]) -> dict[tuple[str, str, str], tuple[int, dict[str, int]]]:
    """What the store says is used, by limit and whom."""
    counters, found = Counters(url), {}
    names = {"key": [f"k{i}" for i in range(4)], "tenant": ["t0", "t1"], "model": ["alloys"]}
    for what, table in limits.items():
        for label, limit in table.items():
            _, kind, period = label.split("_")
            window = Window() if period == "lifetime" else Window.at(A_DAY, NOON)
            used = {who: counters.used(f"{what}/{kind}/{who}", window) for who in names[kind]}
            found[what, kind, period] = (limit, used)
    counters.close()
    return found


LIMITS = {
    "rows": {"per_key_day": 1500, "per_tenant_lifetime": 2600, "per_model_day": 4800},
    "requests": {"per_key_day": 200, "per_model_lifetime": 700},
}


def test_sixty_four_clients_of_four_workers_two_killed_never_pass_a_limit(url: str) -> None:
    _campaign(url, LIMITS, 1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 22))
def test_twenty_more_campaigns_of_sixty_four_clients(url: str, seed: int) -> None:
    wide = {what: {name: 20 * n for name, n in table.items()} for what, table in LIMITS.items()}
    _campaign(url, wide, seed)


@pytest.mark.soak
def test_over_http_with_two_workers_killed_nobody_gets_more_than_his_limit(make_world: Any, start_server: Any) -> None:
    """64 connections to 4 server processes; rows are counted as they arrive."""
    from concurrent.futures import ThreadPoolExecutor

    world = make_world()
    world.activate(world.platform.policy_text().replace("per_key_day: 1000000000", "per_key_day: 20000"))
    served = start_server(world, "--workers", "4")
    begun = time.time() // A_DAY

    def client(_: int) -> int:
        got = refused = 0
        while refused < 5:
            try:
                reply = served.rows(25, "open:1")
            except OSError:
                continue
            if reply.status == 200:
                got += len(reply.json()["rows"])
            else:
                assert reply.status in (429, 503)
                refused += 1
        return got

    with ThreadPoolExecutor(65) as pool:
        counts = [pool.submit(client, i) for i in range(64)]
        time.sleep(2)
        for pid in _workers(world.folder)[:2]:
            os.kill(pid, signal.SIGKILL)
        given = sum(count.result() for count in counts)
    if time.time() // A_DAY == begun:
        assert 10_000 < given <= 20_000


def _workers(folder: Path) -> list[int]:
    """The server's worker processes on a state folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words, names = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"_bentoml_impl.worker.service" in words and str(folder).encode() in names:
            found.append(int(entry.name))
    return found
