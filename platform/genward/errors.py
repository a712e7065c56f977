"""Every error a user can meet. One base; each says what is wrong, where, and what to do.

`exit_code` is the command line's, `status` the HTTP status; both are fixed by the class, so that the same
refusal reads the same on every surface.
"""

from __future__ import annotations


class GenwardError(Exception):
    """Base of all errors this project raises on purpose.

    Args:
        what: one sentence, what is wrong.
        where: the file, row, column, key or address it concerns.
        remedy: what the reader can do about it.
    """

    exit_code = 1
    status = 500
    title = "error"

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head} ({self.remedy})" if self.remedy else head


class UsageError(GenwardError):
    """The caller asked for something that has no meaning."""

    exit_code = 2
    status = 400
    title = "bad request"


class DataError(UsageError):
    """Data, a schema or a file does not say what it must."""

    title = "bad data"


class PolicyError(UsageError):
    """A policy document cannot be used as written."""

    title = "bad policy"


class CheckFailed(GenwardError):
    """A check ran and its answer is no: parity, a gate, a conformance suite."""

    status = 422
    title = "check failed"


class Conflict(GenwardError):
    """Somebody else did it first, or the state has moved on."""

    status = 409
    title = "conflict"


class Unauthenticated(GenwardError):
    """Nobody knows who asks."""

    exit_code = 3
    status = 401
    title = "not authenticated"


class Denied(GenwardError):
    """A policy said no."""

    exit_code = 3
    status = 403
    title = "denied"


class LimitReached(Denied):
    """A quota or a queue is full; `retry_after` seconds may help, None when waiting does not."""

    status = 429
    title = "limit reached"

    def __init__(self, what: str, *, where: str = "", remedy: str = "", retry_after: float | None = None) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.retry_after = retry_after


class NotFound(GenwardError):
    """No such thing, or none that this caller may know of."""

    exit_code = 4
    status = 404
    title = "not found"


class IntegrityError(GenwardError):
    """Bytes are not what their signature, digest or proof says."""

    exit_code = 5
    title = "integrity"


class Unavailable(GenwardError):
    """Something the request needs is away: the log, a store, a device. Nothing was given out."""

    status = 503
    title = "unavailable"

    def __init__(self, what: str, *, where: str = "", remedy: str = "", retry_after: float | None = 1.0) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.retry_after = retry_after


class DeadlineExceeded(GenwardError):
    """The request's time was up and its work was stopped."""

    status = 504
    title = "deadline exceeded"


class Interrupted(GenwardError):
    """The work was stopped by its user and can be resumed."""

    exit_code = 130
    title = "interrupted"


class PluginError(GenwardError):
    """A plugin is missing, broken, doubled or not allowed."""

    title = "plugin"
