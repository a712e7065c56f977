"""The BentoML service: one mounted ASGI application behind the guard, and nothing else.

BentoML's own surfaces (documentation, schema, metrics, its health routes) lie behind the same guard, which does not
list them. Its metrics, access log and tracing are off: each costs every request, and ours are in the log.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import bentoml

from genward.api import Platform
from genward.errors import GenwardError
from genward.stream import sweep
from genward_services import wire
from genward_services.app import routes_app, rules
from genward_services.guard import Guard

SWEEP_SECONDS = 10.0
os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn would believe X-Forwarded-For of every local process: ours decides
IDLE_SECONDS = 300.0  # after which a chunk of a limit goes back to the store
CATCH_UP = 2000  # entries of the log that a sweep reads at most: a hundredth of one core


def _open() -> Platform:
    """The platform with its pipeline ready, or with one that is made when what it needs is back."""
    passphrase = os.environ.get("GENWARD_PASSPHRASE")
    platform = Platform.open(Path(os.environ.get("GENWARD_STATE", ".genward")), passphrase)
    with suppress(GenwardError):
        _ = platform.pipeline
    return platform


class Late:
    """The application, made at the first request of a worker: importing this module opens nothing."""

    def __init__(self) -> None:
        self._app: Any = None
        self._sweeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            platform = await asyncio.to_thread(_open)
            if self._app is None:
                self._app = routes_app(platform)
                gc.freeze()  # what was imported stays: full collections need not look at it at every request
                self._sweeper = asyncio.get_running_loop().create_task(_sweeping(platform))
        await self._app(scope, receive, send)


async def _sweeping(platform: Platform) -> None:
    """Settle lost grants, give back quota chunks that lie idle, count what the log settled, forget old windows, note
    which keys were used."""
    while True:
        with suppress(GenwardError):  # the log or the store is away: requests are refused, the next round tries again
            await asyncio.to_thread(_swept, platform)
        await asyncio.sleep(SWEEP_SECONDS)


def _swept(platform: Platform) -> None:
    sweep(platform.pipeline)
    counters = platform.counters
    counters.release(IDLE_SECONDS)
    counters.catch_up(platform.audit, most=CATCH_UP)
    counters.prune(time.time())
    platform.uses.write()


application = Late()
wire.install()


def _closed(app: Any) -> Guard:
    """The guard around BentoML itself: only our routes reach it."""
    body, upload = (int(os.environ.get(f"GENWARD_SERVER__MAX_{name}", 1 << 20)) for name in ("BODY", "UPLOAD"))
    return Guard(app, rules(), body, upload)


@bentoml.asgi_app(application, path="/")
@bentoml.service(
    name="genward",
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    traffic={"timeout": 3600, "max_concurrency": 4096},
)
class Gateway:
    """Serves the state folder that GENWARD_STATE names."""


Gateway.add_asgi_middleware(_closed)  # type: ignore[attr-defined]
