"""Hostile clients, lying vendors, and ends in the wrong moment: each of these once did harm."""

import asyncio
import gzip
import json
import signal
import socket
import sqlite3
import time
from contextlib import asynccontextmanager, closing

import pytest

from automna_proxy.settings import Settings
from proxy.downstream import PIPELINED_REQUESTS_MAX
from proxy.reading import VALUES_MAX
from proxy.telemetry import _as_text
from simulators.anthropic import ReportedUsage, stalls_after
from simulators.anthropic_messages import Content, Message, message_events, message_json
from simulators.script import Framing, Gate, Pause, Script, Send, WaitFor
from tests.support.gateway import client_of, messages_body, running_gateway
from tests.support.process import serving

USAGE = ReportedUsage(input_tokens=20, output_tokens=7)
MESSAGE = Message("msg_1", "claude-sonnet-4-5-20250929", Content("Teal and ochre.", deltas=5), USAGE)
EVENTS = message_events(MESSAGE)
SSE = ("content-type", "text/event-stream; charset=utf-8")
JSON = ("content-type", "application/json")
COMMENT = b": waiting\n\n"
CORRUPT = gzip.compress(b"")[:10] + b"\xff" * 20
GET_HEALTH = b"GET /health HTTP/1.1\r\nhost: proxy\r\n\r\n"
PATH = "/api/llm/v1/messages"


class Client:
    """A connection whose bytes the test writes itself."""

    def __init__(self, reader, writer, token):
        self.reader = reader
        self.writer = writer
        self.token = token

    def head(self, *headers, method="POST", path=PATH):
        lines = [f"{method} {path} HTTP/1.1", "host: proxy", f"x-api-key: {self.token}", *headers, "", ""]
        return "\r\n".join(lines).encode()

    def send(self, *pieces):
        self.writer.write(b"".join(pieces))

    async def answers(self, count):
        """The bytes up to the end of `count` answers that carry a content-length."""
        received = b""
        async with asyncio.timeout(60):
            for _ in range(count):
                head = await self.reader.readuntil(b"\r\n\r\n")
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
                received += head + await self.reader.readexactly(int(fields[b"content-length"]))
        return received

    async def end(self):
        """Everything up to the connection's end."""
        received = b""
        try:
            async with asyncio.timeout(60):
                while piece := await self.reader.read(2**20):
                    received += piece
        except ConnectionResetError:
            pass
        return received


@asynccontextmanager
async def attacking(tmp_path, vendor, **env):
    async with (
        running_gateway(tmp_path, upstream=vendor.url, env=env) as gateway,
        connected(gateway, await gateway.new_token()) as client,
    ):
        yield gateway, client


@asynccontextmanager
async def connected(gateway, token="bad"):
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    try:
        yield Client(reader, writer, token)
    finally:
        writer.transport.abort()


async def post(gateway, *, stream, **headers):
    """The whole answer; what came of it when it broke off."""
    received = b""
    async with (
        client_of(gateway, await gateway.new_token()) as client,
        client.stream("POST", "/v1/messages", json=messages_body(stream=stream), headers=headers) as answer,
    ):
        async for piece in answer.aiter_raw():
            received += piece
    return answer, received


# --- one request hidden in another -----------------------------------------------------------------------


async def test_an_upgrade_without_a_body_is_passed_over_and_ends_its_connection(tmp_path, vendor):
    async with attacking(tmp_path, vendor) as (gateway, client):
        client.send(
            client.head("connection: upgrade", "upgrade: h2c", method="GET", path="/api/llm/v1/models")
        )
        received = await client.end()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in received
        await gateway.assert_clean()


async def test_a_request_that_waited_for_100_continue_is_the_last_of_its_connection(tmp_path, vendor):
    async with attacking(tmp_path, vendor) as (gateway, _), connected(gateway) as client:
        client.send(client.head("expect: 100-continue", f"content-length: {len(GET_HEALTH)}"), GET_HEALTH)
        received = await client.end()
        assert received.startswith(b"HTTP/1.1 401 ")
        assert received.count(b"HTTP/1.1 ") == 1


async def test_garbage_sent_ahead_does_not_stand_in_the_answer_being_written(tmp_path, vendor):
    gate = Gate()
    vendor.next(
        Script(
            headers=(JSON,),
            steps=(Send(b"{"), WaitFor(gate), Send(b" " * 98)),
            framing=Framing.LENGTH,
            length_bytes=99,
        )
    )
    async with attacking(tmp_path, vendor) as (gateway, client):
        body = b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":[]}'
        client.send(client.head(f"content-length: {len(body)}"), body)
        await client.reader.readuntil(b"{")
        client.send(b"\x00\r\n\r\n")
        assert await client.end() == b""
        gate.open()
        await gateway.quiet()


# --- memory and time of strangers -------------------------------------------------------------------------


async def test_requests_sent_ahead_of_their_answers_are_bounded(tmp_path, vendor):
    async with attacking(tmp_path, vendor) as (gateway, client):
        client.send(GET_HEALTH * PIPELINED_REQUESTS_MAX)
        received = await client.answers(PIPELINED_REQUESTS_MAX)
        assert received.count(b"HTTP/1.1 200 ") == PIPELINED_REQUESTS_MAX
        client.send(GET_HEALTH * (PIPELINED_REQUESTS_MAX + 2))
        assert (await client.end()).count(b"HTTP/1.1 200 ") <= 1
        await gateway.assert_clean()


async def test_endless_trailers_are_not_kept(tmp_path, vendor):
    async with attacking(tmp_path, vendor) as (gateway, _), connected(gateway) as client:
        client.send(client.head("transfer-encoding: chunked"), b"0\r\n", b"a: b\r\n" * 10_000)
        await client.answers(1)  # 401
        await client.writer.drain()
        (connection,) = (one for one in gateway.server.server_state.connections if one.headers is not None)
        assert len(connection.headers) == 0


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"POST /api/llm/v1/mess",
        f"POST {PATH} HTTP/1.1\r\nhost: proxy\r\ncontent-length: 100000\r\n\r\n".encode(),
    ],
    ids=["nothing", "half a head", "a body that nobody reads"],
)
async def test_a_connection_without_a_request_ends_however_slowly_it_trickles(tmp_path, vendor, first):
    async with attacking(tmp_path, vendor, KEEP_ALIVE_S="1") as (gateway, _), connected(gateway) as client:
        started_s = time.monotonic()
        client.send(first)
        ended = asyncio.get_running_loop().create_task(client.end())
        while not ended.done() and time.monotonic() - started_s < 30:
            if first:
                client.send(b"a")
            await asyncio.wait({ended}, timeout=0.2)
        assert ended.done()
        assert 0.9 < time.monotonic() - started_s < 20


@pytest.mark.parametrize("headers", [(), ("connection: close",)], ids=["kept alive", "closing"])
@pytest.mark.parametrize("text_bytes", [50_000, 100_000, 6_000_000])
async def test_a_client_that_never_reads_is_let_go(tmp_path, vendor, text_bytes, headers):
    """Also what a whole answer left in the buffer, and a second request whose answer cannot begin."""
    answer = message_json(Message("m", "claude-sonnet-4-5-20250929", Content("x" * text_bytes), USAGE))
    vendor.script = lambda _: Script(headers=(JSON,), steps=(Send(answer),), framing=Framing.LENGTH)
    body = b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":[]}'
    env = {"CLIENT_STALL_TIMEOUT_S": "0.3", "KEEP_ALIVE_S": "1"}
    async with attacking(tmp_path, vendor, **env) as (gateway, client):
        token = client.token
        client.writer.transport.abort()
        await gateway.until(lambda: not gateway.server.server_state.connections)
        with closing(socket.socket()) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.connect(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
            await gateway.until(lambda: gateway.server.server_state.connections)
            for connection in gateway.server.server_state.connections:
                sending = connection.transport.get_extra_info("socket")
                sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
            request = Client(None, None, token).head(f"content-length: {len(body)}", *headers) + body
            deaf.sendall(request * 3)
            await gateway.until(lambda: vendor.requests_total > 0)
            await gateway.until(lambda: not gateway.server.server_state.connections)
        await gateway.assert_clean()


async def test_requests_of_a_client_that_does_not_read_its_answers_are_not_served(tmp_path, vendor):
    with closing(socket.socket()) as deaf:
        async with attacking(tmp_path, vendor) as (gateway, client):
            client.writer.transport.abort()
            await gateway.until(lambda: not gateway.server.server_state.connections)
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.connect(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
            await gateway.until(lambda: gateway.server.server_state.connections)
            (connection,) = gateway.server.server_state.connections
            sending = connection.transport.get_extra_info("socket")
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
            refused = client.head("content-length: 0", path="/api/llm/nothing")

            async def ask(times):
                expected = len(gateway.lines) + times
                deaf.sendall(refused * times)
                await gateway.until(lambda: len(gateway.lines) >= expected or connection.is_write_paused)

            while not connection.is_write_paused:
                await ask(10)
            served = len(gateway.lines)
            await ask(50)
            await asyncio.sleep(0.1)
            assert len(gateway.lines) == served
            deaf.setblocking(False)
            async with asyncio.timeout(60):
                while len(gateway.lines) < served + 50:
                    await asyncio.get_running_loop().sock_recv(deaf, 2**16)
            await gateway.assert_clean()


async def test_a_body_of_a_million_values_is_refused_unread(tmp_path, vendor):
    values = b",".join([b"{}"] * (VALUES_MAX // 2))
    body = b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":[%b]}' % values
    text = b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":["%b"]}' % (b"x " * VALUES_MAX)
    async with (
        running_gateway(tmp_path, upstream=vendor.url) as gateway,
        client_of(gateway, await gateway.new_token()) as client,
    ):
        refused = await client.post("/v1/messages", content=body)
        assert refused.status_code == 400
        assert "values" in refused.json()["error"]["message"]
        assert (await client.post("/v1/messages", content=text)).status_code == 200
        await gateway.assert_clean()


# --- vendors that lie ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_cannot_have_a_body_gets_none(tmp_path, vendor, status, stream):
    vendor.next(Script(status=status, framing=Framing.LENGTH, length_bytes=500))
    async with running_gateway(tmp_path, upstream=vendor.url) as gateway:
        answer, received = await post(gateway, stream=stream)
        assert answer.status_code == status
        assert received == b""
        assert "content-length" not in answer.headers
        await gateway.only_entry()


async def test_no_comment_is_written_into_a_json_answer_to_a_stream_request(tmp_path, vendor):
    body = message_json(MESSAGE)
    # The head must be there before the silence is over, on however busy a machine.
    vendor.next(Script(headers=(JSON,), steps=(Pause(1.5), Send(body))))
    async with running_gateway(tmp_path, upstream=vendor.url, env={"STREAM_SILENCE_S": "1"}) as gateway:
        _, received = await post(gateway, stream=True)
        assert received == body
        assert (await gateway.only_entry())["basis"] == "reported"


@pytest.mark.parametrize(
    ("coding", "sent"), [("br", b"what we cannot read" * 20), ("gzip", CORRUPT)], ids=["unknown", "corrupt"]
)
async def test_a_stream_that_could_not_be_decoded_never_ends_cleanly(tmp_path, vendor, coding, sent):
    """Its 200 went out early, without a coding, so that the client must get plain bytes or an error."""
    script = Script(headers=(SSE, ("content-encoding", coding)), before=(Pause(0.3),), steps=(Send(sent),))
    vendor.next(script)
    async with attacking(tmp_path, vendor, STREAM_SILENCE_S="0.05") as (gateway, client):
        body = b'{"model":"claude-sonnet-4-5","max_tokens":5,"stream":true,"messages":[]}'
        client.send(client.head("accept-encoding: gzip", f"content-length: {len(body)}"), body)
        received = await client.end()
        assert COMMENT in received
        assert not received.endswith(b"0\r\n\r\n")
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"]) == ("upstream_failed", "estimated")


async def test_a_compressed_error_is_unpacked_no_further_than_an_error_may_be_long(tmp_path, vendor):
    packed = gzip.compress(b"\0" * 100_000_000)
    bomb = Script(
        status=500,
        headers=(JSON, ("content-encoding", "gzip")),
        steps=(Send(packed),),
        framing=Framing.LENGTH,
    )
    started_s = time.process_time()
    assert len(gzip.decompress(packed)) == 100_000_000
    whole_s = time.process_time() - started_s
    async with running_gateway(tmp_path, upstream=vendor.url) as gateway:
        await post(gateway, stream=False)  # what only the first request costs
        vendor.next(bomb)
        started_s = time.process_time()
        answer, received = await post(gateway, stream=False)
        assert time.process_time() - started_s < whole_s / 2
        assert answer.status_code == 502  # what cannot be read cannot be passed on
        assert json.loads(received)["error"]["message"].endswith("an error that cannot be read.")
        await gateway.assert_clean()
        assert len(await gateway.entries()) == 2


async def test_what_a_vendor_names_makes_no_metric_of_its_own(tmp_path, vendor):
    usage = {"input_tokens": 1, "output_tokens": 1, "server_tool_use": {"made_up_requests": 3}}
    body = {"type": "message", "model": "claude-sonnet-4-5", "content": [], "stop_reason": "end_turn"}
    answer = json.dumps({**body, "usage": usage}).encode()
    vendor.next(Script(headers=(JSON,), steps=(Send(answer),), framing=Framing.LENGTH))
    async with running_gateway(tmp_path, upstream=vendor.url) as gateway:
        await post(gateway, stream=False)
        entry, *_ = await gateway.entries()
        assert "made_up_requests" in entry["usage"]
        exposition = gateway.service.telemetry.exposition()
        assert b"made_up" not in exposition
        assert b'unit="other"' in exposition


def test_a_log_line_for_people_cannot_be_given_a_field_or_an_escape_from_outside():
    line = _as_text({"status": 200, "operation": "GET /v1", "upstream_request": "x outcome=ok \x9b2J\n"})
    assert line == r'status=200 operation="GET /v1" upstream_request="x outcome=ok \u009b2J\n"'


def test_a_key_read_from_a_file_may_end_in_a_line_break():
    settings = Settings.from_env({"ANTHROPIC_API_KEY": "key\n", "ANTHROPIC_UPSTREAM_URL": " \n"})
    assert settings.vendors == {"ANTHROPIC_API_KEY": "key"}


# --- the end ------------------------------------------------------------------------------------------------


async def test_streams_cut_at_the_end_of_the_process_are_no_failures_of_ours(tmp_path, vendor):
    vendor.script = lambda _: stalls_after(5, usage=USAGE)
    async with attacking(tmp_path, vendor, DRAIN_STREAMS_S="0.2") as (gateway, client):
        body = b'{"model":"claude-sonnet-4-5","max_tokens":50,"stream":true,"messages":[]}'
        client.send(client.head(f"content-length: {len(body)}"), body)
        await client.reader.readuntil(b"message_start")
        gateway.server.should_exit = True
        assert not (await client.end()).endswith(b"0\r\n\r\n")
        await gateway.until(lambda: gateway.lines)
    assert [line["outcome"] for line in gateway.lines] == ["timed_out"]
    assert [defect for defect in gateway.defects if "Traceback" in defect] == []


async def test_a_service_whose_store_is_locked_stops_all_the_same(tmp_path, vendor):
    async with serving(tmp_path, upstream=vendor.url, env={"STORE_BUSY_TIMEOUT_S": "0.1"}) as server:
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            server.signal(signal.SIGTERM)
            assert await server.exit_status() == 0
        assert "Traceback" not in server.log()
