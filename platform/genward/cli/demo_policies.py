"""The demo's policies at work, a line or two each: a slice, a quota, a theft curve, a mark."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from genward.errors import Denied

if TYPE_CHECKING:
    from genward.api import Platform

ASKED = 500  # rows that are held against the keys


def step(title: str, text: str = "") -> None:
    """A heading of the demo."""
    print(f"\n== {title}{': ' + text if text else ''}", flush=True)


def watch_policies(platform: Platform, url: str, key: str, partner: str, reference: str) -> None:
    """Ask the server so that each policy of the active document has something to say."""
    _slice(url, partner, reference)
    _theft(platform, reference)
    _marks(platform, url, key, reference)


def _slice(url: str, partner: str, reference: str) -> None:
    """A key that is granted a part of the conditions: within it, served and told; outside, refused."""
    from genward.client import HttpClient

    client = HttpClient(url, partner)
    step("access", "the tenant `partner` was granted materials of 2 and 3 elements")
    told = client.generate(reference, n=200, format="csv").headers
    print(f"  asked for 200 rows of anything: {told['genward-rows']}, all with {told['genward-added']}")
    try:
        client.generate(reference, n=200, where=["n_elements>5"])
    except Denied as error:
        print(f"  asked for n_elements>5: {error}")


def _theft(platform: Platform, reference: str) -> None:
    """What rows are worth to a thief, as the release measured it."""
    import json

    told = {item["claim"]: item for item in json.loads(platform.bundle_file(reference, "evidence.json"))}
    together, alone = (told[f"extraction.{name}"]["value"] for name in ("colluders_tenant_keys", "tenant_rows"))
    risk = told["extraction.release_risk"]["value"]
    step("extraction", f"all keys together can hold {together:,.0f} rows, which is a risk of {risk:.2f}")
    print("  risk 0 is a copy made from 100 rows, risk 1 one that nobody can tell from the release")
    print(f"  one tenant can hold {alone:,.0f} rows, then his walk begins again")
    print(f"  the theft curve: {platform.bundle_folder(reference) / 'extraction.png'}")


def _marks(platform: Platform, url: str, key: str, reference: str) -> None:
    """Rows of a tenant, and as many real ones, held against every key; and how far a key's day has counted down."""
    from genward.client import HttpClient
    from genward.detection import sentence

    folder = platform.state.folder
    answer = HttpClient(url, key).generate(reference, n=ASKED, format="csv")
    step("quota", f"{answer.headers['x-ratelimit-remaining']} of {answer.headers['x-ratelimit-limit']} rows left today")
    marked, innocent = folder / "marked.csv", folder / "innocent.csv"
    marked.write_bytes(answer.body)
    _real_rows(innocent)
    step("watermark", f"{ASKED} rows that `demo` was given, and {ASKED} real ones, held against every tenant's key")
    for path in (marked, innocent):
        for found in platform.detect(path, reference):
            print(f"  {path.name}: {sentence(found)}")


def _real_rows(path: Path) -> None:
    """The head and every 64th row of the example table."""
    table = Path(__file__).parents[3] / "examples" / "data" / "mp_transport.csv.gz"
    with gzip.open(table, "rt", encoding="utf-8") as lines:
        path.write_text(next(lines) + "".join(islice(lines, 0, 64 * ASKED, 64)), encoding="utf-8")
