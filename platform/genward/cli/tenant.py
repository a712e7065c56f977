"""`genward tenant` and `genward key`: who may ask."""

from __future__ import annotations

from typing import Annotated

import typer

from genward.cli import common

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
) -> None:
    """Make a key and show it, this once."""
    secret = common.open_platform().create_key(tenant, role or ["consumer"], days=days, label=label)
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
