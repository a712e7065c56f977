"""Strict little readers that several text formats share; each accepts exactly one spelling of a value."""

from __future__ import annotations

import base64
import binascii

from genward_audit.errors import FormatError

MAX_NUMBER = (1 << 64) - 1


def decode_base64(text: str, what: str) -> bytes:
    """Standard base64 with padding (RFC 4648 section 4), canonical: the reverse must give the same text."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise FormatError(f"{what} is not base64") from None
    if encode_base64(data) != text:
        raise FormatError(f"{what} is not canonical base64")
    return data


def encode_base64(data: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def decode_hash(text: str, what: str) -> bytes:
    """A SHA-256 hash in base64."""
    data = decode_base64(text, what)
    if len(data) != 32:
        raise FormatError(f"{what} is not 32 bytes")
    return data


def decode_number(text: str, what: str) -> int:
    """An unsigned 64-bit decimal without leading zeroes."""
    if not (text.isascii() and text.isdecimal()) or (text[0] == "0" and text != "0") or len(text) > 20:
        raise FormatError(f"{what} is not a decimal number")
    number = int(text)
    if number > MAX_NUMBER:
        raise FormatError(f"{what} is larger than 64 bits")
    return number


def decode_utf8(data: bytes, what: str) -> str:
    """UTF-8, strictly."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{what} is not UTF-8") from None
