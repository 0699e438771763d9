"""Heads of requests and answers as they stand on a connection: what may be in one, and how one is written."""

from collections.abc import Mapping

from proxy.surface import Headers

VERSIONS = frozenset({"1.0", "1.1"})
LAST_WORDS = frozenset({b"expect", b"upgrade"})
"""A request with one of these headers is the last of its connection."""
NAMES_MAX, NAME_BYTES_MAX = 2_000, 64
"""Names of headers remembered; all clients and vendors together send some hundreds."""
_HASH = ord("#")
"""A byte is looked for as a number: as bytes, Python tries whether they are one, and makes an error that they are not."""
CONTROL_BYTES = bytes({*range(0x20), 0x7F} - {0x09})
AS_NULLS = bytes.maketrans(CONTROL_BYTES, bytes(len(CONTROL_BYTES)))


class _Names(dict[bytes, bytes]):
    """Names of headers in lower case, by how they are written. What is remembered is one object each: its hash is found once, and
    not for every head again in every dict that it stands in, and a look says that it is equal."""

    def __missing__(self, name: bytes) -> bytes:
        lowered = name.lower()
        if len(self) < NAMES_MAX and len(name) <= NAME_BYTES_MAX:
            lowered = self.setdefault(lowered, lowered)
            self[name] = lowered
        return lowered


NAMES = _Names()
"""Of all connections. Who fills it with names of their own makes others pay what they paid before there was one."""


def fault_of(url: bytes, headers: Headers, first: Mapping[bytes, bytes], version: str) -> str:
    """What the parser lets pass of a request and others may read in another way than we; "" when there is nothing. `first`: the first
    value of each of the headers."""
    if version not in VERSIONS:
        return f"HTTP/{version} is not spoken here."
    if _HASH in url:
        return "A request's target has no fragment."
    has_repeats = len(first) < len(headers)
    if (b"host" not in first and version == "1.1") or (has_repeats and _count(headers, b"host") > 1):
        return "A request names its host once."  # RFC 9112 section 3.2
    if b"transfer-encoding" in first:
        is_chunked = first[b"transfer-encoding"].strip().lower() == b"chunked"
        is_one = _count(headers, b"transfer-encoding") == 1
        if not (is_chunked and is_one) or version == "1.0":  # RFC 9112 section 6.1
            return "Transfer-Encoding: only chunked is understood, and only in HTTP/1.1."
    return ""


def announces_body(headers: Headers) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 "))
        for name, value in headers
    )


def expects_continue(headers: Headers) -> bool:
    """The client waits for a word before it sends the body (RFC 9110 section 10.1.1)."""
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)


def lines_of(headers: Headers) -> bytes:
    """As they stand in a head. Joined in C, which a format for each line is not."""
    return b"\r\n".join([*map(b": ".join, headers), b""])


def clean_lines_of(headers: Headers) -> bytes:
    """The same, without those that have control bytes: they would be misread further down."""
    lines = lines_of(headers)
    if _controls(lines) == 2 * len(headers):  # the ends of lines
        return lines
    return lines_of([pair for pair in headers if not _controls(pair[1])])


def _controls(text: bytes) -> int:
    """How many control bytes are in it. All in C, and without a step for each byte."""
    return text.translate(AS_NULLS).count(0)


def _count(headers: Headers, name: bytes) -> int:
    return [known for known, _ in headers].count(name)
