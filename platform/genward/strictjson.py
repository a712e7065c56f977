"""JSON for signed things: one way to write a value, and a reader that lets nothing ambiguous through.

Canonical form: UTF-8, keys sorted by code point, no white space, numbers as Python's shortest round-trip form, no NaN.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from genward.errors import IntegrityError, UsageError


def canonical(value: Any) -> bytes:
    """The one encoding of a JSON value; UsageError for what JSON cannot say (NaN, bytes, lone surrogates)."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"not a JSON value: {error}") from None


def parse(data: bytes, where: str, limit: int) -> Any:
    """Read JSON of at most `limit` bytes; IntegrityError for doubled keys, NaN, bad UTF-8, or too deep nesting."""
    if len(data) > limit:
        raise IntegrityError(f"longer than {limit} bytes", where=where, remedy="get the file again from its source")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        canonical(value)  # a lone surrogate decodes but cannot be encoded again
        return value
    except (ValueError, RecursionError, UsageError) as error:
        raise IntegrityError(f"not strict JSON: {error}", where=where, remedy="get the file again") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
