"""The upstream client against vendors scripted byte by byte, on asyncio's loop and on uvloop."""

import asyncio
import contextlib
import gc
import inspect
import os
import socket
import ssl
import sys
import time
import weakref

import pytest
import trustme
import uvloop

from metering.tasks import spawn
from proxy import upstream
from proxy.upstream import (
    COALESCED_BODY_BYTES_MAX,
    WRITE_PIECE_BYTES,
    Broken,
    CancelledUnsent,
    Origin,
    TimedOut,
    Timeouts,
    Unreachable,
    UpstreamClient,
)
from tests.support.raw_vendor import Vendor, answering, answering_and_closing, turns

TIMEOUTS = Timeouts(connect_s=60, first_byte_s=60, idle_s=60, pool_idle_s=60)
SOON_S = 0.05
"""For timers that must fire."""
PATIENCE_S = 40
"""For what must happen; reached only when it does not. Shorter than any bound that must not be reached."""
ENOUGH_S = 2.0
"""For timers that must not fire while something goes on, though it takes longer: far above a busy machine's stalls."""
MIB = 1024 * 1024
NO_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(autouse=True)
def _no_close_is_waited_out(monkeypatch):
    """A client that is closed does not wait for a connection that never goes: it would take longer than PATIENCE_S."""
    monkeypatch.setattr(upstream, "CLOSE_S", 2 * PATIENCE_S)


def on_both_loops(test):
    """Run an async test on each loop; what a callback raised into the loop fails it."""

    def run(loop_factory, **arguments):
        async def guarded():
            problems = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
            async with asyncio.timeout(PATIENCE_S):
                await test(**arguments)
            assert problems == []

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(guarded())

    parameters = [inspect.Parameter("loop_factory", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += inspect.signature(test).parameters.values()
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.pytestmark = list(getattr(test, "pytestmark", []))
    run.__signature__ = inspect.Signature(parameters)
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("loop_factory", loops, ids=["asyncio", "uvloop"])(run)


async def silent(vendor, reader, writer):
    """A script: take a request and never answer."""
    await vendor.request(reader)
    vendor.go.set()
    await reader.read()


@contextlib.asynccontextmanager
async def a_client(**bounds):
    client = UpstreamClient(**{"ssl_context": NO_TRUST, **bounds})
    try:
        yield client
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await client.aclose()
        assert client.open_connections == 0
        assert client.idle_connections == 0


async def post(client, origin, body=b"{}", timeouts=TIMEOUTS, method=b"POST", headers=()):
    return await client.open(origin, method, b"/v1/x?y=z", list(headers), body, timeouts)


async def read_all(answer, pieces=None):
    """The whole body; into `pieces` for a reader that is to fail on the way."""
    pieces = [] if pieces is None else pieces
    while piece := await answer.read():
        pieces.append(piece)
    return b"".join(pieces)


async def exchange(client, origin, **how):
    answer = await post(client, origin, **how)
    try:
        return answer.status, await read_all(answer)
    finally:
        answer.close()


# --- requests and answers -----------------------------------------------------------------------------


@on_both_loops
async def test_a_request_arrives_as_given_and_its_answer_comes_back():
    reply = b"HTTP/1.1 201 Created\r\nX-B: 1\r\nx-a:  two words \r\nX-B: 3\r\nEmpty:\r\nContent-Length: 5\r\n\r\nhello"
    async with Vendor(answering(reply)) as vendor, a_client() as client:
        answer = await post(client, vendor.origin, b"body", headers=[(b"authorization", b"Bearer k")])
        assert answer.status == 201
        assert [name for name, _ in answer.headers] == [b"x-b", b"x-a", b"x-b", b"empty", b"content-length"]
        assert [value.strip() for _, value in answer.headers] == [b"1", b"two words", b"3", b"", b"5"]
        assert await answer.read() == b"hello"
        assert answer.is_complete
        assert await answer.read() == b""
        head, body = vendor.requests[0]
        assert body == b"body"
        assert head == (
            b"POST /v1/x?y=z HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nauthorization: Bearer k\r\n"
            b"content-length: 4\r\nconnection: keep-alive\r\n\r\n" % vendor.port
        )


@on_both_loops
async def test_an_answer_may_come_byte_by_byte_with_chunks_extensions_and_trailers():
    reply = (
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"3;ext=1\r\nabc\r\n4\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n"
    )

    async def script(vendor, reader, writer):
        await vendor.request(reader)
        for place in range(len(reply)):
            writer.write(reply[place : place + 1])
            await turns(2)
        await vendor.request(reader)
        writer.write(OK)
        await reader.read()

    async with Vendor(script) as vendor, a_client() as client:
        answer = await post(client, vendor.origin)
        assert answer.headers == [(b"transfer-encoding", b"Chunked")]
        assert await read_all(answer) == b"abcdefg"
        assert await exchange(client, vendor.origin) == (200, b"ok")
        assert vendor.connections == 1


@on_both_loops
@pytest.mark.parametrize("takes", ["all", "nothing", "every other"])
async def test_what_is_taken_and_what_is_read_are_the_answer_in_its_order(takes):
    events = [b"event %d" % number for number in range(40)]

    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(CHUNKED)
        for event in events:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await turns(3)
        writer.write(b"0\r\n\r\n")
        await reader.read()

    seen, shown = [], []

    def taker(data):
        shown.append(data)
        is_taken = takes == "all" or (takes == "every other" and len(shown) % 2 == 0)
        if is_taken:
            seen.append(data)
        return is_taken

    async with Vendor(script) as vendor, a_client() as client:
        answer = await post(client, vendor.origin)
        answer.taker = taker
        left = []
        while piece := await answer.read():
            left.append(piece)
            seen.append(piece)
            if len(left) == 5:
                await asyncio.sleep(0)  # nobody waits: what comes now is read, not shown
        assert answer.is_read
        assert b"".join(seen) == b"".join(events)
        assert len(shown) > 3
        if takes == "nothing":
            assert set(shown) <= set(left), "what was left is read by itself"
        answer.close()


@on_both_loops
async def test_the_end_of_an_answer_is_never_taken():
    async with Vendor(answering(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")) as vendor, a_client() as client:
        answer = await post(client, vendor.origin)
        answer.taker = lambda _: pytest.fail("it was shown")
        assert await read_all(answer) == b"hello"
        assert answer.is_read
        answer.close()


@on_both_loops
async def test_bytes_are_handed_on_as_they_come_and_the_end_is_known_with_the_last():
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await vendor.go.wait()
        writer.write(b"1\r\nb\r\n0\r\n\r\n")
        await reader.read()

    async with Vendor(script) as vendor, a_client() as client:
        answer = await post(client, vendor.origin)
        assert await answer.read() == b"a"
        assert not answer.is_complete
        vendor.go.set()
        assert await answer.read() == b"b"
        assert answer.is_complete
        assert client.idle_connections == 1


@on_both_loops
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n"])
async def test_without_a_length_the_end_of_the_connection_ends_the_answer(head):
    async with Vendor(answering_and_closing(head + b"all of it")) as vendor, a_client() as client:
        answer = await post(client, vendor.origin)
        assert await read_all(answer) == b"all of it"
        assert answer.is_complete
        assert client.open_connections == 0


@on_both_loops
@pytest.mark.parametrize(
    ("method", "reply", "is_reused"),
    [
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", True),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (
            b"GET",
            b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
            True,
        ),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", False),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", False),
    ],
)
async def test_an_answer_without_a_body_is_complete_with_its_head(method, reply, is_reused):
    async with Vendor(answering(reply)) as vendor, a_client() as client:
        answer = await post(client, vendor.origin, b"", method=method)
        assert answer.is_complete
        assert await answer.read() == b""
        assert client.idle_connections == is_reused


@on_both_loops
async def test_a_large_request_and_a_large_answer_pass_whole():
    body = bytes(range(256)) * (32 * MIB // 256)

    async def script(vendor, reader, writer):
        _, received = await vendor.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(received))
        writer.write(received)
        await reader.read()

    async with Vendor(script) as vendor, a_client() as client:
        status, received = await exchange(client, vendor.origin, body=body)
        assert status == 200
        assert received == body
        assert client.idle_connections == 1


@on_both_loops
@pytest.mark.parametrize("size", [2_000, 100_000, 4 * MIB])
async def test_a_body_is_nobodys_once_it_is_written(size):
    body = bytes(size)

    async def script(vendor, reader, writer):
        _, received = await vendor.request(reader)
        assert received == body
        await vendor.go.wait()
        writer.write(OK)
        await reader.read()

    async with Vendor(script) as vendor, a_client() as client:
        known = sys.getrefcount(body)
        asking = spawn(client.open(vendor.origin, b"POST", b"/", [], body, TIMEOUTS), name="asking")
        async with asyncio.timeout(PATIENCE_S):
            while not asking.done() and (sys.getrefcount(body) > known or not client.open_connections):
                await asyncio.sleep(0.01)
        assert not asking.done()
        vendor.go.set()
        (await asking).close()


@on_both_loops
@pytest.mark.parametrize("is_secure", [False, True])
async def test_bodies_about_as_long_as_what_is_written_at_once_go_up_whole(authority, is_secure):
    bounds = (COALESCED_BODY_BYTES_MAX, WRITE_PIECE_BYTES, 2 * WRITE_PIECE_BYTES)
    bodies = [os.urandom(bound + more) for bound in bounds for more in (-1, 0, 1)]

    async def script(vendor, reader, writer):
        for _ in bodies:
            await vendor.request(reader)
            writer.write(OK)
        await reader.read()

    async with (
        secure(script, authority, "127.0.0.1") if is_secure else Vendor(script) as vendor,
        a_client(ssl_context=trusting(authority)) as client,
    ):
        for body in bodies:
            assert await exchange(client, vendor.origin, body=body) == (200, b"ok")
        assert [received for _, received in vendor.requests] == bodies
        assert vendor.connections == 1


@on_both_loops
async def test_an_answer_before_the_request_was_written_is_delivered_and_the_connection_closed():
    async def script(vendor, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        writer.transport.pause_reading()
        await vendor.go.wait()

    async with Vendor(script) as vendor, a_client() as client:
        assert await exchange(client, vendor.origin, body=bytes(32 * MIB)) == (413, b"big")
        assert client.open_connections == 0
        vendor.go.set()


# --- what is refused ----------------------------------------------------------------------------------

HEADER_LINES = b"".join(b"x-%d: y\r\n" % number for number in range(300))


@on_both_loops
@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nabc",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: folded\r\n value\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: bare\rcr\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: nul\0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\n" + HEADER_LINES + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 400_000,
        b"HTTP/1.1 200 OK\r\n" + b"y" * 400_000,
        b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 4_000,
    ],
    ids=range(23),
)
async def test_an_improper_head_is_unreachable_after_sending(reply):
    async with Vendor(answering(reply)) as vendor, a_client() as client:
        with pytest.raises(Unreachable) as caught:
            await post(client, vendor.origin)
        assert caught.value.is_sent
        assert client.open_connections == 0
        assert len(vendor.requests) == 1


@on_both_loops
async def test_an_upgrade_is_named_as_what_was_wrong():
    async with Vendor(answering(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")) as vendor, a_client() as client:
        with pytest.raises(Unreachable, match="switched protocols"):
            await post(client, vendor.origin)


@on_both_loops
@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_connection_closed_before_the_head_is_unreachable_and_never_retried(part):
    async with Vendor(answering_and_closing(part)) as vendor, a_client() as client:
        with pytest.raises(Unreachable) as caught:
            await post(client, vendor.origin)
        assert caught.value.is_sent
        assert client.open_connections == 0
        assert (vendor.connections, len(vendor.requests)) == (1, 1)


@on_both_loops
async def test_a_reset_before_the_head_is_unreachable_after_sending():
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with Vendor(script) as vendor, a_client() as client:
        with pytest.raises(Unreachable) as caught:
            await post(client, vendor.origin)
        assert caught.value.is_sent
        assert client.open_connections == 0


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@on_both_loops
@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"half"),
        (CHUNKED + b"4\r\nhalf\r\n", b"half"),
        (CHUNKED + b"9\r\nhalf", b"half"),
        (CHUNKED + b"4\r\nhalf\r\n0\r\n", b"half"),
        (CHUNKED, b""),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhalf", b"half"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", b"half"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"half"),
    ],
)
async def test_a_truncated_answer_is_broken_after_what_did_arrive(reply, body):
    async with Vendor(answering_and_closing(reply)) as vendor, a_client() as client:
        answer = await post(client, vendor.origin)
        received = []
        with pytest.raises(Broken) as caught:
            await read_all(answer, received)
        assert b"".join(received) == body
        assert caught.value.is_sent
        assert not answer.is_complete
        assert client.open_connections == 0


@on_both_loops
@pytest.mark.parametrize(
    "rest",
    [
        b"xyz\r\n",
        b"-1\r\n",
        b"ffffffffffffffffff\r\n",
        b"2\r\nabc\r\n",
        b"2\nab\n",
        b"1;" + b"e" * 400_000,
        b"0\r\n" + b"T: x\r\n" * 100_000,
    ],
    ids=[
        "not hex",
        "negative",
        "overflow",
        "longer than said",
        "bare LF",
        "endless extension",
        "endless trailers",
    ],
)
async def test_a_malformed_body_is_broken(rest):
    async with Vendor(answering(CHUNKED + b"2\r\nok\r\n" + rest)) as vendor, a_client() as client:
        answer = await post(client, vendor.origin)
        with pytest.raises(Broken):
            await read_all(answer)
        assert client.open_connections == 0


# --- connections --------------------------------------------------------------------------------------


@on_both_loops
async def test_a_connection_is_used_again_and_again():
    async with Vendor(answering(*[OK] * 5)) as vendor, a_client() as client:
        for _ in range(5):
            assert await exchange(client, vendor.origin) == (200, b"ok")
        assert vendor.connections == 1
        assert (client.open_connections, client.idle_connections) == (1, 1)


@on_both_loops
@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok and more",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"x",
        OK + b"HTTP/1.1 2",
        OK + OK,
    ],
)
async def test_a_connection_is_not_used_again_after(reply):
    async with Vendor(answering(reply)) as vendor, a_client() as client:
        assert await exchange(client, vendor.origin) == (200, b"ok")
        assert client.open_connections == 0


@on_both_loops
async def test_http_1_0_with_keep_alive_is_kept():
    reply = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
    async with Vendor(answering(reply, OK)) as vendor, a_client() as client:
        await exchange(client, vendor.origin)
        await exchange(client, vendor.origin)
        assert vendor.connections == 1


@on_both_loops
async def test_a_vendor_that_speaks_on_an_unused_connection_loses_it():
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(OK)
        await vendor.go.wait()
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with Vendor(script) as vendor, a_client() as client:
        await exchange(client, vendor.origin)
        assert client.idle_connections == 1
        vendor.go.set()
        await vendor.until_open_connections_are(0)
        assert client.open_connections == 0


@on_both_loops
async def test_a_pooled_connection_whose_end_was_heard_is_gone_at_once():
    async with Vendor(answering_and_closing(OK)) as vendor, a_client() as client:
        await exchange(client, vendor.origin)
        await vendor.until_open_connections_are(0)
        await turns()
        assert client.open_connections == 0
        assert await exchange(client, vendor.origin) == (200, b"ok")
        assert vendor.connections == 2


@on_both_loops
async def test_a_pooled_connection_closed_unheard_is_replaced_before_anything_is_written():
    """The vendor's FIN is in the kernel, but the loop has not looked: only asking can tell."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        origin = Origin("http", "127.0.0.1", listener.getsockname()[1])
        async with a_client(probe_after_idle_s=0) as client:
            first = asyncio.gather(exchange(client, origin))
            sock, _ = await loop.sock_accept(listener)
            await loop.sock_recv(sock, 4096)
            await loop.sock_sendall(sock, OK)
            await first
            assert client.idle_connections == 1
            sock.close()
            second = asyncio.gather(exchange(client, origin))
            replacement, _ = await loop.sock_accept(listener)
            assert (await loop.sock_recv(replacement, 4096)).startswith(b"POST ")
            await loop.sock_sendall(replacement, OK)
            assert await second == [(200, b"ok")]
            replacement.close()


@on_both_loops
async def test_after_the_first_byte_a_reused_connection_that_breaks_is_not_retried():
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(OK)
        await vendor.request(reader)

    async with Vendor(script) as vendor, a_client() as client:
        await exchange(client, vendor.origin)
        with pytest.raises(Unreachable) as caught:
            await post(client, vendor.origin)
        assert caught.value.is_sent
        assert (vendor.connections, len(vendor.requests)) == (1, 2)


@on_both_loops
async def test_the_most_recently_used_connection_is_taken_first():
    async def script(vendor, reader, writer):
        name = b"%d" % vendor.connections
        while True:
            await vendor.request(reader)
            await vendor.go.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name)

    async with Vendor(script) as vendor, a_client() as client:
        both = asyncio.gather(exchange(client, vendor.origin), exchange(client, vendor.origin))
        while len(vendor.requests) < 2:
            await turns()
        vendor.go.set()
        await both
        assert client.idle_connections == 2
        last = (await exchange(client, vendor.origin))[1]
        for _ in range(3):
            assert (await exchange(client, vendor.origin))[1] == last


@on_both_loops
async def test_unused_connections_are_closed_when_their_time_is_up():
    timeouts = Timeouts(connect_s=60, first_byte_s=60, idle_s=60, pool_idle_s=SOON_S)
    async with Vendor(answering(OK)) as vendor, a_client() as client:
        await exchange(client, vendor.origin, timeouts=timeouts)
        assert client.idle_connections == 1
        await vendor.until_open_connections_are(0)
        assert (client.open_connections, client.idle_connections) == (0, 0)


@on_both_loops
async def test_a_shorter_pool_time_is_kept_beside_a_longer_one():
    short = Timeouts(connect_s=60, first_byte_s=60, idle_s=60, pool_idle_s=SOON_S)
    async with Vendor(answering(OK)) as one, Vendor(answering(OK)) as other, a_client() as client:
        await exchange(client, one.origin)
        await exchange(client, other.origin, timeouts=short)
        await other.until_open_connections_are(0)
        assert (client.open_connections, one.open_connections) == (1, 1)


@on_both_loops
async def test_no_more_than_so_many_connections_stay_unused():
    async with Vendor(answering(OK)) as vendor, a_client(idle_connections_max=2) as client:
        await asyncio.gather(*(exchange(client, vendor.origin) for _ in range(6)))
        assert (client.open_connections, client.idle_connections) == (2, 2)
        await vendor.until_open_connections_are(2)


# --- the bound on connections -------------------------------------------------------------------------


async def in_turn(vendor, reader, writer):
    """A script: answers each request when the test says so, one `go` at a time."""
    while True:
        await vendor.request(reader)
        await vendor.go.wait()
        vendor.go.clear()
        writer.write(OK)


@on_both_loops
async def test_requests_beyond_the_bound_queue_in_order_and_take_over_the_connection():
    async with Vendor(in_turn) as vendor, a_client(connections_max=1) as client:
        finished = []

        async def numbered(number):
            await exchange(client, vendor.origin, body=b"%d" % number)
            finished.append(number)

        everyone = asyncio.gather(*(numbered(number) for number in range(4)))
        for count in range(1, 5):
            while len(vendor.requests) < count:
                await turns()
            vendor.go.set()
        await everyone
        assert finished == [0, 1, 2, 3]
        assert [body for _, body in vendor.requests] == [b"0", b"1", b"2", b"3"]
        assert vendor.connections == 1


@on_both_loops
async def test_waiting_for_a_connection_is_bounded():
    timeouts = Timeouts(connect_s=SOON_S, first_byte_s=60, idle_s=60, pool_idle_s=60)
    async with Vendor(silent) as vendor, a_client(connections_max=1, waiters_max=1) as client:
        busy = asyncio.gather(post(client, vendor.origin))
        await vendor.go.wait()
        queued = asyncio.gather(post(client, vendor.origin, timeouts=timeouts), return_exceptions=True)
        await turns()
        with pytest.raises(Unreachable) as refused:
            await post(client, vendor.origin)
        assert not refused.value.is_sent
        (error,) = await queued
        assert isinstance(error, TimedOut)
        assert (error.phase, error.is_sent) == ("connect", False)
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
        assert client.open_connections == 0


@on_both_loops
async def test_at_the_bound_another_origins_unused_connection_makes_room():
    one, other = Vendor(answering(OK)), Vendor(answering(OK))
    async with one, other, a_client(connections_max=1) as client:
        await exchange(client, one.origin)
        assert await exchange(client, other.origin) == (200, b"ok")
        await one.until_open_connections_are(0)
        assert client.open_connections == 1


@on_both_loops
async def test_a_queue_for_another_origin_gets_the_slot_of_a_finished_connection():
    async with Vendor(in_turn) as one, Vendor(answering(OK)) as other, a_client(connections_max=1) as client:
        first = asyncio.gather(exchange(client, one.origin))
        while not one.requests:
            await turns()
        second = asyncio.gather(exchange(client, other.origin))
        await turns()
        one.go.set()
        assert await first == await second == [(200, b"ok")]
        assert client.open_connections == 1


@on_both_loops
async def test_whoever_leaves_the_queue_passes_nothing_by():
    """The second leaves while queueing, the third in the instant in which it is given the connection."""
    async with Vendor(in_turn) as vendor, a_client(connections_max=1) as client:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(exchange(client, vendor.origin, body=b"%d" % n)) for n in range(4)]
        while not vendor.requests:
            await turns()
        assert len(client._waiters) == 3
        assert isinstance(await cancelled(tasks[1]), CancelledUnsent)
        assert len(client._waiters) == 2
        give_back = client.give_back

        def give_back_and_cancel(connection):
            give_back(connection)
            tasks[2].cancel()

        client.give_back = give_back_and_cancel
        vendor.go.set()
        while len(vendor.requests) < 2:
            await turns()
        vendor.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[2], asyncio.CancelledError)
        assert results[3] == (200, b"ok")
        assert [body for _, body in vendor.requests] == [b"0", b"3"]
        assert vendor.connections == 1


# --- cancellation -------------------------------------------------------------------------------------


async def cancelled(task):
    """Cancel, and the cancellation as it came out: one that knows that nothing was sent says so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    return caught.value


@on_both_loops
async def test_cancelled_while_waiting_for_the_head_the_connection_is_closed():
    async with Vendor(silent) as vendor, a_client() as client:
        task = asyncio.get_running_loop().create_task(post(client, vendor.origin))
        await vendor.go.wait()
        assert not isinstance(await cancelled(task), CancelledUnsent)
        assert client.open_connections == 0
        await vendor.until_open_connections_are(0)


@on_both_loops
async def test_cancelled_while_writing_the_request_the_connection_is_closed():
    async def script(vendor, reader, writer):
        writer.transport.pause_reading()
        vendor.go.set()
        await asyncio.Event().wait()

    async with Vendor(script) as vendor, a_client() as client:
        task = asyncio.get_running_loop().create_task(post(client, vendor.origin, bytes(32 * MIB)))
        await vendor.go.wait()
        await cancelled(task)
        assert client.open_connections == 0


@on_both_loops
async def test_cancelled_while_connecting_nothing_is_left():
    async def script(vendor, reader, writer):
        vendor.go.set()
        await reader.read()

    async with Vendor(script) as vendor, a_client() as client:
        origin = Origin("https", "127.0.0.1", vendor.port)  # the handshake never answers
        task = asyncio.get_running_loop().create_task(post(client, origin))
        await vendor.go.wait()
        assert client.open_connections == 1
        assert isinstance(await cancelled(task), CancelledUnsent)
        assert client.open_connections == 0
        await vendor.until_open_connections_are(0)


@on_both_loops
@pytest.mark.parametrize("after_turns", range(8))
async def test_cancelled_at_any_turn_of_the_loop_nothing_is_left(after_turns):
    async with Vendor(silent) as vendor, a_client(connections_max=1) as client:
        task = asyncio.get_running_loop().create_task(post(client, vendor.origin))
        await turns(after_turns)
        await cancelled(task)
        assert client.open_connections == 0
        assert client._waiters == client._waiters.__class__()


@on_both_loops
async def test_a_cancelled_read_loses_nothing_and_a_close_before_the_end_closes_the_connection():
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(CHUNKED)
        await vendor.go.wait()
        writer.write(b"2\r\nab\r\n")
        await reader.read()

    async with Vendor(script) as vendor, a_client() as client:
        answer = await post(client, vendor.origin)
        reading = asyncio.get_running_loop().create_task(answer.read())
        await turns()
        with pytest.raises(RuntimeError):
            await answer.read()
        await cancelled(reading)
        vendor.go.set()
        assert await answer.read() == b"ab"
        assert client.open_connections == 1
        answer.close()
        answer.close()
        assert client.open_connections == 0
        with pytest.raises(Broken):
            await answer.read()
        await vendor.until_open_connections_are(0)


@on_both_loops
async def test_a_closed_connection_is_freed_without_the_cycle_collector():
    async with Vendor(answering(CHUNKED)) as vendor, a_client() as client:
        gc.disable()
        try:
            answer = await post(client, vendor.origin)
            connection = weakref.ref(answer.connection)
            answer.close()
            del answer
            await vendor.until_open_connections_are(0)
            await turns()
            assert connection() is None
        finally:
            gc.enable()


@on_both_loops
async def test_closing_an_answer_wakes_its_reader():
    async with Vendor(answering(CHUNKED)) as vendor, a_client() as client:
        answer = await post(client, vendor.origin)
        reading = asyncio.get_running_loop().create_task(answer.read())
        await turns()
        answer.close()
        with pytest.raises(Broken):
            await reading


@on_both_loops
async def test_closing_the_client_ends_everything_at_once():
    async with Vendor(answering(CHUNKED)) as vendor:
        client = UpstreamClient(ssl_context=NO_TRUST, connections_max=1)
        answer = await post(client, vendor.origin)
        queued = asyncio.gather(post(client, vendor.origin), return_exceptions=True)
        await turns()
        await client.aclose()
        await client.aclose()
        with pytest.raises(Broken):
            await answer.read()
        (error,) = await queued
        assert isinstance(error, Unreachable)
        assert not error.is_sent
        with pytest.raises(Unreachable) as caught:
            await post(client, vendor.origin)
        assert not caught.value.is_sent
        assert client.open_connections == 0
        await vendor.until_open_connections_are(0)


# --- time ---------------------------------------------------------------------------------------------


@on_both_loops
async def test_no_head_in_time_is_a_timeout_even_when_bytes_trickle():
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await asyncio.sleep(SOON_S / 5)

    timeouts = Timeouts(connect_s=60, first_byte_s=SOON_S, idle_s=60, pool_idle_s=60)
    async with Vendor(script) as vendor, a_client() as client:
        with pytest.raises(TimedOut) as caught:
            await post(client, vendor.origin, timeouts=timeouts)
        assert (caught.value.phase, caught.value.is_sent) == ("first_byte", True)
        assert client.open_connections == 0


@on_both_loops
async def test_a_body_that_stops_is_a_timeout_after_what_did_arrive():
    timeouts = Timeouts(connect_s=60, first_byte_s=60, idle_s=SOON_S, pool_idle_s=60)
    async with Vendor(answering(CHUNKED + b"2\r\nab\r\n")) as vendor, a_client() as client:
        answer = await post(client, vendor.origin, timeouts=timeouts)
        await vendor.until_open_connections_are(0)
        assert await answer.read() == b"ab"
        with pytest.raises(TimedOut) as caught:
            await answer.read()
        assert (caught.value.phase, caught.value.is_sent) == ("idle", True)
        assert client.open_connections == 0


@on_both_loops
async def test_a_slow_but_steady_body_is_no_timeout():
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(CHUNKED)
        for _ in range(6):
            await asyncio.sleep(ENOUGH_S / 5)
            writer.write(b"1\r\na\r\n")
        writer.write(b"0\r\n\r\n")

    timeouts = Timeouts(connect_s=60, first_byte_s=60, idle_s=ENOUGH_S, pool_idle_s=60)
    async with Vendor(script) as vendor, a_client() as client:
        assert await exchange(client, vendor.origin, timeouts=timeouts) == (200, b"aaaaaa")


@on_both_loops
async def test_a_body_that_never_ends_is_a_timeout_however_busily_it_goes_on():
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(CHUNKED)
        while True:
            writer.write(b"1\r\na\r\n")
            await asyncio.sleep(SOON_S / 10)

    timeouts = Timeouts(connect_s=60, first_byte_s=60, idle_s=60, pool_idle_s=60, answer_s=4 * SOON_S)
    async with Vendor(script) as vendor, a_client() as client:
        answer = await post(client, vendor.origin, timeouts=timeouts)
        with pytest.raises(TimedOut) as caught:
            await read_all(answer)
        assert (caught.value.phase, caught.value.is_sent) == ("answer", True)
        assert client.open_connections == 0


@on_both_loops
async def test_an_answer_that_nobody_reads_is_held_no_longer_than_any_other():
    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(CHUNKED + b"100000\r\n" + bytes(MIB))
        await reader.read()

    timeouts = Timeouts(connect_s=60, first_byte_s=60, idle_s=60, pool_idle_s=60, answer_s=4 * SOON_S)
    async with Vendor(script) as vendor, a_client() as client:
        answer = await post(client, vendor.origin, timeouts=timeouts)
        await vendor.until_open_connections_are(0)
        assert await answer.read()  # what did arrive
        with pytest.raises(TimedOut):
            await answer.read()


@on_both_loops
async def test_the_bound_of_one_answer_does_not_hurry_the_next():
    timeouts = Timeouts(connect_s=60, first_byte_s=60, idle_s=60, pool_idle_s=60, answer_s=SOON_S)
    async with Vendor(answering(OK, OK)) as vendor, a_client() as client:
        await exchange(client, vendor.origin, timeouts=timeouts)
        await asyncio.sleep(2 * SOON_S)
        assert await exchange(client, vendor.origin, timeouts=timeouts) == (200, b"ok")
        assert vendor.connections == 1


@on_both_loops
async def test_a_request_that_cannot_be_written_is_a_timeout():
    async def script(vendor, reader, writer):
        writer.transport.pause_reading()
        await asyncio.Event().wait()

    timeouts = Timeouts(connect_s=60, first_byte_s=60, idle_s=SOON_S, pool_idle_s=60)
    async with Vendor(script) as vendor, a_client() as client:
        with pytest.raises(TimedOut) as caught:
            await post(client, vendor.origin, bytes(32 * MIB), timeouts=timeouts)
        assert (caught.value.phase, caught.value.is_sent) == ("idle", True)
        assert client.open_connections == 0


@on_both_loops
async def test_the_first_byte_is_awaited_only_after_the_request_is_written():
    async def script(vendor, reader, writer):
        writer.transport.pause_reading()
        await asyncio.sleep(1.5 * ENOUGH_S)
        writer.transport.resume_reading()
        await vendor.request(reader)
        writer.write(OK)
        await reader.read()

    timeouts = Timeouts(connect_s=60, first_byte_s=ENOUGH_S, idle_s=60, pool_idle_s=60)
    async with Vendor(script) as vendor, a_client() as client:
        assert await exchange(client, vendor.origin, body=bytes(32 * MIB), timeouts=timeouts) == (200, b"ok")


@on_both_loops
async def test_one_timer_serves_requests_with_longer_and_shorter_bounds():
    short = Timeouts(connect_s=60, first_byte_s=ENOUGH_S / 2, idle_s=ENOUGH_S / 2, pool_idle_s=60)
    async with Vendor(answering(OK, OK)) as vendor, a_client() as client:
        await exchange(client, vendor.origin, timeouts=short)
        await asyncio.sleep(ENOUGH_S)
        assert client.idle_connections == 1  # a request's bounds do not end the unused connection after it
        await exchange(client, vendor.origin)
        with pytest.raises(TimedOut):  # and the timer that still runs for the longer one does not delay this
            await post(client, vendor.origin, timeouts=short)
        assert vendor.connections == 1


@on_both_loops
async def test_a_slow_but_steady_request_is_no_timeout_until_it_is_written():
    async def script(vendor, reader, writer):
        writer.transport.pause_reading()
        for _ in range(16):
            await asyncio.sleep(ENOUGH_S / 12)
            writer.transport.resume_reading()
            await reader.readexactly(MIB)
            writer.transport.pause_reading()
        writer.transport.resume_reading()
        vendor.go.set()
        while await reader.read(MIB):
            pass

    timeouts = Timeouts(connect_s=60, first_byte_s=SOON_S, idle_s=ENOUGH_S, pool_idle_s=60)
    async with Vendor(script) as vendor, a_client() as client:
        with pytest.raises(TimedOut) as caught:
            await post(client, vendor.origin, bytes(32 * MIB), timeouts=timeouts)
        assert caught.value.phase == "first_byte"
        assert vendor.go.is_set()


async def test_a_connection_past_its_time_is_not_used_even_when_the_loop_was_too_busy_to_close_it():
    timeouts = Timeouts(connect_s=60, first_byte_s=60, idle_s=60, pool_idle_s=SOON_S)
    async with Vendor(answering(OK, OK)) as vendor, a_client(probe_after_idle_s=60) as client:
        await exchange(client, vendor.origin, timeouts=timeouts)
        time.sleep(2 * SOON_S)  # the loop is busy
        await exchange(client, vendor.origin, timeouts=timeouts)
        assert vendor.connections == 2


# --- backpressure -------------------------------------------------------------------------------------


@on_both_loops
async def test_a_reader_that_does_not_read_stops_the_vendor_and_is_not_timed_out():
    total = 64 * MIB
    written = 0

    async def script(vendor, reader, writer):
        nonlocal written
        await vendor.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        piece = bytes(64 * 1024)
        while written < total:
            writer.write(piece)
            written += len(piece)
            await writer.drain()
        await reader.read()

    timeouts = Timeouts(connect_s=60, first_byte_s=60, idle_s=ENOUGH_S / 2, pool_idle_s=60)
    async with Vendor(script) as vendor, a_client() as client:
        answer = await post(client, vendor.origin, timeouts=timeouts)
        await asyncio.sleep(ENOUGH_S)
        assert written < total / 2
        assert answer.buffered_bytes <= client.answer_buffer_bytes_max + 256 * 1024
        received = 0
        while piece := await answer.read():
            received += len(piece)
        assert received == total
        assert client.idle_connections == 1


# --- getting there ------------------------------------------------------------------------------------


@on_both_loops
async def test_a_refused_connection_is_unreachable_and_not_sent():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with a_client() as client:
        with pytest.raises(Unreachable) as caught:
            await post(client, Origin("http", "127.0.0.1", port))
        assert not caught.value.is_sent
        assert client.open_connections == 0


@on_both_loops
async def test_a_name_that_cannot_be_resolved_is_unreachable_and_not_sent():
    async with a_client() as client:
        with pytest.raises(Unreachable) as caught:
            await post(client, Origin("http", "not..a.name", 80))
        assert not caught.value.is_sent
        assert client.open_connections == 0


async def test_a_resolver_that_fails_is_unreachable_and_not_sent(monkeypatch):
    async def fails(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fails)
    async with a_client() as client:
        with pytest.raises(Unreachable) as caught:
            await post(client, Origin("http", "vendor.test", 80))
        assert not caught.value.is_sent
        assert client.open_connections == 0


@on_both_loops
async def test_a_handshake_without_end_is_a_connect_timeout():
    async def script(vendor, reader, writer):
        await reader.read()

    timeouts = Timeouts(connect_s=SOON_S, first_byte_s=60, idle_s=60, pool_idle_s=60)
    async with Vendor(script) as vendor, a_client() as client:
        with pytest.raises(TimedOut) as caught:
            await post(client, Origin("https", "127.0.0.1", vendor.port), timeouts=timeouts)
        assert (caught.value.phase, caught.value.is_sent) == ("connect", False)
        assert client.open_connections == 0
        await vendor.until_open_connections_are(0)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def secure(script, authority, name):
    vendor = Vendor(script)
    vendor.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    vendor.tls.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert(name).configure_cert(vendor.tls)
    return vendor


def trusting(authority):
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    authority.configure_trust(context)
    return context


@on_both_loops
async def test_a_trusted_vendor_is_spoken_to_over_tls(authority):
    body = bytes(range(256)) * (8 * MIB // 256)

    async def script(vendor, reader, writer):
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        for _ in range(2):
            _, received = await vendor.request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(received))
            writer.write(received)
        await reader.read()

    async with (
        secure(script, authority, "127.0.0.1") as vendor,
        a_client(ssl_context=trusting(authority)) as client,
    ):
        assert await exchange(client, vendor.origin) == (200, b"{}")
        assert await exchange(client, vendor.origin, body=body) == (200, body)
        assert vendor.connections == 1


@on_both_loops
@pytest.mark.parametrize(("name", "is_trusted"), [("127.0.0.1", False), ("other.test", True)])
async def test_a_certificate_of_unknown_issue_or_another_name_is_unreachable_and_not_sent(
    authority, name, is_trusted
):
    context = trusting(authority) if is_trusted else None
    async with secure(silent, authority, name) as vendor, a_client(ssl_context=context) as client:
        with pytest.raises(Unreachable) as caught:
            await post(client, vendor.origin)
        assert not caught.value.is_sent
        assert "certificate" in str(caught.value).lower()
        assert vendor.requests == []
        assert client.open_connections == 0


@on_both_loops
async def test_a_client_trusts_the_systems_authorities_and_offers_http_1_1(authority, tmp_path, monkeypatch):
    authority.cert_pem.write_to_path(tmp_path / "system.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))

    async def script(vendor, reader, writer):
        vendor.protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        await vendor.request(reader)
        writer.write(OK)
        await reader.read()

    async with secure(script, authority, "127.0.0.1") as vendor, a_client(ssl_context=None) as client:
        assert await exchange(client, vendor.origin) == (200, b"ok")
        assert vendor.protocol == "http/1.1"


@on_both_loops
async def test_over_tls_a_connection_closed_mid_answer_is_broken(authority):
    script = answering_and_closing(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    async with (
        secure(script, authority, "127.0.0.1") as vendor,
        a_client(ssl_context=trusting(authority)) as client,
    ):
        answer = await post(client, vendor.origin)
        with pytest.raises(Broken):
            await read_all(answer)
        assert client.open_connections == 0
