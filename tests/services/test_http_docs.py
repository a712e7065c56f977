"""docs/http.md names every route, header and error there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genward import errors
from genward_services.app import ROUTES

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


@pytest.mark.parametrize(("method", "pattern"), [(m, p) for m, p, _, _ in ROUTES])
def test_every_route_is_on_the_page(method: str, pattern: str) -> None:
    assert f"`{method} {pattern}`" in PAGE


def test_every_header_of_ours_is_on_the_page(server: Any) -> None:
    page, stream = server.rows(3500), server.rows(20_000)
    for name in {*page.headers, *stream.headers}:
        if name.startswith("genward-") or name == "server-timing":
            assert f"`{name}`" in PAGE
    assert "x-ratelimit-limit" in page.headers


def test_every_status_of_an_error_is_on_the_page() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GenwardError)]
    of_requests = {kind.status for kind in kinds} & {400, 401, 403, 404, 429, 503, 504}
    assert all(f"| {status} |" in PAGE for status in of_requests)
