"""The server's side of a WebSocket (RFC 6455), as little of it as simulators need: messages, fragments, ping, close."""

import base64
import enum
import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable

from simulators.script import Line, Ready, Reports, Upgrade, Upgraded, head
from simulators.server import ReceivedRequest

MESSAGE_BYTES_MAX = 1024 * 1024
"""A longer message of the client is answered with the close code 1009, unless a peer takes more."""
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = b"13"
_LENGTH_16, _LENGTH_64 = 126, 127
_CONTROL_BYTES_MAX = 125


class Opcode(enum.IntEnum):
    """RFC 6455 section 5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(enum.IntEnum):
    """RFC 6455 section 7.4.1, and of them only those that are sent here."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NOT_TEXT = 1003
    NOT_UTF8 = 1007
    TOO_BIG = 1009


def wants_websocket(request: ReceivedRequest) -> bool:
    """Whether a request asks for an upgrade to this protocol."""
    return request.method == "GET" and request.header(b"upgrade").lower() == b"websocket"


def websocket_url(url: str) -> str:
    """The address of a server's websockets, by that of its pages."""
    return url.replace("http", "ws", 1)


def accept(
    request: ReceivedRequest, connect: Callable[[Line], Upgraded], reports: Reports | None
) -> Upgrade | Ready:
    """The answer to a handshake (section 4.2.2): 101, or 426 for another version and 400 without a key."""
    key = request.header(b"sec-websocket-key")
    if request.header(b"sec-websocket-version") != _VERSION:
        return _refused(426, ("Sec-WebSocket-Version", "13"))
    if not key:
        return _refused(400)
    digest = hashlib.sha1(key + _GUID.encode(), usedforsecurity=False).digest()
    headers = (
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", base64.b64encode(digest).decode()),
    )
    return Upgrade(head(101, headers), connect, reports)


def _refused(status: int, *more: tuple[str, str]) -> Ready:
    return Ready(head(status, (*more, ("Content-Length", "0"))))


def frame(opcode: Opcode, payload: bytes, *, is_final: bool = True) -> bytes:
    """One frame of a server: unmasked (section 5.1)."""
    first = (0x80 if is_final else 0) | opcode
    size = len(payload)
    if size < _LENGTH_16:
        return struct.pack("!BB", first, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", first, _LENGTH_16, size) + payload
    return struct.pack("!BBQ", first, _LENGTH_64, size) + payload


def unmasked(mask: bytes | bytearray, payload: bytes | bytearray) -> bytes:
    """A client's payload as it was meant (section 5.3), or the other way; at once, for it may be tens of megabytes."""
    size = len(payload)
    cover = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ cover).to_bytes(size, "big")


class _BreachError(Exception):
    """The client broke the protocol."""

    def __init__(self, code: CloseCode) -> None:
        super().__init__(code.name)
        self.code = code


class Peer(ABC):
    """One client's connection. `is_open` until either side has sent a close frame or the connection is gone."""

    message_bytes_max = MESSAGE_BYTES_MAX
    takes_binary = False
    """Whether a binary message is one; else it is answered with the close code 1003."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._buffer = bytearray()
        self._message = bytearray()
        self._kind: int | None = None
        """The opcode of the message whose fragments are coming in."""
        self.is_open = True
        self.pongs_total = 0
        self.close_code: int | None = None
        """What the client's close frame said; None before it, and where it said nothing."""

    @abstractmethod
    def said(self, text: str) -> None:
        """A whole text message of the client."""

    def said_bytes(self, data: bytes) -> None:
        """A whole binary message of the client; only where `takes_binary`."""
        raise NotImplementedError

    def gone(self) -> None:  # noqa: B027 - not every simulator wants to know
        """The connection is over."""

    # what the simulator does

    def send_text(self, text: str, *, piece_bytes: int | None = None) -> None:
        """A text message; in fragments of `piece_bytes`, if given."""
        self._send(Opcode.TEXT, text.encode(), piece_bytes)

    def send_bytes(self, data: bytes, *, piece_bytes: int | None = None) -> None:
        """A binary message; in fragments of `piece_bytes`, if given."""
        self._send(Opcode.BINARY, data, piece_bytes)

    def _send(self, kind: Opcode, payload: bytes, piece_bytes: int | None) -> None:
        if not self.is_open:
            return
        size = piece_bytes or max(len(payload), 1)
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
        for number, piece in enumerate(pieces):
            opcode = Opcode.CONTINUATION if number else kind
            self._line.send(frame(opcode, piece, is_final=number == len(pieces) - 1))

    def ping(self, payload: bytes = b"") -> None:
        self._line.send(frame(Opcode.PING, payload))

    def close(self, code: int = CloseCode.GOING_AWAY, reason: str = "") -> None:
        """Begin the closing handshake; the connection ends when the client has answered."""
        if self.is_open:
            self.is_open = False
            self._line.send(frame(Opcode.CLOSE, struct.pack("!H", code) + reason.encode()))

    def break_off(self) -> None:
        """End the connection without a word."""
        self.is_open = False
        self._line.abort()

    # what the connection does

    def received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while self._take_frame():
                pass
        except _BreachError as breach:
            self._buffer.clear()
            self.close(breach.code)
            self._line.end()

    def lost(self) -> None:
        self.is_open = False
        self.gone()

    def _take_frame(self) -> bool:
        """Handle the first whole frame of the buffer; False if there is none yet."""
        buffer = self._buffer
        if len(buffer) < 2:  # noqa: PLR2004 - the shortest head
            return False
        first, second = buffer[0], buffer[1]
        if first & 0x70 or not second & 0x80:  # no extension was agreed on; a client must mask
            raise _BreachError(CloseCode.PROTOCOL_ERROR)
        size, at = second & 0x7F, 2
        if size >= _LENGTH_16:
            extended = 2 if size == _LENGTH_16 else 8
            if len(buffer) < at + extended:
                return False
            size, at = int.from_bytes(buffer[at : at + extended], "big"), at + extended
        if size > self.message_bytes_max:
            raise _BreachError(CloseCode.TOO_BIG)
        if len(buffer) < at + 4 + size:
            return False
        payload = unmasked(buffer[at : at + 4], buffer[at + 4 : at + 4 + size])
        del buffer[: at + 4 + size]
        self._handle(first & 0x0F, payload, is_final=bool(first & 0x80))
        return True

    def _handle(self, opcode: int, payload: bytes, *, is_final: bool) -> None:
        if opcode >= Opcode.CLOSE:
            if not is_final or len(payload) > _CONTROL_BYTES_MAX:
                raise _BreachError(CloseCode.PROTOCOL_ERROR)
            self._handle_control(opcode, payload)
            return
        if opcode == Opcode.BINARY and not self.takes_binary:
            raise _BreachError(CloseCode.NOT_TEXT)
        if opcode > Opcode.BINARY or (opcode == Opcode.CONTINUATION) != (self._kind is not None):
            raise _BreachError(CloseCode.PROTOCOL_ERROR)
        self._kind = self._kind or opcode
        self._message += payload
        if len(self._message) > self.message_bytes_max:
            raise _BreachError(CloseCode.TOO_BIG)
        if is_final:
            kind, whole = self._kind, bytes(self._message)
            self._message.clear()
            self._kind = None
            self._take(kind, whole)

    def _take(self, kind: int, whole: bytes) -> None:
        if kind == Opcode.BINARY:
            if self.is_open:
                self.said_bytes(whole)
            return
        try:
            text = whole.decode()
        except UnicodeDecodeError as error:
            raise _BreachError(CloseCode.NOT_UTF8) from error
        if self.is_open:
            self.said(text)

    def _handle_control(self, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.PING:
            self._line.send(frame(Opcode.PONG, payload))
        elif opcode == Opcode.PONG:
            self.pongs_total += 1
        elif opcode == Opcode.CLOSE:
            if len(payload) > 1:
                self.close_code = int.from_bytes(payload[:2], "big")
            if self.is_open:
                self.is_open = False
                self._line.send(frame(Opcode.CLOSE, payload[:2]))
            self._line.end()
        else:
            raise _BreachError(CloseCode.PROTOCOL_ERROR)
