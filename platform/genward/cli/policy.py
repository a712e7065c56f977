"""`genward policy`: documents that say what is allowed. Draft, approve, activate, roll back; each act is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genward.cli import common
from genward.errors import CheckFailed

app = typer.Typer(help="Policy documents.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="Policy document, YAML.")]
Digest = Annotated[str, typer.Argument(help="Digest of a policy version, or its first characters.")]
As = Annotated[str, typer.Option("--as", help="Who acts: an administrator's key prefix.")]


@app.command("lint")
def lint(file: File) -> None:
    """Validate a document and list what deserves a second look; exit 1 when something is wrong."""
    findings = common.open_platform().lint_policy(common.read_text(file), where=str(file))
    common.show([{"level": f.level, "where": f.where, "message": f.message} for f in findings], "findings")
    if any(f.level == "error" for f in findings):
        raise CheckFailed("the document has errors", where=str(file))


@app.command("diff")
def diff(
    file: File,
    against: Annotated[str | None, typer.Option(help="Digest of a version; else the active one.")] = None,
) -> None:
    """What would change against the active policy."""
    changes = common.open_platform().diff_policy(common.read_text(file), against)
    common.show(changes, "differences")


@app.command("propose")
def propose(file: File, actor: As = "") -> None:
    """Keep a valid document as a new version, to be approved by somebody else."""
    common.show({"digest": common.open_platform().propose_policy(common.read_text(file), actor)})


@app.command("approve")
def approve(digest: Digest, actor: As = "") -> None:
    """Approve a version that another administrator proposed."""
    common.show({"approved": common.open_platform().approve_policy(digest, actor)})


@app.command("activate")
def activate(digest: Digest, actor: As = "") -> None:
    """Make an approved version the active one; servers follow at their next request."""
    common.show({"active": common.open_platform().activate_policy(digest, actor)})


@app.command("rollback")
def rollback(digest: Digest, actor: As = "") -> None:
    """Make an older version active again."""
    common.show({"active": common.open_platform().rollback_policy(digest, actor)})


@app.command("list")
def list_() -> None:
    """All versions and their state."""
    common.show(common.open_platform().policy_versions(), "policies")


@app.command("show")
def show(digest: Annotated[str | None, typer.Argument(help="Version; else the active one.")] = None) -> None:
    """Print a version's document."""
    text = common.open_platform().policy_text(digest)
    if common.settings.json:
        common.show({"document": text})
    else:
        print(text, end="")
