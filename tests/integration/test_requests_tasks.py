"""What a connection does with the tasks that answer its requests: whatever they do, its client is told, or cut off."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from simulators.script import WAIT_TIMEOUT_S
from tests.integration.test_hand_over import serving

REQUEST = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
LENGTH = (b"content-length", b"2")
PAUSED_WITHIN_S = 5.0
"""Reached only when a client is read on that should not be."""


@asynccontextmanager
async def asking(handle):
    """A connection whose requests `handle` serves, and that has sent one."""
    async with serving(None, handle_of=lambda _path: handle) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        yield reader, writer, server
        writer.close()


async def says_nothing(_connection, _request):
    pass


async def fails(_connection, _request):
    raise ValueError


async def is_cancelled(_connection, _request):
    raise asyncio.CancelledError


async def stops_half_way(connection, _request):
    connection.begin(200, [LENGTH], is_flushed_soon=False)
    connection.write(b"o", is_last=False)


async def fails_half_way(connection, request):
    await stops_half_way(connection, request)
    raise ValueError


@pytest.mark.parametrize("handle", [says_nothing, fails])
async def test_a_task_that_ends_without_an_answer_is_a_500_and_the_end_of_the_connection(handle):
    async with asking(handle) as (reader, _, server):
        head, body = (await reader.read(-1)).split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 500 ")
        assert b"connection: close" in head
        assert body == b"Internal Server Error"
        assert not server.server_state.tasks


@pytest.mark.parametrize("handle", [stops_half_way, fails_half_way])
async def test_a_task_that_ends_within_its_answer_breaks_it_off(handle):
    async with asking(handle) as (reader, _, server):
        head, body = (await reader.read(-1)).split(b"\r\n\r\n")
        assert b"content-length: 2" in head
        assert body == b"o"
        assert not server.server_state.tasks


async def test_a_task_that_is_cancelled_before_its_answer_says_nothing():
    async with asking(is_cancelled) as (reader, _, _):
        assert await reader.read(-1) == b""


async def test_a_failure_behind_an_answer_leaves_the_connection_to_the_next_request():
    async def handle(connection, request):
        while not request.is_whole:
            await connection.arrival(request)
        connection.begin(200, [LENGTH], is_flushed_soon=False)
        connection.write(b"ok", is_last=True)
        raise ValueError

    async with asking(handle) as (reader, writer, _):
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        writer.write(REQUEST)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")


async def test_a_body_is_taken_in_pieces_and_a_client_is_told_to_send_it():
    pieces = []

    async def handle(connection, request):
        while True:
            await connection.arrival(request)
            is_whole = request.is_whole
            pieces.append(connection.take_body(request))
            if is_whole:
                break
        connection.begin(204, [], is_flushed_soon=False)
        connection.write(b"", is_last=True)

    async with serving(None, handle_of=lambda _path: handle) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 200003\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc" + bytes(200_000))
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 204 ")
        assert b"".join(pieces) == b"abc" + bytes(200_000)
        assert len(pieces) > 1
        writer.close()


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb: c", b"a\0", b"\x7f", b"\x1f"])
async def test_a_header_with_a_control_byte_does_not_go_down(value):
    async def handle(connection, _request):
        headers = [(b"x-good", b"a\tb \xff"), (b"x-bad", value), LENGTH]
        connection.begin(200, headers, is_flushed_soon=False)
        connection.write(b"ok", is_last=True)

    async with asking(handle) as (reader, _, _):
        head = (await reader.readuntil(b"ok")).partition(b"\r\n\r\n")[0]
        names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:]]
        assert [name for name in names if name != b"date"] == [b"server", b"x-good", b"content-length"]
        assert b"x-good: a\tb \xff\r\n" in head


@pytest.mark.parametrize(
    ("request_head", "framing"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n2\r\nok\r\n0\r\n\r\n"),
        (b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n"),
        (b"GET / HTTP/1.0\r\n\r\n", b"\r\nok"),
    ],
)
async def test_an_answer_without_a_length_is_framed_as_its_request_can_read_it(request_head, framing):
    async def handle(connection, _request):
        connection.begin(200, [(b"a", b"b")], is_flushed_soon=False)
        connection.write(b"ok", is_last=False)
        connection.write(b"", is_last=True)

    async with serving(None, handle_of=lambda _path: handle) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_head)
        head = await reader.readuntil(b"\r\n\r\n")
        assert (b"transfer-encoding: chunked" in head) is (b"1.1" in request_head)
        writer.write_eof()
        assert b"\r\n" + await reader.read(-1) == framing
        writer.close()


async def test_of_a_body_that_nobody_takes_no_more_than_two_reads_are_kept():
    size, served, gate = 8_000_000, asyncio.Queue(), asyncio.Event()

    async def handle(connection, request):
        served.put_nowait(request)
        await gate.wait()
        taken = 0
        while taken < size:
            await connection.arrival(request)
            taken += len(connection.take_body(request))
        connection.begin(200, [LENGTH], is_flushed_soon=False)
        connection.write(b"ok", is_last=True)

    async with serving(None, handle_of=lambda _path: handle) as (_, port), asyncio.timeout(WAIT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        request = await served.get()
        seen = -1
        while request.unread_bytes != seen:
            seen = request.unread_bytes
            await asyncio.sleep(0.05)
        gate.set()
        assert 0 < seen < 1_000_000
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize(("sent", "is_read"), [(200_000, True), (199_999, False)])
async def test_a_body_that_came_whole_is_no_reason_to_read_no_more(sent, is_read):
    size, served, gate = 200_000, asyncio.Queue(), asyncio.Event()

    async def handle(connection, request):
        served.put_nowait((connection, request))
        await gate.wait()
        connection.begin(200, [LENGTH], is_flushed_soon=False)
        connection.write(b"ok", is_last=True)

    async with serving(None, handle_of=lambda _path: handle) as (_, port), asyncio.timeout(WAIT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        connection, request = await served.get()
        connection.data_received(bytes(sent))  # in one read, which no network promises
        assert (request.unread_bytes, request.is_whole) == (sent, is_read)
        assert connection.transport.is_reading() is is_read
        gate.set()
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        assert connection.transport.is_reading()
        writer.close()


@pytest.mark.parametrize("is_whole", [False, True])
async def test_behind_a_long_body_that_nobody_takes_nothing_is_read(is_whole):
    seen, taken, may_take = [], [], asyncio.Event()

    async def handle(connection, request):
        await may_take.wait()
        size = 0
        while not request.is_whole:
            await connection.arrival(request)
            size += len(connection.take_body(request))
        taken.append(size + len(connection.take_body(request)))
        connection.begin(200, [LENGTH], is_flushed_soon=False)
        connection.write(b"ok", is_last=True)

    def handle_of(path):
        seen.append(path)
        return handle

    long = b"POST /long HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + bytes(100_000)
    now, later = (long, b"") if is_whole else (long[:-1], long[-1:])
    async with serving(None, handle_of=handle_of) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(now)
        try:
            async with asyncio.timeout(PAUSED_WITHIN_S):
                while not any(one._flow.read_paused for one in server.server_state.connections):
                    await asyncio.sleep(0.001)
            writer.write(later + b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.sleep(0.05)
            assert seen == [b"/long"]
        finally:
            may_take.set()
        for _ in range(2):
            await reader.readuntil(b"ok")
        assert (seen, taken) == ([b"/long", b"/next"], [100_000, 0])
        writer.close()


@pytest.mark.parametrize("is_flushed_soon", [False, True])
async def test_who_ends_its_side_behind_its_request_gets_an_answer_of_the_same_turn(is_flushed_soon):
    async def handle(connection, _request):
        connection.begin(200, [LENGTH], is_flushed_soon=is_flushed_soon)
        connection.write(b"ok", is_last=True)

    async with asking(handle) as (reader, writer, _):
        writer.write_eof()
        assert (await reader.read(-1)).endswith(b"\r\n\r\nok")


async def test_who_goes_on_behind_its_last_request_has_a_large_answer_all_the_same():
    """Closed over what it still sends, its connection would be reset, and the rest of the answer lost."""
    may_answer, answer = asyncio.Event(), bytes(4_000_000)

    async def handle(connection, _request):
        await may_answer.wait()
        connection.begin(200, [(b"content-length", b"%d" % len(answer))], is_flushed_soon=False)
        connection.write(answer, is_last=True)

    async with serving(None, handle_of=lambda _path: handle) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /it HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            while not any(one._goes_on for one in server.server_state.connections):
                writer.write(b"more")
                await asyncio.sleep(0.001)
        may_answer.set()
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        received = 0
        while piece := await reader.read(100_000):
            received += len(piece)
            writer.write(b"more")
        assert received == len(answer)
        writer.close()
