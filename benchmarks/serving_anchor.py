"""What governance is compared with; for the benchmark only, nothing here records or refuses anything.

`Strict`: the same mount, encoder and configuration as the product's service, straight to the engine. `Plain`: a default
`@bentoml.api` that returns an ndarray of the same rows.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from genward.api import Platform
from genward.respond import JSON, encoder
from genward.served import Served, Shelf

_at: dict[str, int] = {}


@cache
def _shelf() -> tuple[Platform, Shelf]:
    platform = Platform.open(Path(os.environ["GENWARD_STATE"]))
    keys = platform.keys
    return platform, Shelf(platform.state.bundles_dir, keys, keys.trusted(), platform.state.config.providers)


@cache
def _served(name: str) -> Served:
    platform, shelf = _shelf()
    return shelf.get(platform.registry.resolve(name))


def _rows(name: str, n: int) -> tuple[Served, Any]:
    """The next page of a walk: the look-up that the product does."""
    served = _served(name)
    walk = served.walk("bench", None)
    at = _at[name] = (_at.get(name, 0) + n) % walk.length
    return served, served.engine.rows(walk.slots(at, n))


async def generate(request: Request) -> Response:
    body = orjson.loads(await request.body())
    served, rows = _rows(request.path_params["name"], body["n"])
    facts = {"model": f"{served.info.name}:{served.info.version}", "digest": served.info.digest}
    return Response(encoder(JSON, served.codec, facts).whole(rows), media_type=JSON)


application = Starlette(routes=[Route("/v1/models/{name}/generate", generate, methods=["POST"])])


@bentoml.asgi_app(application, path="/")
@bentoml.service(
    name="strict",
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    traffic={"timeout": 3600, "max_concurrency": 4096},
)
class Strict:
    """The strict anchor."""


@bentoml.service(name="plain", traffic={"timeout": 3600})
class Plain:
    """What a user of BentoML writes first."""

    @bentoml.api
    def generate(self, n: int) -> np.ndarray:  # type: ignore[type-arg]
        """Rows of the release with a pool."""
        numbers: Any = _rows("pool:1", n)[1].numbers
        return numbers  # type: ignore[no-any-return]
