"""Two connections, one to a client and one to a vendor, and the bytes of a websocket between them as they come: no
message is read, none is held, none is too long.

A side is read only as fast as the other one takes it. What the vendor says is followed from frame to frame, by their heads
alone (RFC 6455 section 5.2), so that a close of ours stands between two frames.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import cast

UNSENT_BYTES_MAX = 256 * 1024
"""Of one direction, beyond what the kernel holds: above that its source is not read. One read may come on top."""
CUT_S = 2.0
"""For a frame that has begun to come to its end before the connection is cut."""
CLOSE_WAIT_S = 2.0
"""For the other side to take what was written and to end its connection, after ours has ended."""
_CLOSE_HEAD, _CONTROL_BYTES_MAX = 0x88, 125
_LENGTH_16, _LENGTH_64, _MASKED = 126, 127, 0x80


class Frames:
    """Where frames begin in what one side says."""

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._head = b""
        """Of a head that has not come whole."""
        self._left = 0
        """Bytes to the end of the frame that has begun."""

    @property
    def at_boundary(self) -> bool:
        return not self._left and not self._head

    def feed(self, data: bytes, *, stops: bool = False) -> int:
        """Take the next bytes; how many. With `stops`, none beyond the end of the frame that has begun."""
        at, size = 0, len(data)
        while at < size:
            if stops and self.at_boundary:
                return at
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                continue
            missing = _head_bytes(self._head) - len(self._head)
            piece = data[at : at + missing]
            self._head += piece
            at += len(piece)
            if len(self._head) == _head_bytes(self._head):
                self._left = _payload_bytes(self._head)
                self._head = b""
        return at


def _head_bytes(head: bytes) -> int:
    """As long as a head is that begins so: two bytes tell."""
    if len(head) < 2:  # noqa: PLR2004 - the shortest head
        return 2
    length = head[1] & ~_MASKED
    more = {_LENGTH_16: 2, _LENGTH_64: 8}.get(length, 0)
    return 2 + more + (4 if head[1] & _MASKED else 0)


def _payload_bytes(head: bytes) -> int:
    length = head[1] & ~_MASKED
    if length == _LENGTH_16:
        return int.from_bytes(head[2:4], "big")
    return int.from_bytes(head[2:10], "big") if length == _LENGTH_64 else length


def close_frame(code: int, reason: str) -> bytes:
    """A server's: unmasked."""
    payload = struct.pack("!H", code) + reason.encode()[: _CONTROL_BYTES_MAX - 2]
    return bytes((_CLOSE_HEAD, len(payload))) + payload


class Side(asyncio.Protocol):
    """One of the two connections. Takes over the client's as its successor, and is the protocol of the vendor's."""

    def __init__(self, splice: "Splice", stall_s: float) -> None:
        self._splice = splice
        self._stall_s = stall_s
        self._stalled: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.is_gone = False
        self.bytes_total = 0
        """That came from it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        self._splice.made()

    def data_received(self, data: bytes) -> None:
        self.bytes_total += len(data)
        self._splice.came(self, data)

    def eof_received(self) -> bool | None:
        return None  # a websocket has no half-open end: the transport closes

    def pause_writing(self) -> None:
        self._splice.other(self).set_reading(False)
        self._stalled = asyncio.get_running_loop().call_later(self._stall_s, self._splice.abort)

    def resume_writing(self) -> None:
        self._progresses()
        self._splice.other(self).set_reading(True)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        self._progresses()
        self.is_gone = True
        self._splice.lost(self)

    def _progresses(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def set_reading(self, is_reading: bool) -> None:
        if self.transport is None or self.is_gone or self.transport.is_closing():
            return
        if is_reading:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.is_gone:
            self.transport.write(data)

    def close(self) -> None:
        """What was written goes out first."""
        if self.transport is not None and not self.is_gone:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None and not self.is_gone:
            self.transport.abort()


class Splice:
    """Both sides, until either ends or `end` is called. `on_end` is called once, when both connections are gone.

    `stall_s`: how long one may take nothing. Meanwhile the other one is not read, so that nobody would notice its end.
    """

    def __init__(self, on_end: Callable[[], None], *, stall_s: float) -> None:
        self.client = Side(self, stall_s)
        self.vendor = Side(self, stall_s)
        self._on_end: Callable[[], None] | None = on_end
        self._frames = Frames()
        self._ahead: list[bytes] = []
        """What the vendor said before the client's connection was handed over."""
        self._close: bytes | None = None
        """What the client is told at the next boundary; then nothing more passes."""
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None

    def end(self, code: int, reason: str) -> None:
        """Close both, with these words for the client: between two frames, or after CUT_S without any."""
        if self._is_over or self._close is not None:
            return
        self._close = close_frame(code, reason)
        if self._frames.at_boundary:
            self._finish()
        else:
            self._timer = asyncio.get_running_loop().call_later(CUT_S, self._cut)

    def abort(self) -> None:
        """Both connections, at once."""
        self._is_over = True
        self.client.abort()
        self.vendor.abort()

    # the sides'

    def other(self, side: Side) -> Side:
        return self.vendor if side is self.client else self.client

    def made(self) -> None:
        if self.client.transport is not None and self._ahead:
            ahead, self._ahead = b"".join(self._ahead), []
            self.vendor.set_reading(True)  # unless it is more than the client takes
            self.came(self.vendor, ahead)

    def came(self, side: Side, data: bytes) -> None:
        if self._is_over:
            return
        if side is self.client:
            if self._close is None:
                self.vendor.write(data)
            return
        if self.client.transport is None:
            self._ahead.append(data)
            side.set_reading(False)
            return
        if self._close is None:
            self._frames.feed(data)
            self.client.write(data)
            return
        passed = self._frames.feed(data, stops=True)
        self.client.write(data[:passed])
        if self._frames.at_boundary:
            self._finish()

    def _finish(self) -> None:
        self._is_over = True
        assert self._close is not None
        self.client.write(self._close)
        self.client.close()
        self.vendor.close()
        self._bound()

    def _cut(self) -> None:
        if not self._is_over:
            self.abort()

    def lost(self, side: Side) -> None:
        self._is_over = True
        other = self.other(side)
        if other.transport is None or other.is_gone:
            if self._timer is not None:
                self._timer.cancel()
            if self._on_end is not None:
                on_end, self._on_end = self._on_end, None
                on_end()
            return
        other.close()  # what it has not taken yet goes out
        self._bound()

    def _bound(self) -> None:
        """Nobody waits longer for a side that takes nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(CLOSE_WAIT_S, self.abort)
