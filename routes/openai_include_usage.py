"""Asking a chat stream for its usage, which it tells only when asked, without the client noticing.

A request that streams without `stream_options.include_usage` goes up with just that put in, every other byte as
it came; the chunk that answers it has no choices, which clients that did not ask for it cannot read, so that it
does not go down. (With the option every other chunk says `"usage":null` too, which clients read as absent:
it stays.)
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from metering.errors import Reason, Refused
from proxy.surface import AddedEvent
from routes.counting import object_of

_OPTIONS = "stream_options"
_WISH = "include_usage"
_WISHED = '"include_usage":true'
_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def with_usage_asked_for(fields: Mapping[str, Any], body: bytes) -> bytes | None:
    """The body to send for a streamed request, None where it asks for its usage already.

    `body` is the JSON text of `fields`, with no key twice in one object. Raises Refused(BAD_REQUEST).
    """
    options = fields.get(_OPTIONS)
    if options is not None and not isinstance(options, dict):
        raise Refused(Reason.BAD_REQUEST, f"{_OPTIONS}: must be an object.")
    wish = (options or {}).get(_WISH)
    if wish is True:
        return None
    if wish is not None and wish is not False:
        raise Refused(Reason.BAD_REQUEST, f"{_OPTIONS}.{_WISH}: must be a boolean.")
    if _OPTIONS not in fields:
        opening = body.index(b"{") + 1
        return body[:opening] + f'"{_OPTIONS}":{{{_WISHED}}},'.encode() + body[opening:]
    text = body.decode()
    start, end = _place_of(text, text.index("{"), _OPTIONS)
    if options is None:
        return _spliced(text, start, end, f"{{{_WISHED}}}")
    if _WISH in options:
        start, end = _place_of(text, start, _WISH)
        return _spliced(text, start, end, "true")
    return _spliced(text, start + 1, start + 1, f"{_WISHED}," if options else _WISHED)


def _is_usage_alone(data: bytes) -> bool:
    chunk = object_of(data)
    return chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)


ADDED_CHUNK = AddedEvent(marker=b'"prompt_tokens"', is_it=_is_usage_alone)
"""The marker stands in a usage alone: within a text its quotes would be escaped."""


def _spliced(text: str, start: int, end: int, with_text: str) -> bytes:
    return f"{text[:start]}{with_text}{text[end:]}".encode()


def _place_of(text: str, opening: int, key: str) -> tuple[int, int]:
    """Where the value of a key stands in the object that opens there."""
    return next((start, end) for found, start, end in _members(text, opening) if found == key)


def _members(text: str, opening: int) -> Iterator[tuple[str, int, int]]:
    """Key, start and end of the value, of each member of an object that is valid JSON."""
    at = _after_blanks(text, opening + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        start = _after_blanks(text, _after_blanks(text, at) + 1)  # The colon stands between.
        _, end = _DECODER.raw_decode(text, start)
        yield key, start, end
        at = _after_blanks(text, end)
        if text[at] == ",":
            at = _after_blanks(text, at + 1)


def _after_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return at if match is None else match.end()
