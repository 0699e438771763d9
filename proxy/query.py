"""The query of a request: read where it must be, and written anew only where a number of it must be bounded. Else its bytes
go up as they came."""

import urllib.parse
from collections.abc import Collection, Iterator, Mapping

from metering.errors import Reason, Refused

NUMBER_CHARS_MAX = 18
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


def values_of(name: str, query: bytes) -> list[str]:
    """The values of a parameter that names something. Raises Refused(BAD_REQUEST): it is spelled in another way too
    (`sessionId[]`, `session_id`), which the vendor may take for it."""
    values = []
    for known, value in parameters(query):
        if known == name:
            values.append(value.decode("utf-8", "replace"))
        elif _plain(known) == _plain(name):
            raise Refused(Reason.BAD_REQUEST, f"{name}: must be spelled so.")
    return values


def value_of(name: str, query: bytes) -> str | None:
    """The first of them. Raises Refused(BAD_REQUEST)."""
    values = values_of(name, query)
    return values[0] if values else None


def without(names: Collection[str], query: bytes) -> bytes:
    """The query, but for these parameters."""
    return b"&".join(piece for piece in query.split(b"&") if piece and name_of(piece) not in names)


def at_most(most: Mapping[str, int], query: bytes) -> bytes:
    """The query with whole numbers that are no more than these, and are these where none is given. Raises
    Refused(BAD_REQUEST)."""
    given: dict[str, int] = {}
    for name, value in parameters(query):
        if name in most:
            if not (value.isascii() and value.isdigit()) or len(value) > NUMBER_CHARS_MAX or name in given:
                raise Refused(Reason.BAD_REQUEST, f"The query parameter {name} must be a whole number.")
            given[name] = int(value)
    kept = [piece for piece in query.split(b"&") if piece and name_of(piece) not in most]
    bounded = [f"{name}={min(limit, given.get(name, limit))}".encode() for name, limit in most.items()]
    return b"&".join((*kept, *bounded))


def _decoded(text: bytes) -> bytes:
    return urllib.parse.unquote_to_bytes(text.replace(b"+", b" "))


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.partition("[")[0].lower()))
