"""Entitlement slices: what a grant's values come to in a schema, and whether a caller can meet them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genward.contracts import Condition
from genward.data.schema import Schema
from genward.errors import PolicyError, UsageError
from genward.table_predicate import Predicate
from genward_policies.access.config import Grant
from genward_policies.access.slices import can_meet, clauses

SCHEMA = Schema.from_yaml(
    """
columns:
  - {name: phase, kind: categorical, categories: [fcc, bcc, hcp]}
  - {name: magnetic, kind: boolean}
  - {name: density, kind: numeric, minimum: 0, maximum: 20, step: 0.01}
  - {name: atoms, kind: integer, minimum: 1, maximum: 9}
""",
    "test",
)


def _grant(**where: Any) -> Grant:
    return Grant.model_validate({"tenant": "acme", "model": "alloys", "where": where})


def test_values_become_clauses_by_the_kind_of_their_column() -> None:
    found = clauses(_grant(phase=["fcc", "bcc"], magnetic=True, density=[5, 9], atoms=4), SCHEMA)
    assert found == (
        Condition("phase", "in", ("bcc", "fcc")),
        Condition("magnetic", "in", ("true",)),
        Condition("density", ">=", 5.0),
        Condition("density", "<=", 9.0),
        Condition("atoms", "=", 4.0),
    )


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"phaze": ["fcc"]}, "no column 'phaze'.*did you mean 'phase'"),
        ({"phase": ["fcc", "liquid"]}, "phase: no category 'liquid'"),
        ({"density": [30, 40]}, "density: no value can be >= 30"),
        ({"density": ["dense", 9]}, "density: 'dense' is not a number"),
        ({"density": [1, 2, 3]}, "density: 3 values are given"),
    ],
)
def test_what_the_schema_lacks_is_said(where: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says) as caught:
        clauses(_grant(**where), SCHEMA)
    assert caught.value.where == "access.grants.acme.alloys"


SLICE = clauses(_grant(phase=["fcc", "bcc"], density=[5, 9]), SCHEMA)


@pytest.mark.parametrize(
    ("asked", "meets"),
    [
        ([], True),
        (["phase=fcc"], True),
        (["phase in {fcc, hcp}"], True),
        (["phase=hcp"], False),
        (["phase!=fcc"], True),
        (["phase!=fcc", "phase!=bcc"], False),
        (["density>8"], True),
        (["density>9"], False),
        (["density>=9"], True),
        (["density<5"], False),
        (["density<=5"], True),
        (["density=7"], True),
        (["density=7", "density=8"], False),
        (["density>6", "density<5.5"], False),
        (["density>=9", "density!=9"], False),
        (["magnetic=true"], True),
        (["atoms>3", "phase=bcc"], True),
    ],
)
def test_a_predicate_meets_a_slice_or_does_not(asked: list[str], meets: bool) -> None:
    assert can_meet(Predicate.parse(asked, SCHEMA).conditions, SLICE, SCHEMA) is meets


_CODEC = SimpleNamespace(code_columns=("phase", "magnetic"), number_columns=("density", "atoms"))
_CLAUSES = st.lists(
    st.one_of(
        st.tuples(st.just("phase"), st.sampled_from(["=", "!="]), st.sampled_from(["fcc", "bcc", "hcp"])),
        st.tuples(st.just("density"), st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), st.integers(1, 19)),
    ),
    max_size=5,
)


@given(_CLAUSES, st.sets(st.sampled_from(["fcc", "bcc", "hcp"]), min_size=1), st.integers(1, 18), st.integers(0, 5))
def test_what_is_refused_could_have_given_no_row(
    asked: list[tuple[str, str, Any]], phases: set[str], low: int, width: int
) -> None:
    """On a fine grid of values: refused exactly when slice and predicate together leave none."""
    inside = clauses(_grant(phase=sorted(phases), density=[low, low + width]), SCHEMA)
    try:
        own = Predicate.of([Condition(*clause) for clause in asked], SCHEMA).conditions
    except UsageError:
        return
    density = np.repeat(np.arange(0, 20.01, 0.25), 3)
    numbers = np.column_stack([density, np.ones_like(density)])
    codes = np.column_stack(
        [np.tile(np.arange(3, dtype=np.int32), len(density) // 3), np.zeros(len(density), np.int32)]
    )
    left = Predicate.of([*own, *inside], SCHEMA).mask(numbers, codes, _CODEC).any()
    assert can_meet(own, inside, SCHEMA) == bool(left)
