"""Whatever is asked, no row lies outside the slice: random requests of many keys through the whole request path."""

from __future__ import annotations

import asyncio
import csv
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest

from genward.contracts import LOCAL, Credential
from genward.errors import GenwardError
from genward.request import Ask

TOGETHER = 64  # requests under way at once; the log commits them in groups
COUNTS = [None, 20, 0, -1, True, 10**7, 10**12, 12_000]  # None: a few; the last is streamed
DAY = 86_400
PHASES = ["FCC", "BCC", "hcp", "größe", "gro\u0308ße", "a,b", "in", "{x}", "'q'"]
SCHEMA = {
    "columns": [
        {"name": "phase", "kind": "categorical", "categories": PHASES},
        {"name": "phase 2", "kind": "categorical", "categories": ["A", "B", "C"]},
        {"name": "hot", "kind": "boolean"},
        {"name": "year", "kind": "integer", "minimum": 1990, "maximum": 2030},
        {"name": "year>", "kind": "numeric", "minimum": 0, "maximum": 1, "step": 0.1},
        {"name": "dichte", "kind": "numeric", "minimum": -5, "maximum": 5, "step": 0.1, "nullable": True},
        {"name": "weight", "kind": "numeric", "minimum": 0.01, "maximum": 1000, "digits": 4},
        {"name": "when", "kind": "datetime", "minimum": "2020-01-01", "maximum": "2026-12-31", "step": 3600},
    ]
}
NAMES = [column["name"] for column in SCHEMA["columns"]]
Slice = Mapping[str, list[Any]]
# By tenant, what each model's rows must lie in; a number has [low, high] or one value.
SLICES: Mapping[str, Mapping[str, Slice]] = {
    "words": {"*": {"phase": ["FCC", "größe"]}},
    "odd": {"*": {"phase": ["a,b", "in", "{x}", "'q'"]}},
    "years": {"*": {"year": [2005, 2015]}},
    "dates": {"*": {"when": ["2022-03-01", "2023-03-01T12:00:00+02:00"]}},
    "thirds": {"*": {"year>": [0.1, 0.3], "phase 2": ["A", "C"]}},
    "gaps": {"*": {"dichte": [-0.3, 2.7], "phase": ["BCC", "hcp", "FCC", "in"]}},
    "one": {"*": {"hot": [True], "weight": [10, 400]}},
    "models": {"pool": {"year": [1995, 2010]}, "open": {"year": [2011, 2020], "hot": [False]}},
    "many": {"*": {"year": [1992, 2028], "phase 2": ["B", "C"], "weight": [1, 900],
                   "when": ["2020-06-01", "2026-01-01"]}},
}  # fmt: skip
NARROWER: Slice = {"year": [2008, 2030], "phase": ["FCC", "BCC"]}  # of one key of `years` beside its tenant's
ODD = [
    "", " ", "=", "phase", "phase=", "=FCC", "phase==FCC", "phase=FCC=BCC", "phase in", "phase in {}", "phase in FCC",
    "phase in {FCC,}", "phase in [FCC, größe)", "phase in {a,b}", "phase in {in}", "phase!=FCC", "phase!=in",
    "Phase=FCC",
    "phasе=FCC", "phase=FCC\u200b", "phase=\u202eCCF", "phase=grösse", "phase=gro\u0308ße", "phase=größe",
    "phase='FCC'",
    "phase=\"a,b\"", "phase>FCC", "phase 2=A", "phase  2=A", "phase 2 in {A,B,C}", "hot=TRUE", "hot=1", "hot=yes",
    "hot in {true,false}", "hot!=true", "year=２０１０", "year=١٩٩٩", "year=2_010", "year=0x7d5", "year=inf",
    "year<nan",
    "year>-inf", "year=1e400", "year=2010.5", "year!=2010", "year in {2010}", "year>=0.1", "year> =0.1", "year>>0.1",
    "year>=2005 OR year<2005", "year>=2005; DROP TABLE rows", "year=2010 AND 1=1", "year<=2014.9999999999", "year=True",
    "year>!=0.3", "dichte=null", "dichte=None", "dichte=NaN", "dichte!=0", "dichte=-0.0", "dichte>=-5e-324",
    "weight>=1e-320", "weight<=400.00000000000006", "weight>9.999999999999998", "when>=2022", "when=2022-02-30",
    "when>=2022-03-01T00:00:00", "when<2023-03-01T12:00:00+02:00", "when>=2022-W09-2", "when>=20220301",
    "when>1646092800",
    "when<=2026-12-31T23:59:60", "when>=2022-03-01T00:00:00-14:00", "when!=2022-03-01", "\x00", "year\x00=2010",
    "x" * 2000 + "=1", "year=" + "9" * 400, "$\\mu$=1", "ｙｅａｒ=2010", "year\n>=\n2005", "\tyear\t<\t2006\t",
]  # fmt: skip


class Fuzz:
    """Random requests, sensible or not."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._ends = [v for models in SLICES.values() for s in models.values() for vs in s.values() for v in vs]

    def ask(self, key: str) -> Ask:
        model = self._draw.choices(
            ["pool:2", "pool", "open:2", "open", "pool:1", "Pool:2", "nothing"], [60, 30, 3, 1, 1, 1, 1]
        )
        n = self._draw.choices(COUNTS, [9200, 500, 80, 60, 60, 60, 39, 1])[0]
        n = self._draw.randint(1, 3) if n is None else n
        where = [self.clause() for _ in range(self._draw.choice([0, 1, 1, 1, 2, 2, 2, 3, 4, 8]))]
        if where and self._draw.random() < 0.1:
            where += [*where, self._draw.choice(where)]
        return Ask(Credential(key, LOCAL), model[0], n, tuple(where), self._start())

    def _start(self) -> int | None:
        places = [None, self._draw.randint(0, 800), self._draw.randint(0, 10_000), 0, 2**40, 2**63, -1]
        return self._draw.choices(places, [45, 40, 5, 5, 2, 1, 1])[0]

    def clause(self) -> str:
        """Mostly what can be read; a value of another column, of a slice's end or beside it now and then."""
        if self._draw.random() < 0.12:
            return self._draw.choice(ODD)
        column = self._draw.choice(SCHEMA["columns"])
        blank = self._draw.choice(["", "", "", " ", "\t", "  "])
        if column["kind"] in ("categorical", "boolean"):
            return self._choice(column, blank)
        op = self._draw.choices(["<", "<=", "=", "!=", ">", ">="], [3, 3, 1, 2, 3, 3])[0]
        return f"{column['name']}{blank}{op}{blank}{self._value(column)}"

    def _choice(self, column: Mapping[str, Any], blank: str) -> str:
        known = column.get("categories", ["true", "false", "True"])
        some = self._draw.sample(known, self._draw.randint(1, len(known)))
        quoted = [self._draw.choice(["{}", "{}", "'{}'", '"{}"']).format(word) for word in some]
        op = self._draw.choice(["=", "!=", " in "])
        value = f"{{{', '.join(quoted)}}}" if op == " in " else quoted[0]
        return f"{column['name']}{blank}{op}{blank}{value}"

    def _value(self, column: Mapping[str, Any]) -> str:
        if self._draw.random() < 0.05:
            return str(self._draw.choice(self._ends))
        if column["kind"] == "datetime":
            return self._moment()
        ends = [v for models in SLICES.values() for s in models.values() for v in s.get(column["name"], ())]
        low, high = column["minimum"], column["maximum"]
        value = float(self._draw.choice([self._draw.uniform(low, high), self._draw.choice([low, high, *ends])]))
        step = column.get("step", 1)
        value += self._draw.choice([0, 0, 0, step, -step, 1e-12, -1e-12, 1e-9 * value, -1e-7])
        return self._draw.choice([repr(value), f"{value:g}", f"{value:.3f}", f"{value:e}", f"{round(value)}"])

    def _moment(self) -> str:
        ends = ["2022-03-01", "2023-03-01", "2020-06-01", "2026-01-01"]
        at = np.datetime64(self._draw.choice(ends), "s") + self._draw.choice(
            [0, 1, -1, self._draw.randint(-1000 * DAY, 1000 * DAY)]
        )
        return f"{at}{self._draw.choice(['', '', 'Z', '+02:00', '-11:30', '.000001'])}"


# What must hold, told apart from how the policy does it


def outside(rows: Sequence[Sequence[Any]], slice_: Slice) -> int:
    """How many rows (values in the schema's order) lie outside a slice; a missing value does."""
    keep = np.ones(len(rows), dtype=bool)
    for name, allowed in slice_.items():
        values = [row[NAMES.index(name)] for row in rows]
        keep &= _allowed(values, allowed, next(c for c in SCHEMA["columns"] if c["name"] == name))
    return int((~keep).sum())


def _allowed(values: list[Any], allowed: list[Any], column: Mapping[str, Any]) -> Any:
    """Numbers have the slack that two equal ones have: a billionth of their size, or of the column's step."""
    if column["kind"] in ("categorical", "boolean"):
        known = set(allowed)
        return np.fromiter((value in known for value in values), dtype=bool, count=len(values))
    if column["kind"] == "datetime":
        low, high = (_utc(text) for text in allowed)
        found = np.array([None if v is None else v.removesuffix("Z") for v in values], dtype="datetime64[s]")
        return (found >= low) & (found <= high)
    found = np.array(values, dtype=np.float64)
    slack = [1e-9 * max(abs(v), column.get("step", 0)) for v in allowed]
    return (found >= allowed[0] - slack[0]) & (found <= allowed[-1] + slack[-1])


def _utc(text: str) -> np.datetime64:
    ahead = np.timedelta64(2, "h") if text.endswith("+02:00") else np.timedelta64(0, "h")
    return np.datetime64(text.removesuffix("+02:00"), "s") - ahead


class Caller(NamedTuple):
    """A key and, by model, what its rows must lie in: every one of the slices."""

    key: str
    slices: Mapping[str, list[Slice]]


class Campaign:
    """Sends requests, many at once, and keeps the rows of each caller until they are looked at together."""

    def __init__(self, platform: Any, callers: Sequence[Caller], seed: int) -> None:
        self._platform, self._callers = platform, callers
        self._fuzz, self._draw = Fuzz(seed), random.Random(seed + 1)
        self.counts: Counter[str] = Counter()
        self._held: dict[tuple[int, str], list[Any]] = defaultdict(list)

    def run(self, requests: int) -> Counter[str]:
        for sent in range(0, requests, TOGETHER):
            self._platform.run(self._together(min(TOGETHER, requests - sent)))
            if sum(map(len, self._held.values())) > 20_000:
                self._look()
                print(f"{sent} sent, {self.counts['rows']} rows looked at", flush=True)
        self._look()
        return self.counts

    async def _together(self, requests: int) -> None:
        await asyncio.gather(*(self._one(self._draw.randrange(len(self._callers))) for _ in range(requests)))

    async def _one(self, who: int) -> None:
        ask = self._fuzz.ask(self._callers[who].key)
        try:
            answer = await self._platform.pipeline.generate(ask)
            pieces = [piece async for piece in answer.pieces] if answer.pieces is not None else [answer.body]
        except GenwardError as error:
            assert error.status < 500, (ask, error)
            self.counts[f"refused {error.status}"] += 1
            return
        rows = orjson.loads(b"".join(pieces))["rows"]
        self.counts["answered" if rows else "answered without a row"] += 1
        self._held[who, ask.model.partition(":")[0]] += rows

    def _look(self) -> None:
        for (who, model), rows in self._held.items():
            for slice_ in self._callers[who].slices[model]:
                assert not outside(rows, slice_), (who, model, slice_)
            self.counts["rows"] += len(rows)
        self._held.clear()


# The world: a release whose columns and words are awkward, and a grant for each slice


@pytest.fixture(scope="module")
def sliced(make_world: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A platform with `pool` (800 slots) and `open` (no pool) of such columns, and the callers of every slice."""
    folder, world = tmp_path_factory.mktemp("fuzz"), make_world()
    platform = world.platform
    (folder / "odd.yaml").write_text(json.dumps(SCHEMA))
    _write(folder / "odd.csv")
    dataset = platform.add_dataset(folder / "odd.csv", schema=folder / "odd.yaml")
    candidate = platform.train(dataset.name, family="vae", steps=150)
    for tenant in SLICES:
        platform.add_tenant(tenant)
    for name, slots in (("pool", 800), ("open", None)):
        platform.registry.retire(platform.registry.resolve(f"{name}:1"))  # of the world, whose columns are others
        platform.release(candidate.id, name, slots=slots, grant=[*SLICES], evaluate_rows=300)
    keys = {tenant: platform.create_key(tenant, ["consumer"]) for tenant in SLICES}
    keys["years, one key"] = platform.create_key("years", ["consumer"])
    prefix = platform.authenticate(keys["years, one key"]).key
    world.activate(_document(prefix))
    yield platform, _callers(keys)


def _write(path: Path, rows: int = 1500) -> None:
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(NAMES)
        for _ in range(rows):
            when = np.datetime64("2020-01-01", "s") + 3600 * draw.randrange(60_000)
            gap = "" if draw.random() < 0.2 else round(draw.uniform(-5, 5), 1)
            out.writerow([draw.choice(PHASES), draw.choice("ABC"), draw.choice(["true", "false"]),
                          draw.randint(1990, 2030), round(draw.random(), 1), gap,
                          f"{10 ** draw.uniform(-2, 3):.4g}", f"{when}"])  # fmt: skip


def _document(prefix: str) -> str:
    grants = [
        {"tenant": tenant, "model": model, "where": where}
        for tenant, models in SLICES.items()
        for model, where in models.items()
    ]
    grants.append({"tenant": "years", "model": "*", "key": prefix, "where": NARROWER})
    quota = {"rows": {"per_request": 10**6, "per_key_day": 10**9}, "requests": {"per_key_minute": 10**7}}
    access = {"roles": {"read": ["consumer"], "audit": ["auditor"]}, "grants": grants}
    parts = {"apiVersion": "genward/v1", "kind": "Policy", "name": "fuzz", "access": access, "quota": quota}
    return json.dumps({**parts, "quality": {}})


def _callers(keys: Mapping[str, str]) -> list[Caller]:
    found = []
    for name, key in keys.items():
        models = SLICES[name.partition(",")[0]]
        more = [NARROWER] if "," in name else []
        found.append(Caller(key, {m: [models.get(m, models.get("*", {})), *more] for m in ("pool", "open")}))
    return found


@pytest.mark.parametrize("requests", [1500, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_no_request_of_any_key_leaves_its_slice(sliced: Any, requests: int) -> None:
    platform, callers = sliced
    begun = time.perf_counter()
    found = Campaign(platform, callers, requests).run(requests)
    print(f"\n{requests} requests of {len(callers)} keys in {time.perf_counter() - begun:.0f} s: {dict(found)}")
    assert found["answered"] > requests // 4
    assert sum(count for name, count in found.items() if name != "rows") == requests


def test_the_oracle_sees_what_lies_outside() -> None:
    row = ["FCC", "A", True, 2010, 0.3, None, 10.0, "2022-03-01T00:00:00Z"]
    assert outside([row], {"phase": ["FCC"], "year": [2010, 2010], "hot": [True], "year>": [0.1, 0.3]}) == 0
    for slice_ in (
        {"phase": ["BCC"]},
        {"hot": [False]},
        {"year": [2011, 2012]},
        {"dichte": [-5, 5]},
        {"year>": [0, 0.2]},
    ):
        assert outside([row], slice_) == 1, slice_
    assert outside([row], {"when": ["2022-03-01", "2023-03-01T12:00:00+02:00"]}) == 0
    assert outside([row], {"when": ["2022-03-01T02:00:01+02:00", "2023-03-01"]}) == 1
