"""`genward model`: candidates and releases."""

from __future__ import annotations

from typing import Annotated

import typer

from genward.cli import common

app = typer.Typer(help="Candidates and releases.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="name, name:version or name@alias.")]
As = Annotated[str, typer.Option("--as", help="Who acts: a key prefix.")]


@app.command("list")
def list_() -> None:
    """List releases."""
    common.show(common.open_platform().releases(), "releases")


@app.command("candidates")
def candidates() -> None:
    """List candidates: trained, not released."""
    common.show(common.open_platform().candidates(), "candidates")


@app.command("show")
def show(reference: Reference) -> None:
    """A release's card: what it is, what was measured, what it promises."""
    platform = common.open_platform()
    if common.settings.json:
        common.show(platform.card(reference))
    else:
        print(platform.card_text(reference))


@app.command("alias")
def alias(
    reference: Reference,
    name: Annotated[str, typer.Argument(help="Alias, for example production.")],
    actor: As = "",
) -> None:
    """Point an alias at a release."""
    common.show({"alias": common.open_platform().set_alias(reference, name, actor)})


@app.command("approve")
def approve(reference: Reference, actor: As = "") -> None:
    """Approve a release for production; four eyes unless the configuration says UnsafeSingleOperator."""
    common.show({"approved": common.open_platform().approve_release(reference, actor)})


@app.command("grant")
def grant(
    reference: Reference,
    tenant: Annotated[str, typer.Argument(help="Tenant, or * for all.")],
) -> None:
    """Let a tenant generate from a release."""
    common.show({"granted": common.open_platform().grant(reference, tenant)})


@app.command("retire")
def retire(reference: Reference, actor: As = "") -> None:
    """Take a release out of service; its receipts still replay."""
    common.show({"retired": common.open_platform().retire(reference, actor)})
