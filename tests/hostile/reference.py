"""What a stream of bytes means as HTTP/1.1 requests, read strictly: the judge of what may reach a vendor.

Written from RFC 9110 and RFC 9112 and sharing nothing with the parser under test. Where the RFCs let a server
choose, only the choice that cannot be misunderstood counts as valid. Four tolerances, none of which moves the
end of a request: empty lines before a request line (RFC 9112 section 2.2), more than one blank between its words
(section 3), any visible character in a target, and any on the line of a chunk's size behind a semicolon.
"""

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) +([\x21-\x22\x24-\x7e]+) +HTTP/1\.([01])" % _TOKEN)
_FIELD = re.compile(rb"(%b):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*" % _TOKEN)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:;[\t\x20-\x7e\x80-\xff]*)?")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://[^/?]*", re.IGNORECASE)
SIZE_MAX = 2**63
NEVER_IN_TRAILERS = frozenset({b"content-length", b"transfer-encoding"})


class End(enum.Enum):
    """Why reading stopped."""

    CLEAN = "every byte belongs to a request"
    INCOMPLETE = "the last request has not ended"
    INVALID = "what follows is no request"
    LAST = "the last request ends its connection: what follows it is none"


@dataclass(frozen=True, slots=True)
class Request:
    """One valid request. Header names in lower case, values without the blanks around them."""

    method: bytes
    target: bytes
    version: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    @property
    def path(self) -> bytes:
        """The target without its query, in origin form."""
        return _ABSOLUTE.sub(b"", self.target, count=1).partition(b"?")[0]

    @property
    def is_last(self) -> bool:
        """Nothing behind it on the same connection may be served: it closes, asks for another protocol, or
        makes its body wait for an answer, so that nobody knows where the next request begins."""
        if (
            self.version == b"0"
            or self.method == b"CONNECT"
            or self.values(b"expect")
            or self.values(b"upgrade")
        ):
            return True
        return b"close" in _items(self.values(b"connection"))


@dataclass(frozen=True, slots=True)
class Reading:
    """The valid requests at the beginning of some bytes, why there are no more, and where they end."""

    requests: tuple[Request, ...]
    end: End
    read_bytes: int


class _InvalidError(Exception):
    pass


class _IncompleteError(Exception):
    pass


def read(data: bytes) -> Reading:
    """Read all there is."""
    requests: list[Request] = []
    at = 0
    while True:
        start = _skip_empty_lines(data, at)
        if start == len(data):
            return Reading(tuple(requests), End.CLEAN, at)
        try:
            request, at = _request(data, start)
        except _InvalidError:
            return Reading(tuple(requests), End.INVALID, at)
        except _IncompleteError:
            return Reading(tuple(requests), End.INCOMPLETE, at)
        requests.append(request)
        if request.is_last:
            return Reading(tuple(requests), End.LAST, at)


def _skip_empty_lines(data: bytes, at: int) -> int:
    while at < len(data) and data[at] in b"\r\n":
        at += 1
    return at


def _request(data: bytes, at: int) -> tuple[Request, int]:
    lines, at = _lines(data, at)
    found = _REQUEST_LINE.fullmatch(lines[0])
    if found is None:
        raise _InvalidError
    method, target, version = found.groups()
    headers = tuple(_fields(lines[1:]))
    request = Request(method, target, version, headers, b"")
    if version == b"1" and len([value for value in request.values(b"host") if value]) != 1:
        raise _InvalidError
    if len(request.values(b"host")) > 1:
        raise _InvalidError
    body, at = _body(request, data, at)
    return Request(method, target, version, headers, body), at


def _lines(data: bytes, at: int) -> tuple[list[bytes], int]:
    """Lines up to an empty one, and where that ends."""
    end = data.find(b"\r\n\r\n", at)
    head = data[at:] if end < 0 else data[at:end]
    lines = head.split(b"\r\n")
    if any(sign in line for line in lines[: len(lines) - (end < 0)] for sign in (b"\r", b"\n", b"\0")):
        raise _InvalidError
    if end < 0:
        raise _IncompleteError
    return lines, end + 4


def _fields(lines: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for line in lines:
        found = _FIELD.fullmatch(line)
        if found is None:
            raise _InvalidError
        yield found[1].lower(), found[2]


def _items(values: list[bytes]) -> list[bytes]:
    return [item.strip().lower() for value in values for item in value.split(b",")]


def _body(request: Request, data: bytes, at: int) -> tuple[bytes, int]:
    lengths, codings = request.values(b"content-length"), request.values(b"transfer-encoding")
    if codings:
        if lengths or request.version == b"0" or [coding.lower() for coding in codings] != [b"chunked"]:
            raise _InvalidError
        return _chunked(data, at)
    if not lengths:
        return b"", at
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]+", lengths[0]) or int(lengths[0]) >= SIZE_MAX:
        raise _InvalidError
    end = at + int(lengths[0])
    if end > len(data):
        raise _IncompleteError
    return data[at:end], end


def _chunked(data: bytes, at: int) -> tuple[bytes, int]:
    pieces = []
    while True:
        end = data.find(b"\r\n", at)
        line = data[at:] if end < 0 else data[at:end]
        found = _CHUNK_LINE.fullmatch(line)
        if end < 0:
            raise _IncompleteError
        if found is None or int(found[1], 16) >= SIZE_MAX:
            raise _InvalidError
        size, at = int(found[1], 16), end + 2
        if not size:
            return b"".join(pieces), _trailers(data, at)
        after = data[at + size : at + size + 2]
        if after != b"\r\n"[: len(after)]:
            raise _InvalidError
        if len(after) < 2:
            raise _IncompleteError
        pieces.append(data[at : at + size])
        at += size + 2


def _trailers(data: bytes, at: int) -> int:
    if data[at : at + 2] == b"\r\n":
        return at + 2
    lines, at = _lines(data, at)
    if any(name in NEVER_IN_TRAILERS for name, _ in _fields(lines)):
        raise _InvalidError
    return at
