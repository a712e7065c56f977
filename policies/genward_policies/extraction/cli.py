"""`genward redteam`: attacks on one's own releases; `genward extraction`: keys whose conditions are watched."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genward.cli import common
from genward.cli.common import As
from genward.errors import UsageError

if TYPE_CHECKING:
    from genward.api import Platform

redteam = typer.Typer(help="Attacks on one's own releases.", no_args_is_help=True)
app = typer.Typer(help="Keys whose conditions are watched for an extraction.", no_args_is_help=True)
SANDBOX = "sandbox"
Model = Annotated[str, typer.Argument(help="name, name:version or name@alias.")]


@redteam.callback()
def _redteam() -> None:
    """Attacks on one's own releases."""


@redteam.command("extract")
def extract(
    model: Model,
    url: Annotated[str | None, typer.Option(help="A server; in process when left out.")] = None,
    key: Annotated[
        str, typer.Option(envvar="GENWARD_KEY", help="API key to ask with; else one of the tenant `sandbox` is made.")
    ] = "",
    rows: Annotated[int, typer.Option(min=100, help="Rows to ask for, at most.")] = 10_000,
    attack: Annotated[list[str] | None, typer.Option(help="Attacks to run; kde and gmm when left out.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for theft.json and theft.png.")] = Path(),
) -> None:
    """Copy a release from what one key is given, and from what it would be given with a defence off."""
    from genward.client import HttpClient
    from genward.progress import for_terminal
    from genward_policies.extraction.redteam import GRID, RedTeam, as_plot

    if url and not key:
        raise UsageError("a server wants a key", remedy="pass one with --key, or GENWARD_KEY")
    platform = common.open_platform()
    asking, made = (key, "") if key else _sandbox(platform, model)
    try:
        client = HttpClient(url, asking) if url else platform.client(asking)
        attackers = [_attacker(platform, name) for name in attack or ("kde", "gmm")]
        grid = [*(n for n in GRID if n < rows), rows]
        thefts = RedTeam(platform, model, client, attackers).run(for_terminal(), grid)
    finally:
        if made:
            platform.revoke_key(made)
    found = [asdict(theft) for theft in thefts]
    out.mkdir(parents=True, exist_ok=True)
    (out / "theft.json").write_text(json.dumps({"model": model, "thefts": found}, indent=1))
    (out / "theft.png").write_bytes(as_plot(thefts, f"What a thief of {model} gets"))
    common.show(found, "thefts")
    common.say(f"drawn in {out / 'theft.png'}")


def _sandbox(platform: Platform, model: str) -> tuple[str, str]:
    """A key of the sandbox tenant, to whom the model is granted; (key, its prefix). All of it is in the log."""
    if SANDBOX not in platform.registry.tenants():
        platform.add_tenant(SANDBOX)
    if SANDBOX not in platform.registry.resolve(model).tenants:
        platform.grant(model, SANDBOX)
    key = platform.create_key(SANDBOX, ["consumer"], days=1, label="red team")
    return key, platform.registry.authenticate(key).key


def _attacker(platform: Platform, name: str) -> Any:
    found = platform.plugins.attackers
    if name not in found:
        raise UsageError(f"no attack is called {name!r}", remedy=f"there are: {', '.join(sorted(found))}")
    return found[name]


@app.command("watched")
def watched() -> None:
    """List keys whose conditions are watched, the most suspicious first; flagged are those with a level."""
    from genward_policies.extraction.acts import watched as listed

    common.show(listed(common.open_platform()), "watched keys")


@app.command("reset")
def reset(
    model: Model,
    tenant: Annotated[str, typer.Argument(help="The key's tenant.")],
    key: Annotated[str, typer.Argument(help="The key's prefix.")],
    actor: As = "",
) -> None:
    """Forget what is known of a key's conditions and lift its flag; an act in the log."""
    from genward_policies.extraction.acts import reset as forget

    platform = common.open_platform()
    forget(platform, model, tenant, key, common.acting(platform, actor))
    common.show({"reset": key, "model": model})
