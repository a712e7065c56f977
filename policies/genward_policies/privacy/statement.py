"""What a private release says of itself: a statement for registries of deployments, and a page for people.

`statement.json` follows the schema of the Differential Privacy Deployments Registry (OpenDP, tier 3). `privacy.md` says
in odds what an attacker could learn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Told = Mapping[str, Any]


def statement(told: Told, name: str) -> dict[str, Any]:
    """The statement of a release of `name`, from its `privacy.json`."""
    epsilon = max(told["epsilon_prv"], told["epsilon_pld"])
    return {
        "url_slug": f"genward-{told['run']}",
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": _basic(told, name),
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": "Tables of the declared schema, with any number of rows.",
                "unprotected_quantities": f"The number of rows, rounded: about {told['rows']}. The declared schema.",
            },
            "privacy_loss": {
                "privacy_unit": told["unit"],
                "privacy_unit_details": f"Neighbouring tables differ by {told['adjacency']}.",
                "privacy_parameters": {"epsilon": epsilon, "delta": told["delta"]},
                "privacy_parameters_details": in_odds(told),
            },
            "deployment_model": _model(told),
            "accounting": {
                "post_processing": "Moving average, cutting, quantisation, export and sampling read no data.",
                "composition": _composition(told),
            },
            "implementation": _implementation(told),
            "administrative": {"registry_authors": ["genward"], "notes": _notes(told)},
        },
    }


def _basic(told: Told, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "data_curators": ["the operator of this genward installation"],
        "description": f"A generator of synthetic rows (family {told['family']}), trained under differential privacy.",
        "intended_use": "Synthetic rows in place of the protected ones.",
        "data_product_type": "Machine learning model",
        "data_product_region": "not stated",
        "publication_date": datetime.now(UTC).date().isoformat(),
    }


def _model(told: Told) -> dict[str, Any]:
    spent = f"{told['epsilon_dataset']:.2f} of {told['epsilon_dataset_budget']:g}"
    return {
        "model_name": "Central",
        "actors": "The operator holds the data and trains; everybody else sees the release and rows of it.",
        "release_type": "Many releases",
        "release_type_details": f"All releases of the data set share one budget: epsilon {spent} is spent. "
        "It does not refill; parents, subsets and later versions are charged together.",
        "data_source_type": "Static",
        "access_type": "Non-interactive",
    }


def _composition(told: Told) -> str:
    return (
        f"Events, composed by two accountants: {told['epsilon_prv']:.4f} (PRV, Opacus) and {told['epsilon_pld']:.4f} "
        "(PLD, Google's dp-accounting); they agree within 0.02. Exponential mechanisms are counted as the Gaussian "
        "that their bounded range is no worse than."
    )


def _implementation(told: Told) -> dict[str, Any]:
    code = ", ".join(f"{name} {value.split()[0]}" for name, value in told["code"].items())
    return {
        "preprocessing_and_hyperparameter_tuning": "Bounds, bins and categories are declared, none is taken from data. "
        "No setting was chosen by a look at private rows; there is no early stopping.",
        "mechanisms": f"{_mechanism(told)} Noise: {told['noise_source']}. {code}.",
        "justification": "Each training is tested before (each record's loss and gradient against the same record "
        "alone), while it runs (measured noise) and after (canaries inside it).",
    }


def _mechanism(told: Told) -> str:
    if told["sampler"] == "none":
        return "Gaussian noise on counts, choices by the exponential mechanism."
    c = told["constants"]
    return (
        f"DP-SGD: Poisson samples, q = {c['q']:.6g}; each record's gradient clipped to {c['clip']:g}; "
        f"noise multiplier {c['sigma']:.6g}; {c['steps_done']} steps."
    )


def _notes(told: Told) -> str:
    return "Not covered: " + "; ".join(told["not_covered"]) + "."


def in_odds(told: Told) -> str:
    """What the guarantee means for one row, in odds."""
    epsilon = max(told["epsilon_prv"], told["epsilon_pld"])
    right = 100 * (0.5 + told["advantage"])
    factor = math.exp(epsilon)
    return (
        f"Somebody who knows every other row, knows all of this program and has the release guesses whether one given "
        f"row was in the data: of 100 such guesses at most {math.ceil(right)} are right, where a coin gets 50. "
        f"No observation makes it more than {factor:.3g} times as likely that the row was there than before, "
        f"but with a chance of {told['delta']:g}."
    )


def page(told: Told, name: str) -> str:
    """`privacy.md`: the promise for people who never heard of epsilon."""
    epsilon = max(told["epsilon_prv"], told["epsilon_pld"])
    lines = [
        f"# What {name} can tell about one row",
        "",
        in_odds(told),
        "",
        f"That is differential privacy with epsilon {epsilon:.2f} and delta {told['delta']:g}; who is protected: one "
        f"{told['unit']}. It holds however many rows are generated, and whatever the attacker knows besides.",
        "",
        f"The data set has one budget for all releases together: {told['epsilon_dataset']:.2f} of "
        f"{told['epsilon_dataset_budget']:g} are spent.",
        "",
        *_tested(told),
        "It does not cover:",
        "",
        *(f"- {text}" for text in told["not_covered"]),
        "",
        "It does not say that nothing can be learnt about people: what holds for everybody (say, that smokers fall ill "
        "more often) is learnt with or without any one row.",
        "",
    ]
    return "\n".join([*lines, *(f"Warning: {text}.\n" for text in told["warnings"])])


def _tested(told: Told) -> list[str]:
    audits = told.get("canary") or []
    if not audits:
        return []
    low = max(max(one["one_run"], one["gdp"]) for one in audits)
    return [
        f"It was tested: {audits[0]['m']} made-up canaries rode along in the training. What could be proved of them "
        f"afterwards is epsilon {low:.2f} at least, with 95 % confidence. Above the promise there is no release.",
        "",
    ]
