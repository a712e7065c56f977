"""`genward model`: candidates and releases."""

from __future__ import annotations

from typing import Annotated

import typer

from genward.cli import common
from genward.cli.common import As

app = typer.Typer(help="Candidates and releases.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="name, name:version or name@alias.")]


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
    platform = common.open_platform()
    who = common.acting(platform, actor, four_eyes=name == "production")
    common.show({"alias": platform.set_alias(reference, name, who)})


@app.command("approve")
def approve(reference: Reference, actor: As = "") -> None:
    """Approve a release for production; four eyes unless the configuration says UnsafeSingleOperator."""
    platform = common.open_platform()
    common.show({"approved": platform.approve_release(reference, common.acting(platform, actor, four_eyes=True))})


@app.command("grant")
def grant(
    reference: Reference,
    tenant: Annotated[str, typer.Argument(help="Tenant, or * for all.")],
) -> None:
    """Let a tenant generate from a release."""
    common.show({"granted": common.open_platform().grant(reference, tenant)})


@app.command("raise-pool")
def raise_pool(
    reference: Reference,
    slots: Annotated[int, typer.Argument(help="Slots that the pool shall have in all.")],
    actor: As = "",
) -> None:
    """Append a segment to a release's pool; prints what all keys together can hold then, at what risk."""
    from genward import pool

    platform = common.open_platform()
    found = platform.raise_pool(reference, slots, common.acting(platform, actor, four_eyes=True))
    common.show(found if common.settings.json else pool.plain(found))


@app.command("retire")
def retire(reference: Reference, actor: As = "") -> None:
    """Take a release out of service; its receipts still replay."""
    platform = common.open_platform()
    common.show({"retired": platform.retire(reference, common.acting(platform, actor))})


@app.command("cost")
def cost(
    reference: Reference,
    last: Annotated[int, typer.Option(help="How many entries of the log to look through, from the end.")] = 10_000,
) -> None:
    """What a row of a release costs: as was sealed, and as requests were metered."""
    from genward.costs import report

    common.show(report(common.open_platform(), reference, last))
