"""The daily verbs: init, train, release, generate, verify, doctor, backup, restore, upgrade."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from genward.cli import common
from genward.errors import UsageError
from genward.progress import for_terminal

Where = Annotated[list[str] | None, typer.Option(help='Condition, for example "phase=cubic" or "density>5".')]


def init(
    tenant: Annotated[str, typer.Option(help="First tenant.")] = "default",
    passphrase: Annotated[
        bool, typer.Option(help="Protect the keys with a passphrase: GENWARD_PASSPHRASE, else asked for.")
    ] = False,
    single_operator: Annotated[
        bool, typer.Option("--unsafe-single-operator", help="One person may propose and approve; loudly logged.")
    ] = False,
) -> None:
    """Make a state folder: keys, one tenant, an administrator's key shown once, the shipped policy active."""
    from genward.api import Platform

    word = os.environ.get("GENWARD_PASSPHRASE") if passphrase else None
    if passphrase and not word:
        word = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True)
    _, key = Platform.init(common.settings.state, tenant=tenant, passphrase=word, single_operator=single_operator)
    common.show({"state": str(common.settings.state), "tenant": tenant, "administrator_key": key})
    common.say("keep this key: it is not shown again")


def train(
    dataset: Annotated[str | None, typer.Argument(help="Data set name or digest.")] = None,
    family: Annotated[str, typer.Option(help="Generator family; `genward plugin list` shows them.")] = "diffusion",
    option: Annotated[list[str] | None, typer.Option(help="The family's configuration, key=value.")] = None,
    condition: Annotated[list[str] | None, typer.Option(help="Column to condition on; makes cells possible.")] = None,
    target: Annotated[str | None, typer.Option(help="Column that the usefulness test predicts.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of split, network and noise.")] = 0,
    max_minutes: Annotated[float | None, typer.Option(help="Stop, fully annealed, after this time.")] = None,
    steps: Annotated[int | None, typer.Option(help="Train this many steps; held-out rows may stop it earlier.")] = None,
    resume: Annotated[str | None, typer.Option(help="Candidate to go on with, as it was begun.")] = None,
) -> None:
    """Train a candidate. Ctrl-C leaves it resumable."""
    platform = common.open_platform()
    if resume:
        candidate = platform.resume(resume, progress=for_terminal())
    elif dataset is None:
        raise UsageError("no data set", remedy="`genward dataset list` shows them; or give --resume CANDIDATE")
    else:
        candidate = platform.train(
            dataset,
            family=family,
            config=common.parse_pairs(option or [], "option"),
            conditions=condition or [],
            target=target,
            seed=seed,
            max_minutes=max_minutes,
            steps=steps,
            progress=for_terminal(),
        )
    common.show({"candidate": candidate.id, "family": candidate.family.name, "folder": str(candidate.folder)})


def release(
    candidate: Annotated[str, typer.Argument(help="Candidate id, as `train` printed it.")],
    name: Annotated[str, typer.Option(help="Model name.")],
    slots: Annotated[str, typer.Option(help="Rows in the pool, or none.")] = "100000",
    cell: Annotated[
        list[str] | None, typer.Option(help="Cell column; bins as column=1,2,5; a condition of the training.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Alias to point at it, for example production.")] = None,
    grant: Annotated[list[str] | None, typer.Option(help="Tenant that may generate; * for all.")] = None,
    actor: common.As = "",
) -> None:
    """Export, measure, gate, seal, sign and register a candidate as the next version of a model."""
    platform = common.open_platform()
    released = platform.release(
        candidate,
        name,
        slots=parse_slots(slots),
        cells=parse_cells(cell or []) or None,
        alias=alias,
        grant=grant or [],
        actor=common.acting(platform, actor),
        progress=for_terminal(),
    )
    common.show({"release": released.reference, "digest": released.digest, "audit_index": released.audit_index})


def generate(
    model: Annotated[str, typer.Argument(help="name, name:version or name@alias.")],
    n: Annotated[int, typer.Option("-n", help="Rows.")] = 10,
    where: Where = None,
    start: Annotated[int | None, typer.Option("--from", help="Position of a page seen before.")] = None,
    format: Annotated[str, typer.Option(help="csv, json, arrow or parquet.")] = "csv",
    output: Annotated[Path | None, typer.Option("-o", help="File; else standard output.")] = None,
    receipt: Annotated[Path | None, typer.Option(help="Write the receipt here.")] = None,
    key: Annotated[str | None, typer.Option(envvar="GENWARD_KEY", help="API key.")] = None,
    url: Annotated[str | None, typer.Option(envvar="GENWARD_URL", help="A server; else this state folder.")] = None,
) -> None:
    """Generate rows, on this machine or from a server, and say how many were found and why not more."""
    from genward import statement
    from genward.client import HttpClient

    if key is None:
        raise UsageError("no API key", remedy="pass --key or set GENWARD_KEY; `genward key create` makes one")
    client = HttpClient(url, key) if url else common.open_platform().client(key)
    with _opened(output) as file:
        answer = client.generate(model, n=n, where=where or [], start=start, format=format, into=file)
    print(answer.summary, file=sys.stderr)
    if output is not None and format == "csv" and (line := answer.headers.get(statement.HEADER)):
        statement.write_sidecar(output, line)
    if receipt is not None:
        receipt.write_bytes(answer.receipt())


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that appears when it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(output)
    except OSError as error:
        raise UsageError(f"cannot write it: {error.strerror}", where=str(output)) from None
    finally:
        part.unlink(missing_ok=True)


def verify(
    path: Annotated[Path | None, typer.Argument(help="A bundle folder or a receipt file.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Receipt whose rows are computed again, bit for bit.")] = None,
    key: Annotated[Path | None, typer.Option(help="Public key (PEM) of the publisher; else this state's.")] = None,
) -> None:
    """Check a bundle's signature, a receipt's proof, or replay a response from its receipt."""
    if (path is None) == (replay is None):
        raise UsageError("say what to verify", remedy="genward verify PATH, or genward verify --replay RECEIPT")
    if replay is not None:
        common.show(common.open_platform().replay(replay))
        return
    from genward.verify import verify_path

    common.show(verify_path(path or Path(), key=key, state=common.settings.state))


def doctor() -> None:
    """What is installed, which plugins loaded and why any did not, what could run, what is unsafe."""
    from genward.doctor import examine

    found = examine(common.settings.state, common.skipped)
    found["problems"] += [f"{reason}\n{trace}".rstrip() for reason, trace in common.broken.items()]
    if common.settings.json:
        common.show(found)
    else:
        _print_doctor(found)
    if found["problems"]:
        raise typer.Exit(1)


def _print_doctor(found: dict[str, Any]) -> None:
    lists = ("plugins", "unsafe", "versions", "problems")
    common.show({key: value for key, value in found.items() if key not in lists})
    common.show([{"package": name, "version": version} for name, version in found["versions"].items()], "packages")
    for plugin in found["plugins"]:
        line = f"{plugin['status']:<8} {plugin['name']} from {plugin['distribution']} {plugin['version']}"
        print(f"{line}: {plugin['reason']}" if "reason" in plugin else line)
        print(plugin.get("trace", ""), end="")
    for sentence in found["unsafe"]:
        print(f"UNSAFE   {sentence}")
    for sentence in found["problems"]:
        print(f"PROBLEM  {sentence}")


def backup(
    target: Annotated[Path, typer.Argument(help="Archive to write.")],
    keys: Annotated[bool, typer.Option(help="Include the secret keys.")] = False,
) -> None:
    """Copy log, registry, ledger, bundles and data sets together, while a server runs."""
    from genward.backup import backup as run

    common.show({"archive": str(run(common.open_platform().state, target, keys=keys))})


def restore(archive: Annotated[Path, typer.Argument(help="Archive that `backup` wrote.")]) -> None:
    """Unpack a backup into an empty state folder."""
    from genward.backup import restore as run

    run(archive, common.settings.state)
    common.show({"state": str(common.settings.state)})


def upgrade() -> None:
    """Bring an older state folder to this version's format."""
    from genward.state import upgrade as run

    run(common.settings.state)
    common.show({"state": str(common.settings.state)})


def parse_slots(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"slots {text!r} is neither a number nor none", remedy="for example --slots 100000")
    return int(text)


def parse_cells(cells: list[str]) -> dict[str, list[float] | None]:
    """`phase` is a cell per category; `density=2,5,8` a cell per bin between these bounds."""
    found: dict[str, list[float] | None] = {}
    for cell in cells:
        column, _, bounds = cell.partition("=")
        try:
            found[column] = [float(bound) for bound in bounds.split(",")] if bounds else None
        except ValueError:
            raise UsageError(
                f"cell {cell!r} has a bound that is no number", remedy="for example density=2,5,8"
            ) from None
    return found


def add_to(root: typer.Typer) -> None:
    """Put the daily verbs at the root."""
    for command in (init, train, release, generate, verify, doctor, backup, restore, upgrade):
        root.command(command.__name__)(command)
