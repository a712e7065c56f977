"""`genward demo`: the whole story on one machine, on real data, in its own folder.

Two releases of one table: a private one (marginals under differential privacy, with its ledger and its odds), and a
diffusion cut to a price, calibrated against theft and marked. Then the second is served and asked, each policy is seen
at work, and what was answered is proved and replayed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genward.api import Released
from genward.cli import common
from genward.cli.demo_policies import step, watch_policies
from genward.errors import CheckFailed, NotFound, Unavailable
from genward.progress import for_terminal

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.client import Answer
    from genward.data.dataset import Dataset

NAME, PRIVATE = "transport", "transport-private"
TABLE, SCHEMA, DECLARED = "mp_transport.csv.gz", "mp_transport.yaml", "mp_transport_private.yaml"
GOVERNED, PARTNER = "governed.yaml", "partner"
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
    """Train privately, train and prune, seal, serve, ask, verify and replay, on 47,737 computed materials."""
    started = time.monotonic()
    common.use_state(folder)
    platform = _platform(folder)
    key = platform.create_key("demo", ["consumer"], days=30, label="demo")
    _private(platform, quick)
    released = _governed(platform, quick)
    partner = platform.create_key(PARTNER, ["consumer"], days=30, label="demo")
    with _serve(folder) as server:
        answer = _ask(server.url, key, released)
        watch_policies(platform, server.url, key, partner, released.reference)
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
        step("open the state folder", str(folder))
        return Platform.open(folder)
    step("make a state folder", f"{folder}: keys, log, registry; one operator, so UnsafeSingleOperator is on")
    platform, _ = Platform.init(folder, tenant="demo", single_operator=True)
    platform.add_tenant(PARTNER)
    return platform


def _private(platform: Platform, quick: bool) -> None:
    """A release that is differentially private; when the data set's budget is spent, the refusal is the story."""
    _adopt(platform, "private.yaml", _shipped("private.yaml"))
    dataset = _dataset(platform, DECLARED, PRIVATE)
    try:
        candidate = platform.train(dataset.name, family="marginals", target=TARGET, progress=for_terminal())
    except CheckFailed as error:
        print(f"  {error}\n  That is the budget at work: this data set was trained on as often as the policy allows.")
        return
    step("train privately", f"candidate {candidate.id}")
    released = _released(platform, candidate.id, PRIVATE, quick)
    _show(platform, released)
    told = platform.bundle_file(released.reference, "privacy.md").decode().splitlines()
    step("what an attacker could learn", told[2])
    step("the ledger of the data set")
    _run("ledger", "show", PRIVATE)


def _governed(platform: Platform, quick: bool) -> Released:
    """A diffusion under every other policy, cut to the price that is named; `--quick` leaves the cut out."""
    text = (_examples() / GOVERNED).read_text(encoding="utf-8")
    _adopt(platform, GOVERNED, text.partition("\npruning:")[0] + "\n" if quick else text)
    dataset = _dataset(platform, SCHEMA, NAME)
    candidate = platform.train(
        dataset.name, family="diffusion", target=TARGET, max_cpu_seconds=SECONDS[quick], progress=for_terminal()
    )
    step("train", f"candidate {candidate.id}, loss curves in {candidate.folder / 'losses.png'}")
    released = _cheapest(platform, candidate.id, quick)
    _show(platform, released)
    print(f"  the report, column by column: {platform.bundle_folder(released.reference) / 'report.html'}")
    if not quick:
        step("what it costs")
        _run("model", "cost", NAME)
    return released


def _cheapest(platform: Platform, candidate: str, quick: bool) -> Released:
    """The pruned release; where a gate refuses it, its parent, which was released before, serves."""
    before = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        return _released(platform, candidate, NAME, quick)
    except CheckFailed as error:
        found = [row for row in platform.releases() if row["name"] == NAME and row["created"] >= before]
        if not found:
            raise
        print(f"  {error}\n  That is a gate at work: the network that was not cut goes to production.")
    last = found[-1]
    platform.set_alias(f"{NAME}:{last['version']}", "production")
    return Released(f"{NAME}:{last['version']}", str(last["digest"]), 0)


def _shipped(name: str) -> str:
    return files("genward_policies").joinpath(name).read_text(encoding="utf-8")


def _adopt(platform: Platform, name: str, text: str) -> None:
    """Make a policy document the active one: proposed, approved and activated by the one operator."""
    digest = platform.propose_policy(text)
    platform.approve_policy(digest)
    platform.activate_policy(digest)
    step("the policy", f"{name} is active, {digest[:19]}")


def _dataset(platform: Platform, schema: str, name: str) -> Dataset:
    data = _examples()
    dataset = platform.add_dataset(data / TABLE, schema=data / schema, name=name)
    step("check the data", f"{dataset.rows:,} materials, {len(dataset.schema.columns)} columns, {dataset.digest[:19]}")
    return dataset


def _released(platform: Platform, candidate: str, name: str, quick: bool) -> Released:
    rows = 5_000 if quick else 20_000
    return platform.release(
        candidate, name, alias="production", grant=["demo", PARTNER], evaluate_rows=rows, progress=for_terminal()
    )


def _show(platform: Platform, released: Released) -> None:
    step("release", f"{released.reference} = {released.digest[:19]}")
    print(platform.evidence_text(released.reference))


def _run(*words: str) -> None:
    """A command as a person would type it, in this process."""
    from genward.cli import command_line

    print(f"  $ genward {' '.join(words)}", flush=True)
    command_line()(args=list(words), standalone_mode=False)


def _ask(url: str, key: str, released: Released) -> Answer:
    from genward.client import HttpClient

    client = HttpClient(url, key)
    step("ask over HTTP", f"POST /v1/models/{NAME}@production/generate, 5 rows with {CONDITION}")
    answer = client.generate(f"{NAME}@production", n=5, where=[CONDITION], format="csv")
    print(answer.body.decode())
    print(answer.summary)
    return answer


def _prove(platform: Platform, released: Released, receipt: Path) -> None:
    from genward.verify import verify_path

    proof = verify_path(receipt, key=None, state=platform.state.folder)
    step("verify the receipt offline", ", ".join(f"{k} {v}" for k, v in proof.items()))
    bundle = verify_path(platform.bundle_folder(released.reference), key=None, state=platform.state.folder)
    step("verify the bundle offline", ", ".join(f"{k} {v}" for k, v in bundle.items()))
    replayed = platform.replay(receipt)
    step("replay the response", ", ".join(f"{k} {v}" for k, v in replayed.items()))


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
            step("serve", url)
            return url
    raise Unavailable("the server did not start", remedy="run `genward serve` to see why")


def _examples() -> Path:
    """The example data lies beside the sources; an installed wheel has none."""
    found = Path(__file__).parents[3] / "examples" / "data"
    if not (found / TABLE).is_file():
        raise NotFound("the demo's table is not here", where=str(found), remedy="run the demo from a checkout")
    return found
