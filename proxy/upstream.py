"""The upstream HTTP/1.1 client: one request out, one answer in, over pooled connections.

Owns connections, their timers and their bounds. Knows no vendor, no retry of a request, no decompression.

Theory of operation. A connection is an `asyncio.Protocol` that feeds an llhttp parser; there are no streams
and no tasks, and one future per wait. It is in one of four states:

    opening -> busy <-> idle -> closed

`busy` means that exactly one answer (`_OpenAnswer`) is attached. An answer that ended cleanly detaches itself
and gives its connection back; anything else, an error as much as a `close()` before the end, closes the
connection for good: after doubt nothing is reused. Whatever closes it, `_Connection.abort` runs once and
returns the slot that it holds of `connections_max`, to the first in the queue if there is one.

Each connection has one timer. What it waits for is a deadline that moves with every byte; the timer is not
moved with it but, when it fires early, goes to sleep again until the deadline of that moment.

Bytes of a body are collected by the parser itself (`on_body` is the `append` of a list: many events of a stream may stand
in one read), and looked at once for each read.

llhttp runs in its strict mode: it refuses obs-fold, bare CR or LF, NUL in values, a repeated Content-Length,
Content-Length beside Transfer-Encoding, and malformed chunk sizes (RFC 9112 sections 5.2, 6.3, 7.1). Left to
us: transfer codings other than `chunked` and any in HTTP/1.0 (section 6.1), statuses outside 200-599,
upgrades, answers that end with the connection (section 6.3 rule 8), and the size of heads and trailers.
"""

import asyncio
import select
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from metering.values import immutable
from proxy.heads import NAMES

Headers = list[tuple[bytes, bytes]]
Phase = Literal["connect", "first_byte", "idle", "answer"]

CONNECTIONS_MAX = 1_000
"""Open or opening, over all origins. Each costs a descriptor, and as a rule its client's connection another."""
IDLE_CONNECTIONS_MAX = 256
"""Kept unused, over all origins: enough for a burst to find warm connections."""
WAITERS_MAX = 1_000
"""Requests queued for a connection; beyond it a request is refused at once."""
HEAD_BYTES_MAX = 64 * 1024
"""The status line and headers of an answer, with the informational ones before it; also its trailers."""
HEADERS_MAX = 200
"""Header lines of an answer."""
ANSWER_BUFFER_BYTES_MAX = 256 * 1024
"""Unread answer bytes at which a connection stops reading; one more read (256 KiB) may already be in."""
COALESCED_BODY_BYTES_MAX = 64 * 1024
"""A request body up to this length is put together with its head; copying it is cheaper than a write of two pieces."""
WRITE_PIECE_BYTES = 256 * 1024
"""Longer bodies are handed to the transport in such pieces, so that progress can be seen and memory stays."""
PROBE_AFTER_IDLE_S = 0.05
"""A connection unused for longer is asked (one poll) whether the vendor has closed it meanwhile. Under load
connections are younger than that, and the loop itself has heard."""
STALE_TRIES_MAX = 3
"""How often a connection handed over from the queue may turn out to be closed."""
CLOSE_S = 2.0
"""How long `aclose` waits for the loop to drop the sockets."""

FORMS_KEPT = 100
"""Sets of header names whose form is remembered: the requests of one kind of client differ in their values alone. Each
as long as a head at most."""

INTERIM_MIN, STATUS_MIN, STATUS_MAX = 100, 200, 599
SWITCHING_PROTOCOLS = 101
HTTP_PORT, HTTPS_PORT = 80, 443
OWN_HEADERS = frozenset({b"host", b"content-length", b"connection", b"transfer-encoding"})
"""Framing is this client's: it writes the first three itself and never sends the fourth."""
BODILESS_METHODS = frozenset({b"GET", b"HEAD", b"DELETE", b"OPTIONS"})
"""Methods whose empty body needs no `Content-Length: 0` (RFC 9110 section 8.6)."""


# --- values -------------------------------------------------------------------------------------------


class Origin(NamedTuple):
    """Scheme, host (without brackets, lower case) and port: all that connections are pooled by."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> "Origin":
        """The origin that `url` names. ValueError when it names more, or nothing we can connect to."""
        if "@" in url:
            raise ValueError("an upstream URL carries no user or password")  # and neither does this message
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError(f"{url!r}: an upstream URL is printable ASCII without spaces")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{url!r}: not an upstream URL: {error}") from error
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"{url!r}: an upstream URL starts with http:// or https://")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"{url!r}: an upstream URL is scheme, host and port, without a path or query")
        if not parts.hostname or port == 0:
            raise ValueError(f"{url!r}: an upstream URL needs a host, and no port 0")
        if port is None:
            port = HTTPS_PORT if parts.scheme == "https" else HTTP_PORT
        return cls(parts.scheme, parts.hostname, port)

    @property
    def authority(self) -> str:
        """The Host header: brackets around IPv6, the default port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_default = self.port == (HTTPS_PORT if self.scheme == "https" else HTTP_PORT)
        return host if is_default else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@immutable
class Timeouts:
    """Bounds of one request, in seconds.

    `connect_s`: for a place in the queue, and again for DNS, TCP and TLS together. `first_byte_s`: from the
    request's last byte to the end of the answer's head. `idle_s`: without a byte of the answer's body, while
    we were reading; or without progress in writing the request. `pool_idle_s`: how long the connection may
    wait unused for the next request. `answer_s`: from the answer's head to its end, however busily it goes on
    and however slowly we read.
    """

    connect_s: float
    first_byte_s: float
    idle_s: float
    pool_idle_s: float
    answer_s: float = inf


class UpstreamError(Exception):
    """The vendor did not answer, or not to the end.

    `is_sent` False: surely no byte of the request was written, the vendor cannot have seen it.
    """

    def __init__(self, message: str, *, is_sent: bool) -> None:
        super().__init__(message)
        self.is_sent = is_sent


class Unreachable(UpstreamError):  # noqa: N818 - the suffix stands on the root; these read as `except Unreachable`
    """No answer's head: refused, DNS, TLS (not sent); reset, closed or garbage before the head (sent)."""


class TimedOut(UpstreamError):  # noqa: N818 - the suffix stands on the root; these read as `except Unreachable`
    """A bound in `Timeouts` was reached; `phase` says which."""

    def __init__(self, phase: Phase, message: str, *, is_sent: bool) -> None:
        super().__init__(message, is_sent=is_sent)
        self.phase: Phase = phase


class Broken(UpstreamError):  # noqa: N818 - the suffix stands on the root; these read as `except Unreachable`
    """The answer broke off after its head: closed too early, or a protocol error in the body."""

    def __init__(self, message: str) -> None:
        super().__init__(message, is_sent=True)


class CancelledUnsent(asyncio.CancelledError):
    """Cancelled while there was no connection yet: surely no byte of the request was written."""


class Answer(Protocol):
    """An answer whose head is here and whose body may still be coming. Whoever holds it must `close()` it."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers:
        """Lower-case names, in the vendor's order, with repetitions."""

    @property
    def is_complete(self) -> bool:
        """The answer's end has arrived, even if bytes before it are still unread."""

    async def read(self) -> bytes:
        """The next bytes as they arrived, without chunk framing, still compressed; b"" at the end.

        Raises TimedOut or Broken, after everything that did arrive has been read. May be cancelled and
        called again: nothing is lost.
        """

    def close(self) -> None:
        """Done with it (idempotent). Before the end, this closes the connection."""


class OpenAnswer(Answer, Protocol):
    """One that comes over a connection of this client's."""

    taker: "Callable[[bytes], bool] | None"
    """Shown what has come while somebody waits in `read`, where more is to come: what it takes (True) is not read. What it leaves
    is read next, by itself. Called from the event loop, so that what only passes by wakes nobody."""

    @property
    def is_read(self) -> bool:
        """The answer's end has arrived, and all before it has been read: there is nothing more."""

    def take(self) -> bytes:
        """What has arrived and is unread, without waiting; all that is left of an answer that is complete."""


# --- the client ---------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Waiter:
    """A request in the queue. Its future is given a connection, or None: the right to open one."""

    origin: Origin
    future: "asyncio.Future[_Connection | None]"


class UpstreamClient:
    """Sends requests; pools connections per origin, the most recently used first. Bound to one event loop."""

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        connections_max: int = CONNECTIONS_MAX,
        idle_connections_max: int = IDLE_CONNECTIONS_MAX,
        waiters_max: int = WAITERS_MAX,
        head_bytes_max: int = HEAD_BYTES_MAX,
        headers_max: int = HEADERS_MAX,
        answer_buffer_bytes_max: int = ANSWER_BUFFER_BYTES_MAX,
        probe_after_idle_s: float = PROBE_AFTER_IDLE_S,
    ) -> None:
        """`ssl_context` replaces the system's trust; None: certificates and host names are verified."""
        if connections_max < 1:
            raise ValueError(f"connections_max is {connections_max}, expected at least 1")
        self.head_bytes_max = head_bytes_max
        self.headers_max = headers_max
        self.answer_buffer_bytes_max = answer_buffer_bytes_max
        self.probe_after_idle_s = probe_after_idle_s
        self._ssl_context = ssl_context
        self._connections_max = connections_max
        self._idle_connections_max = idle_connections_max
        self._waiters_max = waiters_max
        self._slots_taken = 0
        self._idle: dict[Origin, list[_Connection]] = {}
        self._idle_count = 0
        self._waiters: deque[_Waiter] = deque()
        self._connections: set[_Connection] = set()
        self._all_gone: asyncio.Future[None] | None = None
        self._reaper: asyncio.TimerHandle | None = None
        self._reap_at = inf
        self._is_closed = False

    @property
    def open_connections(self) -> int:
        """Connections that are open or being opened, used or not."""
        return self._slots_taken

    @property
    def idle_connections(self) -> int:
        """Open connections that wait for a request."""
        return self._idle_count

    async def open(  # noqa: PLR0917 - in the order in which HTTP writes them
        self, origin: Origin, method: bytes, target: bytes, headers: Headers, body: bytes, timeouts: Timeouts
    ) -> OpenAnswer:
        """Send a request and wait for the head of its answer.

        `target` (path and query) and `headers` are written as given, but for Host, Content-Length and
        Connection, which are this client's, and Transfer-Encoding, which is dropped. Raises Unreachable or
        TimedOut, and ValueError for a line break in `method`, `target` or `headers`; cancelled before the
        request was written, CancelledUnsent.
        """
        request_line, fields = _encode_head(method, target, headers, body)
        connection = self._take_idle(origin)
        if connection is None:
            try:
                connection = await self._obtain(origin, timeouts)
            except asyncio.CancelledError as cancelled:
                raise CancelledUnsent from cancelled
        answer = _OpenAnswer(connection, method == b"HEAD")
        connection.send(answer, request_line + connection.host_line + fields, body, timeouts)
        del body  # which may be long, as may be what the vendor takes to answer
        answer.waiter = connection.loop.create_future()
        try:
            await answer.waiter
        except BaseException:
            answer.waiter = None
            answer.close()
            raise
        if answer.status:
            return answer
        if answer.failure is not None:
            raise answer.failure()
        raise Unreachable("the answer was closed before it came", is_sent=True)

    async def aclose(self) -> None:
        """Close every connection, used ones too, and refuse what waits. Idempotent."""
        self._is_closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        while self._waiters:
            future = self._waiters.popleft().future
            if not future.done():
                future.set_exception(_client_is_closed())
        for connection in tuple(self._connections):
            connection.fail("this client is closed")
        if self._connections:
            self._all_gone = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._all_gone,), timeout=CLOSE_S)

    # --- what a connection tells its client

    def give_back(self, connection: "_Connection") -> None:
        """A connection is ready for the next request: whoever waits for its origin first, or the pool."""
        if self._waiters and (waiter := self._first_waiter()) is not None:
            if waiter.origin == connection.origin:
                self._waiters.popleft()
                waiter.future.set_result(connection)
            else:
                connection.abort()  # its slot goes to that waiter
            return
        if self._is_closed:
            connection.abort()
            return
        self._idle.setdefault(connection.origin, []).append(connection)
        self._idle_count += 1
        connection.is_idle = True
        if connection.idle_until < self._reap_at:
            self._reap_later(connection.loop, connection.idle_until)
        if self._idle_count > self._idle_connections_max:
            self._close_longest_idle()

    def forget(self, connection: "_Connection") -> None:
        """A connection is closed: out of the pool, and its slot to the next. Called once per connection."""
        if connection.is_idle:
            self._idle[connection.origin].remove(connection)
            self._idle_count -= 1
            connection.is_idle = False
        self._free_slot()

    def gone(self, connection: "_Connection") -> None:
        """The loop has let go of a connection's socket, or never made one."""
        self._connections.discard(connection)
        if self._all_gone is not None and not self._connections and not self._all_gone.done():
            self._all_gone.set_result(None)

    # --- getting a connection

    def _take_idle(self, origin: Origin) -> "_Connection | None":
        """The most recently used connection that is still good."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            self._idle_count -= 1
            connection.is_idle = False
            if connection.is_fit():
                return connection
            connection.abort()
        return None

    async def _obtain(self, origin: Origin, timeouts: Timeouts) -> "_Connection":
        """A connection when the pool has none: a new one, or after queueing, one that was given back."""
        for _ in range(STALE_TRIES_MAX):
            if self._is_closed:
                raise _client_is_closed()
            connection = await self._slot(origin, timeouts.connect_s)
            if connection is None:
                connection = await self._connect(origin, timeouts.connect_s)
            if connection.is_fit():
                return connection
            connection.abort()
        raise Unreachable(f"{origin} closes its connections at once", is_sent=False)

    async def _slot(self, origin: Origin, wait_s: float) -> "_Connection | None":
        """The right to open a connection (None), or one that somebody else has finished with.

        1. Below the bound: take a slot. 2. At the bound, but some other origin's connection is unused: close
        it and take its slot. 3. All are busy: queue. While anyone queues no connection is idle and no slot
        free, because both are handed over directly: nobody can overtake.
        """
        if self._slots_taken >= self._connections_max and self._idle_count:
            self._close_longest_idle()
        if self._slots_taken < self._connections_max:
            self._slots_taken += 1
            return None
        if len(self._waiters) >= self._waiters_max:
            raise Unreachable(f"{self._waiters_max} requests wait for a connection already", is_sent=False)
        waiter = _Waiter(origin, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(wait_s):
                return await self._handed_over(waiter)
        except TimeoutError:
            words = f"no connection to {origin} became free within {wait_s:g} s"
            raise TimedOut("connect", words, is_sent=False) from None

    async def _handed_over(self, waiter: _Waiter) -> "_Connection | None":
        """What the waiter is given. Cancelled in the same instant, it passes the gift on."""
        future = waiter.future
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            elif future.exception() is None:
                connection = future.result()
                if connection is None:
                    self._free_slot()
                else:
                    connection.give_back()
            raise

    def tls(self) -> ssl.SSLContext:
        """Made for the first connection that needs it: reading the machine's certificates takes 20 ms."""
        self._ssl_context = self._ssl_context or _verifying_ssl_context()
        return self._ssl_context

    async def _connect(self, origin: Origin, within_s: float) -> "_Connection":
        """Open a connection on a slot already taken. However it fails, the slot is free again."""
        loop = asyncio.get_running_loop()
        connection = _Connection(self, origin, loop)
        self._connections.add(connection)
        is_tls = origin.scheme == "https"
        try:
            async with asyncio.timeout(within_s):
                await loop.create_connection(
                    lambda: connection,
                    origin.host,
                    origin.port,
                    ssl=self.tls() if is_tls else None,
                    server_hostname=origin.host if is_tls else None,
                )
        except BaseException as error:
            connection.abort()
            self.gone(connection)  # uvloop tells a cancelled one that it was made, but not that it was lost
            if isinstance(error, TimeoutError):
                words = f"{origin} did not accept a connection within {within_s:g} s"
                raise TimedOut("connect", words, is_sent=False) from error
            if isinstance(error, OSError | UnicodeError):  # TLS and DNS errors are OSErrors, IDNA's is not
                raise Unreachable(f"cannot connect to {origin}: {error}", is_sent=False) from error
            raise
        return connection

    def _first_waiter(self) -> _Waiter | None:
        """Who has waited longest and still does."""
        while self._waiters:
            if not self._waiters[0].future.done():
                return self._waiters[0]
            self._waiters.popleft()
        return None

    def _free_slot(self) -> None:
        waiter = self._first_waiter()
        if waiter is None:
            self._slots_taken -= 1
        else:
            self._waiters.popleft()
            waiter.future.set_result(None)

    # --- getting rid of idle ones

    def _close_longest_idle(self) -> None:
        longest = min((idle[0] for idle in self._idle.values() if idle), key=lambda first: first.idle_since)
        longest.abort()

    def _reap_later(self, loop: asyncio.AbstractEventLoop, at_s: float) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
        self._reap_at = at_s
        self._reaper = loop.call_at(at_s, self._reap, loop)

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has waited out its time; forget origins without connections; come back for the next."""
        self._reaper = None
        self._reap_at = inf
        now_s = loop.time()
        waiting = [connection for idle in self._idle.values() for connection in idle]
        for connection in waiting:
            if connection.idle_until <= now_s:
                connection.abort()
        self._idle = {origin: idle for origin, idle in self._idle.items() if idle}
        if self._idle_count:
            next_s = min(connection.idle_until for idle in self._idle.values() for connection in idle)
            self._reap_later(loop, next_s)


def _verifying_ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _client_is_closed() -> Unreachable:
    return Unreachable("this client is closed", is_sent=False)


def _encode_head(method: bytes, target: bytes, headers: Headers, body: bytes) -> tuple[bytes, bytes]:
    """The request line, and the headers that follow the Host line, with the empty line.

    A line break smuggled into any part would make two requests of one.
    """
    if not target or _SPACE in target or _SPACE in method:
        raise ValueError(f"not a request line: {method!r} {target!r}")
    request_line = b"%b %b HTTP/1.1" % (method, target)
    form = _form_of(tuple(map(_name, headers)))
    values = list(map(_value, headers))
    values.append(request_line)
    # Looked for in all that is not ours together, by two searches in C: counting them in the head takes a step for each byte.
    given = b"".join(values)
    if form is None or _LF in given or _CR in given:
        raise ValueError(f"a line break inside the head of {method!r} {target!r}")
    has_length = bool(body) or method not in BODILESS_METHODS
    values[-1] = b"content-length: %d\r\n" % len(body) if has_length else b""
    return request_line + b"\r\n", form % tuple(values)


@lru_cache(maxsize=FORMS_KEPT)
def _form_of(names: tuple[bytes, ...]) -> bytes | None:
    """Headers of these names, in this order, as a form for their values, and for a line about the body: all that follows the
    Host line. Of those that are this client's own it takes the value, and writes nothing. None: a name has a line break."""
    if _LF in (joined := b"".join(names)) or _CR in joined:
        return None
    lines = [
        b"%.0b" if name.lower() in OWN_HEADERS else name.replace(b"%", b"%%") + b": %b\r\n" for name in names
    ]
    return b"".join([*lines, b"%bconnection: keep-alive\r\n\r\n"])


_name, _value = itemgetter(0), itemgetter(1)
_LF, _CR, _SPACE = b"\n\r "
"""Numbers: see `_HASH` in heads.py."""


# --- one answer ---------------------------------------------------------------------------------------


class _OpenAnswer:
    """The state of one request on one connection, and the `Answer` that the caller holds."""

    __slots__ = (
        "buffered_bytes",
        "chunks",
        "connection",
        "failure",
        "headers",
        "is_complete",
        "is_first_shown",
        "is_head_only",
        "status",
        "taker",
        "waiter",
    )

    connection: "_Connection | None"
    status: int
    """0 until its head is here."""
    headers: Headers
    is_first_shown: bool
    """The taker has seen the first of the chunks, and left it."""
    taker: Callable[[bytes], bool] | None
    failure: Callable[[], UpstreamError] | None
    """Makes the error to raise. One that is kept and raised would be a cycle: it holds the frames it passed,
    which hold us and the request's body, and nobody looks for cycles until it is too late."""
    waiter: "asyncio.Future[None] | None"
    """Of whoever waits for us; whoever ends its wait takes it away."""

    def __init__(self, connection: "_Connection", is_head_only: bool) -> None:
        self.connection = connection
        self.is_head_only = is_head_only
        self.status = self.buffered_bytes = 0
        self.is_complete = self.is_first_shown = False
        self.chunks: list[bytes] = []
        self.headers = _NO_HEADERS
        self.taker = self.failure = self.waiter = None

    async def read(self) -> bytes:
        while not self.chunks:
            if self.failure is not None:
                raise self.failure()
            connection = self.connection
            if connection is None or self.is_complete:
                return b""
            if self.waiter is not None:
                raise RuntimeError("two reads of one answer at the same time")
            self.waiter = connection.loop.create_future()
            try:
                await self.waiter
            except BaseException:
                self.waiter = None
                raise
        if self.is_first_shown:
            self.is_first_shown = False
            data = self.chunks.pop(0)
            self.buffered_bytes -= len(data)
        else:
            data = self.take()
        if self.connection is not None and self.connection.is_reading_paused:
            self.connection.resume_reading()
        return data

    def take(self) -> bytes:
        chunks = self.chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered_bytes = 0
        return data

    @property
    def is_read(self) -> bool:
        return self.is_complete and not self.chunks

    def close(self) -> None:
        if self.connection is not None:
            self.connection.fail("the answer was closed before its end")

    def wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


_NO_HEADERS: Headers = []


# --- one connection -----------------------------------------------------------------------------------


class _BadAnswer(Exception):  # noqa: N818 - never leaves this module: the parser carries it as a reason
    """The vendor's answer is not one we may pass on."""


class _Connection(asyncio.Protocol):
    """One connection to one origin. The methods from `on_message_begin` on are the parser's callbacks."""

    __slots__ = (
        "__weakref__",
        "_answer",
        "_answer_until_s",
        "_client",
        "_deadline_s",
        "_ends_at_eof",
        "_feed",
        "_framing_bytes",
        "_headers",
        "_idle_s",
        "_is_keep_alive",
        "_is_write_paused",
        "_parser",
        "_phase",
        "_pieces",
        "_poll",
        "_read_bytes",
        "_timeouts",
        "_timer",
        "_timer_at_s",
        "_transport",
        "_unsent",
        "host_line",
        "idle_since",
        "idle_until",
        "is_closed",
        "is_idle",
        "is_reading_paused",
        "loop",
        "on_body",
        "origin",
    )

    def __init__(self, client: UpstreamClient, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self.loop = loop
        self.host_line = b"host: " + origin.authority.encode("ascii") + b"\r\n"
        self.is_closed = False
        self.is_idle = False
        self.idle_since = 0.0
        self.idle_until = inf
        self.is_reading_paused = False
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._headers: Headers = []
        """Those of the head that is being read."""
        self._pieces: list[bytes] = []
        """Of a body, in what is being read."""
        self.on_body = self._pieces.append
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._feed: Callable[[bytes], None] = self._parser.feed_data
        self._answer: _OpenAnswer | None = None
        self._timeouts: Timeouts | None = None
        self._idle_s = inf
        self._answer_until_s = inf
        self._unsent: memoryview | None = None
        self._is_write_paused = False
        self._is_keep_alive = False
        self._ends_at_eof = False
        self._framing_bytes = 0
        """Read since the last of a body."""
        self._read_bytes = 0
        """What is being read."""
        self._phase: Phase = "connect"
        self._deadline_s = inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = inf

    # --- for the client

    def is_fit(self) -> bool:
        """Nothing is known to be wrong with this unused connection; after a while idle, also by asking."""
        if self.is_closed or self._transport is None or self._transport.is_closing():
            return False
        now_s = self.loop.time()
        if now_s >= self.idle_until:
            return False
        is_fresh = now_s - self.idle_since < self._client.probe_after_idle_s
        # Readable means that the vendor closed, or said something nobody asked for.
        return is_fresh or self._poll is None or not self._poll.poll(0)

    def send(self, answer: _OpenAnswer, head: bytes, body: bytes, timeouts: Timeouts) -> None:
        """Write a request; its answer goes to `answer`. Only for a connection that `is_fit`."""
        transport = self._transport
        assert transport is not None
        assert self._answer is None
        self._answer = answer
        self._timeouts = timeouts
        self._idle_s = timeouts.idle_s
        self._answer_until_s = inf
        self._framing_bytes = 0
        if len(body) > COALESCED_BODY_BYTES_MAX:
            unsent = memoryview(body)
            # One system call for both: the vendor is woken once.
            transport.writelines([head, unsent[:WRITE_PIECE_BYTES]])
            self._unsent = unsent[WRITE_PIECE_BYTES:] if len(unsent) > WRITE_PIECE_BYTES else None
            self._send_more(transport)
        else:
            transport.write(head + body)
        if self._unsent is not None or self._is_write_paused:
            self._wait_for("idle", timeouts.idle_s)
        else:
            self._wait_for("first_byte", timeouts.first_byte_s)

    def resume_reading(self) -> None:
        """The reader has caught up; the vendor's time to send starts anew."""
        self.is_reading_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._wait_for("idle", self._idle_s)

    def give_back(self) -> None:
        """Unused from now on."""
        if self.is_closed:
            return
        self.idle_since = self.loop.time()
        self.idle_until = self.idle_since + (self._timeouts.pool_idle_s if self._timeouts else inf)
        self._client.give_back(self)

    def fail(self, reason: str) -> None:
        """Give up whatever is going on, and close."""
        answer = self._answer
        if answer is not None and answer.status:
            self._break_off(partial(Broken, f"{self.origin}: {reason}"))
        else:
            is_sent = answer is not None
            self._break_off(partial(Unreachable, f"{self.origin}: {reason}", is_sent=is_sent))

    def abort(self) -> None:
        """Close without ceremony (no lingering, no TLS goodbye: it could wait). Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        self._deadline_s = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at_s = None, inf
        # The parser holds our methods: without this every connection would wait for the cycle collector.
        self._parser = None
        self._feed = _ignore
        self._unsent = None
        if self._transport is not None:
            self._transport.abort()
        else:
            self._client.gone(self)
        self._client.forget(self)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because uvloop's transports have asyncio's methods without inheriting from its classes.
        self._transport = cast("asyncio.Transport", transport)
        if self.is_closed:
            self._transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)
        self.idle_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_closed:
            self.fail(f"the connection broke ({exc})" if exc else "the connection was closed")
        self._client.gone(self)

    def eof_received(self) -> None:
        answer = self._answer
        if answer is not None and answer.status and self._ends_at_eof:
            answer.is_complete = True
            self._finish(answer, is_reusable=False)
        else:
            self.fail("the vendor closed the connection")

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self._answer is None or self._transport is None:
            return
        self._send_more(self._transport)
        if not self.is_reading_paused:
            self._expect_next()

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            self.abort()  # said without being asked: whose answer would it become?
            return
        self._read_bytes = len(data)
        try:
            self._feed(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._on_parser_error(answer, error)
            return
        if answer.is_complete:
            is_written = self._unsent is None and not self._is_write_paused
            self._finish(answer, is_reusable=self._is_keep_alive and is_written)
        elif self._pieces:
            self._framing_bytes = 0
            piece = self._take_pieces()
            waiter, taker = answer.waiter, answer.taker
            if taker is None or waiter is None or waiter.done():
                self._keep(answer, piece)
            elif taker(piece):
                # As `_wait_for("idle")`, whose timer is set since the piece before.
                idle_until_s = self.loop.time() + self._idle_s
                self._deadline_s = (
                    idle_until_s if idle_until_s < self._answer_until_s else self._answer_until_s
                )
            else:
                answer.is_first_shown = True
                self._keep(answer, piece)
        else:
            self._framing_bytes += len(data)
            if self._framing_bytes > self._client.head_bytes_max:
                self.fail(f"more than {self._client.head_bytes_max} bytes of head, chunk headers or trailers")
            elif answer.status and not self.is_reading_paused:
                self._wait_for("idle", self._idle_s)

    # --- the parser's callbacks

    def on_message_begin(self) -> None:
        self._headers.clear()  # trailers of the answer before
        if self._answer is not None and self._answer.is_complete:
            self._is_keep_alive = False  # more than one answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also of a trailer; those are dropped, and bounded by `_framing_bytes`."""
        self._headers.append((NAMES[name], value))

    def on_headers_complete(self) -> None:
        answer, parser = self._answer, self._parser
        if answer is None or parser is None or answer.status:
            return
        headers, self._headers = self._headers, []
        self._check_head(headers)
        status = parser.get_status_code()
        if not STATUS_MIN <= status <= STATUS_MAX:
            if INTERIM_MIN <= status < STATUS_MIN and status != SWITCHING_PROTOCOLS:
                return
            raise _BadAnswer(
                "switched protocols, which nobody asked for"
                if status == SWITCHING_PROTOCOLS
                else f"status {status}"
            )
        self._is_keep_alive = parser.should_keep_alive()
        self._ends_at_eof = False
        if not self._is_keep_alive:
            self._read_framing(headers, parser.get_http_version())
        answer.headers = headers
        answer.status = status
        if self._timeouts is not None:
            self._answer_until_s = self.loop.time() + self._timeouts.answer_s
        if answer.is_head_only:
            # llhttp would wait for the body that the headers describe: this connection has served.
            self._is_keep_alive = False
            answer.is_complete = True
        answer.wake()

    def on_message_complete(self) -> None:
        answer = self._answer
        # Without a head, an informational answer (1xx) is over. What a vendor says behind its answer's end is nobody's.
        if answer is not None and answer.status and not answer.is_complete:
            answer.chunks += self._pieces
            self._pieces.clear()
            answer.is_complete = True

    # --- inside

    def _check_head(self, headers: Headers) -> None:
        """Raises _BadAnswer. What of a head comes before its end is bounded by `_framing_bytes`."""
        client = self._client
        if len(headers) > client.headers_max:
            raise _BadAnswer(f"more than {client.headers_max} headers")
        # Measured only where so much has been read since the request.
        has_read_more = self._framing_bytes + self._read_bytes > client.head_bytes_max
        if has_read_more and sum([len(name) + len(value) for name, value in headers]) > client.head_bytes_max:
            raise _BadAnswer(f"more than {client.head_bytes_max} bytes of head")
        if b"transfer-encoding" in map(_name, headers):
            codings = [value for name, value in headers if name == b"transfer-encoding"]
            if codings != [b"chunked"] and {coding.strip().lower() for coding in codings} != {b"chunked"}:
                raise _BadAnswer("a transfer coding other than chunked")

    def _read_framing(self, headers: Headers, version: str) -> None:
        """How the answer ends, for the ones after which llhttp would close."""
        names = {name for name, _ in headers}
        is_chunked = b"transfer-encoding" in names
        if version not in ("1.1", "1.0"):
            raise _BadAnswer(f"HTTP/{version}")
        if is_chunked and version == "1.0":
            raise _BadAnswer("a transfer coding in HTTP/1.0")
        self._ends_at_eof = not is_chunked and b"content-length" not in names

    def _take_pieces(self) -> bytes:
        pieces = self._pieces
        if len(pieces) == 1:
            return pieces.pop()
        piece = b"".join(pieces)
        pieces.clear()
        return piece

    def _keep(self, answer: _OpenAnswer, piece: bytes) -> None:
        """More of a body that goes on, for whoever reads next."""
        answer.chunks.append(piece)
        answer.buffered_bytes += len(piece)
        if answer.buffered_bytes <= self._client.answer_buffer_bytes_max:
            self._wait_for("idle", self._idle_s)
        elif not self.is_reading_paused and self._transport is not None:
            self._transport.pause_reading()
            self.is_reading_paused = True
            self._wait_for("idle", inf)  # our reader is the slow one
        answer.wake()

    def _on_parser_error(self, answer: _OpenAnswer, error: Exception) -> None:
        if answer.is_complete:
            self._finish(answer, is_reusable=False)
        else:
            answer.chunks += self._pieces
            # The parser hides an exception of its callbacks in the context of its own.
            self.fail(f"not a proper answer: {error.__context__ or error}")

    def _finish(self, answer: _OpenAnswer, *, is_reusable: bool) -> None:
        """The answer is whole: let go of it, and of the connection."""
        self._answer = answer.connection = None
        self._deadline_s = inf
        if answer.waiter is not None:
            answer.wake()
        if not is_reusable:
            self.abort()
            return
        if self.is_reading_paused:
            self.is_reading_paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        self.give_back()

    def _break_off(self, failure: Callable[[], UpstreamError]) -> None:
        answer = self._answer
        if answer is not None:
            answer.failure = failure
            self._answer = answer.connection = None
            answer.wake()
        self.abort()

    def _send_more(self, transport: asyncio.Transport) -> None:
        """Hand over pieces of the body until the transport has enough."""
        unsent = self._unsent
        while unsent is not None and not self._is_write_paused:
            transport.write(unsent[:WRITE_PIECE_BYTES])
            unsent = unsent[WRITE_PIECE_BYTES:] if len(unsent) > WRITE_PIECE_BYTES else None
        self._unsent = unsent

    def _expect_next(self) -> None:
        """After progress in writing: what must happen next, and until when."""
        timeouts, answer = self._timeouts, self._answer
        if timeouts is None or answer is None:
            return
        if answer.status or self._unsent is not None or self._is_write_paused:
            self._wait_for("idle", timeouts.idle_s)
        else:
            self._wait_for("first_byte", timeouts.first_byte_s)

    def _wait_for(self, phase: Phase, within_s: float) -> None:
        self._phase = phase
        until_s = self.loop.time() + within_s
        self._deadline_s = deadline_s = until_s if until_s < self._answer_until_s else self._answer_until_s
        if deadline_s < self._timer_at_s:
            self._set_timer(deadline_s)

    def _set_timer(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = at_s
        self._timer = self.loop.call_at(at_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at_s = None, inf
        if self._deadline_s == inf:
            return
        if self.loop.time() < self._deadline_s:
            self._set_timer(self._deadline_s)
            return
        phase: Phase = "answer" if self._deadline_s == self._answer_until_s else self._phase
        words = f"{self.origin}: {_MISSED[phase]} in time"
        self._break_off(partial(TimedOut, phase, words, is_sent=True))


_MISSED: dict[Phase, str] = {
    "first_byte": "no answer",
    "idle": "no progress",
    "answer": "no end of the answer",
}


def _ignore(_data: bytes) -> None:
    """What a closed connection does with bytes that are still on their way through TLS."""
