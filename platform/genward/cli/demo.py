"""`genward demo`: the whole story on one machine, on real data, in its own folder."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genward.cli import common
from genward.errors import NotFound, Unavailable
from genward.progress import for_terminal

if TYPE_CHECKING:
    from genward.api import Platform, Released
    from genward.client import Answer

NAME = "transport"
TABLE, SCHEMA = "mp_transport.csv.gz", "mp_transport.yaml"
TARGET = "S_p"
CONDITION = "kappa_n>1e5"
SECONDS = {False: 75.0, True: 10.0}  # CPU seconds of training, by --quick


@dataclass(frozen=True)
class _Server:
    url: str
    process: subprocess.Popen[str]


def demo(
    quick: Annotated[bool, typer.Option(help="Train for seconds; the model is worse.")] = False,
    once: Annotated[bool, typer.Option(help="Stop the server at the end.")] = False,
    folder: Annotated[Path, typer.Option(help="State folder of the demo.")] = Path(".genward-demo"),
) -> None:
    """Train, seal, serve, ask, verify and replay, on 47,737 computed materials."""
    started = time.monotonic()
    common.use_state(folder)
    platform = _platform(folder)
    key = platform.create_key("demo", ["consumer"], days=30, label="demo")
    released = _release(platform, quick)
    with _serve(folder) as server:
        answer = _ask(server.url, key, released)
        receipt = folder / "receipt.json"
        receipt.write_bytes(answer.receipt())
        _prove(platform, released, receipt)
        print(f"\nThe whole path took {time.monotonic() - started:.0f} s. Next, you might try:")
        _suggest(folder, key, server.url, receipt)
        if not once:
            print(f"\nThe server stays up at {server.url}; Ctrl-C stops it.")
            server.process.wait()


def _platform(folder: Path) -> Platform:
    from genward.api import Platform

    if (folder / "VERSION").is_file():
        _step("open the state folder", str(folder))
        return Platform.open(folder)
    _step("make a state folder", f"{folder}: keys, log, registry; one operator, so UnsafeSingleOperator is on")
    platform, _ = Platform.init(folder, tenant="demo", single_operator=True)
    return platform


def _release(platform: Platform, quick: bool) -> Released:
    data = _examples()
    dataset = platform.add_dataset(data / TABLE, schema=data / SCHEMA, name=NAME)
    _step("check the data", f"{dataset.rows:,} materials, {len(dataset.schema.columns)} columns, {dataset.digest[:19]}")
    candidate = platform.train(
        dataset.name, family="diffusion", target=TARGET, max_cpu_seconds=SECONDS[quick], progress=for_terminal()
    )
    _step("train", f"candidate {candidate.id}, loss curves in {candidate.folder / 'losses.png'}")
    released = platform.release(
        candidate.id, NAME, alias="production", grant=["demo"], evaluate_rows=5_000 if quick else 20_000,
        progress=for_terminal(),
    )  # fmt: skip
    _step("release", f"{released.reference} = {released.digest[:19]}, log entry {released.audit_index}")
    print(platform.evidence_text(released.reference))
    print(f"  synthetic beside real rows, column by column: {candidate.folder / 'marginals.png'}")
    return released


def _ask(url: str, key: str, released: Released) -> Answer:
    from genward.client import HttpClient

    client = HttpClient(url, key)
    _step("ask over HTTP", f"POST /v1/models/{NAME}@production/generate, 5 rows with {CONDITION}")
    answer = client.generate(f"{NAME}@production", n=5, where=[CONDITION], format="csv")
    print(answer.body.decode())
    print(answer.summary)
    return answer


def _prove(platform: Platform, released: Released, receipt: Path) -> None:
    from genward.verify import verify_path

    proof = verify_path(receipt, key=None, state=platform.state.folder)
    _step("verify the receipt offline", ", ".join(f"{k} {v}" for k, v in proof.items()))
    bundle = verify_path(platform.bundle_folder(released.reference), key=None, state=platform.state.folder)
    _step("verify the bundle offline", ", ".join(f"{k} {v}" for k, v in bundle.items()))
    replayed = platform.replay(receipt)
    _step("replay the response", ", ".join(f"{k} {v}" for k, v in replayed.items()))


def _suggest(folder: Path, key: str, url: str, receipt: Path) -> None:
    print(f"  .venv/bin/genward generate {NAME}@production -n 3 --url {url} --key {key}")
    print(f"  .venv/bin/genward --state {folder} verify --replay {receipt}")
    print(f"  .venv/bin/genward audit tail --log {folder / 'log'}")


@contextmanager
def _serve(folder: Path) -> Iterator[_Server]:
    """`genward serve` on a free port, stopped at the end."""
    command = [sys.executable, "-m", "genward.cli", "--state", str(folder), "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield _Server(_address(process), process)
    except KeyboardInterrupt:
        print("\nstopping the server")
    finally:
        process.terminate()
        process.wait(timeout=60)


def _address(process: subprocess.Popen[str]) -> str:
    """The URL the server prints when it is ready."""
    if process.stdout is None:
        raise Unavailable("the server has no output")
    for line in process.stdout:
        if "http://" in line:
            url = line[line.index("http://") :].split()[0]
            _step("serve", url)
            return url
    raise Unavailable("the server did not start", remedy="run `genward serve` to see why")


def _examples() -> Path:
    """The example data lies beside the sources; an installed wheel has none."""
    found = Path(__file__).parents[3] / "examples" / "data"
    if not (found / TABLE).is_file():
        raise NotFound("the demo's table is not here", where=str(found), remedy="run the demo from a checkout")
    return found


def _step(title: str, text: str = "") -> None:
    print(f"\n== {title}{': ' + text if text else ''}", flush=True)
