"""What a private training leaves for its release: `privacy.json`, and claims made from it.

Everything in it is public: constants of the plan, epsilons, figures of the noise. No seed, no loss, no norm of a
gradient, no size of a batch and no exact number of rows is ever written.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genward.contracts import Evidence
from genward.errors import IntegrityError, NotFound
from genward.strictjson import canonical, parse
from genward_policies.privacy import accounting as a

if TYPE_CHECKING:
    from genward_policies.privacy.ledger import Ledger
    from genward_policies.privacy.protected import _Protected

FILE = "privacy.json"
FORMAT = "genward.privacy/1"
_CODE = ("genward", "torch", "opacus", "dp-accounting", "numpy", "cryptography")
_LIMIT = 16 << 20
NOT_COVERED = (
    "the number of rows, which is told rounded",
    "how long the training took",
    "what its owner sees of private rows: evaluation on held-out rows, checks of the table",
    "people with more than one row, each of whose rows is protected by itself",
    "other uses of the same people's data, in tables that share no row with this one",
    "side channels of the machine the training ran on",
)


def write(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(canonical(value))
    temporary.replace(path)


def conclude(done: _Protected, claim: a.Event, constants: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Write `privacy.json` of a training that was committed."""
    t, c, ledger = done.training, done.config, done.ledger
    cost = a.cost(claim, c.delta)
    found = {
        "format": FORMAT,
        "run": t.run,
        "family": t.family.name,
        "dataset": ledger.name(t.dataset),
        "parents": [ledger.name(parent) for parent in done.spending.lineage],
        "unit": c.unit,
        "unit_cap": 1,
        "adjacency": "one row more or less",
        "rows": t.rows,
        "epsilon_policy": c.epsilon,
        "delta": c.delta,
        "epsilon_prv": cost.prv,
        "epsilon_pld": cost.pld,
        "advantage": a.advantage(claim),
        "epsilon_dataset": a.total(ledger.charged(t.dataset), c.delta),
        "epsilon_dataset_budget": c.budget.dataset,
        "events": claim,
        "constants": {name: list(v) if isinstance(v, tuple) else v for name, v in constants.items()},
        "sampler": "poisson-v1" if done.spending.about["kind"] == "steps" else "none",
        "clipping": "flat",
        "noise_source": "operating system's entropy, AES-128-CTR, float64, no seed kept",
        "schema_source": dict.fromkeys(sorted({field.column for field in (*t.spec.fields, *t.spec.given)}), "declared"),
        "transforms": [],
        "selection": "none",
        "public_pretraining": "none",
        "code": {name: _record(name) for name in _CODE},
        "hardware": f"{platform.machine()} {t.device}",
        "warnings": list(done.warnings),
        "not_covered": list(NOT_COVERED),
        "reservation": done.spending.id,
        **told,
    }
    write(t.folder / FILE, found)


def _record(name: str) -> str:
    """Version of a distribution and the SHA-256 of its RECORD, which has the hash of its every file."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return "not installed"
    listed = found.read_text("RECORD") or ""
    return f"{found.version} sha256:{hashlib.sha256(listed.encode()).hexdigest()}"


def read(folder: Path, ledger: Ledger) -> dict[str, Any]:
    """A candidate's `privacy.json`, held against the ledger and counted again.

    Raises NotFound when there is none; IntegrityError when it tells something else than the ledger, which a training
    cannot write to after its end.
    """
    path = folder / FILE
    if not path.is_file():
        raise NotFound("the candidate was not trained under differential privacy", where=str(folder))
    found: dict[str, Any] = parse(path.read_bytes(), FILE, _LIMIT)
    try:
        spending = next((s for s in ledger.spendings() if s.id == found["reservation"]), None)
        if spending is None:
            raise IntegrityError("the ledger knows nothing of it", where=str(path), remedy="train anew")
        counts = spending.about["kind"] == "counts"
        stated = spending.event if counts else spending.about["claim"]
        same = spending.run == found["run"] and spending.state == "committed" and stated == found["events"]
        if not same or any(spending.about[name] != found[name] for name in ("delta", "unit", "rows")):
            raise IntegrityError("it tells something else than the ledger", where=str(path), remedy="train anew")
        cost = a.cost(found["events"], found["delta"])
    except (KeyError, TypeError, AttributeError):
        raise IntegrityError("not what a private training writes", where=str(path), remedy="train anew") from None
    return {**found, "epsilon_prv": cost.prv, "epsilon_pld": cost.pld, "advantage": a.advantage(found["events"])}


def claims(told: Mapping[str, Any]) -> list[Evidence]:
    """Evidence of a private release; the first carries everything that was told."""
    rows, epsilon = int(told["rows"]), max(told["epsilon_prv"], told["epsilon_pld"])
    method = (
        f"PRV upper bound, confirmed by PLD; delta {told['delta']:g}, neighbours: {told['adjacency']}; "
        "the lower end is what the canaries prove"
    )
    found = [Evidence("epsilon", epsilon, method, rows, lower_bound(told) or 0.0, epsilon, "", extra=dict(told))]
    right = 0.5 + told["advantage"]
    odds = "how often the best attacker who knows all other rows is right whether one row was there; a coin: 0.5"
    found.append(Evidence("privacy_attack", right, odds, rows, 0.5, right, reference=0.5))
    total = "what all trainings on this data set and on what was made from it may tell together, by PLD"
    found.append(Evidence("privacy_dataset", told["epsilon_dataset"], total, rows, unit="epsilon"))
    return [*found, *(_canaries(told["canary"]) if told.get("canary") else ()), *_telemetry(told.get("telemetry", ()))]


def lower_bound(told: Mapping[str, Any]) -> float | None:
    """The largest rigorous lower bound of the canary audits; None where no canary rode along."""
    bounds = [bound for one in told.get("canary", ()) for bound in (one["one_run"], one["gdp"])]
    return max(bounds) if bounds else None


def _canaries(audits: Sequence[Mapping[str, Any]]) -> list[Evidence]:
    worst = max(audits, key=lambda one: max(one["one_run"], one["gdp"]))
    method = "one-shot estimate of epsilon from canaries inside the training; lower end: bound at 95 %"
    low = max(worst["one_run"], worst["gdp"])
    return [Evidence("privacy_canaries", worst["estimate"], method, int(worst["m"]), low)]


def _telemetry(listed: Sequence[Mapping[str, Any]]) -> list[Evidence]:
    method = "standard deviation of the noise that was added, over the claimed one; ends: least and most of a step"
    return [
        Evidence("privacy_noise", one["mean"], method, int(one["values"]), one["least"], one["most"], reference=1.0)
        for one in listed
    ]
