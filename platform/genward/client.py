"""One client for both ways to a release: in process on a state folder, or over HTTP. Both end in the same pipeline."""

from __future__ import annotations

import io
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from genward import errors
from genward.contracts import LOCAL, Credential

if TYPE_CHECKING:
    from genward.api import Platform
    from genward.request import Ask, Pipeline

MEDIA = {
    "json": "application/json",
    "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}


@dataclass(frozen=True)
class Answer:
    """A response: the body, and headers in lower case. `asked` is what was asked, to be kept beside the receipt."""

    body: bytes
    headers: Mapping[str, str]
    asked: Mapping[str, Any]
    client: Client

    @property
    def request(self) -> str:
        return self.headers["genward-request"]

    @property
    def summary(self) -> str:
        """One line for people: rows, yield, model, audit index."""
        names = ("genward-rows", "genward-yield", "genward-exhausted", "genward-model", "genward-audit-index")
        return "  ".join(
            f"{name.removeprefix('genward-')}={self.headers[name]}" for name in names if name in self.headers
        )

    def receipt(self) -> bytes:
        """The receipt with what was asked beside it, so that the response can be verified and replayed."""
        found = dict(self.client.receipt(self.request))
        added = self.headers.get("genward-added")
        asked = dict(self.asked) if added is None else {**self.asked, "added": json.loads(added)}
        return json.dumps({**found, "asked": asked}, indent=2).encode()


class Client(Protocol):
    """What both clients do. With `into` the body is written there as it comes, and memory stays flat."""

    def generate(
        self,
        model: str,
        *,
        n: int,
        where: Sequence[str] = (),
        start: int | None = None,
        format: str = "json",
        into: BinaryIO | None = None,
    ) -> Answer: ...

    def receipt(self, request: str) -> Mapping[str, Any]: ...


def connect(url: str | None, state: Path, key: str) -> Client:
    """The HTTP client when there is a URL, else the local one on a state folder."""
    if url:
        return HttpClient(url, key)
    from genward.api import Platform

    return LocalClient(Platform.open(state), key)


def asked(n: int, where: Sequence[str], start: int | None) -> dict[str, Any]:
    """The JSON body of a generate request."""
    body: dict[str, Any] = {"n": n}
    if where:
        body["where"] = list(where)
    if start is not None:
        body["from"] = start
    return body


class HttpClient:
    """A client of a server. Errors of the server become this project's own, with the server's words."""

    def __init__(self, url: str, key: str, timeout: float = 120.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise errors.UsageError(f"{url!r} is no HTTP address", remedy="for example http://127.0.0.1:8400")
        self._url, self._key, self._timeout = url.rstrip("/"), key, timeout

    def generate(
        self,
        model: str,
        *,
        n: int,
        where: Sequence[str] = (),
        start: int | None = None,
        format: str = "json",
        into: BinaryIO | None = None,
    ) -> Answer:
        body = asked(n, where, start)
        headers = {"Accept": _media(format), "Content-Type": "application/json"}
        path = f"/v1/models/{model}/generate"
        data, got = self._call("POST", path, json.dumps(body).encode(), headers, into)
        return Answer(data, got, {"model": model, **body}, self)

    def receipt(self, request: str, wait: float = 10.0) -> Mapping[str, Any]:
        """The receipt of a request; waits until a checkpoint covers it."""
        until = time.monotonic() + wait
        while True:
            data, headers = self._call("GET", f"/v1/receipts/{request}", None, {"Accept": "application/json"})
            if headers[":status"] == "200":
                found: Mapping[str, Any] = json.loads(data)
                return found
            if time.monotonic() > until:
                raise errors.Unavailable("no checkpoint covers the entry yet", where=request, remedy="ask again")
            time.sleep(0.2)

    def _call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], into: BinaryIO | None = None
    ) -> tuple[bytes, dict[str, str]]:
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
            self._url + path, data=body, method=method, headers={**headers, "Authorization": f"Bearer {self._key}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310
                found = {name.lower(): value for name, value in answer.headers.items()}
                if into is not None:
                    shutil.copyfileobj(answer, into)
                return answer.read(), {**found, ":status": str(answer.status)}
        except urllib.error.HTTPError as error:
            raise _problem(error) from None
        except OSError as error:
            raise errors.Unavailable(f"the server does not answer: {error}", where=self._url) from None


class LocalClient:
    """A client in this process: the same pipeline and the same log as a server on this state folder."""

    def __init__(self, platform: Platform, key: str) -> None:
        self._platform, self._key = platform, Credential(key, LOCAL)

    def generate(
        self,
        model: str,
        *,
        n: int,
        where: Sequence[str] = (),
        start: int | None = None,
        format: str = "json",
        into: BinaryIO | None = None,
    ) -> Answer:
        from genward.request import Ask

        ask = Ask(self._key, model, n, tuple(where), start, _media(format))
        body, headers = self._platform.run(_collected(self._platform.pipeline, ask, into))
        return Answer(body, headers, {"model": model, **asked(n, where, start)}, self)

    def receipt(self, request: str, wait: float = 10.0) -> Mapping[str, Any]:
        """The receipt of a request; waits until a checkpoint covers it."""
        from genward import receipt

        principal = self._platform.authenticate(self._key)
        until = time.monotonic() + wait
        while True:
            platform = self._platform
            found = receipt.make(platform.audit, platform.keys, request, principal, platform.audit.vkey())
            if found is not None:
                return found
            if time.monotonic() > until:
                raise errors.Unavailable("no checkpoint covers the entry yet", where=request, remedy="ask again")
            time.sleep(0.05)


async def _collected(pipeline: Pipeline, ask: Ask, into: BinaryIO | None) -> tuple[bytes, Mapping[str, str]]:
    response = await pipeline.generate(ask)
    out = io.BytesIO() if into is None else into
    if response.pieces is None:
        out.write(response.body)
    else:
        async for piece in response.pieces:
            out.write(piece)
    return out.getvalue() if isinstance(out, io.BytesIO) and into is None else b"", response.headers


_BY_STATUS: Mapping[int, type[errors.GenwardError]] = {
    400: errors.UsageError,
    401: errors.Unauthenticated,
    403: errors.Denied,
    404: errors.NotFound,
    409: errors.Conflict,
    429: errors.LimitReached,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}


def _problem(error: urllib.error.HTTPError) -> errors.GenwardError:
    """An RFC 9457 problem as the error class that the server raised."""
    try:
        said = json.loads(error.read())
        detail = str(said.get("detail") or said.get("title") or error.reason)
    except ValueError:
        detail = str(error.reason)
    return _BY_STATUS.get(error.code, errors.GenwardError)(detail)


def _media(format: str) -> str:
    if format not in MEDIA:
        raise errors.UsageError(f"no format {format!r}", remedy=f"choose one of {', '.join(MEDIA)}")
    return MEDIA[format]
