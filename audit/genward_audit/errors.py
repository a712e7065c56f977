"""What can go wrong, in one family: nothing else escapes a parser or a check of this package.

`exit_code` is the command line's: 1 a check failed, 2 usage, 4 not found, 5 integrity.
"""

from __future__ import annotations


class AuditError(Exception):
    """Base of every error raised on purpose here.

    Args:
        what: one sentence, what is wrong.
        where: the file, line, index or address it concerns.
        remedy: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head} ({self.remedy})" if self.remedy else head


class FormatError(AuditError):
    """Bytes do not follow the format they claim."""

    exit_code = 5


class ProofError(AuditError):
    """An inclusion or consistency proof does not prove what it claims."""

    exit_code = 5


class SignatureError(AuditError):
    """A signature is missing, wrong, or by a key that must not be trusted."""

    exit_code = 5


class IntegrityError(AuditError):
    """A log's files contradict its checkpoint or one another."""

    exit_code = 5


class PolicyUnmet(SignatureError):
    """A checkpoint lacks the signatures or the quorum that a policy asks for."""


class UsageError(AuditError):
    """The caller asked for something that has no meaning."""

    exit_code = 2


class NotFound(AuditError):
    """No such entry, request or file."""

    exit_code = 4


class Conflict(AuditError):
    """Another writer, another head, or a state that has moved on."""


class Unavailable(AuditError):
    """The log, its disk or a witness is away; nothing was recorded."""
