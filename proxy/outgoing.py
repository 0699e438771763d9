"""What is on its way down to clients: everything that one turn of the event loop has for them goes out at its end, together.

A write wakes whoever waits for it at the other end. Done one after the other, with the work for the next client in between, each
write finds its reader asleep again and pays for waking it, and fetches the kernel's part into the processor's caches once more:
of four hundred streams, a tenth of the CPU and half of the time to a first byte.
"""

import asyncio
import logging

logger = logging.getLogger(__name__)

HELD_BYTES_MAX = 64 * 1024
"""Of one client, until the turn's end: with more it is written at once, so that a client that is slow is known to be."""


class Turn:
    """The clients of one event loop who are to be written to at the end of its turn."""

    def __init__(self) -> None:
        self._waiting: list[Outgoing] = []

    def add(self, outgoing: "Outgoing") -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._end)
        self._waiting.append(outgoing)

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outgoing in waiting:
            try:
                outgoing.flush()
            except (
                Exception
            ):  # the others get theirs; of this one a piece is gone, and what followed would hide that
                logger.exception("an answer could not be written")
                outgoing.give_up()


class Outgoing:
    """Bytes for one client, in their order."""

    __slots__ = ("_bytes", "_is_in_turn", "_pieces", "_transport", "_turn")

    def __init__(self, transport: asyncio.Transport, turn: Turn) -> None:
        self._transport = transport
        self._turn = turn
        self._is_in_turn = False
        self._pieces: list[bytes] = []
        self._bytes = 0

    def hold(self, piece: bytes) -> None:
        """Bytes that go with those that follow them, whenever that is."""
        self._pieces.append(piece)
        self._bytes += len(piece)

    def put(self, piece: bytes) -> None:
        """Bytes that go out at this turn's end, if not now; with what was held."""
        self._pieces.append(piece)
        self._bytes += len(piece)
        if self._bytes > HELD_BYTES_MAX:
            self.flush()
        elif not self._is_in_turn:
            self._is_in_turn = True
            self._turn.add(self)

    def flush(self) -> None:
        """Write everything now: before whatever else is done with the transport. Of one that is closed, nothing more goes out."""
        self._is_in_turn = False
        pieces = self._pieces
        if pieces:
            self._pieces, self._bytes = [], 0
            if not self._transport.is_closing():
                self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def end_turn(self) -> None:
        """Write what waits for this turn's end, where the transport will not be there any more by then. What is held alone stays."""
        if self._is_in_turn:
            self.flush()

    def give_up(self) -> None:
        """Nothing more goes out, and the client sees that its answer broke off."""
        self.forget()
        self._transport.abort()

    def forget(self) -> None:
        """The client has left."""
        self._pieces, self._bytes = [], 0
