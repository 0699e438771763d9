"""The server's side of a WebSocket, against a client library and against clients that break the protocol."""

import asyncio
import base64
import hashlib
import os
import struct

import pytest
import websockets
from websockets.asyncio.client import connect

from metering.tasks import spawn
from simulators.script import WAIT_TIMEOUT_S, Ready, head
from simulators.server import SimulatorServer, State
from simulators.websocket import CloseCode, Opcode, Peer, accept, frame, unmasked, wants_websocket

KEY = base64.b64encode(b"0123456789abcdef").decode()
MASK = b"\x01\x02\x03\x04"


class Echo(Peer):
    """Says what it hears."""

    def __init__(self, line, server):
        super().__init__(line)
        self.server = server
        self.heard = []
        server.peers.append(self)

    def said(self, text):
        self.heard.append(text)
        self.send_text(text, piece_bytes=self.server.piece_bytes)
        self.server._happened()

    def gone(self):
        self.server.gone_total += 1


class BinaryEcho(Echo):
    """Says what it hears, also where that is no text, up to 32 MB."""

    takes_binary = True
    message_bytes_max = 32 * 1024 * 1024

    def said_bytes(self, data):
        self.heard.append(data)
        self.send_bytes(data, piece_bytes=self.server.piece_bytes)


class EchoServer(SimulatorServer):
    piece_bytes = None
    gone_total = 0
    peer_type = Echo

    def __init__(self):
        super().__init__()
        self.peers = []

    def answer(self, request):
        if not wants_websocket(request):
            return Ready(head(404, (("Content-Length", "0"),)))
        return accept(request, lambda line: self.peer_type(line, self), None)


@pytest.fixture
async def server():
    async with EchoServer() as running:
        yield running


async def soon(awaited):
    """What is awaited, or a failure: a frame that does not come must not hang the test."""
    return await asyncio.wait_for(awaited, WAIT_TIMEOUT_S)


def masked(first, payload, *, mask=MASK):
    """A client's frame."""
    size = len(payload)
    assert size < 126
    covered = bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))
    return struct.pack("!BB", first, 0x80 | size) + mask + covered


async def dialled(server, *, more=b"", version=b"13", key=KEY):
    """Streams after a handshake; `more` is sent together with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lines = [b"GET /v0 HTTP/1.1", b"Host: x", b"Upgrade: websocket", b"Connection: Upgrade"]
    lines += [b"Sec-WebSocket-Version: " + version, b"Sec-WebSocket-Key: " + key.encode(), b"", b""]
    writer.write(b"\r\n".join(lines) + more)
    return await soon(reader.readuntil(b"\r\n\r\n")), reader, writer


async def test_the_handshake_is_answered_with_the_digest_of_its_key(server):
    answer, _, writer = await dialled(server)
    digest = hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"Sec-WebSocket-Accept: " + base64.b64encode(digest) in answer
    writer.close()


@pytest.mark.parametrize(("version", "key", "status"), [(b"12", KEY, b"426"), (b"13", "", b"400")])
async def test_a_handshake_that_is_none_is_refused(server, version, key, status):
    answer, reader, writer = await dialled(server, version=version, key=key)
    assert answer.split()[1] == status
    assert await soon(reader.read()) == b""
    assert server.peers == []
    writer.close()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 1_000_000])
@pytest.mark.parametrize("piece_bytes", [None, 50_000])
async def test_messages_of_every_length_come_and_go(server, size, piece_bytes):
    server.piece_bytes = piece_bytes
    async with connect(server.url.replace("http", "ws"), proxy=None, max_size=None) as socket:
        await socket.send("é" * (size // 2) + "x" * (size % 2))
        assert len((await soon(socket.recv())).encode()) == size


@pytest.mark.parametrize("piece_bytes", [None, 1_000_003])
async def test_a_peer_may_take_bytes_and_large_messages(server, piece_bytes):
    server.peer_type, server.piece_bytes = BinaryEcho, piece_bytes
    data = os.urandom(20_000_001)
    async with connect(server.url.replace("http", "ws"), proxy=None, max_size=None) as socket:
        await socket.send([data[:9], data[9:]])
        assert await soon(socket.recv()) == data
        await socket.send("text too")
        assert await soon(socket.recv()) == "text too"
    _, reader, writer = await dialled(server, more=masked(0x82, b"\xff") + masked(0x82, b""))
    assert await soon(reader.readexactly(5)) == b"\x82\x01\xff\x82\x00"
    writer.close()


@pytest.mark.parametrize("size", range(10))
def test_a_mask_is_its_own_opposite(size):
    payload = bytes(range(size))
    covered = bytes(byte ^ MASK[number % 4] for number, byte in enumerate(payload))
    assert (unmasked(MASK, payload), unmasked(MASK, covered)) == (covered, payload)


async def test_what_is_sent_waits_for_a_client_that_does_not_read(server):
    _, reader, writer = await dialled(server)
    (peer,) = server.peers
    reader._transport.pause_reading()
    peer._line.send(bytes(50_000_000))
    waiting = [spawn(peer._line.sent(), name="waits") for _ in range(2)]
    waiting[0].cancel()
    await asyncio.sleep(0)
    assert not waiting[1].done()
    reader._transport.resume_reading()
    await soon(reader.readexactly(50_000_000))
    await soon(waiting[1])
    reader._transport.pause_reading()
    peer._line.send(bytes(50_000_000))
    writer.transport.abort()
    await soon(peer._line.sent())


async def test_nothing_is_read_between_pause_and_resume(server):
    url = server.url.replace("http", "ws")
    async with connect(url, proxy=None) as socket, connect(url, proxy=None) as other:
        peer = server.peers[0]
        peer._line.pause()
        await socket.send("held")
        pong = await socket.ping()
        await other.send("read")
        await soon(other.recv())
        assert (peer.heard, pong.done()) == ([], False)
        peer._line.resume()
        await soon(pong)
        assert peer.heard == ["held"]


async def test_fragments_are_put_together_with_a_ping_between_them(server):
    async with connect(server.url.replace("http", "ws"), proxy=None) as socket:
        await socket.send(["one ", "two ", "three"])
        assert await soon(socket.recv()) == "one two three"
        await soon(await socket.ping(b"here"))
    _, reader, writer = await dialled(server)
    writer.write(masked(0x01, b"a") + masked(0x89, b"now") + masked(0x80, b"b"))
    assert await soon(reader.readexactly(5)) == frame(Opcode.PONG, b"now")
    assert await soon(reader.readexactly(4)) == frame(Opcode.TEXT, b"ab")
    writer.close()


async def test_frames_are_read_byte_by_byte_and_together_with_the_handshake(server):
    _, reader, writer = await dialled(server, more=masked(0x81, b"early"))
    assert await soon(reader.readexactly(7)) == frame(Opcode.TEXT, b"early")
    for byte in masked(0x81, b"slow"):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    assert await soon(reader.readexactly(6)) == frame(Opcode.TEXT, b"slow")
    writer.close()


async def test_a_ping_of_the_server_is_answered(server):
    async with connect(server.url.replace("http", "ws"), proxy=None) as socket:
        await socket.send("x")
        await soon(socket.recv())
        (peer,) = server.peers
        peer.ping(b"there")
        await socket.send("y")
        await soon(socket.recv())
        assert peer.pongs_total == 1


async def test_either_side_may_close(server):
    url = server.url.replace("http", "ws")
    async with connect(url, proxy=None) as socket:
        await socket.close(code=4000)
    assert (server.peers[0].close_code, server.peers[0].is_open) == (4000, False)
    async with connect(url, proxy=None) as socket:
        server.peers[1].close(CloseCode.GOING_AWAY, "bye")
        server.peers[1].send_text("too late")
        with pytest.raises(websockets.ConnectionClosedOK) as closed:
            await soon(socket.recv())
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "bye")
    await server.until(lambda: server.connections_open == 0)
    assert [exchange.state for exchange in server.exchanges] == [State.SENT] * 2
    assert (server.gone_total, server.client_gone_total) == (2, 0)


async def test_the_server_may_break_off(server):
    async with connect(server.url.replace("http", "ws"), proxy=None) as socket:
        server.peers[0].break_off()
        with pytest.raises(websockets.ConnectionClosedError):
            await soon(socket.recv())
    assert server.exchanges[0].state is State.BROKEN_OFF


async def test_a_client_may_vanish(server):
    _, _, writer = await dialled(server)
    writer.transport.abort()
    await server.until(lambda: server.connections_open == 0)
    assert server.exchanges[0].state is State.CLIENT_GONE
    assert not server.peers[0].is_open
    server.peers[0].send_text("to nobody")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x01x", 1002),  # not masked
        (masked(0xC1, b"x"), 1002),  # a reserved bit
        (masked(0x83, b"x"), 1002),  # an opcode that is none
        (masked(0x8B, b"x"), 1002),
        (masked(0x80, b"x"), 1002),  # nothing to continue
        (masked(0x01, b"x") + masked(0x81, b"y"), 1002),  # a message within a message
        (masked(0x09, b"x"), 1002),  # a control frame in pieces
        (struct.pack("!BBH", 0x89, 0xFE, 126) + MASK + os.urandom(126), 1002),  # a control frame too long
        (masked(0x01, b"x") + masked(0x82, b"y"), 1003),
        (masked(0x82, b"x"), 1003),
        (masked(0x81, b"\xff"), 1007),
        (struct.pack("!BBQ", 0x81, 0xFF, 1 << 40) + MASK, 1009),
    ],
)
async def test_a_breach_of_the_protocol_ends_the_connection(server, sent, code):
    _, reader, writer = await dialled(server, more=sent)
    assert await soon(reader.read()) == frame(Opcode.CLOSE, struct.pack("!H", code))
    assert server.peers[0].heard == []
    writer.close()


async def test_fragments_may_not_add_up_to_too_much(server):
    piece = struct.pack("!BBQ", 0x00, 0xFF, 600_000) + MASK + bytes(600_000)
    _, reader, writer = await dialled(server, more=masked(0x01, b"") + piece + piece)
    assert await soon(reader.read()) == frame(Opcode.CLOSE, struct.pack("!H", 1009))
    writer.close()


async def test_another_upgrade_is_no_websocket(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nbytes of h2c")
    assert (await soon(reader.read())).startswith(b"HTTP/1.1 404 ")
    writer.close()
