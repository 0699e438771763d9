"""What one turn of the event loop has for clients goes out at its end, in order, and nothing of it is lost."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.outgoing import HELD_BYTES_MAX, Outgoing, Turn


class Recorder:
    """A transport that notes its writes in a list that several share."""

    def __init__(self, name: str, written: list[tuple[str, bytes]], *, is_broken: bool = False) -> None:
        self._name, self._written, self._is_broken = name, written, is_broken
        self.is_closed = False

    def write(self, data: bytes) -> None:
        if self._is_broken:
            raise RuntimeError("closed under our feet")
        self._written.append((self._name, data))

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_closed = True


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
    with theirs:
        theirs.setblocking(False)
        yield transport, theirs
        transport.abort()


async def turn_is_over() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_a_turn_has_for_a_client_is_one_write_at_its_end():
    written: list[tuple[str, bytes]] = []
    turn = Turn()
    first, second = (Outgoing(Recorder(name, written), turn) for name in ("first", "second"))
    first.hold(b"head ")
    first.put(b"a ")
    second.put(b"x")
    first.put(b"b")
    assert written == []
    await turn_is_over()
    assert written == [("first", b"head a b"), ("second", b"x")]


async def test_each_turn_has_its_own_end():
    written: list[tuple[str, bytes]] = []
    outgoing = Outgoing(Recorder("client", written), Turn())
    for piece in (b"1", b"2", b"3"):
        outgoing.put(piece)
        await turn_is_over()
    assert written == [("client", b"1"), ("client", b"2"), ("client", b"3")]


async def test_what_is_held_waits_for_what_follows_it():
    written: list[tuple[str, bytes]] = []
    outgoing = Outgoing(Recorder("client", written), Turn())
    outgoing.hold(b"head ")
    await turn_is_over()
    assert written == []
    outgoing.put(b"body")
    await turn_is_over()
    assert written == [("client", b"head body")]


async def test_what_is_flushed_does_not_go_out_again():
    written: list[tuple[str, bytes]] = []
    outgoing = Outgoing(Recorder("client", written), Turn())
    outgoing.put(b"now")
    outgoing.flush()
    assert written == [("client", b"now")]
    outgoing.put(b"later")
    outgoing.flush()
    await turn_is_over()
    assert written == [("client", b"now"), ("client", b"later")]


async def test_after_a_flush_the_next_piece_has_its_turn():
    written: list[tuple[str, bytes]] = []
    outgoing = Outgoing(Recorder("client", written), Turn())
    outgoing.put(b"now")
    outgoing.flush()
    outgoing.put(b"then")
    await turn_is_over()
    assert written == [("client", b"now"), ("client", b"then")]


async def test_more_than_the_bound_is_written_at_once_and_a_slow_client_is_known_to_be_one():
    async with connected() as (transport, theirs):
        outgoing = Outgoing(transport, Turn())
        piece, sent = bytes(HELD_BYTES_MAX // 8), 0
        while not transport.get_write_buffer_size():
            outgoing.put(piece)
            sent += len(piece)
            assert sent < 64 * 1024 * 1024, "the bound does not hold: all of it was kept for the turn's end"
        await turn_is_over()
        theirs.setblocking(True)
        received = 0
        while received < sent:
            received += len(await asyncio.to_thread(theirs.recv, 1 << 20))
        assert received == sent


async def test_of_a_closed_connection_nothing_goes_out_and_others_get_theirs():
    written: list[tuple[str, bytes]] = []
    turn = Turn()
    gone, there = Recorder("gone", written), Recorder("there", written)
    outgoing = [Outgoing(transport, turn) for transport in (gone, there)]
    for one in outgoing:
        one.put(b"x")
    gone.is_closed = True
    await turn_is_over()
    assert written == [("there", b"x")]


async def test_whatever_becomes_of_one_client_the_others_get_theirs(caplog: pytest.LogCaptureFixture):
    written: list[tuple[str, bytes]] = []
    turn = Turn()
    broken, fine = Recorder("broken", written, is_broken=True), Recorder("fine", written)
    for transport in (broken, fine):
        Outgoing(transport, turn).put(b"x")
    await turn_is_over()
    assert written == [("fine", b"x")]
    assert "could not be written" in caplog.text
    assert broken.is_closed, "what followed would stand behind a gap"
    assert not fine.is_closed


async def test_what_is_forgotten_is_never_written():
    written: list[tuple[str, bytes]] = []
    outgoing = Outgoing(Recorder("client", written), Turn())
    outgoing.put(b"x")
    outgoing.forget()
    await turn_is_over()
    assert written == []


async def test_a_turn_that_ends_early_for_a_client_takes_what_waits_and_leaves_what_is_held():
    written: list[tuple[str, bytes]] = []
    outgoing = Outgoing(Recorder("client", written), Turn())
    outgoing.hold(b"head ")
    outgoing.end_turn()
    assert written == []
    outgoing.put(b"body")
    outgoing.end_turn()
    assert written == [("client", b"head body")]
    await turn_is_over()
    assert written == [("client", b"head body")]
