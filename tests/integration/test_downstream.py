"""The client's side of the wire: sizes, slowness, pipelining, and requests that are none."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from simulators.anthropic import ReportedUsage, hangs, stalls_after, streams
from simulators.script import Gate
from tests.support.gateway import client_of, messages_body, running_gateway

KIB = 1024


@asynccontextmanager
async def serving(tmp_path, vendor, **env):
    async with (
        running_gateway(tmp_path, upstream=vendor.url, env=env) as gateway,
        client_of(gateway, await gateway.new_token()) as client,
    ):
        yield gateway, client


class Wire:
    """A connection whose bytes the test writes itself."""

    def __init__(self, reader, writer, token):
        self.reader = reader
        self.writer = writer
        self.token = token

    def send(self, body=b"", *, method="POST", path="/api/llm/v1/messages", headers=(), length=None):
        lines = [f"{method} {path} HTTP/1.1", "host: proxy", f"x-api-key: {self.token}", *headers]
        if length is None and body:
            length = len(body)
        if length is not None:
            lines.append(f"content-length: {length}")
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def answer(self):
        """(status, body) of the next answer with a content-length; (None, rest) when there is none."""
        async with asyncio.timeout(60):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as error:
                return None, error.partial
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            return int(head.split()[1]), await self.reader.readexactly(int(fields[b"content-length"]))

    async def end(self):
        async with asyncio.timeout(60):
            return await self.reader.read()


@asynccontextmanager
async def wire(gateway, token=None):
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    try:
        yield Wire(reader, writer, token or await gateway.new_token())
    finally:
        writer.close()


def body_of(**more):
    return json.dumps(messages_body(**more)).encode()


@pytest.mark.parametrize("kib", [1, 63, 64, 65, 100, 500, 3_000])
async def test_bodies_of_any_size_go_up_unchanged_on_one_connection(tmp_path, vendor, kib):
    async with serving(tmp_path, vendor) as (gateway, client):
        for _ in range(3):
            answer = await client.post("/v1/messages", json=messages_body(system="x" * kib * KIB))
            assert answer.status_code == 200, answer.text
            assert vendor.requests[-1].body == answer.request.content
        await gateway.assert_clean()


async def test_a_body_above_its_bound_is_413_with_or_without_a_length(tmp_path, vendor):
    async with serving(tmp_path, vendor, BODY_BYTES_MAX=str(10 * KIB)) as (gateway, client):
        whole = json.dumps(messages_body(system="x" * 20 * KIB)).encode()

        async def pieces():
            for at in range(0, len(whole), KIB):
                yield whole[at : at + KIB]

        for content in (whole, pieces()):
            answer = await client.post("/v1/messages", content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["type"] == "request_too_large"
        assert (await client.post("/v1/messages", json=messages_body())).status_code == 200
        assert vendor.requests_total == 1
        await gateway.assert_clean()


async def test_a_body_that_comes_too_slowly_is_400(tmp_path, vendor):
    async with serving(tmp_path, vendor, BODY_TIMEOUT_S="0.1") as (gateway, _), wire(gateway) as client:
        client.send(b'{"model":', length=100)
        status, body = await client.answer()
        assert status == 400
        assert b"did not arrive within 0.1 seconds" in body
        assert vendor.requests_total == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"[]", b'"text"', b"\xff\xfe{}", b'{"model":"claude-haiku-4-5",}', b"[" * 100_000],
)
async def test_a_body_that_is_no_json_object_is_400(tmp_path, vendor, body):
    async with serving(tmp_path, vendor) as (gateway, client):
        answer = await client.post("/v1/messages", content=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        assert vendor.requests_total == 0
        await gateway.assert_clean()


async def test_a_compressed_request_is_400(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (_, client):
        answer = await client.post("/v1/messages", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
        assert answer.status_code == 400
        assert vendor.requests_total == 0


@pytest.mark.parametrize(
    "headers",
    [["x-long: " + "a" * 70 * KIB], [f"x-{number}: a" for number in range(250)]],
    ids=["too long", "too many"],
)
async def test_a_head_above_its_bounds_is_431_and_the_end_of_the_connection(tmp_path, vendor, headers):
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        client.send(body_of(), headers=headers)
        assert (await client.answer())[0] == 431
        assert await client.end() == b""
        assert vendor.requests_total == 0
        await gateway.assert_clean()


async def test_a_head_that_never_ends_is_431_before_it_fills_memory(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        client.writer.write(b"POST /api/llm/v1/messages HTTP/1.1\r\nhost: proxy\r\nx-long: ")
        client.writer.write(b"a" * 64 * KIB)
        assert (await client.answer())[0] == 431


async def test_many_requests_with_long_bodies_are_no_long_head(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        for _ in range(5):
            client.send(body_of(system="x" * 50 * KIB))
            assert (await client.answer())[0] == 200


async def test_pipelined_requests_are_answered_in_order(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        for number in range(5):
            client.send(body_of(metadata={"user_id": f"n{number}"}))
        answers = [await client.answer() for _ in range(5)]
        assert [status for status, _ in answers] == [200] * 5
        assert [told.tag for told in vendor.answers] == [f"n{number}" for number in range(5)]
        assert [json.loads(body)["id"] for _, body in answers] == [told.message_id for told in vendor.answers]
        await gateway.assert_clean()


async def test_a_long_head_behind_an_answer_is_not_told_inside_that_answer(tmp_path, vendor):
    gate = Gate()
    vendor.next(hangs(gate=gate, usage=ReportedUsage(input_tokens=5, output_tokens=3)))
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        client.send(body_of())
        await gate.reached()
        client.writer.write(b"GET / HTTP/1.1\r\nx-long: " + b"a" * 200 * KIB)
        with pytest.raises(ConnectionError):
            await client.end()
        gate.open()
        assert (await gateway.only_entry())["outcome"] == "client_left"


async def test_a_client_that_leaves_while_it_sends_costs_nothing(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        client.send(b'{"model":', length=100)
        await gateway.until(lambda: len(gateway.server.server_state.tasks) == 1)
        client.writer.close()
        await gateway.assert_clean()
        (line,) = gateway.lines
        assert (line["status"], line["outcome"]) == (499, "client_left")
        assert vendor.requests_total == 0
        assert await gateway.entries() == []


async def test_a_client_that_leaves_while_it_is_admitted_costs_nothing(tmp_path, vendor):
    async with serving(tmp_path, vendor, STORE_BUSY_TIMEOUT_S="30") as (gateway, _), wire(gateway) as client:
        with gateway.locked_store() as other:
            client.send(body_of())
            reservation = "SELECT COUNT(*) FROM reservations"
            await gateway.until(lambda: len(gateway.server.server_state.tasks) == 1)
            await gateway.until(lambda: gateway.service.store.writer._queue or _is_writing(gateway))
            client.writer.close()
            await gateway.until(lambda: not gateway.server.server_state.connections)
            other.rollback()
        entry = await gateway.only_entry()
        assert (entry["kind"], entry["outcome"], entry["cost_nanousd"]) == ("void", "not_sent", 0)
        assert await gateway.service.store.readers.row(reservation) == (1,)
        assert vendor.requests_total == 0


def _is_writing(gateway):
    return not gateway.service.store.writer._is_sleeping


@pytest.mark.parametrize(
    "target",
    ["*", "http://[", "/api/llm/v1/messages/../messages", "/api/llm//v1/messages", "/api/llm/v1/%6dessages"],
)
async def test_other_spellings_of_a_path_are_not_it(tmp_path, vendor, target):
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        client.send(body_of(), path=target)
        assert (await client.answer())[0] in (400, 404)
        assert vendor.requests_total == 0


@pytest.mark.parametrize("path", ["/api/llm/v1/realtime", "/api/llm/v1/models"])
async def test_a_websocket_is_refused_at_once_with_the_status_that_makes_agents_use_http(
    tmp_path, vendor, path
):
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        headers = [
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-key: eA==",
            "sec-websocket-version: 13",
        ]
        client.send(method="GET", path=path, headers=headers)
        status, body = await client.answer()
        assert status == 426
        assert b"use HTTP" in body
        assert vendor.requests_total == 0


async def test_a_request_that_is_already_refused_does_not_spoil_its_connection(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        good, client.token = client.token, "amp_unknown"
        client.send(body_of(system="x" * 300 * KIB))
        assert (await client.answer())[0] == 401
        client.token = good
        client.send(body_of())
        assert (await client.answer())[0] == 200
        await gateway.assert_clean()


async def test_old_clients_see_a_stream_end_with_the_connection(tmp_path, vendor):
    vendor.next(streams(text="Teal."))
    async with serving(tmp_path, vendor) as (gateway, _), wire(gateway) as client:
        body = body_of(stream=True)
        client.writer.write(
            b"POST /api/llm/v1/messages HTTP/1.0\r\nx-api-key: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (client.token.encode(), len(body), body)
        )
        received = await client.end()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"message_stop" in received
        assert (await gateway.only_entry())["outcome"] == "completed"


async def test_an_old_client_that_leaves_its_stream_is_no_failure_of_ours(tmp_path, vendor):
    """What is read on for the meter ends at its bound, when there is no socket any more that could be reset."""
    vendor.next(stalls_after(5))
    async with serving(tmp_path, vendor, DRAIN_AFTER_CLIENT_LEFT_S="0.05") as (gateway, _):
        async with wire(gateway) as client, asyncio.timeout(60):
            body = body_of(stream=True)
            client.writer.write(
                b"POST /api/llm/v1/messages HTTP/1.0\r\nx-api-key: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (client.token.encode(), len(body), body)
            )
            await client.reader.readuntil(b"content_block_delta")
        await gateway.until(lambda: gateway.lines)
        assert (await gateway.only_entry())["outcome"] == "client_left"
