"""The quality policy's gate: each limit refuses what is beyond it, and what was not measured."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from genward.contracts import Evidence
from genward.evaluate.public import WITHHELD
from genward.evaluate.stats import chance_of_more
from genward_policies.quality import Quality, QualityConfig


def claim(name: str, value: float | None, low: float = 0.0, high: float = 1.0, **more: Any) -> Evidence:
    return Evidence(name, value, more.pop("method", "measured"), 100, low, high, "", **more)


GOOD = {
    "tstr_drop": claim("tstr_drop", 0.02, -0.01, 0.12),
    "c2st": claim("c2st", 0.55, 0.53, 0.57),
    "pairs": claim("pairs", 0.05, 0.04, 0.06),
    "coverage": claim("coverage", 0.95, 0.93, 0.97),
    "precision": claim("precision", 0.95, 0.93, 0.97),
    "novelty": claim("novelty", 0.94, 0.92, 0.96),
    "exact_copies": claim("exact_copies", 0.0, reference=0.0, extra={"beyond_chance": False}),
    "rules_violated": claim("rules_violated", 0.0, reference=0.0, extra={"beyond_chance": False}),
    "held_out_overlap": claim("held_out_overlap", 0.0, extra={"beyond_repeats": False}),
}
LIMITS = {
    "tstr_drop_max": ("tstr_drop", 0.10, 0.2),
    "c2st_max": ("c2st", 0.6, 0.8),
    "pairs_max": ("pairs", 0.1, 0.2),
    "coverage_min": ("coverage", 0.9, 0.5),
    "precision_min": ("precision", 0.9, 0.5),
    "novelty_min": ("novelty", 0.9, 0.5),
}


def verdict(evidence: dict[str, Evidence], **limits: Any) -> Any:
    return Quality(QualityConfig(**limits), None).gate(list(evidence.values()))  # type: ignore[arg-type]


def copies(hits: int, n: int, real: int, others: int) -> Evidence:
    """As they are measured: synthetic rows of which `hits` are training rows, and real rows that repeat themselves."""
    sure = chance_of_more(hits, n, real, others) < 1e-3
    return claim("exact_copies", hits / n, reference=real / others, extra={"beyond_chance": sure})


def test_good_evidence_passes_every_limit_together() -> None:
    limits = {key: limit for key, (_, limit, _) in LIMITS.items()}
    assert verdict(GOOD, **limits, exact_copies_max=0, violated_max=0).allow
    assert verdict(GOOD).allow


@pytest.mark.parametrize("key", LIMITS)
def test_a_figure_beyond_its_limit_is_refused_by_name(key: str) -> None:
    name, limit, bad = LIMITS[key]
    found = verdict({**GOOD, name: claim(name, bad, bad, bad)}, **{key: limit})
    assert not found.allow and found.reasons[0].startswith(f"quality: {name} is {bad:.3f}")
    assert verdict({**GOOD, name: claim(name, bad, bad, bad)}, tstr_drop_max=None).allow


@pytest.mark.parametrize("key", [*LIMITS, "exact_copies_max", "violated_max"])
@pytest.mark.parametrize("how", ["absent", "without a value"])
def test_what_was_not_measured_passes_no_limit_that_is_set(key: str, how: str) -> None:
    name = {"exact_copies_max": "exact_copies", "violated_max": "rules_violated"}.get(key) or LIMITS[key][0]
    limit = 0 if key not in LIMITS else LIMITS[key][1]
    found = {claim: e for claim, e in GOOD.items() if claim != name}
    if how == "without a value":
        found[name] = claim(name, None, method="not measured: too few rows")
    refused = verdict(found, **{"tstr_drop_max": None, key: limit})
    assert not refused.allow and f"{name} was not measured" in refused.reasons[0]


def test_usefulness_for_no_target_and_rules_that_nobody_stated_are_no_limit() -> None:
    found = {
        **GOOD,
        "tstr_drop": claim("tstr_drop", None, method="not measured: no target column was named"),
        "rules_violated": claim("rules_violated", None, method="not measured: the schema states no rule"),
    }
    assert verdict(found, violated_max=0).allow


def test_with_bound_the_worse_end_of_the_interval_decides() -> None:
    assert verdict(GOOD, tstr_drop_max=0.10).allow
    refused = verdict(GOOD, tstr_drop_max=0.10, decide="bound")
    assert not refused.allow and "tstr_drop may be 0.120" in refused.reasons[0]
    assert not verdict(GOOD, coverage_min=0.94, tstr_drop_max=None, decide="bound").allow
    assert verdict(GOOD, coverage_min=0.92, tstr_drop_max=None, decide="bound").allow


@pytest.mark.parametrize(
    ("hits", "n", "real", "others", "limit", "allowed"),
    [
        (0, 20_000, 0, 40_000, 0, True),
        (1, 20_000, 0, 40_000, 0, True),  # one may be chance
        (12, 20_000, 0, 40_000, 0, False),
        (12, 20_000, 24, 40_000, 0, True),  # real rows repeat each other as often
        (12, 20_000, 0, 40_000, 0.001, True),
        (200, 20_000, 0, 40_000, 0.001, False),
        (900, 1000, 880, 1000, 0, True),
        (1000, 1000, 880, 1000, 0, False),
        (3, 40, 0, 62, 0, True),  # so few rows cannot tell
    ],
)
def test_copies_count_in_excess_of_real_rows_and_only_beyond_chance(
    hits: int, n: int, real: int, others: int, limit: float, allowed: bool
) -> None:
    assert verdict({**GOOD, "exact_copies": copies(hits, n, real, others)}, exact_copies_max=limit).allow is allowed


def test_held_out_rows_that_were_trained_on_refuse_the_release() -> None:
    overlap = claim("held_out_overlap", 0.5, extra={"beyond_repeats": True})
    refused = verdict({**GOOD, "held_out_overlap": overlap})
    assert not refused.allow and "every figure flatters" in refused.reasons[0]


def protected(one_way: Evidence) -> dict[str, Evidence]:
    return {**{name: claim(name, None, method=WITHHELD) for name in GOOD}, "one_way": one_way}


@pytest.mark.parametrize(
    ("one_way", "allowed"),
    [
        (claim("one_way", 0.05, 0.03, 0.07), True),
        (claim("one_way", 0.3, 0.28, 0.32), False),
        (claim("one_way", None, method="not measured: the training published no counts"), False),
        (claim("one_way", None, method=WITHHELD), False),
    ],
)
def test_a_protected_release_is_gated_by_what_was_paid_for(one_way: Evidence, allowed: bool) -> None:
    assert verdict(protected(one_way), c2st_max=0.6).allow is allowed
    assert verdict(protected(one_way), one_way_max=None).allow


def test_one_way_is_no_limit_of_a_release_whose_rows_are_open() -> None:
    assert verdict({**GOOD, "one_way": claim("one_way", 0.3, 0.28, 0.32)}).allow


@pytest.mark.parametrize("bad", [{"tstr_drop_max": -1}, {"exact_copies_max": 2}, {"c2st_max": 0.2}, {"decide": "x"}])
def test_a_limit_that_means_nothing_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QualityConfig(**bad)
