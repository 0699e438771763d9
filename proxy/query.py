"""The query of a request: read where it must be, never written anew. Its bytes go up as they came."""

import urllib.parse
from collections.abc import Collection, Iterator

from metering.errors import Reason, Refused

NAME_CHARS_MAX = 100
"""Of a parameter's name in an error."""


def parameters(query: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and values, decoded as forms are (`+` is a blank)."""
    for piece in query.split(b"&"):
        yield name_of(piece), _decoded(piece.partition(b"=")[2])


def name_of(piece: bytes) -> str:
    """The name of one `name=value`, decoded."""
    return _decoded(piece.partition(b"=")[0]).decode("utf-8", "replace")


def check(allowed: Collection[str], query: bytes) -> None:
    """Refuse parameters that are not declared. Raises Refused(BAD_REQUEST)."""
    for piece in query.split(b"&"):
        if piece and name_of(piece) not in allowed:
            shown = name_of(piece)[:NAME_CHARS_MAX]
            raise Refused(
                Reason.BAD_REQUEST, f"The query parameter {shown!r} is not available through this proxy."
            )


def _decoded(text: bytes) -> bytes:
    return urllib.parse.unquote_to_bytes(text.replace(b"+", b" "))
