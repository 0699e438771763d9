"""One request of a client's, as its connection has read it: the head, what has come of its body, and how far its answer is."""

import asyncio
from collections.abc import Mapping

from proxy.surface import Headers

SCHEME = "http"
"""Of every request: whoever stands before us speaks TLS."""


class Request:
    """Made when its head is whole; a task answers it, while more of its body may come."""

    __slots__ = (
        "expects_continue",
        "first",
        "has_begun",
        "has_repeats",
        "headers",
        "is_abandoned",
        "is_answered",
        "is_chunked",
        "is_whole",
        "keep_alive",
        "method",
        "pieces",
        "query",
        "raw_path",
        "unread_bytes",
        "version",
        "waiter",
    )

    first: Mapping[bytes, bytes]
    """The first value of each header."""
    has_repeats: bool
    """Some header stands more than once."""
    version: str
    """`1.1` or `1.0`."""
    keep_alive: bool
    """Its connection may serve another after it."""
    expects_continue: bool
    """Its client waits for a word before it sends the body (RFC 9110 section 10.1.1)."""
    pieces: list[bytes]
    """Of the body, not yet taken: `unread_bytes` of them."""
    is_whole: bool
    """The body has come to its end."""
    is_abandoned: bool
    """Nobody may answer it any more: its client has left, its answer was cut, or its connection has become another's."""
    has_begun: bool
    """Its answer has."""
    is_chunked: bool
    """Its answer is."""
    is_answered: bool
    """To the end."""
    waiter: asyncio.Future[None] | None
    """Of whoever waits for any of this to change."""

    def __init__(  # noqa: PLR0917 - once a request: names would cost more than they tell
        self,
        method: str,
        raw_path: bytes,
        query: bytes,
        headers: Headers,
        first: Mapping[bytes, bytes],
        version: str,
    ) -> None:
        self.method = method
        self.raw_path = raw_path
        self.query = query
        self.headers = headers
        self.first = first
        self.has_repeats = len(first) < len(headers)
        self.version = version
        self.keep_alive = True
        self.pieces = []
        self.unread_bytes = 0
        self.expects_continue = self.is_whole = self.is_abandoned = False
        self.has_begun = self.is_chunked = self.is_answered = False
        self.waiter = None

    @property
    def is_open(self) -> bool:
        """Its client waits for an answer, or for the rest of it."""
        return not (self.is_answered or self.is_abandoned)

    def abandon(self) -> None:
        self.is_abandoned = True
        self.expects_continue = False
        self.wake()

    def wake(self) -> None:
        """Something has changed."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def first_of(headers: Headers) -> dict[bytes, bytes]:
    """The first value of each header."""
    return dict(headers[::-1])
