"""What a release says to the outside: it validates, and people can read it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from genward_policies.privacy import accounting as a
from genward_policies.privacy.statement import in_odds, page, statement

SCHEMA = Path(__file__).parents[4] / "shared" / "vectors" / "opendp" / "deployments-schema.yaml"
EVENT = a.gaussian(a.sigma_for(a.rho_for(3.0, 1e-5)))


def _told(**changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "run": "vae-1", "family": "vae", "unit": "row", "adjacency": "one row more or less", "rows": 6400,
        "delta": 1e-5, "epsilon_prv": a.prv(EVENT, 1e-5), "epsilon_pld": a.pld(EVENT, 1e-5),
        "advantage": a.advantage(EVENT), "epsilon_dataset": 4.2, "epsilon_dataset_budget": 10.0,
        "sampler": "poisson-v1",
        "constants": {"q": 0.05, "clip": 1.0, "sigma": 1.2, "steps_done": 600}, "noise_source": "AES",
        "code": {"torch": "2.13.0 sha256:0"}, "not_covered": ["time"], "warnings": ["few rows"],
        "canary": [{"one_run": 0.9, "gdp": 1.4, "estimate": 2.8, "m": 2000}],
    }  # fmt: skip
    return told | changes


@pytest.mark.parametrize("sampler", ["poisson-v1", "none"])
def test_the_statement_validates_against_the_registrys_schema(sampler: str) -> None:
    import jsonschema
    import yaml

    if not SCHEMA.is_file():
        print(f"skipped: {SCHEMA} is absent")
        pytest.skip(f"{SCHEMA} is absent")
    schema = yaml.safe_load(SCHEMA.read_text())
    jsonschema.Draft202012Validator(schema).validate(statement(_told(sampler=sampler), "people"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**statement(_told(), "people"), "seed": 3})


def test_odds_are_those_of_the_best_attacker() -> None:
    """Of many guesses with the best test between the two Gaussians, no more are right than the page says."""
    import numpy as np

    told = _told()
    rng, mu = np.random.default_rng(0), 1 / EVENT["noise_multiplier"]
    there = rng.random(200_000) < 0.5
    seen = rng.normal(size=200_000) + mu * there
    right = float(np.mean((seen > mu / 2) == there))
    assert right == pytest.approx(0.5 + told["advantage"], abs=0.005)
    assert f"of 100 such guesses at most {math.ceil(100 * (0.5 + told['advantage']))} are right" in in_odds(told)
    assert f"{math.exp(told['epsilon_prv']):.3g} times" in in_odds(told)


def test_the_page_says_promise_budget_test_limits_and_warnings() -> None:
    text = page(_told(), "people")
    for word in ("epsilon 3.00", "4.20 of 10 are spent", "2000 made-up canaries", "epsilon 1.40 at least", "- time"):
        assert word in text
    assert "Warning: few rows." in text
    assert "canaries" not in page(_told(canary=[]), "people")
