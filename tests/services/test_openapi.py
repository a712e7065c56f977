"""The public OpenAPI document and what is served are the same thing: schemathesis, every check, no failure."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from genward_services.app import ROUTES
from genward_services.openapi import document

CONFIG = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404"]
"""


def test_the_document_lists_exactly_the_routes() -> None:
    listed = {(verb.upper(), path) for path, item in document()["paths"].items() for verb in item}
    assert listed == {(method, path) for method, path, _, _ in ROUTES}
    for method, path, _, content in ROUTES:
        operation = document()["paths"][path][method.lower()]
        assert list(operation.get("requestBody", {}).get("content", [""])) == (content.split() or [""])
        assert {f"{{{p['name']}}}" for p in operation.get("parameters", ()) if p["in"] == "path"} == {
            part for part in path.split("/") if part.startswith("{")
        }


def test_the_document_is_served_to_anybody_and_its_schemas_are_schemas(server: Any) -> None:
    reply = server.ask("GET", "/v1/openapi.json", key=None)
    assert reply.json() == json.loads(json.dumps(document()))
    for schema in reply.json()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert reply.json()["openapi"] == "3.1.0"


def _of_this_release(given: Any) -> dict[str, Any]:
    """The document, narrowed to what these releases know: their names and some conditions that have a meaning."""
    found = copy.deepcopy(json.loads(json.dumps(given)))
    schemas = found["components"]["schemas"]
    conditions = {"enum": ["REFERENCE: year>2010", "PROPERTY: Type of test!=C", "REFERENCE: year<=2015"]}
    schemas["Ask"]["properties"]["where"]["items"] = conditions
    tensors = {one["properties"]["name"]["const"]: one["properties"]["data"] for one in _tensors(schemas)}
    tensors["where"]["items"] = conditions
    for path, item in found["paths"].items():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                known = {"name": ["pool:1", "open:1", "pool", "none:1"], "path": ["checkpoint", "tile/0/000"]}
                if parameter["name"] in known:
                    parameter["schema"] = {"enum": known[parameter["name"]]}
        assert path.startswith("/")
    return found


def _tensors(schemas: Any) -> Any:
    return schemas["InferenceAsk"]["properties"]["inputs"]["items"]["oneOf"]


@pytest.fixture(scope="module")
def small(make_world: Callable[..., Any], start_server: Callable[..., Any]) -> Any:
    """A server whose answers are small, so that many cases are quick."""
    return start_server(make_world("server: {max_rows: 1000}\n"))


def _schemathesis(server: Any, folder: Path, examples: int, seed: int) -> str:
    """What schemathesis says of a running server; it must find nothing."""
    key = server.world.platform.create_key("acme", ["consumer", "auditor"])
    served = server.ask("GET", "/v1/openapi.json", key=None).json()
    (folder / "openapi.json").write_text(json.dumps(_of_this_release(served)))
    (folder / "schemathesis.toml").write_text(CONFIG)
    words = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(folder / "schemathesis.toml"), "run"]
    words += [str(folder / "openapi.json"), "--url", f"http://{server.host}:{server.port}", "--checks", "all"]
    words += ["--header", f"Authorization: Bearer {key}", "--seed", str(seed), "--max-examples", str(examples)]
    words += ["--generation-database", "none", "--no-color", "--continue-on-failure", "--request-timeout", "30"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=1500, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_schemathesis_finds_nothing(small: Any, tmp_path: Path) -> None:
    said = _schemathesis(small, tmp_path, 6, 1)
    assert "No issues found" in said


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
def test_schemathesis_finds_nothing_in_many_more_cases(small: Any, tmp_path: Path, seed: int) -> None:
    assert "No issues found" in _schemathesis(small, tmp_path, 200, seed)
