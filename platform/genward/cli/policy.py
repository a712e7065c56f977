"""`genward policy`: documents that say what is allowed. Draft, approve, activate, roll back; each act is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genward.cli import common
from genward.cli.common import As
from genward.errors import CheckFailed

app = typer.Typer(help="Policy documents.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="Policy document, YAML.")]
Digest = Annotated[str, typer.Argument(help="Digest of a policy version, or its first characters.")]


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
    platform = common.open_platform()
    who = common.acting(platform, actor, four_eyes=True)
    common.show({"digest": platform.propose_policy(common.read_text(file), who)})


@app.command("approve")
def approve(digest: Digest, actor: As = "") -> None:
    """Approve a version that another administrator proposed."""
    platform = common.open_platform()
    common.show({"approved": platform.approve_policy(digest, common.acting(platform, actor, four_eyes=True))})


@app.command("activate")
def activate(digest: Digest, actor: As = "") -> None:
    """Make an approved version the active one; servers follow at their next request."""
    platform = common.open_platform()
    common.show({"active": platform.activate_policy(digest, common.acting(platform, actor))})


@app.command("rollback")
def rollback(digest: Digest, actor: As = "") -> None:
    """Make an older version active again."""
    platform = common.open_platform()
    common.show({"active": platform.rollback_policy(digest, common.acting(platform, actor))})


@app.command("list")
def list_() -> None:
    """All versions and their state."""
    common.show(common.open_platform().policy_versions(), "policies")


@app.command("dry-run")
def dry_run(
    file: File,
    contexts: Annotated[
        list[Path] | None, typer.Option(help="Recorded decisions, JSON lines; else those of the state folder.")
    ] = None,
) -> None:
    """Make recorded decisions again under a document that is not active: what would flip, by policy."""
    found = common.open_platform().dry_run_policy(common.read_text(file), contexts or ())
    if common.settings.json:
        common.show(found)
        return
    for key, report in found.items():
        print(f"{key}: {report['decisions']} decisions, {report['flipped']} flip, {report['errors']} policy errors")
        common.show(report["flips"], "flips")


@app.command("show")
def show(
    digest: Annotated[str | None, typer.Argument(help="Version; else the active one.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="The Cedar that roles and grants come to.")] = False,
) -> None:
    """Print a version's document."""
    platform = common.open_platform()
    text = platform.policy_rules(digest) if rules else platform.policy_text(digest)
    if common.settings.json:
        common.show({"document": text})
    else:
        print(text, end="")
