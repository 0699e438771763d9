"""JSON as vendors write it, decoded."""

import re
from typing import Any

import orjson

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"|.(?:[^\\]*+\\(?!u[dD][89a-fA-F]).)*+)",
    re.DOTALL,
)
"""A whole pair, the half of one, or all other escapes up to the next of these: a call for each takes a second of 8 MB."""
_REPLACEMENT = rb"\ufffd"


def json_of(data: bytes) -> Any:
    """Decoded JSON; None for what is none.

    Half of a surrogate pair as an escape, of a text that was cut within a sign, is no Unicode and yet JSON (RFC 8259,
    section 8.2): vendors' servers write it and their SDKs read it, but orjson refuses it. Here it is U+FFFD.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        if _SURROGATE.search(data) is None:
            return None
    try:
        return orjson.loads(_ESCAPE.sub(_whole, data))
    except orjson.JSONDecodeError:
        return None


def _whole(escape: re.Match[bytes]) -> bytes:
    return _REPLACEMENT if escape[1] else escape[0]
