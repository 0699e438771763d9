"""The upstream client without a network: origins, request heads, and answers cut anywhere."""

import asyncio
import itertools
import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.tasks import spawn
from proxy.upstream import (
    Broken,
    Origin,
    TimedOut,
    Timeouts,
    Unreachable,
    UpstreamClient,
    UpstreamError,
    _Connection,
    _encode_head,
    _OpenAnswer,
)

TIMEOUTS = Timeouts(connect_s=5, first_byte_s=5, idle_s=5, pool_idle_s=5)
ORIGIN = Origin("http", "vendor.test", 80)
NO_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Made once: loading the system's certificates takes longer than all else here."""


@pytest.mark.parametrize(
    ("url", "origin", "authority"),
    [
        ("https://api.anthropic.com", Origin("https", "api.anthropic.com", 443), "api.anthropic.com"),
        ("https://API.Anthropic.com/", Origin("https", "api.anthropic.com", 443), "api.anthropic.com"),
        ("http://127.0.0.1:9001", Origin("http", "127.0.0.1", 9001), "127.0.0.1:9001"),
        ("http://[::1]:9001", Origin("http", "::1", 9001), "[::1]:9001"),
        ("http://[::1]", Origin("http", "::1", 80), "[::1]"),
        ("https://h:80", Origin("https", "h", 80), "h:80"),
    ],
)
def test_an_origin_is_parsed_and_names_itself_as_the_host_header_does(url, origin, authority):
    assert Origin.parse(url) == origin
    assert origin.authority == authority
    assert Origin.parse(str(origin)) == origin


@pytest.mark.parametrize(
    "url",
    [
        "https://h/v1",
        "https://h?x=1",
        "https://h/#f",
        "https://user:secret@h",
        "https://user:secrèt@h/v1",
        "https://[::1",
        "https://h:0",
        "https://h:65536",
        "https://h:x",
        "https://",
        "ftp://h",
        "h:80",
        "https://h\r\nx: y",
        "https://h h",
        "https://bücher.example",
        "",
    ],
)
def test_a_url_that_is_not_just_an_origin_is_refused(url):
    with pytest.raises(ValueError, match="upstream URL") as caught:
        Origin.parse(url)
    assert "secr" not in str(caught.value)


def test_a_head_has_our_framing_and_the_callers_headers_in_their_order():
    headers = [
        (b"x-b", b"1"),
        (b"Host", b"evil"),
        (b"content-length", b"99"),
        (b"Transfer-Encoding", b"chunked"),
        (b"connection", b"close"),
        (b"x-a", b""),
        (b"x-b", b"2"),
    ]
    line, fields = _encode_head(b"POST", b"/v1?q=%20", headers, b"body")
    assert line == b"POST /v1?q=%20 HTTP/1.1\r\n"
    assert fields == b"x-b: 1\r\nx-a: \r\nx-b: 2\r\ncontent-length: 4\r\nconnection: keep-alive\r\n\r\n"


def test_a_header_is_written_as_it_is_called():
    _, fields = _encode_head(b"GET", b"/", [(b"x-%b%d%%", b"%s")], b"")
    assert fields == b"x-%b%d%%: %s\r\nconnection: keep-alive\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "body", "expected"),
    [
        (b"GET", b"", b""),
        (b"DELETE", b"", b""),
        (b"HEAD", b"", b""),
        (b"POST", b"", b"content-length: 0\r\n"),
        (b"PATCH", b"", b"content-length: 0\r\n"),
        (b"GET", b"ab", b"content-length: 2\r\n"),
    ],
)
def test_a_body_is_declared_where_one_may_be_expected(method, body, expected):
    assert _encode_head(method, b"/", [], body)[1] == expected + b"connection: keep-alive\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        (b"GET", b"/\r\nx: y", []),
        (b"GET", b"/ HTTP/1.1", []),
        (b"GET", b"", []),
        (b"GET /", b"/", []),
        (b"GET\n", b"/", []),
        (b"GET", b"/", [(b"a", b"b\r\nc: d")]),
        (b"GET", b"/", [(b"a", b"b\n")]),
        (b"GET", b"/", [(b"a", b"\rb")]),
        (b"GET", b"/", [(b"a: b\r\nc", b"d")]),
    ],
)
async def test_a_line_break_or_space_cannot_be_smuggled_into_a_head(method, target, headers):
    client = UpstreamClient(ssl_context=NO_TRUST)
    with pytest.raises(ValueError, match=r"not a request line|a line break"):
        await client.open(ORIGIN, method, target, headers, b"", TIMEOUTS)
    assert client.open_connections == 0


class Wire(asyncio.Transport):
    """A transport that remembers."""

    def __init__(self):
        super().__init__()
        self.sent = b""
        self.is_aborted = False

    def write(self, data):
        self.sent += data

    def abort(self):
        self.is_aborted = True

    def is_closing(self):
        return self.is_aborted

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def drive(pieces, *, is_head_only=False):
    """Feed an answer in `pieces`, then the end of the connection if it is still wanted.

    Returns status, body, error and whether the connection may be used again.
    """
    client, wire = UpstreamClient(ssl_context=NO_TRUST), Wire()
    client._slots_taken = 1
    connection = _Connection(client, ORIGIN, asyncio.get_running_loop())
    connection.connection_made(wire)
    answer = _OpenAnswer(connection, is_head_only=is_head_only)
    connection.send(answer, b"GET / HTTP/1.1\r\n\r\n", b"", TIMEOUTS)
    for piece in pieces:
        if not wire.is_aborted and not answer.is_complete:
            connection.data_received(piece)
    is_reusable = client.idle_connections == 1
    if not wire.is_aborted:
        connection.eof_received()
    body, error = b"", None
    try:
        while data := await answer.read():
            body += data
    except UpstreamError as caught:
        error = caught
    assert client.open_connections == 0
    return answer.status, body, error, is_reusable


def cut(data, at):
    edges = [0, *sorted({place for place in at if 0 < place < len(data)}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def chunked(chunks):
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return framed + b"0\r\n\r\n"


CUTS = st.lists(st.integers(min_value=1, max_value=600), max_size=30)
CHUNKS = st.lists(st.binary(min_size=1, max_size=60), max_size=6)


@settings(max_examples=200, deadline=None)
@given(CHUNKS, CUTS)
def test_a_chunked_answer_cut_anywhere_has_the_same_body(chunks, at):
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n"
    pieces = cut(head + chunked(chunks), at)
    assert asyncio.run(drive(pieces)) == (200, b"".join(chunks), None, True)


@settings(max_examples=100, deadline=None)
@given(CHUNKS, CUTS, st.integers(min_value=0, max_value=600))
def test_a_chunked_answer_that_ends_early_is_broken_and_never_whole(chunks, at, length):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    whole = head + chunked(chunks)
    sent = whole[: min(length, len(whole) - 1)]
    status, body, error, is_reusable = asyncio.run(drive(cut(sent, at)))
    assert isinstance(error, Broken if len(sent) >= len(head) else Unreachable)
    assert error.is_sent
    assert b"".join(chunks).startswith(body)
    assert not is_reusable
    assert status == (200 if len(sent) >= len(head) else 0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), CUTS)
def test_an_answer_with_a_length_cut_anywhere_has_the_same_body(body, at):
    pieces = cut(b"HTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), at)
    assert asyncio.run(drive(pieces)) == (404, body, None, True)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), CUTS)
def test_an_answer_without_a_length_ends_with_the_connection(body, at):
    pieces = cut(b"HTTP/1.1 200 OK\r\n\r\n" + body, at)
    assert asyncio.run(drive(pieces)) == (200, body, None, False)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), CUTS)
def test_garbage_is_an_upstream_error_and_nothing_else(garbage, at):
    status, _, error, is_reusable = asyncio.run(drive(cut(garbage, at)))
    assert (status, is_reusable) == (0, False)
    assert isinstance(error, Unreachable)
    assert error.is_sent


class Turns:
    """A loop whose time is told it, for the timers of a connection."""

    def __init__(self):
        self.now_s = 0.0
        self._timers = []
        self.create_future = asyncio.get_running_loop().create_future

    def time(self):
        return self.now_s

    def call_at(self, at_s, callback):
        self._timers.append((at_s, callback))
        return asyncio.TimerHandle(at_s, callback, (), asyncio.get_running_loop())

    def reach(self, now_s):
        self.now_s = now_s
        due = [callback for at_s, callback in self._timers if at_s <= now_s]
        self._timers = [timer for timer in self._timers if timer[0] > now_s]
        for callback in due:
            callback()


def busy(loop, timeouts=TIMEOUTS):
    """A connection that a request has gone out on, and its answer."""
    client = UpstreamClient(ssl_context=NO_TRUST)
    client._slots_taken = 1
    connection = _Connection(client, ORIGIN, loop)
    connection.connection_made(Wire())
    return connection, ask(connection, timeouts)


def ask(connection, timeouts=TIMEOUTS):
    answer = _OpenAnswer(connection, is_head_only=False)
    connection.send(answer, b"GET / HTTP/1.1\r\n\r\n", b"", timeouts)
    return answer


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_what_only_passes_by_is_progress_too():
    loop = Turns()
    connection, answer = busy(loop, Timeouts(connect_s=5, first_byte_s=60, idle_s=10, pool_idle_s=5))
    connection.data_received(CHUNKED + b"1\r\na\r\n")
    assert await answer.read() == b"a"
    taken = []
    answer.taker = lambda piece: taken.append(piece) is None
    reading = spawn(answer.read(), name="reading")
    await asyncio.sleep(0)
    for now_s in (9.0, 18.0, 27.0):
        loop.reach(now_s)
        connection.data_received(b"1\r\nb\r\n")
    assert taken == [b"b"] * 3
    loop.reach(36.9)
    await asyncio.sleep(0)
    assert not reading.done()
    loop.reach(37.0)
    await asyncio.sleep(0)
    assert reading.done()
    with pytest.raises(TimedOut, match="no progress in time"):
        await reading


async def test_what_came_before_garbage_in_the_same_bytes_is_read_before_the_error():
    connection, answer = busy(asyncio.get_running_loop())
    connection.data_received(CHUNKED + b"5\r\nhello\r\nno chunk\r\n")
    assert await answer.read() == b"hello"
    with pytest.raises(Broken, match="not a proper answer"):
        await answer.read()


@pytest.mark.parametrize("control", sorted({*range(0x20), 0x7F} - {0x09}))
async def test_no_header_with_a_control_byte_comes_through(control):
    """What a vendor's head may say goes down without another look."""
    connection, answer = busy(asyncio.get_running_loop())
    lines = b"HTTP/1.1 200 OK\r\nX-Word: a%cb\r\nContent-Length: 0\r\n\r\n" % control
    connection.data_received(lines)
    assert answer.failure is not None
    assert not answer.status


async def test_the_trailers_of_an_answer_are_no_headers_of_the_next():
    connection, answer = busy(asyncio.get_running_loop())
    connection.data_received(CHUNKED + b"1\r\na\r\n0\r\nX-Trailer: theirs\r\n\r\n")
    assert (answer.take(), answer.headers) == (b"a", [(b"transfer-encoding", b"chunked")])
    following = ask(connection)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (following.is_read, following.headers) == (True, [(b"content-length", b"0")])
