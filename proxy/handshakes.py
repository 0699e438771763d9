"""How a websocket begins, on both sides: what a client's request for one must say, and asking a vendor for one
(RFC 6455 section 4). The `websockets` library knows the protocol; connections, bounds and refusals are ours.
"""

import asyncio
import logging
import ssl
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.connection import Connection
from websockets.client import ClientProtocol
from websockets.datastructures import Headers as FieldLines
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidUpgrade, WebSocketException
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import WebSocketURI

from metering.errors import Reason, Refused
from proxy.surface import Headers
from proxy.upstream import CancelledUnsent, Origin, TimedOut, Unreachable

ASKED_BYTES_MAX = 64 * 1024
"""A client's message, whole; a longer one ends its connection (1009)."""
TOLD_BYTES_MAX = 4 * 1024 * 1024
"""A vendor's message, whole: a mail without its attachments."""
QUEUED_FRAMES_MAX, QUEUED_FRAMES_MIN = 2, 0
"""Frames of a side that wait to be passed on: with more its connection is not read, until there are no more than the second."""
UNSENT_BYTES_MAX = 2 * TOLD_BYTES_MAX
"""What a side has not taken yet, pongs with it, which nobody waits for before the next is written; with more it is cut."""
PING_EVERY_S = 20.0
"""To keep idle connections open on the way, and to notice who has gone without a word."""
HANDSHAKE_S = 30.0
"""For a vendor's answer to a handshake."""
CLOSE_S = 2.0
"""For the other side to answer a close."""
VERSION = "13"

_SILENT = logging.getLogger(f"{__name__}.library")
"""The library writes whole frames and heads into its log, with what they hold."""
_SILENT.setLevel(logging.CRITICAL + 1)
_SILENT.propagate = False
_OF_HANDSHAKES = (b"sec-websocket-", b"origin")
"""Headers of the client's own handshake: the vendor gets ours."""


@dataclass(slots=True)
class Tally:
    """What passed on a websocket, for its canonical line."""

    up: int = 0
    down: int = 0
    dropped: int = 0
    """Messages of the vendor's that are not this user's to see, or are none that we know."""
    close_code: int | None = None
    """As the client was told, or told us; None when it left without one."""


class Side(Connection):
    """An open websocket's side, whoever is there. Messages wait for its other side to take them; what the protocol answers by
    itself does not."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self.transport.abort()


class VendorSide(ClientConnection, Side):
    """The vendor's: it begins with our handshake."""


class AnsweredError(Exception):
    """A vendor answered a handshake with another status than 101, or with a body."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers
        self.is_complete = True
        self._body = body

    async def read(self) -> bytes:
        """The body, once; then nothing: as an upstream Answer."""
        body, self._body = self._body, b""
        return body

    def close(self) -> None:
        """Its connection is closed."""


class Handshake:
    """A client's request for a websocket, found good."""

    def __init__(self, response: Response) -> None:
        self._response = response

    @classmethod
    def of(cls, headers: Headers, http_version: str) -> "Handshake":
        """Raises Refused: WEBSOCKET_REQUIRED, BAD_REQUEST."""
        try:
            fields = FieldLines(
                [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
            )
        except InvalidHandshake as error:
            raise Refused(Reason.BAD_REQUEST, f"This is no handshake of a websocket: {error}.") from None
        if fields.get_all("Upgrade") and fields.get_all("Sec-WebSocket-Version") != [VERSION]:
            raise _not_one(f"Sec-WebSocket-Version: {VERSION} is understood.")
        request = Request("/", fields, protocol=f"HTTP/{http_version}")
        protocol = ServerProtocol(logger=_SILENT)
        response = protocol.accept(request)
        fault = protocol.handshake_exc
        if isinstance(fault, InvalidUpgrade):
            raise _not_one("There is nothing but a websocket here.")
        if fault is not None:
            raise Refused(Reason.BAD_REQUEST, f"This is no handshake of a websocket: {fault}.")
        return cls(response)

    def accept(self, more: Headers, *, ping_timeout_s: float) -> tuple[bytes, Side]:
        """The head of our 101, and what takes over the client's connection when that is written."""
        for name, value in more:
            self._response.headers[name.decode("latin-1")] = value.decode("latin-1")
        protocol = ServerProtocol(state=OPEN, max_size=ASKED_BYTES_MAX, logger=_SILENT)
        return self._response.serialize(), Side(protocol, **_bounds(ping_timeout_s))


def handshake_headers(headers: Headers) -> Headers:
    """Those of a client's request that go up with ours."""
    return [pair for pair in headers if not pair[0].startswith(_OF_HANDSHAKES)]


async def dial(  # noqa: PLR0917 - as UpstreamClient.open
    origin: Origin,
    target: str,
    headers: Headers,
    tls: ssl.SSLContext | None,
    connect_s: float,
    ping_timeout_s: float,
) -> VendorSide:
    """Open a vendor's websocket. No redirects, no proxies, no second try.

    Raises UpstreamError, AnsweredError; cancelled before anything was written, CancelledUnsent."""
    uri = WebSocketURI(origin.scheme == "https", origin.host, origin.port, target, "")
    protocol = ClientProtocol(uri, max_size=TOLD_BYTES_MAX, logger=_SILENT)
    connection = VendorSide(protocol, **_bounds(ping_timeout_s))
    await _connect(origin, connection, tls, connect_s)
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            await connection.handshake(fields, user_agent_header=None)
    except BaseException as error:
        connection.transport.abort()
        if isinstance(error, TimeoutError):
            raise TimedOut("first_byte", f"{origin}: no answer in time", is_sent=True) from error
        if isinstance(error, InvalidStatus):
            raise _answered(error.response) from None
        if isinstance(error, InvalidHandshake | WebSocketException | OSError | EOFError):
            raise Unreachable(f"{origin}: no handshake: {error}", is_sent=True) from error
        raise
    connection.start_keepalive()
    return connection


async def _connect(
    origin: Origin, connection: VendorSide, tls: ssl.SSLContext | None, within_s: float
) -> None:
    loop = asyncio.get_running_loop()
    name = origin.host if tls is not None else None
    try:
        async with asyncio.timeout(within_s):
            await loop.create_connection(
                lambda: connection, origin.host, origin.port, ssl=tls, server_hostname=name
            )
    except TimeoutError as error:
        words = f"{origin} did not accept a connection within {within_s:g} s"
        raise TimedOut("connect", words, is_sent=False) from error
    except (OSError, UnicodeError) as error:  # TLS and DNS errors are OSErrors, IDNA's is not
        raise Unreachable(f"cannot connect to {origin}: {error}", is_sent=False) from error
    except asyncio.CancelledError as cancelled:
        raise CancelledUnsent from cancelled


def _answered(response: Response) -> AnsweredError:
    headers: Headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers.raw_items()
    ]
    return AnsweredError(response.status_code, headers, bytes(response.body))


def _bounds(ping_timeout_s: float) -> dict[str, Any]:
    return {
        "ping_interval": PING_EVERY_S,
        "ping_timeout": ping_timeout_s,
        "close_timeout": CLOSE_S,
        "max_queue": (QUEUED_FRAMES_MAX, QUEUED_FRAMES_MIN),
    }


def _not_one(message: str) -> Refused:
    return Refused(Reason.WEBSOCKET_REQUIRED, message)
