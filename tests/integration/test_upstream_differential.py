"""The upstream client beside a second one (httpx, whose parser is h11) over odd but legal HTTP: both must tell the same.

Where ours is stricter on purpose, the case says so: a proxy that forgives what others read otherwise can be made to mistake one
answer for two. Each reply comes whole, byte by byte, and cut in two at places drawn at random.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass

import httpx
import pytest

from proxy.upstream import Broken, Timeouts, Unreachable, UpstreamClient
from tests.support.raw_vendor import Vendor, turns

TIMEOUTS = Timeouts(connect_s=20, first_byte_s=20, idle_s=20, pool_idle_s=20)
PATIENCE_S = 20
CUTS = 6
"""Places at which each reply is cut in two."""
BODY = b'{"question":"' + b"x" * 3_000 + b'"}'


@dataclass(frozen=True)
class Told:
    """What a client has told of an answer: all of it; or how far it came before it broke."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    is_whole: bool = True


NO_ANSWER = Told(0, is_whole=False)
"""Nothing that could be told."""


@dataclass(frozen=True)
class Case:
    """What a vendor says, and whether it closes then."""

    name: str
    reply: bytes
    method: str = "POST"
    closes: bool = False
    ours: Told | None = None
    """Where it is not what httpx tells: what ours does."""
    why: str = ""


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
HELLO = HEAD + b"content-length: 5\r\n\r\nhello"

CASES = (
    Case("a length", HELLO),
    Case("a length of nothing", HEAD + b"content-length: 0\r\n\r\n"),
    Case(
        "a length said twice, the same",
        HEAD + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        ours=NO_ANSWER,
        why="a length says it once (RFC 9112 section 6.3 leaves that to us)",
    ),
    Case("chunks", CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"),
    Case(
        "chunks of hexadecimal lengths",
        CHUNKED + b"00a\r\n0123456789\r\n1A\r\n" + b"y" * 26 + b"\r\n0\r\n\r\n",
    ),
    Case("chunk extensions", CHUNKED + b"3;a=b\r\nhel\r\n2;c\r\nlo\r\n0;last\r\n\r\n"),
    Case("a quoted chunk extension", CHUNKED + b'5;a="b c"\r\nhello\r\n0\r\n\r\n'),
    Case("trailers", CHUNKED + b"5\r\nhello\r\n0\r\nx-digest: abc\r\nx-more: d\r\n\r\n"),
    Case("no chunk but the last", CHUNKED + b"0\r\n\r\n"),
    Case("the connection's end as the body's", HEAD + b"connection: close\r\n\r\nhello", closes=True),
    Case("the connection's end, without a word of it", HEAD + b"\r\nhello", closes=True),
    Case("nothing until the connection's end", HEAD + b"\r\n", closes=True),
    Case(
        "HTTP/1.0 with a length",
        b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello",
        closes=True,
    ),
    Case("HTTP/1.0 until the end", b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nhello", closes=True),
    Case("100 before the answer", b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO),
    Case("103 with hints, twice", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 2 + HELLO),
    Case("102 while it is worked on", b"HTTP/1.1 102 Processing\r\n\r\n" + HELLO),
    Case("204", b"HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n"),
    Case(
        "304 with the length that it would have",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\nx-a: b\r\n\r\n",
    ),
    Case("304 without one", b"HTTP/1.1 304 Not Modified\r\nx-a: b\r\n\r\n"),
    Case("205 with a body of nothing", b"HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n"),
    Case("HEAD, with a length", HEAD + b"content-length: 5\r\n\r\n", method="HEAD"),
    Case("HEAD, chunked", CHUNKED, method="HEAD"),
    Case("HEAD, with nothing", HEAD + b"\r\n", method="HEAD"),
    Case("an error with a body", b"HTTP/1.1 529 Overloaded\r\ncontent-length: 4\r\n\r\nbusy"),
    Case("a status without words", b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\nhello"),
    Case("a status without a space behind it", b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello"),
    Case("words in Latin-1", b"HTTP/1.1 200 Tr\xe8s bien\r\ncontent-length: 5\r\n\r\nhello"),
    Case("names in capitals", b"HTTP/1.1 200 OK\r\nX-Thing: A\r\nCONTENT-LENGTH: 5\r\n\r\nhello"),
    Case("a value of nothing", HEAD + b"x-empty:\r\nx-blank:   \r\ncontent-length: 5\r\n\r\nhello"),
    Case("blanks around a value", HEAD + b"x-a: \t two  words \t\r\ncontent-length: 5\r\n\r\nhello"),
    Case("a value in Latin-1", HEAD + b"x-a: caf\xe9\r\ncontent-length: 5\r\n\r\nhello"),
    Case(
        "a name said thrice", HEAD + b"x-a: 1\r\nx-b: 2\r\nx-a: 3\r\nx-a: 1\r\ncontent-length: 5\r\n\r\nhello"
    ),
    Case(
        "many headers",
        HEAD + b"".join(b"x-%d: %d\r\n" % (n, n) for n in range(90)) + b"content-length: 5\r\n\r\nhello",
    ),
    Case("a long value", HEAD + b"x-a: " + b"v" * 6_000 + b"\r\ncontent-length: 5\r\n\r\nhello"),
    Case(
        "lines that end in a line feed",
        HELLO.replace(b"\r\n", b"\n"),
        ours=NO_ANSWER,
        why="llhttp takes no bare line feed as the end of a line",
    ),
    Case(
        "a folded header",
        HEAD + b"x-a: one\r\n two\r\ncontent-length: 5\r\n\r\nhello",
        ours=NO_ANSWER,
        why="a gateway may answer 502 for it (RFC 9112 section 5.2)",
    ),
    Case("a length that is not reached", HEAD + b"content-length: 9\r\n\r\nhello", closes=True),
    Case("chunks that are not ended", CHUNKED + b"5\r\nhello\r\n", closes=True),
    Case("a chunk that is not whole", CHUNKED + b"9\r\nhello", closes=True),
    Case("a head that is not whole", HEAD, closes=True),
    Case("nothing at all", b"", closes=True),
    Case(
        "a length and chunks",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ours=NO_ANSWER,
        why="which of them holds is read either way (RFC 9112 section 6.3)",
    ),
    Case("a chunk of no number", CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n"),
    Case("a length of no number", HEAD + b"content-length: five\r\n\r\nhello"),
    Case("two lengths that differ", HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"),
    Case("no HTTP", b"220 mail.example ESMTP\r\n", closes=True),
)


def sending(pieces, *, closes):
    """A script: take a request, and answer in these pieces."""

    async def script(vendor, reader, writer):
        await vendor.request(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await turns(2)
        if not closes:
            await reader.read()

    return script


async def by_ours(vendor, method):
    client = UpstreamClient()
    try:
        try:
            answer = await client.open(vendor.origin, method.encode(), b"/v1/x", [], BODY, TIMEOUTS)
        except Unreachable:
            return NO_ANSWER
        body, is_whole = b"", True
        try:
            while piece := await answer.read():
                body += piece
        except Broken:
            is_whole = False
        answer.close()
        return Told(answer.status, _plain(answer.headers), body, is_whole)
    finally:
        await client.aclose()


async def by_httpx(vendor, method):
    url = f"http://127.0.0.1:{vendor.port}/v1/x"
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        body, is_whole = b"", True
        with contextlib.suppress(httpx.TransportError):
            async with client.stream(method, url, content=BODY) as answer:
                try:
                    async for piece in answer.aiter_raw():
                        body += piece
                except httpx.TransportError:
                    is_whole = False
                return Told(answer.status_code, _plain(answer.headers.raw), body, is_whole)
    return NO_ANSWER


def _plain(headers):
    return tuple((name.lower(), value.strip()) for name, value in headers)


def _cuts(case):
    """The reply whole, byte by byte where it is short, and cut in two."""
    reply, dice = case.reply, random.Random(case.name)
    yield [reply]
    if len(reply) < 500:
        yield [reply[at : at + 1] for at in range(len(reply))]
    for _ in range(CUTS if len(reply) > 1 else 0):
        at = dice.randrange(1, len(reply))
        yield [reply[:at], reply[at:]]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_both_clients_tell_the_same(case):
    async with asyncio.timeout(PATIENCE_S):
        async with Vendor(sending([case.reply], closes=case.closes)) as vendor:
            theirs = await by_httpx(vendor, case.method)
        for pieces in _cuts(case):
            async with Vendor(sending(pieces, closes=case.closes)) as vendor:
                ours = await by_ours(vendor, case.method)
            if case.ours is None:
                assert ours == theirs, pieces
            else:
                assert ours == case.ours, pieces
                assert ours != theirs, "no difference any more: say so"


async def test_an_answer_that_comes_while_the_body_still_goes_up_is_told_by_both():
    body = b"y" * 8 * 1024 * 1024

    async def script(vendor, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        await writer.drain()
        await reader.read(1024)
        vendor.go.set()
        while await reader.read(1 << 16):
            pass

    async with asyncio.timeout(PATIENCE_S), Vendor(script) as vendor:
        client = UpstreamClient()
        answer = await client.open(vendor.origin, b"POST", b"/v1/x", [], body, TIMEOUTS)
        assert (answer.status, await answer.read(), await answer.read()) == (413, b"big", b"")
        answer.close()
        await client.aclose()
    async with asyncio.timeout(PATIENCE_S), Vendor(script) as vendor:
        async with httpx.AsyncClient(trust_env=False, timeout=20) as second:
            told = await second.post(f"http://127.0.0.1:{vendor.port}/v1/x", content=body)
        assert (told.status_code, told.content) == (413, b"big")


@pytest.mark.parametrize(
    "moment", ["before it is used again", "as it is used again", "behind the request's first byte"]
)
async def test_of_a_connection_that_the_vendor_closes_both_clients_make_the_same(moment):
    """Closed before anything was written: a fresh one, and nobody notices. After: no second request is sent by ours, whatever
    the second client does; whoever asked is told."""
    closed = asyncio.Event()

    async def script(vendor, reader, writer):
        await vendor.request(reader)
        writer.write(HELLO)
        await writer.drain()
        if vendor.connections == 1:
            if moment == "before it is used again":
                writer.close()
                closed.set()
                return
            await (reader.readexactly(1) if moment == "behind the request's first byte" else reader.read(1))
            writer.transport.abort()
            return
        await reader.read()

    async with asyncio.timeout(PATIENCE_S), Vendor(script) as vendor:
        client = UpstreamClient()
        for number in range(2):
            if number and moment == "before it is used again":
                await closed.wait()
                await turns(20)
            try:
                answer = await client.open(vendor.origin, b"POST", b"/v1/x", [], BODY, TIMEOUTS)
                told = answer.status, await answer.read()
                answer.close()
            except Unreachable as error:
                told = error.is_sent
        await client.aclose()
        if moment == "before it is used again":
            assert told == (200, b"hello")
            assert len(vendor.requests) == 2
        else:
            assert told is True, "it was sent, nobody knows what became of it"
            assert len(vendor.requests) == 1, "and it was not sent again"
