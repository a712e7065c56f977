"""POST /v1/detect: whether a file carries the mark of a release, and whose."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from genward.api import Platform
from genward.detection import as_json
from genward.detection import detect as detected
from genward.errors import LimitReached, UsageError

AT_ONCE = 2  # files under way in a worker: each may fill `server.max_upload` on the disk
ROWS = 5_000_000  # of a file, at most
_PARAMETERS = {"model", "map"}
_under_way = 0


async def detect(platform: Platform, request: Request) -> Response:
    """POST /v1/detect?model=alloys:1&map=old=new: a CSV, Parquet or Arrow file; who sends it comes first."""
    from genward_services.app import key_of

    try:
        model, renamed = _asked(request)
    except UsageError as error:
        await platform.pipeline.refuse(key_of(request), "", error)
        raise
    async with platform.pipeline.reading(key_of(request), "detect", model or "") as principal:
        with _place(), tempfile.NamedTemporaryFile(suffix=".csv") as file:
            await _store(request, file.name)
            path = Path(file.name)
            work = lambda: detected(platform, path, model, renamed, actor=principal.key, most=ROWS)  # noqa: E731
            found = await anyio.to_thread.run_sync(work)
    return JSONResponse({"detections": as_json(found)})


def _asked(request: Request) -> tuple[str | None, dict[str, str]]:
    """(model, names in the file: names here)."""
    given = request.query_params.multi_items()
    if unknown := {name for name, _ in given} - _PARAMETERS:
        raise UsageError(f"unknown parameters: {', '.join(sorted(unknown))}", remedy="known are map, model")
    models = [value for name, value in given if name == "model"]
    if len(models) > 1:
        raise UsageError("`model` stands twice", remedy="leave it out to try every release")
    pairs = [value.partition("=") for name, value in given if name == "map"]
    if bad := [old for old, sign, new in pairs if not (old and sign and new)]:
        raise UsageError(f"map {bad[0]!r} is not old=new", remedy="write map=old%3Dnew")
    return (models[0] if models else None), {old: new for old, _, new in pairs}


@contextmanager
def _place() -> Iterator[None]:
    global _under_way
    if _under_way >= AT_ONCE:
        raise LimitReached("other files are under way", remedy="send it again", retry_after=5.0)
    _under_way += 1
    try:
        yield
    finally:
        _under_way -= 1


async def _store(request: Request, name: str) -> None:
    """The body on the disk, so that memory stays flat."""
    async with await anyio.open_file(name, "wb") as file:
        try:
            async for piece in request.stream():
                await file.write(piece)
        except ClientDisconnect:
            raise UsageError("the client left") from None
