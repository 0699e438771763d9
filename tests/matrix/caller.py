"""A client as bytes on a socket: it asks, reads, and leaves when and how the test says."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from math import inf

import httptools

from metering.tasks import spawn, stop
from simulators.server import NO_LINGER

SLOW_BUFFER_BYTES = 32 * 1024
SLOW_READ_BYTES = 4 * 1024
READ_BYTES = 256 * 1024


class Caller:
    """One request on a connection of its own. What came back is parsed as it comes."""

    def __init__(self, *, is_slow: bool = False, stops_reading_after_bytes: int | None = None) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.wire_bytes = 0
        self.is_whole = False
        self.is_closed = False
        """The other side closed or broke the connection."""
        self._read_bytes = SLOW_READ_BYTES if is_slow else READ_BYTES
        self._wire_bytes_max = inf if stops_reading_after_bytes is None else stops_reading_after_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if is_slow:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        self._reading: asyncio.Task[None] | None = None

    async def ask(
        self,
        port: int,
        target: bytes,
        headers: Sequence[bytes],
        body: bytes,
        *,
        method: bytes = b"POST",
        is_whole: bool = True,
    ) -> None:
        """Connect, send the request (or only half of its body), and read from now on."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", port))
        lines = [b"%b %b HTTP/1.1" % (method, target), b"host: proxy", *headers]
        if body:
            lines.append(b"content-length: %d" % len(body))
        sent = body if is_whole else body[: len(body) // 2]
        await loop.sock_sendall(self._socket, b"\r\n".join(lines) + b"\r\n\r\n" + sent)
        self._reading = spawn(self._read(), name="caller")

    async def leave(self, *, resets: bool) -> None:
        """Close the connection (FIN, or RST), read or not."""
        await stop(self._reading)
        if resets:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        else:
            with contextlib.suppress(OSError):  # it is gone already
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def half_close(self) -> None:
        """Say that nothing more will be asked, and read on."""
        self._socket.shutdown(socket.SHUT_WR)

    async def finished(self, within_s: float) -> None:
        """Until the answer is whole, the connection closed, or as much read as was to be read."""
        assert self._reading is not None
        async with asyncio.timeout(within_s):
            await self._reading

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.is_whole and self.wire_bytes < self._wire_bytes_max:
            try:
                data = await loop.sock_recv(self._socket, self._read_bytes)
            except ConnectionError:
                data = b""
            if not data:
                self.is_closed = True
                return
            self.wire_bytes += len(data)
            self._parser.feed_data(data)
            await asyncio.sleep(0)

    # --- the parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_whole = True
