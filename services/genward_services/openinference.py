"""The Open Inference Protocol (v2) on tables: `infer` asks for rows, through the same pipeline as every route.

Inputs: `n` INT64 [1]; optionally `from` INT64 [1] and `where` BYTES [k]. Outputs: one tensor a column.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genward.errors import UsageError
from genward.request import Ask

if TYPE_CHECKING:
    from genward.api import Platform

_TYPES = {"numeric": "FP64", "integer": "INT64", "datetime": "BYTES", "categorical": "BYTES", "boolean": "BOOL"}


async def metadata(platform: Platform, request: Request) -> Response:
    """GET /v2/models/{name}."""
    from genward_services.app import key_of, visible

    name = request.path_params["name"]
    async with platform.pipeline.reading(key_of(request), "read", name) as principal:
        info = visible(platform, principal, name)
        schema = (await asyncio.to_thread(platform.pipeline.shelf.get, info)).codec.schema
    outputs = [{"name": c.name, "datatype": _TYPES[c.kind], "shape": [-1]} for c in schema.columns]
    inputs = [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in _INPUTS.items()]
    about = {"name": info.name, "versions": [str(info.version)], "platform": "genward_onnxruntime"}
    return JSONResponse({**about, "inputs": inputs, "outputs": outputs})


_INPUTS = {"n": "INT64", "from": "INT64", "where": "BYTES"}


async def infer(platform: Platform, request: Request) -> Response:
    """POST /v2/models/{name}/infer."""
    from genward_services.app import readable

    body = orjson.loads(await request.body())
    ask = await readable(platform, request, lambda: _ask(platform, request, body))
    found = await platform.pipeline.generate(ask)
    body = orjson.loads(found.body)
    info = platform.registry.resolve(ask.model)
    schema = (await asyncio.to_thread(platform.pipeline.shelf.get, info)).codec.schema
    columns = list(zip(*body["rows"], strict=True)) or [()] * len(schema.columns)
    outputs = [
        {"name": c.name, "datatype": _TYPES[c.kind], "shape": [len(data)], "data": list(data)}
        for c, data in zip(schema.columns, columns, strict=True)
    ]
    name, _, version = body["model"].partition(":")
    answer = {"model_name": name, "model_version": version, "id": found.request, "outputs": outputs}
    return Response(orjson.dumps(answer), headers=dict(found.headers), media_type="application/json")


def _ask(platform: Platform, request: Request, body: Mapping[str, Any]) -> Ask:
    from genward_services.app import conditions, key_of

    given = _inputs(body)
    (start,), (n,) = given.get("from", [None]), given.get("n", [1])
    if isinstance(n, int) and n > platform.pipeline.limits.held:
        raise UsageError(f"n is {n}", remedy=f"at most {platform.pipeline.limits.held} here; /v1 streams more")
    return Ask(key_of(request), request.path_params["name"], n, conditions(given.get("where", [])), start)


def _inputs(body: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Data of each tensor by name; UsageError for what is no tensor of ours."""
    from genward_services.app import whole

    inputs = body.get("inputs")
    if not isinstance(inputs, list) or len(inputs) > len(_INPUTS):
        raise UsageError(f"`inputs` is a list of at most {len(_INPUTS)} tensors")
    found = {}
    for tensor in inputs:
        name, data = (tensor.get("name"), tensor.get("data")) if isinstance(tensor, dict) else (None, None)
        if not isinstance(name, str) or name not in _INPUTS or not isinstance(data, list):
            raise UsageError("an input has a name (n, from or where) and data")
        if name != "where" and len(data) != 1:
            raise UsageError(f"`{name}` is a tensor of one number")
        found[name] = [whole(value) for value in data]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in found.get("from", [])):
        raise UsageError("`from` is a position, 0 or more")
    return found
