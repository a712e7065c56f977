"""A real release under the policy: what leaves is marked, named, replayed and recognised; what is not is cleared."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from genward import statement
from genward.api import Platform
from genward.cli import command_line
from genward.contracts import Detection
from genward.detection import _told
from genward.errors import CheckFailed, DataError, Denied, IntegrityError, NotFound, UsageError

DATA = Path(__file__).parents[3] / "examples" / "data"
ARROW = "application/vnd.apache.arrow.stream"
MARK = "watermark: {{power: {{rows: 1000, under: [round-3]}}{more}}}\n"


def _document(world: Any, more: str = "", name: str = "marked") -> str:
    plain: str = (Path(__file__).parents[2] / "conftest.py").read_text().split('POLICY = """')[1].split('"""')[0]
    return plain.replace("name: tests", f"name: {name}").replace(
        "[auditor]\n", "[auditor]\n    detect: [auditor]\n"
    ) + (MARK.format(more=more))


@pytest.fixture(scope="module")
def marked_world(make_world: Any) -> Iterator[Any]:
    """The sealed state with a release `marked:1` of 2,500 slots under the policy, for two tenants."""
    world = make_world()
    world.activate(_document(world))
    candidate = world.platform.candidates()[0]["id"]
    world.platform.release(candidate, "marked", slots=2500, grant=["acme", "other"], evaluate_rows=300)
    yield world


def _rows(world: Any, n: int, key: str = "", **more: Any) -> pa.Table:
    body = world.platform.client(key or world.key).generate("marked:1", n=n, format="arrow", **more).body
    return pa.ipc.open_stream(body).read_all()


def _file(table: pa.Table, path: Path) -> Path:
    plain = pa.table(
        {
            n: c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c
            for n, c in zip(table.column_names, table.columns, strict=True)
        }
    )
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(plain, path)
    else:
        pyarrow.parquet.write_table(plain, path)
    return path


def _values(table: pa.Table) -> list[Any]:
    return list(zip(*(c.to_pylist() for c in table.columns), strict=True))


def test_the_release_carries_its_scheme_and_its_evidence(marked_world: Any) -> None:
    platform = marked_world.platform
    scheme = json.loads(platform.bundle_file("marked:1", "watermark.json"))
    bundle = platform._bundle("marked:1")
    assert scheme["candidates"] == bundle.manifest["table"]["candidates"] == 2
    told = {claim["claim"]: claim for claim in json.loads(bundle.files["evidence.json"])}
    for name in ("power", "power.round-3", "auc", "false_positives.unmarked", "false_positives.real"):
        assert isinstance(told[f"watermark.{name}"]["value"], float)
    assert told["watermark.power"]["value"] >= 0.99


def test_a_marked_file_is_attributed_and_an_innocent_one_cleared(marked_world: Any, tmp_path: Path) -> None:
    platform = marked_world.platform
    for name, tenant, key in (("a.csv", "acme", marked_world.key), ("b.parquet", "other", marked_world.stranger)):
        (found,) = platform.detect(_file(_rows(marked_world, 1000, key), tmp_path / name), "marked")
        assert (found.release, found.tenant, found.extra["verdict"]) == ("marked:1", tenant, "marked")
        assert found.p < 1e-6
        assert found.extra["rank"] == 0.001
        assert found.extra["share_low"] > 0.6
    (found,) = platform.detect(DATA / "mpea_alloys.csv", "marked")
    assert found.extra["verdict"] == "not marked"
    assert found.p > 1e-3
    assert found.extra["power"] > 0.99


def test_rows_that_two_tenants_mixed_name_both(marked_world: Any, tmp_path: Path) -> None:
    both = pa.concat_tables([_rows(marked_world, 800, key) for key in (marked_world.key, marked_world.stranger)])
    found = marked_world.platform.detect(_file(both, tmp_path / "both.parquet"), "marked")
    assert {one.tenant for one in found} == {"acme", "other"}
    assert all(one.extra["verdict"] == "marked" and 0.25 < one.extra["share"] < 0.75 for one in found)


def test_shuffled_renamed_missing_and_extra_columns_are_no_cover(marked_world: Any, tmp_path: Path) -> None:
    table = _rows(marked_world, 2000)
    names = list(reversed(table.column_names))[1:]
    other = table.select(names).append_column("note", pa.array(["x"] * 2000))
    other = other.rename_columns(["hardness" if n == "PROPERTY: HV" else n for n in other.column_names])
    path = _file(other, tmp_path / "t.csv")
    (found,) = marked_world.platform.detect(path, "marked", {"hardness": "PROPERTY: HV"})
    assert found.extra["verdict"] == "marked"
    assert found.extra["missing"] == [table.column_names[-1]]


def test_too_few_rows_say_so_with_the_power_they_have(marked_world: Any, tmp_path: Path) -> None:
    (found,) = marked_world.platform.detect(_file(_rows(marked_world, 3), tmp_path / "t.csv"), "marked")
    assert found.extra["verdict"] == "too few rows"
    assert found.extra["power"] < 0.01
    assert found.p > 1e-6


def test_other_columns_and_no_table_and_no_model_are_told_apart(marked_world: Any, tmp_path: Path) -> None:
    platform = marked_world.platform
    (found,) = platform.detect(_file(pa.table({"x": [1, 2, 3]}), tmp_path / "x.csv"), "marked")
    assert (found.extra["verdict"], found.p) == ("nothing to test", 1.0)
    (tmp_path / "no.csv").write_bytes(b"\x00\xff\xfe junk")
    with pytest.raises(DataError, match="UTF-8"):
        platform.detect(tmp_path / "no.csv", "marked")
    with pytest.raises(NotFound, match="never:1"):
        platform.detect(tmp_path / "x.csv", "never:1")
    with pytest.raises(NotFound, match="no release here was sealed with a mark"):
        platform.detect(tmp_path / "x.csv", "pool:1")


def test_a_column_in_other_units_is_pointed_out(marked_world: Any, tmp_path: Path) -> None:
    table = _rows(marked_world, 500)
    name = "PROPERTY: HV"
    moved = table.set_column(table.column_names.index(name), name, pa.compute.multiply(table[name], 1000.0))
    (found,) = marked_world.platform.detect(_file(moved, tmp_path / "t.parquet"), "marked")
    assert found.extra["outside"] == [name]


def test_each_detection_is_in_the_log(marked_world: Any, tmp_path: Path) -> None:
    path = _file(_rows(marked_world, 200), tmp_path / "t.csv")
    marked_world.platform.detect(path, "marked")
    entry = marked_world.log()[-1]
    assert entry["act"] == "watermark.detect"
    assert entry["detail"]["file"].startswith("sha256:")
    assert entry["detail"]["found"][0]["release"] == "marked:1"


def test_a_response_names_its_key_and_replays(marked_world: Any, tmp_path: Path) -> None:
    client = marked_world.platform.client(marked_world.key)
    answer = client.generate("marked:1", n=700, where=["PROPERTY: HV>100"])
    keys = {answer.headers["genward-watermark"]}
    keys.add(marked_world.platform.client(marked_world.stranger).generate("marked:1", n=1).headers["genward-watermark"])
    assert len(keys) == 2
    (tmp_path / "r.json").write_bytes(answer.receipt())
    assert marked_world.platform.replay(tmp_path / "r.json")["replayed"] == 700


def test_a_tenant_gets_one_row_of_a_slot_however_he_asks(marked_world: Any) -> None:
    """The choice hangs on key and slot alone: a predicate filters what was chosen and brings no second candidate."""
    everything = set(_values(_rows(marked_world, 2500, start=0)))
    for where in ("PROPERTY: BCC/FCC/other=FCC", "PROPERTY: HV>300"):
        table = _rows(marked_world, 400, where=[where])
        assert table.num_rows > 20
        assert set(_values(table)) <= everything


def test_two_tenants_hold_different_choices_of_the_same_pool(marked_world: Any) -> None:
    ours, theirs = (
        set(_values(_rows(marked_world, 2500, key, start=0))) for key in (marked_world.key, marked_world.stranger)
    )
    assert 0.3 < len(ours & theirs) / 2500 < 0.7


def test_an_old_receipt_replays_and_an_old_mark_is_found_after_the_keys_were_changed(
    marked_world: Any, tmp_path: Path
) -> None:
    platform = marked_world.platform
    answer = platform.client(marked_world.key).generate("marked:1", n=600, format="csv")
    (tmp_path / "old.csv").write_bytes(answer.body)
    (tmp_path / "r.json").write_bytes(answer.receipt())
    try:
        marked_world.activate(_document(marked_world, ", epoch: 1", "rotated"))
        newer = platform.client(marked_world.key).generate("marked:1", n=600, start=0, format="csv")
        assert newer.headers["genward-watermark"] != answer.headers["genward-watermark"]
        assert platform.replay(tmp_path / "r.json")["replayed"] == 600
        (tmp_path / "new.csv").write_bytes(newer.body)
        for name, epoch in (("old.csv", 0), ("new.csv", 1)):
            (found,) = platform.detect(tmp_path / name, "marked")
            assert (found.tenant, found.extra["epoch"], found.extra["keys_tried"]) == ("acme", epoch, 4)
            assert found.extra["verdict"] == "marked"
    finally:
        marked_world.activate(_document(marked_world, name="marked-again"))


def test_what_contradicts_the_sealed_scheme_is_not_served(marked_world: Any) -> None:
    client = marked_world.platform.client(marked_world.key)
    with pytest.raises(Denied):
        client.generate("pool:1", n=1)
    assert "sealed without a mark" in marked_world.log()[-1]["reasons"][0]
    try:
        marked_world.activate(_document(marked_world, ", payload: release", "for-all"))
        with pytest.raises(Denied):
            client.generate("marked:1", n=1)
        assert "payload tenant" in marked_world.log()[-1]["reasons"][0]
    finally:
        marked_world.activate(_document(marked_world, name="marked-once-more"))


def test_without_the_policy_nothing_is_recognised(world: Any) -> None:
    with pytest.raises(UsageError, match="recognises no marks"):
        world.platform.detect(DATA / "mpea_alloys.csv")


def test_a_power_that_cannot_be_had_makes_no_release(marked_world: Any) -> None:
    before = marked_world.platform.releases()
    document = _document(marked_world, name="much").replace(
        "rows: 1000, under: [round-3]", "rows: 30, under: [noise-90%]"
    )
    try:
        marked_world.activate(document)
        with pytest.raises(CheckFailed, match="no scheme has power"):
            marked_world.platform.release(marked_world.platform.candidates()[0]["id"], "much", slots=100)
    finally:
        marked_world.activate(_document(marked_world, name="marked-as-before"))
    assert marked_world.platform.releases() == before


# the statement beside the rows


def test_every_format_carries_a_signed_statement(marked_world: Any, tmp_path: Path) -> None:
    platform = marked_world.platform
    public = platform.keys.bundle_public_pem()
    for kind in ("arrow", "parquet", "csv"):
        answer = platform.client(marked_world.key).generate("marked:1", n=20, format=kind)
        path = tmp_path / f"t.{kind}"
        path.write_bytes(answer.body)
        if kind == "csv":
            with pytest.raises(NotFound, match="no statement"):
                statement.read(path)
            statement.write_sidecar(path, answer.headers["genward-statement"])
        told = statement.verify(statement.read(path), public)
        assert told["generated"] is True
        assert told["request"] == answer.request
        assert told["receipt"] == f"/v1/receipts/{answer.request}"
        assert (told["digest"], told["policy"]) == (
            answer.headers["genward-model-digest"], answer.headers["genward-policy-digest"],
        )  # fmt: skip
    whole = platform.client(marked_world.key).generate("marked:1", n=2)
    assert statement.verify(json.loads(whole.body), public)["model"] == "marked:1"


def test_a_changed_statement_or_a_stranger_s_key_is_refused(marked_world: Any, world: Any) -> None:
    headers = marked_world.platform.client(marked_world.key).generate("marked:1", n=2).headers
    told, public = statement.from_header(headers["genward-statement"]), marked_world.platform.keys.bundle_public_pem()
    changed = {**told, "statement": told["statement"].replace("marked:1", "marked:2")}
    for bad in (changed, {**told, "signature": "AAAA"}, {**told, "signature": "no base64!"}):
        with pytest.raises(IntegrityError):
            statement.verify(bad, public)


def test_the_command_line_writes_the_sidecar_and_says_whose_a_file_is(marked_world: Any, tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(command_line(), ["--state", str(marked_world.folder), *words], catch_exceptions=False)

    path = tmp_path / "out.csv"
    assert run("generate", "marked:1", "-n", "900", "-o", str(path), "--key", marked_world.key).exit_code == 0
    assert (tmp_path / "out.csv.statement.json").is_file()
    said = run("detect", str(path), "--model", "marked")
    assert said.output.startswith("marked:1: made for acme, p <= ")
    (told,) = json.loads(run("--json", "detect", str(path)).output)
    assert (told["tenant"], told["verdict"], told["rows"]) == ("acme", "marked", 900)
    run("detect", str(path))  # text again for whoever comes next


# over HTTP


@pytest.fixture(scope="module")
def served(marked_world: Any, start_server: Any) -> Any:
    return start_server(marked_world)


def _sent(served: Any, body: bytes, kind: str = "text/csv", key: str = "", query: str = "?model=marked:1") -> Any:
    key = key or served.world.auditor
    return served.ask("POST", f"/v1/detect{query}", body, key=key, headers={"Content-Type": kind})


def test_a_file_is_recognised_over_http(served: Any, tmp_path: Path) -> None:
    table = _rows(served.world, 900)
    for name, kind in (("t.csv", "text/csv"), ("t.parquet", "application/vnd.apache.parquet")):
        reply = _sent(served, _file(table, tmp_path / name).read_bytes(), kind)
        (found,) = reply.json()["detections"]
        assert (reply.status, found["tenant"], found["verdict"]) == (200, "acme", "marked")
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    assert _sent(served, out.getvalue(), ARROW).json()["detections"][0]["verdict"] == "marked"


def test_who_may_not_detect_is_refused_and_recorded(served: Any) -> None:
    assert _sent(served, b"a\n1\n", key=served.world.key).status == 403
    assert served.world.log()[-1]["event"] == "refuse"


@pytest.mark.parametrize(
    ("body", "kind", "query", "status"),
    [(b"a\n1\n", "application/json", "?model=marked:1", 415), (b"\x89PNG\x00", "text/csv", "?model=marked:1", 400),
     (b"", "text/csv", "?model=marked:1", 400), (b"a\n1\n", "text/csv", "?colour=red", 400),
     (b"a\n1\n", "text/csv", "?map=x", 400), (b"a\n1\n", "text/csv", "?model=a&model=b", 400),
     (b"a\n1\n", "text/csv", "?map=b%3Dc", 400), (b"a\n1\n", "text/csv", "?model=never", 404),
     (b"a\n1\n", "text/csv", "?model=pool:1", 404)],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(served: Any, body: bytes, kind: str, query: str, status: int) -> None:
    assert _sent(served, body, kind, query=query).status == status


def test_a_file_that_is_too_large_is_refused_once_its_sender_is_known(make_world: Any, start_server: Any) -> None:
    """By its announced length, and by what comes when none was announced."""
    world = make_world("server: {max_upload: 2000}\n")
    world.activate(_document(world))
    served = start_server(world)

    def sent(key: str, body: Any, chunked: bool) -> int:
        connection = http.client.HTTPConnection(served.host, served.port, timeout=30)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "text/csv"}
        headers |= {"Transfer-Encoding": "chunked"} if chunked else {}
        try:
            connection.request("POST", "/v1/detect", body, headers, encode_chunked=chunked)
            return connection.getresponse().status
        finally:
            connection.close()

    pieces = [b"1,2,3,4,5\n"] * 300
    assert [sent(world.auditor, b"x" * 2001, False), sent(world.auditor, iter(pieces), True)] == [413, 413]
    assert sent("gw_nobody", b"x" * 2001, False) == 401
    assert sent(world.auditor, iter(pieces[:3]), True) == 404  # read, and there is no marked release


def test_platform_is_the_same_door(marked_world: Any, tmp_path: Path) -> None:
    """Another process on the same state says the same of the same file."""
    path = _file(_rows(marked_world, 400, start=0), tmp_path / "t.csv")
    ours = marked_world.platform.detect(path, "marked")[0]
    again = Platform.open(marked_world.folder)
    theirs = again.detect(path, "marked")[0]
    again.close()
    assert (ours.z, ours.p, ours.extra["share"]) == (theirs.z, theirs.p, theirs.extra["share"])
    assert np.isfinite(ours.z)


def test_an_entry_of_the_log_has_room_for_answers_about_many_releases() -> None:
    far = Detection("sha256:" + "0" * 64, "t" * 64, 0.5, 0.1, 10**6, {"verdict": "not marked"})
    told = _told([far] * 50 + [replace(far, p=1e-9)])
    assert told[0]["p"] == "1e-09"
    assert len(json.dumps(told)) < 3500
