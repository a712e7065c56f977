"""Errors on the wire: application/problem+json, RFC 9457."""

from __future__ import annotations

import math

import orjson
from starlette.responses import Response

from genward.errors import GenwardError

MEDIA = "application/problem+json"
_QUIET = {403: "a policy denied this", 429: "a limit is reached, ask again later"}


def problem_response(error: GenwardError, request: str = "") -> Response:
    """The response of an error; what is internal (5xx of no known kind) keeps its words to itself."""
    body = {"type": "about:blank", "title": error.title, "status": error.status, "detail": _detail(error)}
    if request:
        body["request"] = request
    headers = {}
    after = getattr(error, "retry_after", None)
    if after is not None:
        headers["retry-after"] = str(max(1, math.ceil(after)))
    if allow := getattr(error, "allow", ""):
        headers["allow"] = allow  # RFC 9110 section 15.5.6
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(body), error.status, headers, MEDIA)


def _detail(error: GenwardError) -> str:
    if error.status in (403, 429):  # which limit or rule it was is in the log, not for the caller
        return (
            error.what
            if "rows are allowed" in error.what
            else {403: "a policy denied this", 429: "ask again later"}[error.status]
        )
    return f"{error.what} ({error.remedy})" if error.remedy else error.what
