"""Clients that offer another protocol with every request: served in HTTP/1.1, and only that one request."""

import pytest

from tests.hostile.stage import small_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

H2C = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQCAAAAAAIAAAAA")
"""What the default client of Java 11 and later sends with the first request to a host."""


def smuggled(stage):
    return stage.head(method=b"GET", target=b"/api/llm/v1/models")


def chunked(body):
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:9], body[9:])) + b"0\r\n\r\n"


@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_offer_of_h2c_beside_a_body_is_passed_over(stage, framing, stream, piece_bytes):
    body = small_body(stream=stream)
    wire = stage.post(*H2C, body=body)
    if framing == "chunked":
        wire = stage.head(b"transfer-encoding: chunked", *H2C) + chunked(body)
    pieces = [wire[at : at + piece_bytes] for at in range(0, len(wire), piece_bytes)]
    conversation = await stage.converse(*pieces, smuggled(stage), answers=2)
    await stage.assert_held(wire + smuggled(stage), conversation)
    assert conversation.statuses == [200]
    assert conversation.answers[0].headers[b"connection"] == b"close"
    assert conversation.is_closed
    (request,) = stage.vendor.requests
    assert request.body == body
    assert {name for name, _ in request.headers} & {b"upgrade", b"http2-settings"} == set()


@pytest.mark.parametrize(
    "behind", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
async def test_what_follows_such_a_request_is_not_heard(stage, behind):
    wire = stage.post(*H2C) + behind
    conversation = await stage.converse(wire, answers=2)
    assert conversation.statuses == [200]
    assert len(stage.vendor.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"0x5\r\nabcde\r\n0\r\n\r\n",
        b"5\r\nabcdeX",
        b"5\nabcde\r\n0\r\n\r\n",
        b"0\r\ncontent-length: 5\r\n\r\n",
    ],
    ids=["hex", "no CRLF", "LF", "trailers"],
)
async def test_its_body_is_read_as_strictly_as_any(stage, body):
    wire = stage.head(b"transfer-encoding: chunked", *H2C) + body + smuggled(stage)
    conversation = await stage.converse(wire, answers=2)
    await stage.assert_held(wire, conversation)
    assert conversation.statuses == [400]
    assert stage.vendor.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        (b"content-length: 5", b"transfer-encoding: chunked"),
        (b"content-length: 5", b"content-length: 6"),
        (b"transfer-encoding: gzip, chunked",),
        (b"transfer-encoding: identity", b"transfer-encoding: chunked"),
    ],
)
async def test_two_framings_are_400_beside_an_offer_too(stage, fields):
    wire = stage.head(*fields, *H2C) + b"0\r\n\r\n" + smuggled(stage)
    conversation = await stage.converse(wire, answers=2)
    await stage.assert_held(wire, conversation)
    assert conversation.statuses == [400]
    assert stage.vendor.requests == []


@pytest.mark.parametrize("offer", [b"websocket", b"h2c, WebSocket"])
async def test_a_websocket_beside_a_body_is_400(stage, offer):
    wire = stage.post(b"connection: upgrade", b"upgrade: " + offer) + smuggled(stage)
    conversation = await stage.converse(wire, answers=2)
    await stage.assert_held(wire, conversation)
    assert conversation.statuses == [400]
    assert stage.vendor.requests == []


@pytest.mark.parametrize("connection", [(), (b"connection: keep-alive",), (b"connection: upgrade",)])
async def test_an_offer_ends_the_connection_whatever_the_connection_header_says(stage, connection):
    """Whoever stands before us may act on it all the same."""
    wire = stage.head(b"upgrade: h2c", *connection, method=b"GET", target=b"/api/llm/v1/models") + smuggled(
        stage
    )
    conversation = await stage.converse(wire, answers=2)
    assert conversation.statuses == [200]
    assert conversation.is_closed
    assert len(stage.vendor.requests) == 1
