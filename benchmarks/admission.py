"""What admission costs: authenticate, Cedar, slice, lease, sketch; and how long recorded decisions take to be made
again.

508 policies (500 grants of tenants with slices, roles, and a forbid with its case), 10,000 keys of 500 tenants, SQLite,
live leases of the quota and of the grant's rows a day, the extraction policy's share and its sketch of the conditions,
which are drawn anew for each request. Runs in a state folder of its own with one small release.

    python -m benchmarks.admission [--requests 5000] [--decisions 100000]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import insert, update

from genward import models
from genward.api import Platform
from genward.contracts import LOCAL, Credential, Facts, Outcome, Principal, ReleaseInfo, Request
from genward.policyset import PolicySet
from genward.table import Predicate
from genward_policies.access import contexts, terms
from genward_policies.access.cedar import text_of
from genward_policies.access.config import AccessConfig
from genward_policies.access.dryrun import flips
from genward_policies.access.rules import Decision, Rules

DATA = Path(__file__).parents[1] / "examples" / "data"
TENANTS, KEYS, PHASE, YEAR = 500, 10_000, "PROPERTY: BCC/FCC/other", "REFERENCE: year"
NIGHT = '@id("small") forbid(principal, action == Action::"generate", resource) when { context.n > 1000000 };'


def access(tenants: int = TENANTS) -> dict[str, Any]:
    """The access part: 8 policies of roles, one forbid, and a grant a tenant."""
    grants = [
        {"tenant": f"t{i}", "model": "pool", "where": {PHASE: ["FCC", "BCC"]}, "rows_per_day": 10**9}
        for i in range(tenants)
    ]
    case = {"principal": {"tenant": "t0"}, "action": "generate", "resource": {"model": "pool"}}
    refused = {**case, "context": {"n": 2_000_000}, "expect": "deny", "because": ["small"]}
    roles = {"read": ["consumer", "auditor", "publisher"], "audit": ["auditor", "administrator"],
             "detect": ["auditor", "administrator"]}  # fmt: skip
    return {"cedar": NIGHT, "roles": roles, "grants": grants, "tests": [refused]}


def prepare(folder: Path) -> tuple[Platform, list[str]]:
    """A platform with one release, its tenants, and keys of them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    platform, _ = Platform.init(folder / "s", tenant="t0", single_operator=True)
    dataset = platform.add_dataset(DATA / "mpea_alloys.csv", schema=DATA / "mpea_alloys.yaml")
    document = {"apiVersion": "genward/v1", "kind": "Policy", "name": "bench", "access": access(), "quality": {
        "tstr_drop_max": None, "exact_copies_max": None}, "quota": {
        "rows": {"per_request": 10**7, "per_key_day": 10**9}, "requests": {"per_key_minute": 10**6}}, "extraction": {
        "attackers": ["kde"], "calibration_cpu_seconds": 10}}  # fmt: skip
    platform.release(_candidate(platform, dataset.name, document), "pool", slots=3000, evaluate_rows=300, grant=["*"])
    return platform, _keys(platform)


def _candidate(platform: Platform, dataset: str, document: dict[str, Any]) -> str:
    digest = platform.propose_policy(json.dumps(document))
    platform.approve_policy(digest)
    platform.activate_policy(digest)
    return platform.train(dataset, family="vae", steps=40).id


def _keys(platform: Platform) -> list[str]:
    registry = platform.registry
    made = [registry._keys.make() for _ in range(KEYS)]
    now = time.time()
    rows = [
        {"prefix": prefix, "hash": digest, "tenant": f"t{i % TENANTS}", "roles": '["consumer"]', "label": "",
         "created": now, "actions": "[]", "models": "[]", "networks": "[]", "created_by": ""}
        for i, (prefix, _, digest) in enumerate(made)
    ]  # fmt: skip

    def write(c: Any) -> None:
        c.execute(insert(models.tenants), [{"name": f"t{i}", "created": now} for i in range(1, TENANTS)])
        c.execute(insert(models.api_keys), rows)
        c.execute(update(models.changes).values(value=models.changes.c.value + 1))

    registry._write(write)
    return [key for _, key, _ in made]


def _drawn(keys: list[str], requests: int) -> list[str]:
    draw = random.Random(0)
    return [draw.choice(keys) for _ in range(requests)]


def admissions(platform: Platform, policies: PolicySet, keys: list[str]) -> list[dict[str, float]]:
    """Milliseconds of each stage of one admission a key; the policies stay open between runs, as a worker's do."""
    pipeline, registry = platform.pipeline, platform.registry
    info = registry.resolve("pool:1")
    schema = pipeline.shelf.get(info).codec.schema
    digest, _ = registry.active_policy()
    found, draw = [], random.Random(0)
    for shown in keys:
        key = Credential(shown, LOCAL)
        t0 = time.perf_counter()
        principal = pipeline.authenticate(key, time.time(), registry.change_counter())
        t1 = time.perf_counter()
        where = Predicate.parse([f"{PHASE}=FCC", f"{YEAR}>={draw.randint(2004, 2018)}"], schema).conditions
        request = Request(f"r{len(found)}", "generate", info.name, 10, where)
        t2 = time.perf_counter()
        facts = Facts(principal, time.time(), digest, info, LOCAL)
        admission = policies.admit(request, facts)
        t3 = time.perf_counter()
        policies.settle(admission.leases, Outcome("served", 10))
        t4 = time.perf_counter()
        policies.observe(request, facts, Outcome("served", 10))
        t5 = time.perf_counter()
        assert admission.allow, admission.reasons
        times = {"authenticate": t1 - t0, "parse": t2 - t1, "admit": t3 - t2, "settle": t4 - t3, "sketch": t5 - t4}
        times["admission"] = times["authenticate"] + times["admit"] + times["sketch"]
        found.append({name: 1000 * spent for name, spent in times.items()})
    return found


def replay(folder: Path, decisions: int) -> tuple[float, dict[str, Any]]:
    """Seconds to make recorded decisions again under 508 policies, and what was found."""
    recorder = contexts.Recorder(folder)
    rules = Rules(text_of(AccessConfig.model_validate(access())))
    draw = random.Random(1)
    release = ReleaseInfo("pool", 1, "", ("*",))
    for _ in range(decisions):
        tenant, key = draw.randrange(TENANTS), draw.randrange(KEYS // TENANTS)
        who = Principal(f"t{tenant}", f"k{tenant}-{key}", frozenset({"consumer"}))
        asked = terms.Question(who, "generate", release, terms.context({"n": draw.choice([1, 10, 100, 2_000_000])}))
        recorder.add(asked, Decision(True, ("before",)), "sha256:0")
    begun = time.perf_counter()
    report = flips(rules, contexts.read(contexts.recorded(folder)))
    return time.perf_counter() - begun, dict(report)


def _line(name: str, values: list[float]) -> str:
    values = sorted(values)
    p50, p95, p99 = statistics.median(values), values[int(0.95 * len(values))], values[int(0.99 * len(values))]
    return f"  {name:<14} p50 {p50:.3f}  p95 {p95:.3f}  p99 {p99:.3f} ms"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--decisions", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="gw") as name:
        platform, keys = prepare(Path(name))
        policies = platform.policies()
        access_ = policies._policies["access"]
        print(f"{len(access_._rules.policies)} policies, {KEYS} keys")
        again = _drawn(keys, given.requests)
        runs = {"10,000 keys, each for the first time": keys, "each seen before, its leases live": again,
                "each seen before, in another minute": again}  # fmt: skip
        for what, some in runs.items():
            if some is keys or "another" in what:
                time.sleep(60 - time.time() % 60)  # a lease of a minute ends with it
            found = admissions(platform, policies, some)
            print(f"{what}: n = {len(some)}")
            print("\n".join(_line(stage, [times[stage] for times in found]) for stage in found[0]))
        platform.close()
        seconds, report = replay(Path(name), given.decisions)
        rate = report["decisions"] / seconds
        print(f"{report['decisions']} decisions again in {seconds:.1f} s ({rate:,.0f}/s), {report['flipped']} flip")


if __name__ == "__main__":
    main()
