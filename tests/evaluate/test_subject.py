"""`genward evaluate` on candidates, releases and files, as a person would type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest

from genward.evaluate import CLAIMS


def run(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "genward.cli", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tables: Sequence[pa.Table]) -> Path:
    """train.csv, real.csv and made.csv, whose synthetic rows break a bound and an order."""
    folder = tmp_path_factory.mktemp("files")
    made = tables[2].set_column(2, "y", pa.array([99.0] * 6 + tables[2]["y"].to_pylist()[6:]))
    for name, side in (("train", tables[0]), ("real", tables[1]), ("made", made)):
        pyarrow.csv.write_csv(side, folder / f"{name}.csv")
    (folder / "schema.yaml").write_text(
        "columns:\n"
        "  - {name: x, kind: numeric, nullable: true}\n"
        "  - {name: group, kind: categorical, categories: [a, b, c]}\n"
        "  - {name: y, kind: numeric, maximum: 50}\n"
        "  - {name: low, kind: numeric}\n  - {name: high, kind: numeric}\n"
        "rules:\n  - {below: low, above: high}\n"
    )
    return folder


def test_two_files_are_judged_and_what_breaks_the_schema_is_counted(files: Path) -> None:
    words = ("real.csv", "made.csv", "--schema", "schema.yaml", "--train", "train.csv", "--target", "y")
    told = json.loads(run(files, "evaluate", *words, "-o", "page.html", "--json").stdout)
    claims = {claim["claim"]: claim for claim in told["claims"]}
    assert tuple(claims) == CLAIMS and claims["rules_violated"]["value"] == 6 / 1200
    assert claims["rules_violated"]["extra"]["by"] == {"y <= 50": {"value": 0.005, "reference": 0.0}}
    assert (files / "page.html").read_text().startswith("<!doctype html>")
    assert json.loads((files / "page.json").read_bytes())["about"]["judged by"] == "real.csv"


def test_without_training_rows_or_a_schema_files_are_judged_all_the_same(files: Path) -> None:
    said = run(files, "evaluate", "real.csv", "made.csv").stdout
    assert "real rows" in said and "no training rows were given" in said and "report.html" in said
    assert "half of the real rows" in (files / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["real.csv"], 2, "needs a file of synthetic rows"),
        (["real.csv", "nosuch.csv"], 4, "nosuch.csv: no such file"),
        (["nosuch.csv", "made.csv"], 4, "nosuch.csv: no such file"),
        (["real.csv", "made.csv", "--schema", "nosuch.yaml"], 2, "nosuch.yaml: cannot read it"),
        (["real.csv", "made.csv", "--target", "z"], 4, "no column 'z'"),
        (["real.csv", "schema.yaml"], 2, ".yaml is no table format"),
        (["real.csv", "made.csv", "--train", "real.csv"], 1, "600 of 600 held-out rows are training rows"),
        (["real.csv", "made.csv", "-o", "no/such/folder.html"], 2, "cannot write it"),
        (["something", "--target", "y"], 2, "go with two files"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(files: Path, words: list[str], code: int, said: str) -> None:
    error = run(files, "evaluate", *words, code=code).stderr.strip().splitlines()[-1]
    assert said in error and error.startswith("genward: ")


def _acts(world: Any) -> list[dict[str, Any]]:
    return [entry for entry in world.log() if entry.get("verb") == "evaluate" or "evaluate" in json.dumps(entry)]


def test_a_candidate_and_a_release_are_judged_and_the_look_is_in_the_log(world: Any) -> None:
    name = world.platform.candidates()[0]["id"]
    state = ("--state", str(world.folder), "evaluate")
    told = json.loads(run(world.folder, *state, name, "--rows", "600", "--json").stdout)
    again = json.loads(run(world.folder, *state, "open:1", "--rows", "600", "--json").stdout)
    assert [c["claim"] for c in told["claims"]] == list(CLAIMS) and not told["protected"]
    same = {c["claim"]: c["value"] for c in told["claims"]}
    assert {c["claim"]: c["value"] for c in again["claims"]} == pytest.approx(same, abs=0.02, nan_ok=True)
    assert Path(told["report"]).read_text().startswith("<!doctype html>")
    assert len(_acts(world)) == 2
    error = run(world.folder, *state, "nosuch", code=4).stderr
    assert "is no candidate, no release and no file" in error
    assert "rows is 1" in run(world.folder, *state, name, "--rows", "1", code=2).stderr


def test_a_release_carries_its_report(world: Any) -> None:
    import genward.bundle

    bundle = genward.bundle.Bundle.open(world.platform.bundle_folder("pool:1"), world.platform.keys.trusted())
    assert bundle.files["report.html"].startswith(b"<!doctype html>")
    told = json.loads(bundle.files["quality.json"])
    listed = {claim["claim"]: claim for claim in told["claims"]}
    evidence = {item["claim"]: item for item in json.loads(bundle.files["evidence.json"])}
    assert tuple(listed) == CLAIMS
    assert all(evidence[name]["value"] == (listed[name]["value"] or evidence[name]["value"]) for name in CLAIMS)
    lines = world.platform.evidence_text("pool:1").splitlines()
    assert any("told from real rows by a booster" in line for line in lines)
