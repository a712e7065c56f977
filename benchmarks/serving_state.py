"""States that the serving benchmarks measure: a VAE of the transport table, released with a pool and without one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from genward.api import Platform
from genward.progress import Lines

DATA = Path(__file__).parents[1] / "examples" / "data"
SLOTS = 100_000
# The policies of the shipped document, with limits that a load test does not reach.
POLICY = """
apiVersion: genward/v1
kind: Policy
name: bench
access:
  roles:
    generate: [consumer]
    read: [consumer]
    audit: [auditor]
quota:
  rows: {per_request: 100000000, per_key_day: 1000000000000}
  requests: {per_key_minute: 1000000000}
quality: {}
"""


@dataclass(frozen=True)
class Subject:
    """A state folder, a key that may generate, and two releases of one network."""

    folder: str
    key: str
    pool: str = "pool:1"
    open: str = "open:1"


def prepare(folder: Path, seconds: float, more: Mapping[str, str] | None = None) -> Subject:
    """The subject, made once and then found again; training takes `seconds` of CPU time.

    `more`: for the release of a name, what is added to the policy document while it is made; the last one stays.
    """
    note = folder / "subject.json"
    if note.is_file():
        return Subject(**json.loads(note.read_text()))
    platform, _ = Platform.init(folder / "state", tenant="bench", single_operator=True)
    _activate(platform, POLICY)
    dataset = platform.add_dataset(DATA / "mp_transport.csv.gz", schema=DATA / "mp_transport.yaml")
    candidate = platform.train(dataset.name, family="vae", max_cpu_seconds=seconds, progress=Lines())
    for name, slots in (("open", None), ("pool", SLOTS)):
        if more is not None:
            _activate(platform, POLICY + more[name])
        platform.release(candidate.id, name, slots=slots, grant=["bench"], evaluate_rows=2000, progress=Lines())
    subject = Subject(str(folder / "state"), platform.create_key("bench", ["consumer"], label="load"))
    platform.close()
    note.write_text(json.dumps(asdict(subject)))
    note.chmod(0o600)
    return subject


def _activate(platform: Platform, text: str) -> None:
    platform.activate_policy(platform.approve_policy(platform.propose_policy(text)))
