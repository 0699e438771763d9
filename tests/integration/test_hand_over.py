"""A connection that is handed over to what speaks no HTTP: the seam itself, with bytes for a protocol."""

import asyncio
from contextlib import asynccontextmanager

import pytest
import uvicorn

from automna_proxy.server import listen
from proxy.downstream import CONNECTION, bounded
from proxy.surface import Rendered
from simulators.script import WAIT_TIMEOUT_S

UPGRADE = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
HEAD = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: bytes\r\n\r\n"
BOUNDS = {
    "connections_max": 10,
    "head_bytes_max": 64 * 1024,
    "headers_max": 200,
    "refusal": lambda *_: Rendered(400, [], b""),
    "on_malformed": lambda: None,
}


class Echo:
    """Says what it hears, as fast as it is listened to; at the other side's end, what it has not said yet, and its own."""

    def __init__(self):
        self.lost = asyncio.Event()
        self.unsaid = bytearray()
        self.is_paused = False
        self.has_ended = False
        self.pauses = 0

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.unsaid += data
        self._say()

    def pause_writing(self):
        self.is_paused = True
        self.pauses += 1
        self.transport.pause_reading()

    def resume_writing(self):
        self.is_paused = False
        self.transport.resume_reading()
        self._say()

    def eof_received(self):
        self.has_ended = True
        self._say()
        return True

    def connection_lost(self, _error):
        self.lost.set()

    def _say(self):
        while self.unsaid and not self.is_paused:
            piece, self.unsaid = bytes(self.unsaid[:65_536]), self.unsaid[65_536:]
            self.transport.write(piece)
        if self.has_ended and not self.unsaid:
            self.transport.close()


@asynccontextmanager
async def serving(app, **bounds):
    listener = listen("127.0.0.1", 0)
    http = bounded(**{**BOUNDS, "client_stall_s": 5.0, **bounds})
    config = uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.get_running_loop().create_task(server._serve(sockets=[listener]))
    try:
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            while not server.started:
                await asyncio.sleep(0.005)
            yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


def handing_over(echo, gate=None):
    async def app(scope, receive, send):
        if gate is not None:
            await gate.wait()
        scope["extensions"][CONNECTION].hand_over(HEAD, echo)
        await echo.lost.wait()

    return app


@pytest.mark.parametrize("size", [0, 1, 100_000, 20_000_000])
async def test_bytes_pass_both_ways_whole_and_in_order_with_backpressure(size):
    echo = Echo()
    data = bytes(range(251)) * (size // 251 + 1)
    async with serving(handing_over(echo)) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE + data[:5])
        assert await reader.readexactly(len(HEAD)) == HEAD
        writer.write(data[5:])
        await asyncio.sleep(0.05)  # let it pile up before anybody reads
        assert len(echo.unsaid) < 2 * 1024 * 1024
        writer.write_eof()
        assert await reader.read(-1) == data
        assert (echo.pauses > 0) is (size > 10_000_000)
        await echo.lost.wait()
        assert not server.server_state.connections
        writer.close()


async def test_what_is_said_before_the_decision_is_the_first_that_is_heard():
    echo, gate = Echo(), asyncio.Event()
    async with serving(handing_over(echo, gate)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in (UPGRADE[:10], UPGRADE[10:] + b"one ", b"two ", b"GET / HTTP/1.1\r\n\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.02)
        gate.set()
        writer.write_eof()
        assert await reader.read(-1) == HEAD + b"one two GET / HTTP/1.1\r\n\r\n"
        writer.close()


async def test_a_client_that_takes_nothing_has_left_here_too():
    echo = Echo()
    async with serving(handing_over(echo), client_stall_s=0.2) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE)
        await reader.readexactly(len(HEAD))
        writer.transport.pause_reading()
        writer.write(bytes(20_000_000))
        await echo.lost.wait()
        writer.close()


async def test_a_client_that_is_gone_hands_nothing_over():
    echo, called = Echo(), asyncio.Event()

    async def app(scope, receive, send):
        connection = scope["extensions"][CONNECTION]
        while not connection.is_gone:
            await asyncio.sleep(0.005)
        connection.hand_over(HEAD, echo)
        called.set()

    async with serving(app) as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE)
        await writer.drain()
        writer.close()
        await called.wait()
        assert not hasattr(echo, "transport")
