"""`genward ledger`: what data sets have spent of their privacy budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from genward.cli import common
from genward.errors import UsageError

if TYPE_CHECKING:
    from genward.api import Platform
    from genward_policies.privacy.config import PrivacyConfig
    from genward_policies.privacy.ledger import Ledger, Spending

app = typer.Typer(help="What data sets have spent of their privacy budgets.", no_args_is_help=True)
_DELTA = 1e-5
Name = Annotated[str, typer.Argument(help="Data set, by name or digest.")]
Delta = Annotated[float | None, typer.Option(help="Delta to count at; else the active policy's.")]


@app.command("show")
def show(
    dataset: Annotated[str | None, typer.Argument(help="Data set, by name or digest; all when left out.")] = None,
    delta: Delta = None,
) -> None:
    """List trainings, what each was charged, and the total; the ledger is checked against the log first."""
    platform = common.open_platform()
    at = _delta(platform, delta)
    digest = None if dataset is None else str(platform.registry.dataset(dataset)["digest"])
    found = [s for s in _ledger(platform).spendings() if digest is None or digest in s.touches]
    names = {row["digest"]: row["name"] for row in platform.registry.datasets()}
    common.show([_row(s, names, at) for s in found], "spending")
    if digest is not None:
        common.say(f"together: {_sentence(found, at, _config(platform))}")


@app.command("budget")
def budget(dataset: Name, delta: Delta = None) -> None:
    """Say what is spent of a data set's budget and what is left of it."""
    from genward_policies.privacy import accounting

    platform = common.open_platform()
    at, config = _delta(platform, delta), _config(platform)
    digest = str(platform.registry.dataset(dataset)["digest"])
    spent = accounting.total(_ledger(platform).charged(digest), at)
    whole = None if config is None else config.budget.dataset
    left = None if whole is None else max(0.0, whole - spent)
    common.show({"dataset": dataset, "epsilon_spent": spent, "budget": whole, "left": left, "delta": at})


@app.command("compose")
def compose(
    dataset: Name,
    epsilon: Annotated[float, typer.Option(help="Of one more training.")],
    times: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    delta: Delta = None,
) -> None:
    """Say what a data set would have spent after more trainings. Nothing is reserved.

    Events add up to less than their epsilons do.
    """
    from genward_policies.privacy import accounting as a

    if not 0 < epsilon < float("inf"):
        raise UsageError(f"epsilon is {epsilon}", remedy="give a number above 0")
    platform = common.open_platform()
    at, config = _delta(platform, delta), _config(platform)
    before = _ledger(platform).charged(str(platform.registry.dataset(dataset)["digest"]))
    more = a.repeated(a.gaussian(a.sigma_for(a.rho_for(epsilon, at))), times)
    after = a.total(a.together([before, more]), at)
    whole = None if config is None else config.budget.dataset
    told: dict[str, Any] = {"dataset": dataset, "epsilon_now": a.total(before, at), "epsilon_then": after, "delta": at}
    common.show({**told, "budget": whole, "allowed": whole is None or after <= whole})


def _row(spending: Spending, names: dict[str, str], delta: float) -> dict[str, Any]:
    from genward_policies.privacy import accounting

    touched = [names.get(digest, digest[:19]) for digest in spending.touches]
    steps = spending.about.get("plan", {}).get("private", ())
    return {
        "at": spending.at,
        "run": spending.run,
        "data sets": touched,
        "state": spending.state,
        "steps": sum(steps) or None,
        "epsilon": round(accounting.total(spending.event, delta), 4),
    }


def _sentence(found: list[Spending], delta: float, config: PrivacyConfig | None) -> str:
    from genward_policies.privacy import accounting

    total = accounting.total(accounting.together([s.event for s in found]), delta)
    of = "" if config is None else f" of {config.budget.dataset:g}"
    return f"epsilon {total:.2f}{of} at delta {delta:g}"


def _config(platform: Platform) -> PrivacyConfig | None:
    """What the active policy says about privacy, if it does."""
    from genward.policy import PolicyDocument

    document = PolicyDocument.load(platform.policy_text(), platform.plugins.policies, "active")
    found: PrivacyConfig | None = document.parts.get("privacy")  # type: ignore[assignment]
    return found


def _delta(platform: Platform, given: float | None) -> float:
    if given is not None and not 0 < given < 1:
        raise UsageError(f"delta is {given}", remedy="give a number between 0 and 1")
    config = _config(platform)
    return given or (config.delta if config is not None else _DELTA)


def _ledger(platform: Platform) -> Ledger:
    from genward_policies.privacy.ledger import Ledger
    from genward_policies.privacy.policy import namer

    return Ledger(platform.state.database_url, lambda: platform.audit, namer(platform.keys))
