"""The client's side of a connection: uvicorn's HTTP protocol with bounds on heads, and word of who has left.

The engine reaches its connection through `scope["extensions"][CONNECTION]`, and writes its answers there: one
system call where uvicorn's `send` needs two, and no search of every header. The other applications of this
process (our own endpoints) answer through ASGI as ever.
"""

import asyncio
import re
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from proxy.surface import Headers

CONNECTION = "automna_proxy.connection"
PIPELINED_REQUESTS_MAX = 100
"""Requests that a client may send ahead of their answers; each costs a few kilobytes before anyone has looked
at it. (uvicorn stops reading meanwhile, but one read may hold thousands, and every answer lets in another.)"""


BODILESS = frozenset({204, 304})
"""Answers that end with their head (RFC 9110 section 6.4.1), whatever length they name."""
CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Connection(HttpToolsProtocol):
    """One client connection. Bounds come from the class that `bounded` makes of it."""

    head_bytes_max = 64 * 1024
    headers_max = 200
    client_stall_s = 120.0

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
        self._head_bytes = 0
        self._is_in_head = True
        self._has_ended_message = False
        self._is_refused = False
        self._running: RequestResponseCycle | None = None
        self._unsent_head = b""
        self._ends_by_closing = False
        self._on_gone: Callable[[], None] | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self.is_gone = False

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

    def begin(self, status: int, headers: Headers, *, is_flushed_soon: bool) -> None:
        """Begin the answer of the running request. Its head goes out with the first piece of the body, in one
        write; `is_flushed_soon`: or by itself in the loop's next turn, when there is no body by then."""
        cycle = self._running
        if cycle is None or cycle.disconnected:
            return
        assert not cycle.response_started, "an answer begins once"
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if CONTROL_BYTES.search(
            b"".join([value for _, value in headers])
        ):  # a vendor's: misread further down
            headers = [pair for pair in headers if not CONTROL_BYTES.search(pair[1])]
        pieces = [STATUS_LINE[status]]
        is_framed = status in BODILESS
        closes = not cycle.keep_alive
        for name, value in (*cycle.default_headers, *headers):
            if name == b"content-length":
                is_framed = True
            pieces += (name, b": ", value, b"\r\n")
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
            if not cycle.keep_alive:
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
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.is_gone = True
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # with pipelining, uvicorn marks the newest request only
            self._running.message_event.set()
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._has_ended_message = False
        super().data_received(data)
        # What a request ended with is its body; a head that begins in the same bytes is counted from the next.
        if self._is_in_head and not self._has_ended_message and not self._is_refused:
            self._head_bytes += len(data)
            if self._head_bytes > self.head_bytes_max:
                self._refuse_head()
        # Bytes end uvicorn's wait for the next request, also those of half a head or of a body nobody reads.
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

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
        if self._is_refused:
            return
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.head_bytes_max or len(self.headers) > self.headers_max:
            self._refuse_head()
            return
        if len(self.pipeline) >= PIPELINED_REQUESTS_MAX:
            self._is_refused = True
            self.on_malformed()
            self.drop()
            return
        is_upgrade = self.parser.should_upgrade()
        if is_upgrade and self._announces_body():
            # The parser takes what follows an upgrade for another protocol, and then our next request: whoever
            # stands before us takes it for this one's body.
            self._refuse(b"400 Bad Request", b"A request with a body cannot ask for an upgrade.")
            return
        super().on_headers_complete()
        if is_upgrade or self.expect_100_continue:
            # Where the next request begins depends on whether the other side goes on after our answer.
            self.cycle.keep_alive = False
        self.headers = deque(maxlen=0)  # type: ignore[assignment]  # what comes now are trailers: dropped

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_flush()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", msg.encode())

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: a server may pass over what it does not speak (RFC 9110 section 7.8)."""

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_refused:
            super().on_message_complete()
            self._is_in_head = True
            self._has_ended_message = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # --- inside --------------------------------------------------------------------------------------

    def _refuse_head(self) -> None:
        self._refuse(b"431 Request Header Fields Too Large", b"Request header fields too large.")

    def _refuse(self, status: bytes, body: bytes) -> None:
        """No surface is known yet: a plain answer."""
        self._is_refused = True
        self.on_malformed()
        if self._running is not None and not self._running.response_complete:
            self.transport.abort()  # sent ahead while another answer is being written: ours would stand in it
            return
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (status, len(body), body)
        )
        self._close()

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


def bounded(
    *, head_bytes_max: int, headers_max: int, client_stall_s: float, on_malformed: Callable[[], None]
) -> type[Connection]:
    """The protocol class for uvicorn, with these bounds. `on_malformed` is called when a connection is ended
    because of what came on it."""
    bounds = {
        "on_malformed": staticmethod(on_malformed),
        "head_bytes_max": head_bytes_max,
        "headers_max": headers_max,
        "client_stall_s": client_stall_s,
    }
    return type("BoundedConnection", (Connection,), bounds)
