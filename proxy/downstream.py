"""The client's side of a connection: uvicorn's HTTP protocol with bounds on heads, and word of who has left.

The engine reaches its connection through `scope["extensions"][CONNECTION]`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

CONNECTION = "automna_proxy.connection"


class Connection(HttpToolsProtocol):
    """One client connection. Bounds come from the class that `bounded` makes of it."""

    head_bytes_max = 64 * 1024
    headers_max = 200

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
        self._on_gone: Callable[[], None] | None = None
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
        if self._running is not None:
            self._running.disconnected = True  # uvicorn must neither write nor complain any more
        self.transport.close()

    def drop(self) -> None:
        """Give up on a client that takes nothing: what is not yet written is thrown away, and it has left."""
        self.transport.abort()

    @property
    def has_whole_request(self) -> bool:
        """The request's body has arrived to its end: `receive` will not wait."""
        return self._running is not None and not self._running.more_body

    # --- uvicorn's protocol --------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.is_gone = True
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

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]  # ours, beside ASGI's own

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        if self._is_refused:
            return
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.head_bytes_max or len(self.headers) > self.headers_max:
            self._refuse_head()
            return
        super().on_headers_complete()

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

    def _refuse_head(self) -> None:
        """No surface is known yet: a plain answer, as uvicorn gives its own 400."""
        self._is_refused = True
        if self._running is not None and not self._running.response_complete:
            self.transport.abort()  # sent ahead while another answer is being written: ours would stand in it
            return
        body = b"Request header fields too large."
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()


def bounded(*, head_bytes_max: int, headers_max: int) -> type[Connection]:
    """The protocol class for uvicorn, with these bounds."""
    return type(
        "BoundedConnection", (Connection,), {"head_bytes_max": head_bytes_max, "headers_max": headers_max}
    )
