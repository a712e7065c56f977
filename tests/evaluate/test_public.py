"""What a release on protected rows may say: nothing that reads them, but for what was paid for."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genward.attest import evidence_json
from genward.candidate import Candidate, Recipe
from genward.data.codec import TableCodec
from genward.data.schema import Column, Schema
from genward.errors import IntegrityError
from genward.evaluate import CLAIMS
from genward.evaluate.public import MARGINALS, WITHHELD, public
from genward.evaluate.stage import OWNER_FIGURES, OWNER_REPORT, judge

COLUMNS = ("u", "v", "w")
SCHEMA = Schema(
    columns=(
        Column(name="u", kind="numeric", minimum=0, maximum=1, digits=4, nullable=True),
        Column(name="v", kind="categorical", categories=tuple("abcdefgh")),
        Column(name="w", kind="boolean", nullable=True),
    )
)
SIGMA = 30.0


def rows(n: int, seed: int, tilt: float = 0.0) -> pa.Table:
    """Rows whose columns lean to their upper half by `tilt`, so that each is that far from rows without."""
    rng = np.random.default_rng(seed)
    up = rng.random((3, n)) < 0.5 + tilt
    u = (rng.random(n) + up[0]) / 2
    v = rng.integers(0, 4, n) + 4 * up[1]
    return pa.table({"u": u, "v": pa.array(np.array(list("abcdefgh"))[v]), "w": pa.array(up[2])})


def published(table: pa.Table, seed: int, sigma: float = SIGMA) -> dict[str, Any]:
    """Noisy counts of a table's columns, in the privacy policy's format."""
    rng = np.random.default_rng(seed)

    def noisy(counts: Any) -> list[float]:
        return [float(c + np.rint(sigma * rng.normal())) for c in counts]

    edges = np.linspace(0, 1, 33)
    words = ["a", "b", "c", "d", "e", "f", "g", "h"]
    v, w = table["v"].to_pylist(), table["w"].to_pylist()
    truths = [w.count(False), w.count(True), 0]
    counted = np.histogram(table["u"].to_numpy(), edges)[0]
    return {
        "rho": 0.01,
        "sigma": sigma,
        "columns": {
            "u": {"kind": "number", "edges": edges.tolist(), "counts": noisy(counted), "missing": noisy([0])[0]},
            "v": {"kind": "choice", "values": words, "counts": noisy([v.count(word) for word in words])},
            "w": {"kind": "choice", "values": ["false", "true", None], "counts": noisy(truths)},
        },
    }  # fmt: skip


def one_way(folder: Path, made: pa.Table, document: Any) -> Any:
    (folder / MARGINALS).write_text(document if isinstance(document, str) else json.dumps(document))
    (found,) = public(made, SCHEMA, folder, ["one_way"])
    return found


@pytest.mark.parametrize("tilt", [0.0, 0.02, 0.05, 0.2])
def test_the_noise_of_published_counts_is_taken_off(tmp_path: Path, tilt: float) -> None:
    """Over twelve draws: on average right, each interval of 95 % holds the truth in ten at least; the noise alone
    would show as five times what is allowed here."""
    private = rows(5000, 1)
    found = [one_way(tmp_path, rows(20_000, 9 + i, tilt), published(private, i)) for i in range(12)]
    assert np.mean([e.value for e in found]) == pytest.approx(tilt, abs=0.012)
    assert sum(e.low - 0.01 <= tilt <= e.high + 0.01 for e in found) >= 10
    uncorrected = 0.5 * np.sqrt(2 / np.pi) * SIGMA / 5000 * (33 + 8 + 3) / 3
    assert uncorrected > 0.025
    assert all(e.reference is None and e.n == 20_000 and "noise's share" in e.method for e in found)


def test_the_further_the_rows_the_larger_the_figure(tmp_path: Path) -> None:
    counts = published(rows(5000, 1), 0)
    values = [one_way(tmp_path, rows(4000, 2, tilt), counts).value for tilt in (0.0, 0.1, 0.3)]
    assert values == sorted(values) and values[2] > 0.25


@pytest.mark.parametrize(
    "broken",
    [
        "not JSON",
        "{}",
        '{"sigma": 1, "columns": {}}',
        '{"sigma": -1, "columns": {"w": {"kind": "choice", "values": ["false"], "counts": [1]}}}',
        '{"sigma": 1, "columns": {"z": {"kind": "choice", "values": ["false"], "counts": [1]}}}',
        '{"sigma": 1, "columns": {"v": {"kind": "choice", "values": ["a", "b"], "counts": [1, 2]}}}',
        '{"sigma": 1, "columns": {"u": {"kind": "number", "edges": [0, 1], "counts": ["x"], "missing": null}}}',
        '{"sigma": 1, "columns": {"u": {"kind": "number", "edges": 3, "counts": [1], "missing": null}}}',
        "[]",
    ],
)
def test_counts_that_cannot_be_read_stop_the_release(tmp_path: Path, broken: str) -> None:
    with pytest.raises(IntegrityError, match=r"public_marginals\.json"):
        one_way(tmp_path, rows(100, 1), broken)


def test_without_published_counts_one_way_is_not_measured_and_says_so(tmp_path: Path) -> None:
    (found,) = public(rows(100, 1), SCHEMA, tmp_path, ["one_way"])
    assert found.value is None and "published no public_marginals.json" in found.method


class _Shown:
    """Progress that keeps every word."""

    def __init__(self) -> None:
        self.words = ""

    def start(self, task: str, total: float | None = None) -> None:
        self.words += task

    def update(self, done: float, note: str = "") -> None:
        self.words += note

    def finish(self, note: str = "") -> None:
        self.words += note


@pytest.fixture
def protected(tmp_path: Path) -> Callable[[int], Candidate]:
    def make(train_rows: int) -> Candidate:
        recipe = Recipe("c-1", "linear", "sha256:0", target="v", protected=True)
        codec = TableCodec.declared(SCHEMA)
        real = rows(train_rows, 1), rows(397, 2), rows(1500, 3, 0.05)
        (tmp_path / MARGINALS).write_text(json.dumps(published(real[0], 5)))
        family = type("F", (), {"name": "linear"})
        return Candidate(recipe, tmp_path, family, None, codec, *real)  # type: ignore[arg-type]

    return make


def test_nothing_that_reads_protected_rows_leaves_the_owners_files(
    tmp_path: Path, protected: Callable[[int], Candidate]
) -> None:
    shown = _Shown()
    found = judge(protected(1013), shown)
    assert [e.claim for e in found] == list(CLAIMS)
    told = {e.claim for e in found if e.value is not None}
    assert told == {"one_way", "rules_violated"}
    assert all(e.method == WITHHELD and e.n == 0 and not e.extra for e in found if e.claim not in told)
    for text in (evidence_json(found).decode(), shown.words):
        for secret in ("1013", "397", "1,013"):
            assert secret not in text
    assert not {"report.html", "quality.json"} & {path.name for path in tmp_path.iterdir()}
    for name in (OWNER_REPORT, OWNER_FIGURES):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    owner = json.loads((tmp_path / OWNER_FIGURES).read_bytes())
    unmeasured = {claim["claim"] for claim in owner["claims"] if claim["value"] is None}
    assert unmeasured == {"tstr_drop", "correlations"}  # the columns hang on nothing, and one only is a number
    assert "do not pass them on" in (tmp_path / OWNER_REPORT).read_text()


def test_public_evidence_hangs_on_published_counts_and_synthetic_rows_alone(
    tmp_path: Path, protected: Callable[[int], Candidate]
) -> None:
    """Other protected rows, even other numbers of them, and the same counts: the same bytes."""
    first = protected(1013)
    counts = (tmp_path / MARGINALS).read_bytes()
    before = evidence_json(judge(first, _Shown()))
    other = replace(first, train=rows(800, 77, 0.3), test=rows(12, 78, 0.3))
    (tmp_path / MARGINALS).write_bytes(counts)
    assert evidence_json(judge(other, _Shown())) == before


def test_protected_rows_that_overlap_or_are_few_refuse_nothing(protected: Callable[[int], Candidate]) -> None:
    """A refusal would tell something of them."""
    candidate = protected(1013)
    assert judge(replace(candidate, test=candidate.train.slice(0, 50)), _Shown())
    assert judge(replace(candidate, test=candidate.test.slice(0, 1)), _Shown())
    assert judge(replace(candidate, test=candidate.test.slice(0, 0)), _Shown())
