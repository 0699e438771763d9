"""Targets, methods and versions that name nothing we serve, or name it in another way."""

import pytest

from tests.hostile.stage import MESSAGES, small_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = small_body()
LINES = {
    # targets (dot segments, encoded slashes and the like: tests/conformance, for every surface)
    "asterisk": (b"OPTIONS * HTTP/1.1", 404),
    "asterisk for POST": (b"POST * HTTP/1.1", 404),
    "authority": (b"POST proxy:80 HTTP/1.1", 400),
    "authority for CONNECT": (b"CONNECT api.anthropic.com:443 HTTP/1.1", 400),
    "a path for CONNECT": (b"CONNECT /api/llm/v1/messages HTTP/1.1", 404),
    "a scheme alone": (b"POST http:// HTTP/1.1", 400),
    "another scheme": (b"POST file:///etc/passwd HTTP/1.1", 400),
    "an absolute target without a path": (b"GET http://proxy HTTP/1.1", 400),
    "an absolute target elsewhere": (b"POST http://api.anthropic.com/v1/messages HTTP/1.1", 404),
    "no slash first": (b"POST api/llm/v1/messages HTTP/1.1", 400),
    "two slashes first": (b"POST //api/llm/v1/messages HTTP/1.1", 404),
    "no target": (b"POST  HTTP/1.1", 400),
    "a fragment": (b"POST /api/llm/v1/messages#a HTTP/1.1", 400),
    "an encoded fragment": (b"POST /api/llm/v1/messages%23a HTTP/1.1", 404),
    "a NUL": (b"POST /api/llm/v1/messages\0 HTTP/1.1", 400),
    "an encoded NUL": (b"POST /api/llm/v1/messages%00 HTTP/1.1", 404),
    "a high byte": (b"POST /api/llm/v1/messages\xff HTTP/1.1", 400),
    "a control byte": (b"POST /api/llm/v1/mes\x01sages HTTP/1.1", 400),
    "a tab": (b"POST /api/llm/v1/mes\tsages HTTP/1.1", 400),
    "a blank": (b"POST /api/llm/v1/mes sages HTTP/1.1", 400),
    "a semicolon": (b"POST /api/llm/v1/messages;a=b HTTP/1.1", 404),
    "a broken escape": (b"POST /api/llm/v1/messages% HTTP/1.1", 404),
    "an escape of no digits": (b"POST /api/llm/v1/%zz HTTP/1.1", 404),
    "double encoded dots": (b"POST /api/llm/v1/x/%252e%252e/messages HTTP/1.1", 404),
    "double encoded slash": (b"POST /api/llm/v1%252fmessages HTTP/1.1", 404),
    "overlong UTF-8 dots": (b"GET /api/llm/v1/models/%c0%ae%c0%ae HTTP/1.1", 404),
    "full-width dots": (b"POST /api/llm/v1/\xef\xbc\x8e\xef\xbc\x8e/messages HTTP/1.1", 400),
    "line breaks": (b"POST /api/llm/v1/messages%0d%0ahost:%20evil HTTP/1.1", 404),
    "a path of 60 kB": (b"POST /api/llm/" + b"a" * 60_000 + b" HTTP/1.1", 404),
    "a path of 70 kB": (b"POST /api/llm/" + b"a" * 70_000 + b" HTTP/1.1", 431),
    "ten thousand segments": (b"POST /api/llm" + b"/a" * 10_000 + b" HTTP/1.1", 404),
    "a query of 70 kB": (b"POST /api/llm/v1/messages?" + b"a" * 70_000 + b" HTTP/1.1", 431),
    "admin": (b"GET /admin/users HTTP/1.1", 401),  # below /admin nobody learns what there is
    "git": (b"GET /.git/config HTTP/1.1", 404),
    "environment": (b"GET /api/llm/../../.env HTTP/1.1", 404),
    # methods
    "TRACE": (b"TRACE /api/llm/v1/messages HTTP/1.1", 404),
    "OPTIONS": (b"OPTIONS /api/llm/v1/messages HTTP/1.1", 404),
    "PUT": (b"PUT /api/llm/v1/messages HTTP/1.1", 404),
    "SEARCH": (b"M-SEARCH /api/llm/v1/messages HTTP/1.1", 404),
    "lower case": (b"post /api/llm/v1/messages HTTP/1.1", 400),
    "mixed case": (b"Post /api/llm/v1/messages HTTP/1.1", 400),
    "made up": (b"FETCH /api/llm/v1/messages HTTP/1.1", 400),
    "one letter more": (b"POSTS /api/llm/v1/messages HTTP/1.1", 400),
    "a method of 70 kB": (b"P" * 70_000 + b" /api/llm/v1/messages HTTP/1.1", 400),
    "no method": (b" /api/llm/v1/messages HTTP/1.1", 400),
    "HTTP/2's preface": (b"PRI * HTTP/2.0", 400),
    "TRACE of our own": (b"TRACE /health HTTP/1.1", 405),
    "POST of our own": (b"POST /health HTTP/1.1", 405),
    # versions
    "HTTP/0.9": (b"POST /api/llm/v1/messages HTTP/0.9", 400),
    "no version": (b"POST /api/llm/v1/messages", 400),
    "HTTP/1.2": (b"POST /api/llm/v1/messages HTTP/1.2", 400),
    "HTTP/2.0": (b"POST /api/llm/v1/messages HTTP/2.0", 400),
    "HTTP/3": (b"POST /api/llm/v1/messages HTTP/3", 400),
    "HTTP/11": (b"POST /api/llm/v1/messages HTTP/11", 400),
    "HTTP/1.10": (b"POST /api/llm/v1/messages HTTP/1.10", 400),
    "HTTP/01.1": (b"POST /api/llm/v1/messages HTTP/01.1", 400),
    "http/1.1": (b"POST /api/llm/v1/messages http/1.1", 400),
    "HTTP-1.1": (b"POST /api/llm/v1/messages HTTP-1.1", 400),
    "a blank behind the version": (b"POST /api/llm/v1/messages HTTP/1.1 ", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.6", 400),
    "PROXY protocol": (b"PROXY TCP4 10.0.0.1 10.0.0.2 4242 80", 400),
    "SMTP": (b"EHLO proxy", 400),
}


@pytest.mark.parametrize("name", LINES)
async def test_a_request_line_that_names_nothing_here_reaches_nobody(stage, name):
    line, status = LINES[name]
    head = stage.head(b"content-length: %d" % len(BODY)).partition(b"\r\n")[2]
    wire = line + b"\r\n" + head + BODY
    conversation = await stage.converse(wire, answers=1)
    await stage.assert_held(wire, conversation)
    assert conversation.statuses == [status]
    assert stage.vendor.requests == []
    if status in {400, 431}:
        assert conversation.is_closed


@pytest.mark.parametrize("length", [b"", b"content-length: 0\r\n", b"content-length: 3\r\n"])
async def test_nothing_behind_connect_is_a_request(stage, length):
    """Whoever stands before us may have opened a tunnel."""
    smuggled = stage.head(method=b"GET", target=b"/api/llm/v1/models")
    connect = b"CONNECT /api/llm HTTP/1.1\r\nhost: proxy\r\n" + length + b"\r\n"
    conversation = await stage.converse(connect, b"abc", smuggled, smuggled, answers=2)
    assert conversation.statuses == [404]
    assert conversation.is_closed
    assert stage.vendor.requests == []


async def test_head_is_answered_without_a_body(stage):
    async with stage.connected() as peer:
        peer.send(stage.head(method=b"HEAD"))
        await stage.gateway.until(lambda: peer.received.endswith(b"\r\n\r\n"))
        await stage.gateway.quiet()
        assert peer.received.startswith(b"HTTP/1.1 404 ")
        assert peer.received.count(b"\r\n\r\n") == 1


SERVED = {
    "an absolute target": (b"POST http://proxy/api/llm/v1/messages HTTP/1.1", b"/v1/messages"),
    "an absolute target of another host": (b"POST https://u:p@evil:1/api/llm/v1/messages HTTP/1.1", b"/v1/messages"),
    "an empty query": (b"POST /api/llm/v1/messages? HTTP/1.1", b"/v1/messages"),
    "a query with a path": (b"POST /api/llm/v1/messages?/../../v1/files HTTP/1.1", b"/v1/messages?/../../v1/files"),
    "a query with an encoded line break": (b"POST /api/llm/v1/messages?a=%0d%0ab HTTP/1.1", b"/v1/messages?a=%0d%0ab"),
    "a double encoded parameter": (b"GET /api/llm/v1/models/%252e%252e HTTP/1.1", b"/v1/models/%252e%252e"),
    "an encoded parameter": (b"GET /api/llm/v1/models/a%20b%3f HTTP/1.1", b"/v1/models/a%20b%3f"),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
async def test_a_target_that_is_served_goes_up_as_it_was_written(stage, name):
    line, target = SERVED[name]
    body = BODY if line.startswith(b"POST") else b""
    head = stage.head(b"content-length: %d" % len(body)).partition(b"\r\n")[2]
    conversation = await stage.converse(line + b"\r\n" + head + body, answers=1)
    assert conversation.statuses == [200]
    (request,) = stage.vendor.requests
    assert (request.target, request.body) == (target, body)


HEADS = {
    "200 headers": (b"x: y\r\n" * 195, 200),
    "201 headers": (b"x: y\r\n" * 220, 431),
    "one of 60 kB": (b"x: " + b"a" * 60_000 + b"\r\n", 200),
    "one of 70 kB": (b"x: " + b"a" * 70_000 + b"\r\n", 431),
    "a name of 60 kB": (b"x" * 60_000 + b": a\r\n", 200),
    "a name of 70 kB": (b"x" * 70_000 + b": a\r\n", 431),
    "100,000 headers": (b"x: y\r\n" * 100_000, 431),
    "16 MB": (b"x: " + b"a" * 16_000_000 + b"\r\n", 431),
}


@pytest.mark.parametrize("name", HEADS)
async def test_heads_are_bounded_in_size_and_number(stage, name):
    fields, status = HEADS[name]
    wire = stage.head(b"content-length: %d\r\n" % len(BODY) + fields[:-2]) + BODY
    pieces = [wire[at : at + 100_000] for at in range(0, len(wire), 100_000)]
    conversation = await stage.converse(*pieces, answers=1)
    assert conversation.statuses == [status]
    stage.assert_answer(conversation.answers[0])
    assert len(stage.vendor.requests) == (status == 200)
    assert MESSAGES not in conversation.answers[0].body
