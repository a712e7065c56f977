"""The public description of the HTTP surface, OpenAPI 3.1.0, written by hand: what is served is held against it.

`document` is plain data. Of an installation it tells how many rows one answer may have, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from genward.request import Limits

JSON, TEXT, PROBLEM = "application/json", "text/plain", "application/problem+json"
ROWS = (JSON, "text/csv", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet")
FILES = ("text/csv", "application/vnd.apache.parquet", "application/vnd.apache.arrow.stream")
_Json = dict[str, Any]
_REASONS = {
    400: "The request cannot be read, or has no meaning.",
    401: "No key, or one that is not valid.",
    403: "A policy denied it.",
    404: "No such thing, or none that this tenant may know of.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken here.",
    429: "A limit is reached or the server is busy; `Retry-After` says when to come back.",
    503: "The log, the registry or a store cannot answer: nothing left.",
    504: "The deadline stopped the computation.",
}
_NAME = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[A-Za-z0-9._-]+([:@][A-Za-z0-9._-]+)?$"}
_WHERE = {"type": "array", "items": {"type": "string", "minLength": 3}, "maxItems": 100}
_FROM = {"type": "integer", "minimum": 0, "maximum": (1 << 48) - 1}


@cache
def document(max_rows: int = Limits.max_rows) -> Mapping[str, Any]:
    """The whole document; `max_rows` is the server's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "genward",
            "version": version("genward"),
            "description": "Rows of released generative models: governed, recorded, replayable.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
            "schemas": _schemas(max_rows),
            "headers": _headers(),
        },
    }


def _paths() -> _Json:
    return {
        "/v1/models/{name}/generate": {"post": _generate()},
        "/v1/detect": {"post": _detect()},
        "/v1/models": {"get": _read("models", "Releases granted to the key's tenant.", _ref("Models"))},
        "/v1/models/{name}": {
            "get": _read("model", "The card of a release.", {"type": "object"}, _path("name", _NAME))
        },
        "/v1/receipts/{request}": {"get": _receipt()},
        "/v1/log/{path}": {"get": _log()},
        "/v1/openapi.json": {"get": _open("openapi", "This document.", JSON, {"type": "object"})},
        "/livez": {"get": _open("live", "This process answers.", TEXT)},
        "/readyz": {"get": _open("ready", "Registry, policy and log answer.", TEXT, more=(503,))},
        "/metrics": {"get": _operation("metrics", "Counters of this worker, for auditors.", _text())},
        "/v2/health/live": {"get": _open("v2live", "This process answers.", TEXT)},
        "/v2/health/ready": {"get": _open("v2ready", "Registry, policy and log answer.", TEXT, more=(503,))},
        "/v2/models/{name}": {
            "get": _read("v2model", "Metadata of a release.", _ref("Metadata"), _path("name", _NAME))
        },
        "/v2/models/{name}/infer": {"post": _infer()},
    }


def _generate() -> _Json:
    served = {
        "description": "Rows, whole or streamed.",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _headers()},
        "content": {JSON: {"schema": _ref("Rows")}, **{media: {} for media in ROWS[1:]}},
    }
    found = _operation("generate", "Rows of a release.", served, _path("name", _NAME), more=(413, 415, 504))
    return found | {"requestBody": _body("Ask")}


def _detect() -> _Json:
    what = "Whether a file carries a release's mark, and whose."
    served = {"description": what, "content": {JSON: {"schema": _ref("Detections")}}}
    model = _query("model", _NAME)
    renamed = _query("map", {"type": "array", "items": {"type": "string", "pattern": "^[^=]+=.+$"}})
    found = _operation("detect", what, served, model, renamed, more=(413, 415))
    return found | {"requestBody": {"required": True, "content": {media: {} for media in FILES}}}


def _infer() -> _Json:
    served = {"description": "Rows as tensors.", "content": {JSON: {"schema": _ref("Inference")}}}
    found = _operation("infer", "Rows, Open Inference Protocol.", served, _path("name", _NAME), more=(413, 415, 504))
    return found | {"requestBody": _body("InferenceAsk")}


def _receipt() -> _Json:
    proved = {"description": "Proof of a request's entries.", "content": {JSON: {"schema": {"type": "object"}}}}
    found = _operation("receipt", "A request's receipt.", proved, _path("request", {"type": "string", "minLength": 1}))
    waits = {"description": "No checkpoint covers it yet.", "content": {JSON: {"schema": {"type": "object"}}}}
    found["responses"]["202"] = waits | {"headers": {"retry-after": {"schema": {"type": "string"}}}}
    return found


def _log() -> _Json:
    content: _Json = {TEXT: {}, "application/octet-stream": {}}
    served = {"description": "A file of the log (C2SP tlog-tiles).", "content": content}
    place = {"type": "string", "minLength": 1, "pattern": "^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$"}
    return _operation("log", "The log's own files, for auditors.", served, _path("path", place))


def _read(name: str, what: str, schema: _Json, *parameters: _Json) -> _Json:
    return _operation(name, what, {"description": what, "content": {JSON: {"schema": schema}}}, *parameters)


def _open(name: str, what: str, media: str, schema: _Json | None = None, more: tuple[int, ...] = ()) -> _Json:
    """For anybody, without a key."""
    content = {media: {"schema": schema} if schema else {}}
    found = {"operationId": name, "summary": what, "security": []}
    return found | {"responses": {"200": {"description": what, "content": content}, **_problems(400, *more)}}


def _operation(name: str, what: str, served: _Json, *parameters: _Json, more: tuple[int, ...] = ()) -> _Json:
    responses = {"200": served, **_problems(400, 401, 403, 404, 429, 503, *more)}
    found: _Json = {"operationId": name, "summary": what, "responses": responses}
    return found | ({"parameters": list(parameters)} if parameters else {})


def _problems(*statuses: int) -> _Json:
    content = {PROBLEM: {"schema": _ref("Problem")}}
    return {str(status): {"description": _REASONS[status], "content": content} for status in statuses}


def _body(schema: str) -> _Json:
    return {"required": True, "content": {JSON: {"schema": _ref(schema)}}}


def _path(name: str, schema: _Json) -> _Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: _Json) -> _Json:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _text() -> _Json:
    return {"description": "Prometheus text.", "content": {TEXT: {}}}


def _ref(name: str) -> _Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _headers() -> _Json:
    text, count = {"schema": {"type": "string"}}, {"schema": {"type": "string", "pattern": "^[0-9]+$"}}
    digest = {"schema": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}}
    return {
        "genward-request": text,
        "genward-model": text,
        "genward-model-digest": digest,
        "genward-policy-digest": digest,
        "genward-audit-index": count,
        "genward-provider": text,
        "genward-from": count,
        "server-timing": text,
    }


def _schemas(max_rows: int) -> _Json:
    strings = {"type": "array", "items": {"type": "string"}}
    model = {
        "name": {"type": "string"},
        "version": {"type": "integer"},
        "aliases": strings,
        "digest": {"type": "string"},
    }
    return {
        "Ask": _object(
            {"n": _count(max_rows), "where": _WHERE, "from": _FROM | {"type": ["integer", "null"]}}, (), closed=True
        ),
        "Rows": _object(
            {
                "request": {"type": "string"},
                "model": {"type": "string"},
                "digest": {"type": "string"},
                "columns": strings,
                "rows": {"type": "array", "items": {"type": "array"}},
                "exhausted": {"const": True},
            },
            ("request", "model", "digest", "columns", "rows"),
        ),
        "Models": _object({"models": {"type": "array", "items": _object(model, tuple(model))}}, ("models",)),
        "Detections": _object({"detections": {"type": "array", "items": _detection()}}, ("detections",)),
        "Metadata": _object({"name": {"type": "string"}, "inputs": {}, "outputs": {}}, ("name", "inputs", "outputs")),
        "InferenceAsk": _object({"inputs": {"type": "array", "items": _input(max_rows), "maxItems": 3}}, ("inputs",)),
        "Inference": _object(
            {"model_name": {"type": "string"}, "id": {"type": "string"}, "outputs": {"type": "array"}},
            ("model_name", "model_version", "id", "outputs"),
        ),
        "Problem": _object(
            {"type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"}, "detail": {}},
            ("type", "title", "status", "detail"),
        ),
    }


def _detection() -> _Json:
    text, number = {"type": "string"}, {"type": "number"}
    told = {"release": text, "tenant": text, "verdict": text, "p": number, "z": number, "rows": {"type": "integer"}}
    return _object(told, tuple(told))


def _count(most: int) -> _Json:
    return {"type": "integer", "minimum": 1, "maximum": most}


def _input(max_rows: int) -> _Json:
    """A tensor: how many rows, from which position, under which conditions."""
    tensors: dict[str, _Json] = {
        "n": _count(min(max_rows, Limits.held)),
        "from": _FROM,
        "where": _WHERE["items"],  # type: ignore[dict-item]
    }
    sizes = {"n": 1, "from": 1, "where": 100}
    return {"oneOf": [_tensor(name, items, sizes[name]) for name, items in tensors.items()]}


def _tensor(name: str, items: _Json, most: int) -> _Json:
    least = 0 if name == "where" else 1
    data = {"type": "array", "items": items, "minItems": least, "maxItems": most}
    found = {"name": {"const": name}, "data": data, "datatype": {}, "shape": {}}
    return _object(found, ("name", "data"))


def _object(properties: _Json, required: tuple[str, ...], closed: bool = False) -> _Json:
    found: _Json = {"type": "object", "properties": properties, "required": list(required)}
    return found | ({"additionalProperties": False} if closed else {})
