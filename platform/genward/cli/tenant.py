"""`genward tenant` and `genward key`: who may ask."""

from __future__ import annotations

from typing import Annotated

import typer

from genward.cli import common
from genward.cli.common import As

tenant_app = typer.Typer(help="Tenants.", no_args_is_help=True)
key_app = typer.Typer(help="API keys. A key is shown once, when it is made.", no_args_is_help=True)

TenantArgument = Annotated[str, typer.Argument(help="Tenant name.")]


@tenant_app.command("add")
def add(name: TenantArgument) -> None:
    """Add a tenant."""
    common.open_platform().add_tenant(name)
    common.show({"tenant": name})


@tenant_app.command("list")
def list_tenants() -> None:
    """List tenants."""
    common.show([{"tenant": name} for name in common.open_platform().registry.tenants()], "tenants")


@key_app.command("create")
def create(
    tenant: TenantArgument,
    role: Annotated[list[str] | None, typer.Option(help="administrator, publisher, auditor, consumer.")] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires; never when left out.")] = None,
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    action: Annotated[list[str] | None, typer.Option(help="Only this: generate, read, audit, detect.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this model.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Only from this network, for example 10.0.0.0/8.")] = None,
    parent: Annotated[str | None, typer.Option(help="Prefix of a key; the new one falls with it.")] = None,
    actor: As = "",
) -> None:
    """Make a key and show it, this once."""
    from genward.apikey import Scope

    platform = common.open_platform()
    scope = Scope(tuple(action or ()), tuple(model or ()), tuple(network or ()))
    who = common.acting(platform, actor)
    secret = platform.create_key(
        tenant, role or ["consumer"], days=days, label=label, scope=scope, parent=parent, actor=who
    )
    common.show({"key": secret, "tenant": tenant, "roles": role or ["consumer"]})


@key_app.command("list")
def list_keys(tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None) -> None:
    """List keys by their public prefix; secrets are not kept."""
    common.show(common.open_platform().keys_of(tenant), "keys")


@key_app.command("revoke")
def revoke(prefix: Annotated[str, typer.Argument(help="The key's public prefix.")]) -> None:
    """Revoke a key; servers refuse it from their next request on."""
    common.open_platform().revoke_key(prefix)
    common.show({"revoked": prefix})
