"""How a spliced websocket begins at the vendor: the client's own handshake goes up, so that what both agree on (compression, a
subprotocol) is between them, and the bytes behind it need nobody to read them.
"""

import asyncio
import base64
import hashlib
import socket
import ssl
from typing import cast

import h11

from proxy.handshakes import HANDSHAKE_S, AnsweredError
from proxy.splice import Splice
from proxy.surface import Headers
from proxy.upstream import CancelledUnsent, Origin, TimedOut, Unreachable

HEAD_BYTES_MAX = 64 * 1024
ERROR_BYTES_MAX = 64 * 1024
"""Of an answer that is no websocket, whole."""
SWITCHING_PROTOCOLS = 101
ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 section 1.3."""
_GOES_UP = frozenset(
    {
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"user-agent",
    }
)
_COMES_DOWN = frozenset({b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-protocol"})
_OFFERED = frozenset({b"sec-websocket-extensions", b"sec-websocket-protocol"})
"""What the vendor may agree to only where the client has offered it (RFC 6455 section 4.1)."""
_IDLE_S, _BETWEEN_S, _PROBES = 60, 15, 4
"""When a connection that says nothing is asked whether anybody is there, how often, and how many times."""


class _Greeter(asyncio.Protocol):
    """Reads the vendor's answer to the handshake; then its connection is the splice's."""

    def __init__(self, splice: Splice, head: bytes, reader: h11.Connection, sent: Headers) -> None:
        self._splice = splice
        self._offered = _names_in(sent)
        self._head = head
        self._reader = reader
        self._accept = base64.b64encode(
            hashlib.sha1(dict(sent)[b"sec-websocket-key"] + ACCEPT_GUID, usedforsecurity=False).digest()
        )
        self._error: tuple[int, Headers, bytearray] | None = None
        self.transport: asyncio.Transport | None = None
        self.is_sent = False
        self.agreed: asyncio.Future[Headers] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        keep_asking(transport)
        self.is_sent = True
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.receive_data(data)
            while not self.agreed.done():
                event = self._reader.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                self._take(event)
        except h11.RemoteProtocolError as error:
            self._fail(ValueError(f"no HTTP: {error}"))

    def _take(self, event: object) -> None:
        if isinstance(event, h11.InformationalResponse) and event.status_code == SWITCHING_PROTOCOLS:
            self._switch([(bytes(name), bytes(value)) for name, value in event.headers])
        elif isinstance(event, h11.Response):
            headers = [(bytes(name), bytes(value)) for name, value in event.headers]
            self._error = (event.status_code, headers, bytearray())
        elif isinstance(event, h11.Data) and self._error is not None:
            self._error[2].extend(event.data)
            if len(self._error[2]) > ERROR_BYTES_MAX:
                self._fail(ValueError("its answer is too long"))
        elif isinstance(event, h11.EndOfMessage) and self._error is not None:
            status, headers, body = self._error
            self._fail(AnsweredError(status, headers, bytes(body)))

    def _switch(self, headers: Headers) -> None:
        if dict(headers).get(b"sec-websocket-accept") != self._accept or not _upgrades(headers):
            self._fail(ValueError("its answer is none to our key"))
            return
        if not _names_in(headers) <= self._offered:
            self._fail(ValueError("it agrees to what the client has not offered"))
            return
        assert self.transport is not None
        ahead, side = bytes(self._reader.trailing_data[0]), self._splice.vendor
        self.transport.set_protocol(side)
        side.connection_made(self.transport)
        if ahead:
            side.data_received(ahead)
        self.agreed.set_result([pair for pair in headers if pair[0] in _COMES_DOWN])

    def _fail(self, error: Exception) -> None:
        if not self.agreed.done():
            self.agreed.set_exception(error)

    def eof_received(self) -> bool | None:
        if self._error is not None:
            self.data_received(b"")  # an answer that ends with its connection
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("it closed the connection"))


async def dial_spliced(  # noqa: PLR0917 - as UpstreamClient.open
    origin: Origin,
    target: str,
    headers: Headers,
    tls: ssl.SSLContext | None,
    connect_s: float,
    splice: Splice,
) -> Headers:
    """Open the vendor's side of a splice with a client's handshake, found good before. What the vendor has agreed to, for the
    answer to that. No redirects, no second try.

    Raises UpstreamError, AnsweredError; cancelled before anything was written, CancelledUnsent."""
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
    passed = [pair for pair in headers if pair[0] in _GOES_UP]
    ours = [(b"host", origin.authority.encode()), (b"upgrade", b"websocket"), (b"connection", b"Upgrade")]
    request = h11.Request(method="GET", target=target, headers=[*ours, *passed])
    head = (reader.send(request) or b"") + (reader.send(h11.EndOfMessage()) or b"")
    greeter = _Greeter(splice, head, reader, passed)
    try:
        await _connect(origin, greeter, tls, connect_s)
        async with asyncio.timeout(HANDSHAKE_S):
            return await greeter.agreed
    except BaseException as error:
        if greeter.transport is not None:
            greeter.transport.abort()
        greeter.agreed.cancel()
        if isinstance(error, asyncio.CancelledError) and not greeter.is_sent:
            raise CancelledUnsent from error
        if isinstance(error, TimeoutError):
            raise TimedOut("first_byte", f"{origin}: no answer in time", is_sent=True) from error
        if isinstance(error, OSError | ValueError):
            raise Unreachable(f"{origin}: no handshake: {error}", is_sent=True) from error
        raise


async def _connect(origin: Origin, greeter: _Greeter, tls: ssl.SSLContext | None, within_s: float) -> None:
    loop, name = asyncio.get_running_loop(), origin.host if tls is not None else None
    try:
        async with asyncio.timeout(within_s):
            await loop.create_connection(
                lambda: greeter, origin.host, origin.port, ssl=tls, server_hostname=name
            )
    except TimeoutError as error:
        words = f"{origin} did not accept a connection within {within_s:g} s"
        raise TimedOut("connect", words, is_sent=False) from error
    except (OSError, UnicodeError) as error:  # TLS and DNS errors are OSErrors, IDNA's is not
        raise Unreachable(f"cannot connect to {origin}: {error}", is_sent=False) from error


def _names_in(headers: Headers) -> set[tuple[bytes, bytes]]:
    """The extensions and subprotocols of a handshake's side, without their parameters; each with its header."""
    return {
        (name, item.partition(b";")[0].strip())
        for name, value in headers
        if name in _OFFERED
        for item in value.split(b",")
        if item.strip()
    }


def _upgrades(headers: Headers) -> bool:
    said = {name: value.lower() for name, value in headers}
    tokens = {token.strip() for token in said.get(b"connection", b"").split(b",")}
    return said.get(b"upgrade") == b"websocket" and b"upgrade" in tokens


def agreed_head(agreed: Headers, more: Headers) -> bytes:
    """Of our 101, with what the vendor has agreed to."""
    lines = [b"HTTP/1.1 101 Switching Protocols", b"upgrade: websocket", b"connection: Upgrade"]
    lines += [name + b": " + value for name, value in (*agreed, *more)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def keep_asking(transport: asyncio.Transport) -> None:
    """Have the kernel find out when a connection's other end is gone without a word: nothing of ours is said on it."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _IDLE_S), ("TCP_KEEPINTVL", _BETWEEN_S), ("TCP_KEEPCNT", _PROBES)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
