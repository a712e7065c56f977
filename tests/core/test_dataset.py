"""Data sets: addressed by content, whole or not there, split the same way for everybody."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from genward.data.dataset import Dataset, ingest
from genward.data.schema import Schema
from genward.errors import DataError, IntegrityError, NotFound

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
SCHEMA = Schema.from_yaml(
    "columns: [{name: a, kind: integer}, {name: b, kind: categorical, categories: [x, y], nullable: true}]"
)


def put(folder: Path, rows: int = 300) -> Path:
    path = folder / "small.csv"
    path.write_text("a,b\n" + "".join(f"{i},{'x' if i % 3 else ''}\n" for i in range(rows)))
    return path


def test_the_digest_is_of_the_rows_not_of_the_file(tmp_path: Path) -> None:
    one = ingest(put(tmp_path), SCHEMA, tmp_path / "sets", parents=("sha256:00",))
    pa.parquet.write_table(one.table(), tmp_path / "small.parquet", row_group_size=7)
    two = ingest(tmp_path / "small.parquet", SCHEMA, tmp_path / "sets")
    assert one.digest == two.digest
    assert (one.rows, one.name, one.parents) == (300, "small", ("sha256:00",))
    assert [path.name for path in (tmp_path / "sets").iterdir()] == [one.digest.removeprefix("sha256:")]
    assert Dataset.open(one.path.parent) == one
    assert one.table(["b"]).column_names == ["b"]


def test_another_value_or_another_schema_is_another_digest(tmp_path: Path) -> None:
    base = ingest(put(tmp_path), SCHEMA, tmp_path / "sets").digest
    assert ingest(put(tmp_path, 299), SCHEMA, tmp_path / "sets").digest != base
    assert ingest(put(tmp_path), None, tmp_path / "sets").digest != base


def test_a_split_is_the_same_each_time_and_loses_no_row(tmp_path: Path) -> None:
    data = ingest(put(tmp_path), SCHEMA, tmp_path / "sets")
    train, test = data.split(1)
    assert (train.num_rows, test.num_rows) == (240, 60)
    assert sorted(train["a"].to_pylist() + test["a"].to_pylist()) == list(range(300))
    assert data.split(1)[1].equals(test)
    assert not data.split(2)[1].equals(test)


def test_wrong_data_leave_nothing_behind(tmp_path: Path) -> None:
    path = put(tmp_path)
    path.write_text(path.read_text() + "oops,x\n")
    with pytest.raises(DataError, match="row 301"):
        ingest(path, SCHEMA, tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


FULL = """
import resource, signal, sys
from pathlib import Path
from genward.data.dataset import ingest
from genward.data.schema import Schema
from genward.errors import GenwardError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
schema = Schema.from_yaml("columns: [{name: a, kind: integer}]")
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    ingest(Path(sys.argv[1]), schema, Path(sys.argv[2]))
except GenwardError as error:
    print(error)
"""


def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_text("a\n" + "".join(f"{i * 7919 % 1000003}\n" for i in range(100_000)))
    command = [sys.executable, "-c", FULL, str(path), str(tmp_path / "sets")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nothing was left behind" in done.stdout
    assert list((tmp_path / "sets").iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20000


def test_a_folder_that_is_no_data_set_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Dataset.open(tmp_path)
    data = ingest(put(tmp_path), SCHEMA, tmp_path / "sets")
    (data.path.parent / "dataset.json").write_text("{}")
    with pytest.raises(IntegrityError):
        Dataset.open(data.path.parent)
    os.truncate(data.path, 10)
    with pytest.raises(IntegrityError):
        data.table()


@pytest.mark.parametrize(
    ("file", "schema", "rows"),
    [("mp_transport.csv.gz", "mp_transport.yaml", 47737), ("mpea_alloys.csv", "mpea_alloys.yaml", 1545)],
)
def test_the_examples_are_data_sets(tmp_path: Path, file: str, schema: str, rows: int) -> None:
    used = Schema.from_yaml((EXAMPLES / schema).read_text(encoding="utf-8"))
    data = ingest(EXAMPLES / file, used, tmp_path)
    assert data.rows == rows
    assert [finding for finding in used.check(data.table()) if finding.level == "error"] == []
