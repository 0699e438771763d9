"""Requests that say in two ways where they end, or in none: refused, closed, and never followed by another."""

import pytest

from tests.hostile.stage import MESSAGES, small_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = small_body()
LENGTH = b"content-length: %d\r\n" % len(BODY)
START = b"POST /api/llm/v1/messages HTTP/1.1\r\nhost: proxy\r\nx-api-key: TOKEN\r\n"
CHUNKED = START + b"transfer-encoding: chunked\r\n\r\n"
WHOLE_CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
SMUGGLED = b"GET /api/llm/v1/models HTTP/1.1\r\nhost: proxy\r\nx-api-key: TOKEN\r\n\r\n"
MIB = 2**20


def with_fields(fields, body=BODY):
    return START + fields + b"\r\n" + body


BROKEN = {
    # a length and chunks
    "CL.TE": with_fields(LENGTH + b"transfer-encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE.CL": with_fields(b"transfer-encoding: chunked\r\ncontent-length: 4\r\n", WHOLE_CHUNK + b"0\r\n\r\n"),
    "TE.TE, identity first": with_fields(b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE.TE, identity last": with_fields(b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", b"0\r\n\r\n"),
    "TE.TE, twice chunked": with_fields(b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE.TE, a list": with_fields(b"transfer-encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "TE gzip, chunked": with_fields(b"transfer-encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "TE chunked, gzip": with_fields(b"transfer-encoding: chunked, gzip\r\n", b"0\r\n\r\n"),
    "TE , chunked": with_fields(b"transfer-encoding: ,chunked\r\n", b"0\r\n\r\n"),
    "TE xchunked": with_fields(b"transfer-encoding: xchunked\r\n", b"0\r\n\r\n"),
    "TE quoted": with_fields(b'transfer-encoding: "chunked"\r\n', b"0\r\n\r\n"),
    "TE with a parameter": with_fields(b"transfer-encoding: chunked;q=1\r\n", b"0\r\n\r\n"),
    "TE with a vertical tab": with_fields(b"transfer-encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "TE folded": with_fields(b"transfer-encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "TE empty": with_fields(b"transfer-encoding:\r\n", b"0\r\n\r\n"),
    "TE unknown": with_fields(b"transfer-encoding: cow\r\n", b"0\r\n\r\n"),
    "TE in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + WHOLE_CHUNK + b"0\r\n\r\n",
    # lengths
    "two lengths that agree": with_fields(LENGTH * 2),
    "two lengths that differ": with_fields(LENGTH + b"content-length: 5\r\n"),
    "a list of lengths": with_fields(b"content-length: %d, %d\r\n" % (len(BODY), len(BODY))),
    "a length with a sign": with_fields(b"content-length: +%d\r\n" % len(BODY)),
    "a negative length": with_fields(b"content-length: -1\r\n"),
    "a length in hex": with_fields(b"content-length: 0x5a\r\n"),
    "a length with a blank inside": with_fields(b"content-length: 9 0\r\n"),
    "a length with an underscore": with_fields(b"content-length: 9_0\r\n"),
    "a length with a fraction": with_fields(b"content-length: 90.0\r\n"),
    "a length without digits": with_fields(b"content-length:\r\n"),
    "a length of 20 digits": with_fields(b"content-length: 99999999999999999999\r\n"),
    "a length of 2,000 digits": with_fields(b"content-length: " + b"9" * 2_000 + b"\r\n"),
    "a length in another script": with_fields("content-length: ٩٠\r\n".encode()),
    # lines
    "bare LF everywhere": with_fields(LENGTH).replace(b"\r\n", b"\n"),
    "bare LF behind one header": with_fields(b"x-a: b\n" + LENGTH),
    "bare CR inside a header": with_fields(b"x-a: b\rcontent-length: 5\r\n" + LENGTH),
    "an empty line of LF alone": START + LENGTH + b"\n" + BODY,
    "a folded header": with_fields(b"x-a: b\r\n c\r\n" + LENGTH),
    "a folded first header": b"POST /api/llm/v1/messages HTTP/1.1\r\n host: proxy\r\n\r\n",
    "a blank before the colon": with_fields(b"content-length : 5\r\n"),
    "a tab before the colon": with_fields(b"content-length\t: 5\r\n"),
    "a header without a colon": with_fields(b"content-length 5\r\n"),
    "a header without a name": with_fields(b": 5\r\n" + LENGTH),
    "a name with a high byte": with_fields(b"x-\xff: 5\r\n" + LENGTH),
    "a name with a NUL": with_fields(b"x-\0: 5\r\n" + LENGTH),
    "a name in quotes": with_fields(b'"x": 5\r\n' + LENGTH),
    "a value with a NUL": with_fields(b"x-a: b\0c\r\n" + LENGTH),
    "a value with a control byte": with_fields(b"x-a: b\x01c\r\n" + LENGTH),
    "a value with a DEL": with_fields(b"x-a: b\x7fc\r\n" + LENGTH),
    "a NUL before the request": b"\0" + with_fields(LENGTH),
    # hosts
    "no host": with_fields(LENGTH).replace(b"host: proxy\r\n", b""),
    "two hosts": with_fields(b"host: other\r\n" + LENGTH),
    "two hosts that agree": with_fields(b"host: proxy\r\n" + LENGTH),
    # chunks
    "a chunk size 0x5a": CHUNKED + b"0x" + WHOLE_CHUNK + b"0\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"+" + WHOLE_CHUNK + b"0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-1\r\na\r\n0\r\n\r\n",
    "a chunk size that overflows": CHUNKED + b"10000000000000000" + WHOLE_CHUNK + b"0\r\n\r\n",
    "a chunk size of 2,000 digits": CHUNKED + b"f" * 2_000 + b"\r\n",
    "a chunk size and a blank": CHUNKED + b"5a \r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk size behind a blank": CHUNKED + b" " + WHOLE_CHUNK + b"0\r\n\r\n",
    "a chunk size with a letter": CHUNKED + b"5g\r\n" + BODY + b"\r\n0\r\n\r\n",
    "no chunk size": CHUNKED + b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk size ended by LF": CHUNKED + WHOLE_CHUNK.replace(b"\r\n", b"\n", 1) + b"0\r\n\r\n",
    "a chunk size ended by CR": CHUNKED + WHOLE_CHUNK.replace(b"\r\n", b"\r", 1) + b"0\r\n\r\n",
    "a chunk without its CRLF": CHUNKED + WHOLE_CHUNK[:-2] + b"0\r\n\r\n",
    "a chunk ended by LF": CHUNKED + WHOLE_CHUNK[:-2] + b"\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + WHOLE_CHUNK[:-2] + b"x\r\n0\r\n\r\n",
    "a NUL in a chunk's extension": CHUNKED + WHOLE_CHUNK.replace(b"\r\n", b";a=\0\r\n", 1) + b"0\r\n\r\n",
    "an LF in a chunk's extension": CHUNKED + WHOLE_CHUNK.replace(b"\r\n", b";a\nb\r\n", 1) + b"0\r\n\r\n",
    "a length in the trailers": CHUNKED + WHOLE_CHUNK + b"0\r\ncontent-length: 5\r\n\r\n",
    "a transfer-encoding in the trailers": CHUNKED + WHOLE_CHUNK + b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    "a broken trailer": CHUNKED + WHOLE_CHUNK + b"0\r\nx : a\r\n\r\n",
    "a last chunk ended by LF": CHUNKED + WHOLE_CHUNK + b"0\n\n",
}  # fmt: skip


async def ask(stage, wire, *, answers, pieces=1):
    wire = wire.replace(b"TOKEN", stage.token.encode())
    step = -(-len(wire) // pieces)
    conversation = await stage.converse(
        *(wire[at : at + step] for at in range(0, len(wire), step)), answers=answers
    )
    await stage.assert_held(wire, conversation)
    return conversation


@pytest.mark.parametrize("pieces", [1, 9], ids=["at once", "in pieces"])
@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_request_is_400_in_dialect_and_the_last_of_its_connection(stage, name, pieces):
    conversation = await ask(stage, BROKEN[name] + SMUGGLED * 2, answers=2, pieces=pieces)
    assert conversation.statuses == [400]
    assert conversation.is_closed
    answer = conversation.answers[0]
    assert answer.headers[b"connection"] == b"close"
    assert answer.headers[b"x-automna-request-id"].startswith(b"req_")
    if name != "a NUL before the request":
        assert b'"type":"invalid_request_error"' in answer.body
    assert stage.vendor.requests == []


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_request_behind_a_good_one_takes_nothing_along(stage, name):
    """Sent ahead of the answer, which is given up, or behind it: either way one request was made."""
    good = stage.post()
    wire = (BROKEN[name] + SMUGGLED).replace(b"TOKEN", stage.token.encode())
    conversation = await stage.converse(good + wire, answers=3)
    await stage.assert_held(good + wire, conversation)
    assert conversation.statuses in ([], [200], [200, 400])
    assert conversation.is_closed
    assert [request.body for request in stage.vendor.requests] in ([], [BODY])


ODD = {
    "empty lines first": (b"\r\n\r\n" + with_fields(LENGTH), [200, 200]),
    "a length with zeros in front": (with_fields(LENGTH.replace(b": ", b": 000")), [200, 200]),
    "upper case": (with_fields(LENGTH.upper()), [200, 200]),
    "no blank behind the colon": (with_fields(LENGTH.replace(b": ", b":")), [200, 200]),
    "CHUNKED": (CHUNKED.replace(b" chunked", b" CHUNKED") + WHOLE_CHUNK + b"0\r\n\r\n", [200, 200]),
    "a chunk size in upper case": (CHUNKED + WHOLE_CHUNK.replace(b"5a", b"5A", 1) + b"0\r\n\r\n", [200, 200]),
    "zeros before a chunk size": (CHUNKED + b"00000000000000000000" + WHOLE_CHUNK + b"0\r\n\r\n", [200, 200]),
    "extensions": (CHUNKED + WHOLE_CHUNK.replace(b"\r\n", b';a;b=c;d="e"\r\n', 1) + b"0;z\r\n\r\n", [200, 200]),
    "an extension of a megabyte": (CHUNKED + WHOLE_CHUNK.replace(b"\r\n", b";" + b"a" * MIB + b"\r\n", 1) + b"0\r\n\r\n", [200, 200]),
    "a byte a chunk": (CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n", [200, 200]),
    "trailers that name a token": (CHUNKED + WHOLE_CHUNK + b"0\r\nx-api-key: other\r\nanthropic-beta: a\r\n\r\n", [200, 200]),
    "an unknown expectation": (with_fields(LENGTH + b"expect: a-miracle\r\n"), [200]),
    "100-continue": (with_fields(LENGTH + b"expect: 100-continue\r\n"), [200]),
    "close": (with_fields(LENGTH + b"connection: close\r\n"), [200]),
    "close and keep-alive": (with_fields(LENGTH + b"connection: keep-alive, close\r\n"), [200]),
    "HTTP/1.0": (with_fields(LENGTH).replace(b"HTTP/1.1", b"HTTP/1.0"), [200]),
    "HTTP/1.0 with keep-alive": (with_fields(LENGTH + b"connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"), [200]),
    "no body": (with_fields(b"", b""), [400, 200]),
    "a length of 0": (with_fields(b"content-length: 0\r\n", b""), [400, 200]),
    "a body beside GET": (with_fields(LENGTH).replace(b"POST /api/llm/v1/messages", b"GET /api/llm/v1/models"), [200, 200]),
}  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 9], ids=["at once", "in pieces"])
@pytest.mark.parametrize("name", ODD)
async def test_an_odd_request_is_one_request_and_goes_up_as_it_was_sent(stage, name, pieces):
    wire, statuses = ODD[name]
    conversation = await ask(stage, wire + SMUGGLED, answers=len(statuses), pieces=pieces)
    assert conversation.statuses == statuses
    assert conversation.is_closed is (len(statuses) == 1)
    assert len(stage.vendor.requests) == statuses.count(200)
    assert stage.vendor.requests[0].body == (BODY if statuses[0] == 200 and "GET" not in name else b"")


@pytest.mark.parametrize("name", ["a chunk without its CRLF", "a broken trailer", "a negative chunk size"])
async def test_a_body_that_breaks_behind_its_answer_only_ends_the_connection(stage, name):
    """A bad token is told before the body is read: a second answer would be taken for another request's."""
    head, mark, body = (BROKEN[name] + SMUGGLED).partition(b"\r\n\r\n")
    async with stage.connected() as peer:
        peer.send(head.replace(b"TOKEN", b"amp_unknown"), mark)
        await stage.settled(peer, 1)
        peer.send(body.replace(b"TOKEN", stage.token.encode()))
        await stage.settled(peer, 2)
        assert [answer.status for answer in peer.answers] == [401]
        assert peer.is_closed
    assert stage.vendor.requests == []


async def test_a_get_whose_body_breaks_off_reaches_nobody(stage):
    wire = (
        stage.head(b"transfer-encoding: chunked", method=b"GET", target=b"/api/llm/v1/models")
        + b"5\r\nabcdeX"
    )
    conversation = await stage.converse(wire, answers=1)
    await stage.assert_held(wire, conversation)
    assert conversation.statuses == [400]
    assert stage.vendor.requests == []


async def test_many_pipelined_requests_reach_the_vendor_in_order_up_to_the_broken_one(stage):
    good = [stage.post(body=small_body(metadata={"user_id": f"n{number}"})) for number in range(6)]
    async with stage.connected() as peer:
        peer.send(*good)
        await stage.settled(peer, 6)
        peer.send(BROKEN["two lengths that differ"].replace(b"TOKEN", stage.token.encode()), *good)
        await stage.settled(peer, 13)
        assert [answer.status for answer in peer.answers] == [200] * 6 + [400]
        assert peer.is_closed
    assert [request.body for request in stage.vendor.requests] == [
        small_body(metadata={"user_id": f"n{number}"}) for number in range(6)
    ]


async def test_another_users_request_in_flight_is_untouched(stage):
    """On a connection of its own, half sent, while every broken request of the table passes."""
    other = stage.post(token=await stage.gateway.new_token("another"))
    async with stage.connected() as peer:
        peer.send(other[:-10])
        for broken in BROKEN.values():
            await stage.converse((broken + SMUGGLED).replace(b"TOKEN", stage.token.encode()), answers=2)
        assert stage.vendor.requests == []
        peer.send(other[-10:])
        await stage.settled(peer, 1)
        assert [answer.status for answer in peer.answers] == [200]
    assert [(request.target, request.body) for request in stage.vendor.requests] == [(MESSAGES[8:], BODY)]
