"""What a request must be before any policy is asked."""

from __future__ import annotations

from genward.contracts import Principal, ReleaseInfo, Request
from genward.errors import Denied, UsageError
from genward.table import LARGEST


def granted(principal: Principal, info: ReleaseInfo) -> bool:
    """Whether the release is there for this tenant."""
    return principal.tenant in info.tenants or "*" in info.tenants


def check_scope(principal: Principal, request: Request) -> None:
    """A key narrowed to actions or models opens no other, whatever the policies say."""
    if (principal.actions and request.action not in principal.actions) or (
        request.model and not principal.may_see(request.model)
    ):
        raise Denied("the key's scope does not cover this", remedy="ask an administrator for a wider key")


def check_count(n: int, most: int) -> None:
    """A whole number of rows, 1 to `most`."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(f"n is {n!r}", remedy="ask for a whole number of rows, 1 or more")
    if n > most:
        raise UsageError(f"n is {n}", remedy=f"ask for at most {most} rows at a time")


def check_start(start: int | None) -> None:
    """A position of a walk, or none."""
    if start is not None and not 0 <= start < LARGEST:
        raise UsageError(f"`from` is {start}", remedy=f"ask from a position between 0 and {LARGEST - 1}")


def check_choice(candidates: int, chosen: bool) -> None:
    """A marked release gives nothing while no policy chooses: unmarked rows, and others than the tenant's own."""
    if candidates > 1 and not chosen:
        raise Denied("the release has several rows for each place, and no active policy chooses among them")
