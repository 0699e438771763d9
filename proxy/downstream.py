"""The client's side of a connection: HTTP/1.1 read by httptools, with bounds on heads, and word of who has left.

Each request gets a task: of the engine, where its path is a surface's (`handle_of`), which writes its answer here with one
system call for head and body; else of the ASGI application (see asgi.py). uvicorn knows a connection by its
`shutdown`, and by its places in the server's `connections` and `tasks`. A connection whose client asks for another
protocol can be handed over: to whatever understands bytes as asyncio's protocols do.
"""

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from metering.errors import Reason, Refused
from proxy.asgi import AsgiCall
from proxy.headers import asks_for_websocket
from proxy.heads import (
    LAST_WORDS,
    NAMES,
    announces_body,
    clean_lines_of,
    expects_continue,
    fault_of,
    lines_of,
)
from proxy.outgoing import Outgoing, Turn
from proxy.request import Request, first_of
from proxy.surface import Headers, Rendered

logger = logging.getLogger(__name__)

CONNECTION = "automna_proxy.connection"
"""The extension under which an ASGI application finds its connection."""
PIPELINED_REQUESTS_MAX = 100
"""Requests that a client may send ahead of their answers; each costs a few kilobytes before anyone has looked
at it. (It is not read meanwhile, but one read may hold thousands, and every answer lets in another.)"""
AHEAD_BYTES_MAX = 512 * 1024
"""Of another protocol that a client may speak behind its request for it, before we agreed: two reads. It should wait."""
LINGER_S = 5.0
"""A client that was refused while it was still sending may go on for so long, unheard, and read why."""
BODILESS = frozenset({204, 304})
"""Answers that end with their head (RFC 9110 section 6.4.1), whatever length they name."""
FRAMING = frozenset({b"content-length", b"transfer-encoding"})
UNREAD_BODY_BYTES_MAX = 64 * 1024
"""Of a body that nobody has taken yet: with more, its client is not read."""
TRAILERS: Any = deque(maxlen=0)
"""Where header lines go that come behind a body: nowhere."""
TARGETS_MAX, TARGET_BYTES_MAX = 4_096, 256
"""Targets remembered with what serves them: those that clients ask for again and again are few and short. One with a query
is not: a token may stand in it."""
NO_VALID_REQUEST = "This is no valid HTTP/1.1 request."
Refusal = Callable[[bytes, Refused, str | None], Rendered]
"""Words for a request that never became one: its target, as far as it came; why; and its id, if it had got one."""


class Successor(Protocol):
    """What takes over a connection: called as an `asyncio.Protocol` is, from `connection_made` to `connection_lost`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None:
        """True keeps our side open."""

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...


Handle = Callable[["Connection", Request], Coroutine[Any, Any, None]]
"""Answers one request of a connection."""
HandleOf = Callable[[bytes], Handle | None]
"""What serves a path itself; None: the ASGI application does."""


class Target(NamedTuple):
    """What a request is for."""

    raw_path: bytes
    query: bytes
    handle: Handle | None


class Connection(asyncio.Protocol):
    """One client connection. Bounds come from the class that `bounded` makes of it."""

    connections_max = 10_000
    head_bytes_max = 64 * 1024
    headers_max = 200
    client_stall_s = 120.0
    refusal: Refusal
    _known_targets: dict[bytes, Target]
    """Of all connections."""
    turn: Turn
    """As well."""
    _goes_on = False
    """Its client sends more behind its last request."""

    @staticmethod
    def on_malformed() -> None:
        """What came was no request that can be served: malformed, too large, too many at once."""

    @staticmethod
    def handle_of(_raw_path: bytes) -> Handle | None:
        """As HandleOf."""
        return None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = _loop or asyncio.get_event_loop()
        self.server_state = server_state
        self._app: Any = config.loaded_app
        self._app_state = app_state
        self._idle_s = float(config.timeout_keep_alive)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until `connection_made`
        self._flow: FlowControl = None  # type: ignore[assignment]  # the same
        self._parser: Any = httptools.HttpRequestParser(self)
        # What follows a last request is not its fault: it has its answer all the same.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._url = b""
        self.headers: Headers = None  # type: ignore[assignment]  # until its first request begins
        self._head_bytes = 0
        """Of a head that is not whole yet, in the reads before this one."""
        self._read_bytes = 0
        self._is_head_of_read = False
        """The head that is read has begun in this read."""
        self._is_in_body = False
        """Of the newest request. Else in a head, or before one."""
        self._has_ended_message = False
        self._is_deaf = False
        self._waits_for_body_parser = False
        self.may_be_handed_over = False
        """The newest request asks for a websocket, and what follows its head is no HTTP."""
        self._ahead = b""
        """What a client said behind its request for another protocol."""
        self._successor: Successor | None = None
        self._newest: Request | None = None
        """Whose body comes, or came last."""
        self._running: Request | None = None
        """Who is answered, or was last; `_task` answers it."""
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[tuple[Request, Handle]] = deque()
        """Sent ahead of the answer to the running one."""
        self._outgoing: Outgoing = None  # type: ignore[assignment]  # until `connection_made`
        self._ends_by_closing = False
        self._on_gone: Callable[[], None] | None = None
        self._idle_until_s = 0.0
        """By the loop's clock: when nothing runs, the next head must be whole by then."""
        self._is_next_coming = False
        """Something has come since nothing runs."""
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self.is_gone = False
        self.is_write_paused = False
        """The client takes bytes more slowly than they come; `drain` would wait."""
        self.request_id: str | None = None
        """Of the running exchange; the engine sets it."""
        self.told: tuple[Refused, int] | None = None
        """What its client was told here, and with which status, because the rest of its body is no HTTP."""

    # --- for the engine ----------------------------------------------------------------------------

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` once when the client leaves, until `unwatch`."""
        self._on_gone = on_gone

    def unwatch(self, on_gone: Callable[[], None]) -> None:
        """End that watch. The next request on the connection may have begun one of its own: it stays."""
        if self._on_gone is on_gone:
            self._on_gone = None

    def cut(self) -> None:
        """End the answer without its end: what was written goes out, then the connection closes.

        The client sees a transfer that broke off, never a clean end.
        """
        if self.is_gone:  # it has no socket any more
            return
        self._on_gone = None
        if self._running is not None:
            self._running.abandon()
        if self._ends_by_closing:  # an ordinary close would be its clean end: reset the connection instead
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._close()

    def drop(self) -> None:
        """Give up on a client that takes nothing: what its system has not taken is thrown away, and it has left."""
        self._outgoing.end_turn()  # not a head that is only held: framed by its end, an answer would seem whole without its body
        self.transport.abort()

    def take_body(self, request: Request) -> bytes:
        """What has come of a request's body since the last time; more may come now."""
        if request.expects_continue:
            self._say_continue(request)
        if self._flow.read_paused:
            self._flow.resume_reading()
        body = b"".join(request.pieces)
        request.pieces.clear()
        request.unread_bytes = 0
        return body

    async def arrival(self, request: Request) -> None:
        """Wait until some more of a request's body has come, or its end; or its client has left."""
        if request.expects_continue:
            self._say_continue(request)
        while request.is_open and not (request.pieces or request.is_whole):
            self._flow.resume_reading()
            await self._change(request)

    async def ending(self, request: Request) -> None:
        """Wait until a request is answered, or its client has left."""
        while request.is_open:
            self._flow.resume_reading()
            await self._change(request)

    def hand_over(self, head: bytes, successor: Successor) -> None:
        """Answer the running request, which asks for a websocket, with `head` (whole, of a 101); from then on the connection
        is the successor's, unless its client has left: beginning with what the client said behind its request. Its stalls stay bounded here.

        Bytes reach the successor as they come, in pieces of any size; it may pause the transport's reading, and must
        stop writing while it is told to. It ends the connection by closing the transport."""
        if self.is_gone:
            return
        request = self._running
        assert self.may_be_handed_over
        assert request is not None
        assert not request.has_begun, "an answer begins once"
        request.has_begun = True
        request.abandon()
        self._successor = successor
        self._outgoing.put(head)
        self._outgoing.flush()
        successor.connection_made(self.transport)
        self._flow.resume_reading()
        ahead, self._ahead = self._ahead, b""
        if ahead:
            successor.data_received(ahead)

    def begin(self, status: int, headers: Headers, *, is_flushed_soon: bool, is_clean: bool = False) -> None:
        """Begin the answer of the running request. Its head goes out with the first piece of the body, in one
        write; `is_flushed_soon`: or by itself at the end of the loop's turn, when there is no body by then. `is_clean`: the
        headers are known to have no control bytes; else those that have some are left out."""
        request = self._running
        if request is None or request.is_abandoned:
            return
        assert not request.has_begun, "an answer begins once"
        request.has_begun = True
        request.expects_continue = False
        lines_from = lines_of if is_clean else clean_lines_of
        lines = lines_from(self.server_state.default_headers + headers)
        framing = b""
        has_length = lines.find(b"\ncontent-length: ") >= 0 or lines.startswith(b"content-length: ")
        if not has_length and status not in BODILESS:
            if request.version == "1.0":
                # Framed by its end: chunks came with HTTP/1.1 (RFC 9112 section 7.1).
                self._ends_by_closing, request.keep_alive = True, False
            else:
                request.is_chunked = request.method != "HEAD"
                framing = b"transfer-encoding: chunked\r\n"
        if not request.keep_alive:
            framing += b"connection: close\r\n"
        head = b"".join((STATUS_LINE[status], lines, framing, b"\r\n"))
        if is_flushed_soon:
            self._outgoing.put(head)
        else:
            self._outgoing.hold(head)

    def write(self, piece: bytes, *, is_last: bool) -> None:
        """Write a piece of the running answer's body, framed, at the end of the loop's turn; nothing once the client has
        left."""
        request = self._running
        if request is None or request.is_abandoned:
            return
        if request.is_chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
            if is_last:
                piece += b"0\r\n\r\n"
        elif request.method == "HEAD":
            piece = b""
        if piece or is_last:
            self._outgoing.put(piece)
        if is_last:
            self._end_answer(request)

    async def drain(self) -> None:
        """Wait until the client has taken most of what was written, or has left."""
        if self.is_write_paused:
            await self._flow.drain()

    # --- for the server and its event loop -----------------------------------------------------------

    def shutdown(self) -> None:
        """The server ends: no more requests than those that have come."""
        if self._newest is None or self._newest.is_answered:
            self._close()
        else:
            self._newest.keep_alive = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream
        self.transport = transport
        self._flow = FlowControl(transport)
        self._outgoing = Outgoing(transport, self.turn)
        self.server_state.connections.add(self)  # type: ignore[arg-type]  # it knows its own kinds only
        if len(self.server_state.connections) > self.connections_max:
            self.drop()
            return
        self._expect_head()
        self._is_next_coming = True  # the first has no more time than this
        self._idle_timer = self.loop.call_later(self._idle_s, self._look_whether_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)
        self.is_gone = True
        self._outgoing.forget()
        for timer in (self._idle_timer, self._stall_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        for request in (self._running, self._newest):
            if request is not None and not request.is_answered:
                request.abandon()
        self.is_write_paused = False
        self._flow.resume_writing()
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()
        # They name us, and hold what nobody read of a body: a cycle that strangers could fill memory with.
        self._running = self._newest = self._task = None
        self._waiting.clear()
        self._parser = None
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.connection_lost(exc)

    def eof_received(self) -> bool | None:
        if self._successor is not None:
            return self._successor.eof_received()
        self._outgoing.end_turn()  # behind this the transport is closed
        return None

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._pass_by(data)
            return
        self._has_ended_message = self._is_head_of_read = False
        self._read_bytes = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_behind(upgrade, data)
        except httptools.HttpParserError:  # nobody's failure but the client's: strangers could fill the log
            self._refuse(Reason.BAD_REQUEST, NO_VALID_REQUEST)
        # What a request ended with is its body; a head that begins in the same bytes is counted from the next.
        if self._is_in_body:
            self._bound_unread()
        elif self._has_ended_message:
            if self._newest is not None and self._newest.unread_bytes > UNREAD_BODY_BYTES_MAX:
                self.loop.call_soon(self._bound_unread)  # behind its task's next step, which usually takes it
        elif not self._is_deaf:
            self._head_bytes += len(data)
            if self._head_bytes > self.head_bytes_max:
                self._refuse_head()
        # Bytes end the wait for the next request, also those of half a head or of a body nobody reads.
        if (self._running is None or self._running.is_answered) and not self._is_next_coming:
            self._expect_head()
            self._is_next_coming = True

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._flow.pause_writing()
        self._expect_progress()
        if self._successor is not None:
            self._successor.pause_writing()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._flow.resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._successor is not None:
            self._successor.resume_writing()

    # --- for the parser ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self.headers = []
        self._is_head_of_read = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((NAMES[name], value))

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        if self._is_deaf:
            return
        headers, parser = self.headers, self._parser
        if len(headers) > self.headers_max or self._is_head_too_large():
            self._refuse_head()
            return
        first, version = first_of(headers), parser.get_http_version()
        target = self._known_targets.get(self._url) or self._target(self._url)
        fault = fault_of(self._url, headers, first, version)
        if fault or target is None:
            self._refuse(Reason.BAD_REQUEST, fault or NO_VALID_REQUEST)
            return
        if len(self._waiting) >= PIPELINED_REQUESTS_MAX:
            self._is_deaf = True
            self.on_malformed()
            self.drop()
            return
        method = parser.get_method().decode()
        request = Request(method, target.raw_path, target.query, headers, first, version)
        self.may_be_handed_over = False
        self.headers = TRAILERS
        if parser.should_upgrade():  # also CONNECT
            if not self._may_upgrade(headers):
                return
            request.keep_alive = False
        elif version == "1.0" or not parser.should_keep_alive():
            request.keep_alive = False
        if not LAST_WORDS.isdisjoint(first):
            # Where the next request begins depends on whether the other side goes on after our answer.
            request.keep_alive = False
            request.expects_continue = expects_continue(headers)
        self._accept(request, target.handle or self._call_app)

    def on_body(self, body: bytes) -> None:
        request = self._newest
        if self._is_deaf or request is None or request.is_answered:
            return
        request.pieces.append(body)
        request.unread_bytes += len(body)
        if request.waiter is not None:
            request.wake()

    def on_message_complete(self) -> None:
        request = self._newest
        if self._is_deaf or self._waits_for_body_parser or request is None:
            return
        request.is_whole = True
        if request.waiter is not None:
            request.wake()
        self._is_deaf = not request.keep_alive  # nothing behind the last request is one
        self._is_in_body = False
        self._has_ended_message = True

    # --- requests, one after the other -----------------------------------------------------------------

    def _accept(self, request: Request, handle: Handle) -> None:
        """Begin with it, or have it wait for the answer to the one before."""
        self._is_in_body = True
        self._newest = request
        running = self._running
        if running is None or running.is_answered:
            self._start(request, handle)
        else:
            self._flow.pause_reading()
            self._waiting.append((request, handle))

    def _start(self, request: Request, handle: Handle) -> None:
        self._running = request
        self.request_id = None
        self._task = task = self.loop.create_task(handle(self, request))
        self.server_state.tasks.add(task)
        task.add_done_callback(self._ended)

    def _call_app(self, _: "Connection", request: Request) -> Coroutine[Any, Any, None]:
        call = AsgiCall(self, request, state=self._app_state, extensions={CONNECTION: self})
        return call.run(self._app)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A request's task has ended; if not by its answer's end, that is a defect, or the server's."""
        self.server_state.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a request failed in the proxy", exc_info=error)
        if task is not self._task:
            return
        self._task, request = None, self._running
        if request is None or not request.is_open:
            return
        if error is None and not task.cancelled():
            logger.error("a request's task ended before its answer")
        if request.has_begun or task.cancelled():
            self.cut()
            return
        request.keep_alive = False
        body = b"Internal Server Error"
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        self.begin(500, headers, is_flushed_soon=False)
        self.write(body, is_last=True)

    def _end_answer(self, request: Request) -> None:
        request.is_answered = True
        if request.waiter is not None:
            request.wake()
        if not request.keep_alive:
            if (self._is_in_body or self._ahead or self._goes_on) and request is self._newest:
                self._linger()
            else:
                self._close()
        if self.transport.is_closing():
            return
        if self._flow.read_paused:
            self._flow.resume_reading()
        if self._waiting:
            self._start(*self._waiting.popleft())
        else:
            self._expect_head()

    # --- inside --------------------------------------------------------------------------------------

    def _target(self, url: bytes) -> Target | None:
        """What a request line asks for; None where that is no path."""
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            return None
        raw_path: bytes | None = parsed.path
        if raw_path is None or not raw_path.isascii():
            return None
        target = Target(raw_path, parsed.query or b"", self.handle_of(raw_path))
        is_worth_it = target.handle is not None and b"?" not in url and len(url) <= TARGET_BYTES_MAX
        if is_worth_it:
            if (
                len(self._known_targets) >= TARGETS_MAX
            ):  # by strangers, perhaps: what is asked for often is soon back
                self._known_targets.clear()
            self._known_targets[url] = target
        return target

    def _pass_by(self, data: bytes) -> None:
        """What comes is none of our own protocol's."""
        if self._successor is not None:
            self._successor.data_received(data)
        elif self.may_be_handed_over:
            self._keep_ahead(data)
        else:
            self._goes_on = True

    def _go_on_behind(self, upgrade: httptools.HttpParserUpgrade, data: bytes) -> None:
        """A server may pass over what it does not speak (RFC 9110 section 7.8)."""
        (head_bytes,) = upgrade.args
        if self._waits_for_body_parser:
            self._waits_for_body_parser = False
            try:
                self._parse_body_of_upgrade()
                with suppress(httptools.HttpParserUpgrade):  # by what stands behind the body
                    self._parser.feed_data(data[head_bytes:])
            except httptools.HttpParserError:
                self._refuse(Reason.BAD_REQUEST, NO_VALID_REQUEST)
        elif self.may_be_handed_over and head_bytes < len(data):
            self._keep_ahead(data[head_bytes:])

    def _may_upgrade(self, headers: Headers) -> bool:
        """Whether a request that asks for another protocol can be served, in that or in ours. The parser takes what follows for
        that protocol; where it is a body, another parser reads it."""
        self.may_be_handed_over = asks_for_websocket(headers)
        if not announces_body(headers):
            return True
        if self.may_be_handed_over:
            # Whoever stands before us may have changed protocols: what follows is no body then.
            self._refuse(Reason.BAD_REQUEST, "A request with a body cannot ask for a websocket.")
            return False
        self._waits_for_body_parser = True
        self.headers = headers  # its framing is needed once more
        return True

    def _say_continue(self, request: Request) -> None:
        request.expects_continue = False
        self._outgoing.put(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _change(self, request: Request) -> None:
        request.waiter = self.loop.create_future()
        await request.waiter

    def _keep_ahead(self, data: bytes) -> None:
        """Nobody knows yet whose these bytes will be; more are not read until that is decided."""
        running = self._running
        if self._linger_timer is not None or running is None or running.is_answered:
            return
        self._ahead += data
        self._flow.pause_reading()
        if len(self._ahead) > AHEAD_BYTES_MAX:
            self.on_malformed()
            self.drop()

    def _bound_unread(self) -> None:
        """Behind a read that ended within a body; of one that came whole, when it was not taken in the loop's next turn. At once,
        its client would be taken out of what the loop polls only to be put back in."""
        request = self._newest
        if self._is_deaf or request is None or request.is_answered:
            return
        if request.unread_bytes > UNREAD_BODY_BYTES_MAX:
            self._flow.pause_reading()

    def _is_head_too_large(self) -> bool:
        if self._is_head_of_read and self._read_bytes <= self.head_bytes_max:
            return False  # as it is part of that
        return len(self._url) + len(b"".join(chain.from_iterable(self.headers))) > self.head_bytes_max

    def _refuse_head(self) -> None:
        self._refuse(Reason.HEAD_TOO_LARGE, "The request's head is too large.")

    def _refuse(self, reason: Reason, message: str) -> None:
        """Answer what never became a request, and read no more: where another one would begin is unknown."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self.on_malformed()
        running = self._running
        if running is not None and running.is_answered and running is self._newest and self._is_in_body:
            self._close()  # the rest of a request that has its answer: there is nothing more to say
            return
        if running is not None and not running.is_answered:
            if running is not self._newest or running.has_begun or running.is_whole:
                self.drop()  # another answer is being written: ours would stand in it
                return
            running.abandon()  # its body went wrong: nobody may wait for the rest, or answer it
        else:
            self.request_id = None
        refused = Refused(reason, message)
        answer = type(self).refusal(self._url, refused, self.request_id)
        self.told = refused, answer.status
        fields = [*answer.headers, (b"content-length", b"%d" % len(answer.body)), (b"connection", b"close")]
        head = STATUS_LINE[answer.status] + lines_of(fields)
        self._outgoing.put(b"%b\r\n%b" % (head, answer.body))
        self._linger()

    def _parse_body_of_upgrade(self) -> None:
        """From here on read the running request's body, framed as its own head says, and nothing more.

        The parser takes what follows an upgrade for another protocol. Clients that offer h2c with every request
        (Java's) send an ordinary body there; another parser, told of its framing alone, reads it.
        """
        framing = [pair for pair in self.headers if pair[0] in FRAMING]
        self.headers = TRAILERS
        self._parser = httptools.HttpRequestParser(_BodyOnly(self))
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + lines_of(framing) + b"\r\n")

    def _expect_head(self) -> None:
        """From now on there must be a whole head within the time that a connection may be idle."""
        self._idle_until_s = self.loop.time() + self._idle_s
        self._is_next_coming = False

    def _look_whether_idle(self) -> None:
        """One timer for the whole connection: a request moves its end, which costs less than another timer."""
        wait_s = self._idle_s
        if self._running is None or self._running.is_answered:
            wait_s = self._idle_until_s - self.loop.time()
        if wait_s > 0:
            self._idle_timer = self.loop.call_later(wait_s, self._look_whether_idle)
        else:
            self._close()

    def _linger(self) -> None:
        """End our side, and hear no more. Closed over bytes that nobody read, the connection would be reset, and
        the reset could overtake the answer."""
        self._is_deaf = True
        if self.transport.is_closing():
            return
        self._flow.resume_reading()
        self._outgoing.flush()
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_S, self._close)

    def _close(self) -> None:
        """Close when everything is written, or the client takes no more of it."""
        self._outgoing.flush()
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._expect_progress()

    def _expect_progress(self) -> None:
        """A client that takes no bytes for too long has left."""
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.client_stall_s, self.drop)


class _BodyOnly:
    """A parser's callbacks that pass on one body; its end makes the connection deaf."""

    def __init__(self, connection: Connection) -> None:
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete


def bounded(
    *,
    connections_max: int,
    head_bytes_max: int,
    headers_max: int,
    client_stall_s: float,
    refusal: Refusal,
    on_malformed: Callable[[], None],
    handle_of: HandleOf = lambda _: None,
) -> type[Connection]:
    """The protocol class for uvicorn, with these bounds, and these words for what is no request. `on_malformed` is called
    when a connection is ended because of what came on it."""
    bounds = {
        "refusal": staticmethod(refusal),
        "on_malformed": staticmethod(on_malformed),
        "handle_of": staticmethod(handle_of),
        "_known_targets": {},
        "turn": Turn(),
        "connections_max": connections_max,
        "head_bytes_max": head_bytes_max,
        "headers_max": headers_max,
        "client_stall_s": client_stall_s,
    }
    return type("BoundedConnection", (Connection,), bounds)
