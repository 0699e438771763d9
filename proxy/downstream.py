"""The client's side of a connection: uvicorn's HTTP protocol with bounds on heads, and word of who has left.

The engine reaches its connection through `scope["extensions"][CONNECTION]`, and writes its answers there: one
system call where uvicorn's `send` needs two, and no search of every header. The other applications of this
process (our own endpoints) answer through ASGI as ever. A connection whose client asks for another protocol can be
handed over: to whatever understands bytes as asyncio's protocols do.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from metering.errors import Reason, Refused
from proxy.headers import asks_for_websocket
from proxy.surface import Headers, Rendered

CONNECTION = "automna_proxy.connection"
PIPELINED_REQUESTS_MAX = 100
"""Requests that a client may send ahead of their answers; each costs a few kilobytes before anyone has looked
at it. (uvicorn stops reading meanwhile, but one read may hold thousands, and every answer lets in another.)"""
AHEAD_BYTES_MAX = 512 * 1024
"""Of another protocol that a client may speak behind its request for it, before we agreed: two reads. It should wait."""
LINGER_S = 5.0
"""A client that was refused while it was still sending may go on for so long, unheard, and read why."""
BODILESS = frozenset({204, 304})
"""Answers that end with their head (RFC 9110 section 6.4.1), whatever length they name."""
CONTROL_BYTES = bytes({*range(0x20), 0x7F} - {0x09})
FRAMING = frozenset({b"content-length", b"transfer-encoding"})
LAST_WORDS = frozenset({b"expect", b"upgrade"})
"""A request with one of these headers is the last of its connection."""
VERSIONS = frozenset({"1.0", "1.1"})
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


class Connection(HttpToolsProtocol):
    """One client connection. Bounds come from the class that `bounded` makes of it."""

    connections_max = 10_000
    head_bytes_max = 64 * 1024
    headers_max = 200
    client_stall_s = 120.0
    refusal: Refusal

    @staticmethod
    def on_malformed() -> None:
        """What came was no request that can be served: malformed, too large, too many at once."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""
        self._head_bytes = 0
        self._is_in_head = True
        self._has_ended_message = False
        self._is_in_body = False
        self._is_deaf = False
        self._waits_for_body_parser = False
        self.may_be_handed_over = False
        """The newest request asks for a websocket, and what follows its head is no HTTP."""
        self._ahead = b""
        """What a client said behind its request for another protocol."""
        self._successor: Successor | None = None
        self._running: RequestResponseCycle | None = None
        self._unsent_head = b""
        self._ends_by_closing = False
        self._on_gone: Callable[[], None] | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self.is_gone = False
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

    @property
    def is_write_paused(self) -> bool:
        """The client takes bytes more slowly than they come; `send` would wait."""
        return self.flow.write_paused

    def cut(self) -> None:
        """End the answer without its end: what was written goes out, then the connection closes.

        The client sees a transfer that broke off, never a clean end.
        """
        self._on_gone = None
        self.flush()
        if self._running is not None:
            self._running.disconnected = True  # uvicorn must neither write nor complain any more
        if self._ends_by_closing:  # an ordinary close would be its clean end: reset the connection instead
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._close()

    def drop(self) -> None:
        """Give up on a client that takes nothing: what is not yet written is thrown away, and it has left."""
        self.transport.abort()

    @property
    def has_whole_request(self) -> bool:
        """The request's body has arrived to its end: `receive` will not wait."""
        return self._running is not None and not self._running.more_body

    def hand_over(self, head: bytes, successor: Successor) -> None:
        """Answer the running request, which asks for a websocket, with `head` (whole, of a 101); from then on the connection
        is the successor's, unless its client has left: beginning with what the client said behind its request. Its stalls stay bounded here.

        Bytes reach the successor as they come, in pieces of any size; it may pause the transport's reading, and must
        stop writing while it is told to. It ends the connection by closing the transport."""
        if self.is_gone:
            return
        cycle = self._running
        assert self.may_be_handed_over
        assert cycle is not None
        assert not cycle.response_started, "an answer begins once"
        cycle.response_started = True
        cycle.disconnected = True  # uvicorn must neither write nor complain any more
        self._successor = successor
        self.transport.write(head)
        successor.connection_made(self.transport)
        self.flow.resume_reading()
        ahead, self._ahead = self._ahead, b""
        if ahead:
            successor.data_received(ahead)

    def begin(self, status: int, headers: Headers, *, is_flushed_soon: bool) -> None:
        """Begin the answer of the running request. Its head goes out with the first piece of the body, in one
        write; `is_flushed_soon`: or by itself in the loop's next turn, when there is no body by then."""
        cycle = self._running
        if cycle is None or cycle.disconnected:
            return
        assert not cycle.response_started, "an answer begins once"
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if _has_control(b"".join([value for _, value in headers])):  # a vendor's: misread further down
            headers = [pair for pair in headers if not _has_control(pair[1])]
        pieces = [STATUS_LINE[status]]
        is_framed = status in BODILESS
        closes = not cycle.keep_alive
        pieces += [b"%b: %b\r\n" % pair for pair in (*cycle.default_headers, *headers)]
        is_framed = is_framed or b"content-length" in dict(headers)
        if not is_framed and cycle.scope["http_version"] == "1.0":
            # Framed by its end: chunks came with HTTP/1.1 (RFC 9112 section 7.1).
            closes = self._ends_by_closing = True
        elif not is_framed:
            cycle.chunked_encoding = True
            pieces.append(b"transfer-encoding: chunked\r\n")
        if closes:
            cycle.keep_alive = False
            pieces.append(b"connection: close\r\n")
        pieces.append(b"\r\n")
        self._unsent_head = b"".join(pieces)
        if is_flushed_soon:
            self.loop.call_soon(self.flush)

    def write(self, piece: bytes, *, is_last: bool) -> None:
        """Write a piece of the running answer's body, framed; nothing once the client has left."""
        cycle = self._running
        if cycle is None or cycle.disconnected:
            return
        head, self._unsent_head = self._unsent_head, b""
        if cycle.scope["method"] == "HEAD":
            piece = b""
        elif cycle.chunked_encoding:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
            if is_last:
                piece += b"0\r\n\r\n"
        if data := head + piece if head else piece:
            self.transport.write(data)
        if is_last:
            cycle.response_complete = True
            cycle.message_event.set()
            if not cycle.keep_alive and (self._is_in_body or self._ahead) and cycle is self.cycle:
                self._linger()
            elif not cycle.keep_alive:
                self.transport.close()
            cycle.on_response()

    def flush(self) -> None:
        """Send a head that no body has taken along."""
        if self._unsent_head and self._running is not None and not self._running.disconnected:
            head, self._unsent_head = self._unsent_head, b""
            self.transport.write(head)

    async def drain(self) -> None:
        """Wait until the client has taken most of what was written, or has left."""
        if self.flow.write_paused:
            await self.flow.drain()

    # --- uvicorn's protocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            self.drop()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.is_gone = True
        for timer in (self._head_timer, self._stall_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # with pipelining, uvicorn marks the newest request only
            self._running.message_event.set()
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()
        # The scope names us, and holds what nobody read of a body: a cycle that strangers could fill memory with.
        self.scope = {}  # type: ignore[typeddict-item]  # nothing asks a lost connection for its scope
        self.cycle = None  # type: ignore[assignment]  # as uvicorn has it before the first request
        self._running = None
        self.pipeline.clear()
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # uvicorn's keeps no side open
        return None if self._successor is None else self._successor.eof_received()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            if self._successor is not None:
                self._successor.data_received(data)
            elif self.may_be_handed_over:
                self._keep_ahead(data)
            return
        self._has_ended_message = False
        self._unset_keepalive_if_required()
        self._parse(data)
        # What a request ended with is its body; a head that begins in the same bytes is counted from the next.
        if self._is_in_head and not self._has_ended_message and not self._is_deaf:
            self._head_bytes += len(data)
            if self._head_bytes > self.head_bytes_max:
                self._refuse_head()
        # Bytes end uvicorn's wait for the next request, also those of half a head or of a body nobody reads.
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_progress()
        if self._successor is not None:
            self._successor.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._successor is not None:
            self._successor.resume_writing()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]  # ours, beside ASGI's own

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self._is_deaf:
            return
        size = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
        if size > self.head_bytes_max or len(self.headers) > self.headers_max:
            self._refuse_head()
            return
        names = [name for name, _ in self.headers]
        fault = self._fault_of_head(names)
        if fault:
            self._refuse(Reason.BAD_REQUEST, fault)
            return
        if len(self.pipeline) >= PIPELINED_REQUESTS_MAX:
            self._is_deaf = True
            self.on_malformed()
            self.drop()
            return
        is_upgrade = self.parser.should_upgrade()  # also CONNECT
        is_last = is_upgrade or not LAST_WORDS.isdisjoint(names)
        has_skipped_body = is_upgrade and self._announces_body()
        self.may_be_handed_over = is_upgrade and asks_for_websocket(self.headers)
        if has_skipped_body and self.may_be_handed_over:
            # Whoever stands before us may have changed protocols: what follows is no body then.
            self._refuse(Reason.BAD_REQUEST, "A request with a body cannot ask for a websocket.")
            return
        self.request_id = None
        super().on_headers_complete()
        self._is_in_body = True
        self._waits_for_body_parser = has_skipped_body
        if is_last:
            # Where the next request begins depends on whether the other side goes on after our answer.
            self.cycle.keep_alive = False
        if has_skipped_body:
            return  # its framing is needed once more
        self.headers = deque(maxlen=0)  # type: ignore[assignment]  # what comes now are trailers: dropped

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_flush()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def on_body(self, body: bytes) -> None:
        if not self._is_deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_deaf and not self._waits_for_body_parser:
            super().on_message_complete()
            self._is_deaf = not self.cycle.keep_alive  # nothing behind the last request is one
            self._is_in_body = False
            self._is_in_head = True
            self._has_ended_message = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # --- inside --------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        """Feed the parser. What it cannot read ends the connection, and is nobody's failure but the client's:
        no word of it in the log, which strangers could fill."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # A server may pass over what it does not speak (RFC 9110 section 7.8).
            (head_bytes,) = upgrade.args
            if self._waits_for_body_parser:
                self._waits_for_body_parser = False
                self._parse_body_of_upgrade()
                self._parse(data[head_bytes:])
            elif self.may_be_handed_over and head_bytes < len(data):
                self._keep_ahead(data[head_bytes:])
        except httptools.HttpParserError:
            self._refuse(Reason.BAD_REQUEST, "This is no valid HTTP/1.1 request.")

    def _keep_ahead(self, data: bytes) -> None:
        """Nobody knows yet whose these bytes will be; more are not read until that is decided."""
        running = self._running
        if self._linger_timer is not None or running is None or running.response_complete:
            return
        self._ahead += data
        self.flow.pause_reading()
        if len(self._ahead) > AHEAD_BYTES_MAX:
            self.on_malformed()
            self.drop()

    def _fault_of_head(self, names: list[bytes]) -> str:
        """What the parser lets pass and others may read in another way than we; "" when there is nothing."""
        version = self.parser.get_http_version()
        if version not in VERSIONS:
            return f"HTTP/{version} is not spoken here."
        if b"#" in self.url:
            return "A request's target has no fragment."
        hosts = names.count(b"host")
        if hosts > 1 or (not hosts and version == "1.1"):
            return "A request names its host once."  # RFC 9112 section 3.2
        if b"transfer-encoding" in names:
            codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
            if codings != [b"chunked"] or version == "1.0":  # RFC 9112 section 6.1
                return "Transfer-Encoding: only chunked is understood, and only in HTTP/1.1."
        return ""

    def _refuse_head(self) -> None:
        self._refuse(Reason.HEAD_TOO_LARGE, "The request's head is too large.")

    def _refuse(self, reason: Reason, message: str) -> None:
        """Answer what never became a request, and read no more: where another one would begin is unknown."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self.on_malformed()
        running = self._running
        if self._is_in_body and running is self.cycle and running.response_complete:
            self._close()  # the rest of a request that has its answer: there is nothing more to say
            return
        if running is not None and not running.response_complete:
            if running is not self.cycle or running.response_started or not running.more_body:
                self.transport.abort()  # another answer is being written: ours would stand in it
                return
            running.disconnected = True  # its body went wrong: nobody may wait for the rest, or answer it
            running.waiting_for_100_continue = False
            running.message_event.set()
        else:
            self.request_id = None
        refused = Refused(reason, message)
        answer = type(self).refusal(self.url, refused, self.request_id)
        self.told = refused, answer.status
        fields = [*answer.headers, (b"content-length", b"%d" % len(answer.body)), (b"connection", b"close")]
        lines = b"".join([b"%b: %b\r\n" % pair for pair in fields])
        self.transport.write(STATUS_LINE[answer.status] + lines + b"\r\n" + answer.body)
        self._linger()

    def _parse_body_of_upgrade(self) -> None:
        """From here on read the running request's body, framed as its own head says, and nothing more.

        The parser takes what follows an upgrade for another protocol. Clients that offer h2c with every request
        (Java's) send an ordinary body there; another parser, told of its framing alone, reads it.
        """
        framing = [pair for pair in self.headers if pair[0] in FRAMING]
        self.headers = deque(maxlen=0)  # type: ignore[assignment]  # trailers: dropped
        self.parser = httptools.HttpRequestParser(_BodyOnly(self))
        self.parser.feed_data(
            b"POST / HTTP/1.1\r\n" + b"".join([b"%b: %b\r\n" % pair for pair in framing]) + b"\r\n"
        )

    def _announces_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 "))
            for name, value in self.headers
        )

    def _expect_head(self) -> None:
        """From now on there must be a whole head within the time that a connection may be idle."""
        self._head_timer = self.loop.call_later(self.timeout_keep_alive, self._on_no_head)

    def _on_no_head(self) -> None:
        self._head_timer = None
        if self._running is None or self._running.response_complete:
            self._close()

    def _linger(self) -> None:
        """End our side, and hear no more. Closed over bytes that nobody read, the connection would be reset, and
        the reset could overtake the answer."""
        self._is_deaf = True
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_S, self._close)

    def _close(self) -> None:
        """Close when everything is written, or the client takes no more of it."""
        self.transport.close()
        self._expect_flush()

    def _expect_flush(self) -> None:
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
) -> type[Connection]:
    """The protocol class for uvicorn, with these bounds, and these words for what is no request. `on_malformed` is called
    when a connection is ended because of what came on it."""
    bounds = {
        "refusal": staticmethod(refusal),
        "on_malformed": staticmethod(on_malformed),
        "connections_max": connections_max,
        "head_bytes_max": head_bytes_max,
        "headers_max": headers_max,
        "client_stall_s": client_stall_s,
    }
    return type("BoundedConnection", (Connection,), bounds)


def _has_control(value: bytes) -> bool:
    """Taking bytes out runs in C over all of them, which a regular expression does one by one."""
    return len(value.translate(None, CONTROL_BYTES)) != len(value)
