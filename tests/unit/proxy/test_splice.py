"""Two connections and the bytes between them, on real sockets."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.tasks import spawn
from proxy import splice as splicing
from proxy.splice import UNSENT_BYTES_MAX, Frames, Splice, close_frame

WITHIN_S = 60.0


def frame(payload: bytes, *, first: int = 0x82, masked: bool = False) -> bytes:
    size, mask = len(payload), 0x80 if masked else 0
    if size < 126:
        head = bytes((first, mask | size))
    elif size < 1 << 16:
        head = bytes((first, mask | 126)) + struct.pack("!H", size)
    else:
        head = bytes((first, mask | 127)) + struct.pack("!Q", size)
    return head + (b"mask" if masked else b"") + payload


# --- frames ---------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 125, 126, 127, 300, 65_535, 65_536, 70_000]), st.booleans()),
        max_size=6,
    ),
    st.lists(st.floats(0, 1), max_size=40),
)
def test_frames_begin_where_they_do(shapes: list[tuple[int, bool]], cuts: list[float]) -> None:
    """Whatever the pieces are: at a boundary exactly where a frame ends."""
    frames = [frame(b"x" * size, masked=masked) for size, masked in shapes]
    wire, ends, at = b"".join(frames), {0}, 0
    for one in frames:
        at += len(one)
        ends.add(at)
    near = [end + beside for end in ends for beside in range(-3, 16)]  # within heads, and around them
    begins = sorted(
        {0, *(round(cut * len(wire)) for cut in cuts), *(at for at in near if 0 < at < len(wire))}
    )
    found = Frames()
    for begin, end in zip(begins, [*begins[1:], len(wire)], strict=True):
        assert found.feed(wire[begin:end]) == end - begin
        assert found.at_boundary == (end in ends)


def test_frames_stop_at_the_end_of_the_one_that_has_begun() -> None:
    first, second = frame(b"a" * 300), frame(b"b" * 10)
    found = Frames()
    assert found.feed(first[:1]) == 1
    assert found.feed(first[1:100], stops=True) == 99
    assert found.feed(first[100:] + second, stops=True) == len(first) - 100
    assert found.at_boundary
    assert found.feed(second, stops=True) == 0


# --- two connections ------------------------------------------------------------------------------------


@dataclass
class Ends:
    """What a client and a vendor have in their hands."""

    splice: Splice
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    vendor: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ended: asyncio.Event

    async def over(self) -> None:
        async with asyncio.timeout(WITHIN_S):
            await self.ended.wait()


@asynccontextmanager
async def spliced(stall_s: float = 60.0, *, ahead: bytes = b"", leaves: bool = False) -> AsyncIterator[Ends]:
    """A client and a vendor with a splice between them. `ahead`: what the vendor says before the client's connection is handed
    over; `leaves`: and that is all."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    splice = Splice(ended.set, stall_s=stall_s)
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    at_client = await loop.create_server(lambda: splice.client, "127.0.0.1", 0)
    at_vendor = await asyncio.start_server(
        lambda reader, writer: accepted.put_nowait((reader, writer)), "127.0.0.1", 0
    )
    try:
        await loop.create_connection(lambda: splice.vendor, *at_vendor.sockets[0].getsockname()[:2])
        vendor = await accepted.get()
        vendor[1].write(ahead)
        if leaves:
            vendor[1].close()
        async with asyncio.timeout(WITHIN_S):
            while splice.vendor.bytes_total < min(len(ahead), 1):
                await asyncio.sleep(0)
        client = await asyncio.open_connection(*at_client.sockets[0].getsockname()[:2])
        while splice.client.transport is None:
            await asyncio.sleep(0)
        yield Ends(splice, client, vendor, ended)
        for _, writer in (client, vendor):
            writer.close()
        await asyncio.wait_for(ended.wait(), WITHIN_S)
    finally:
        at_client.close()
        at_vendor.close()


async def read(reader: asyncio.StreamReader, size: int) -> bytes:
    async with asyncio.timeout(WITHIN_S):
        return await reader.readexactly(size)


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(WITHIN_S):
        return await reader.read(-1)


async def test_bytes_pass_as_they_come_both_ways() -> None:
    up, down = os.urandom(3_000_000), frame(os.urandom(10_000_000))
    async with spliced() as ends:
        ends.client[1].write(up)
        ends.vendor[1].write(down)
        assert await read(ends.client[0], len(down)) == down
        assert await read(ends.vendor[0], len(up)) == up
        assert (ends.splice.client.bytes_total, ends.splice.vendor.bytes_total) == (len(up), len(down))


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_vendor_that_speaks_before_the_client_is_there_is_heard_to_its_end(size: int) -> None:
    """It is not read meanwhile; and read again afterwards, as fast as its client takes it."""
    first, second = frame(b"a" * size), frame(b"b" * 10)
    async with spliced(ahead=first) as ends:
        assert await read(ends.client[0], len(first)) == first
        ends.vendor[1].write(second)
        assert await read(ends.client[0], len(second)) == second
        ends.client[1].write(b"heard")
        assert await read(ends.vendor[0], 5) == b"heard"


async def test_the_last_words_of_a_vendor_that_leaves_before_the_client_is_there_are_heard() -> None:
    last = frame(b"a" * 200) + close_frame(4001, "It has ended.")
    async with spliced(ahead=last, leaves=True) as ends:
        assert await rest(ends.client[0]) == last
        await ends.over()


@pytest.mark.parametrize("to", ["client", "vendor"])
async def test_a_side_that_reads_nothing_stops_the_other_one(to: str) -> None:
    """What is held for it is bounded; when it reads again, all of it comes."""
    async with spliced() as ends:
        source, sink = (ends.vendor, ends.client) if to == "client" else (ends.client, ends.vendor)
        transport = (ends.splice.client if to == "client" else ends.splice.vendor).transport
        assert transport is not None
        sink[0]._transport.pause_reading()  # type: ignore[attr-defined]
        payload = frame(b"x" * 64_000_000)
        source[1].write(payload)
        writing = spawn(source[1].drain(), name="writing")
        held = -1
        async with asyncio.timeout(WITHIN_S):
            while held != transport.get_write_buffer_size() or held < UNSENT_BYTES_MAX:
                held = transport.get_write_buffer_size()
                await asyncio.sleep(0.05)
        assert not writing.done()
        assert held <= UNSENT_BYTES_MAX * 2 + 64 * 1024
        sink[0]._transport.resume_reading()  # type: ignore[attr-defined]
        assert await read(sink[0], len(payload)) == payload
        await writing


@pytest.mark.parametrize("who", ["client", "vendor"])
@pytest.mark.parametrize("is_abrupt", [False, True])
async def test_when_one_side_ends_the_other_gets_what_it_said_and_its_end(who: str, is_abrupt: bool) -> None:
    async with spliced() as ends:
        leaver, other = (ends.client, ends.vendor) if who == "client" else (ends.vendor, ends.client)
        last = frame(b"bye" * 1_000)
        leaver[1].write(last)
        assert await read(other[0], len(last)) == last
        if is_abrupt:
            leaver[1].transport.abort()
        else:
            leaver[1].close()
        assert await rest(other[0]) == b""
        await ends.over()


async def test_an_end_of_ours_stands_between_two_frames() -> None:
    async with spliced() as ends:
        whole, half = frame(b"a" * 200), frame(b"b" * 100_000)
        ends.vendor[1].write(whole + half[:50_000])
        assert await read(ends.client[0], len(whole) + 50_000) == whole + half[:50_000]
        ends.splice.end(1008, "The budget is used up.")
        ends.splice.end(1001, "Not this one.")
        ends.client[1].write(b"unheard")
        ends.vendor[1].write(half[50_000:] + whole)
        assert await rest(ends.client[0]) == half[50_000:] + close_frame(1008, "The budget is used up.")
        assert await rest(ends.vendor[0]) == b""
        await ends.over()


async def test_an_end_of_ours_does_not_wait_for_a_frame_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splicing, "CUT_S", 0.05)
    async with spliced() as ends:
        half = frame(b"b" * 100_000)[:50_000]
        ends.vendor[1].write(half)
        assert await read(ends.client[0], len(half)) == half
        ends.splice.end(1008, "The budget is used up.")
        assert await rest(ends.client[0]) == b""
        await ends.over()


@pytest.mark.parametrize("to", ["client", "vendor"])
async def test_a_side_that_takes_nothing_for_too_long_ends_both(to: str) -> None:
    async with spliced(stall_s=0.05) as ends:
        source, sink = (ends.vendor, ends.client) if to == "client" else (ends.client, ends.vendor)
        sink[0]._transport.pause_reading()  # type: ignore[attr-defined]
        source[1].write(frame(b"x" * 64_000_000))
        await ends.over()


def test_a_close_frame_is_one() -> None:
    assert close_frame(1008, "no") == b"\x88\x04\x03\xf0no"
    long = close_frame(1008, "x" * 500)
    assert (len(long), long[1]) == (127, 125)
