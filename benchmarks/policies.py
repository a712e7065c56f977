"""What the four request policies cost at the endpoint: `python benchmarks/policies.py [--folder DIR] [--rounds N]`.

Two servers on one core, this client on the other: access and quota alone with one candidate a slot, and the same with
the extraction and watermark policies and two candidates. They are asked in turns, pages of 1,000 rows on one
connection. Rows of a pool are asked for twice: when they are computed and scored for the first time, and when they are
known. Each state is made once (a VAE, 20 CPU seconds; the four: a minute of calibration more) and kept in DIR. Writes
benchmarks/results/policies.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from serving import HERE, first, free_port, genward, pinned_writer, started
from serving_load import Target, run
from serving_state import SLOTS, Subject, prepare

from genward.respond import ARROW, JSON

ROWS = 1000
MORE = {
    "pool": f"extraction: {{pool: {SLOTS}, max_risk: {{key: null, release: null}}}}\nwatermark: {{}}\n",
    "open": "extraction: {pool: none, max_risk: {key: null, release: null}}\nwatermark: {}\n",
}


def target(subject: Subject, port: int, model: str, media: str) -> Target:
    headers = {"authorization": f"Bearer {subject.key}", "accept": media}
    return Target(port, f"/v1/models/{model}:1/generate", {"n": ROWS}, headers)


def compare(two: Target, four: Target, rounds: int, count: int) -> dict[str, Any]:
    """Medians over rounds of each side's p50, milliseconds; median, least and most of the rounds' ratios."""
    rows = [tuple(run(t, 1, count, 30.0).quantile(0.5) for t in (two, four)) for _ in range(rounds)]
    ratios = [b / a for a, b in rows]
    plain, governed = (statistics.median(column) for column in zip(*rows, strict=True))
    ends = {"low": min(ratios), "high": max(ratios)}
    return {"two_ms": plain, "four_ms": governed, "value": statistics.median(ratios), **ends, "n": rounds * count}


def measure(subjects: tuple[Subject, Subject], folder: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Start both servers, ask them, stop them."""
    ports = free_port(), free_port()
    a, b = (started(genward(s, p), {}, p, folder / "server.log") for s, p in zip(subjects, ports, strict=True))
    with a, b:
        for subject, port in zip(subjects, ports, strict=True):
            first(target(subject, port, "pool", JSON))
            first(target(subject, port, "open", JSON))
            pinned_writer(subject)
        kinds = (("pool", "for the first time", SLOTS // ROWS // 20), ("pool", "known", 50), ("open", "no pool", 10))
        for model, when, count in kinds:
            for media in (JSON, ARROW) if when != "for the first time" else (JSON,):
                asked = (target(s, p, model, media) for s, p in zip(subjects, ports, strict=True))
                found = compare(*asked, 10 if when == "for the first time" else rounds, count)
                yield {"figure": f"p50 at n = 1,000, {media.rpartition('/')[2]}, {when}", **found}
            if when == "for the first time":  # the rest of the pool
                for subject, port in zip(subjects, ports, strict=True):
                    run(target(subject, port, model, JSON), 1, SLOTS // ROWS, 60.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "genward-policies")
    parser.add_argument("--rounds", type=int, default=41)
    given = parser.parse_args()
    subjects = []
    for name, more in (("two", None), ("four", MORE)):
        (given.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        subjects.append(prepare(given.folder / name, 20.0, more))
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {1})
    print(f"load average {os.getloadavg()[0]:.2f}")
    found = []
    for figure in measure((subjects[0], subjects[1]), given.folder, given.rounds):
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figure.items()}), flush=True)
        found.append(figure)
    result = HERE / "results" / "policies.json"
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
