"""How exchanges end, beyond what every client does by what every vendor does (tests/matrix): the bounds of draining,
what errors say, vendors that are silent at first, answers that the meter cannot read."""

import asyncio
import gzip
import re
from contextlib import asynccontextmanager

import httpx
import orjson
import pytest

from proxy.decoding import DECODED_BYTES_MAX
from routes.anthropic_meter import PICTURE_TOKENS_USUAL
from simulators.anthropic import (
    ReportedUsage,
    answers,
    drops,
    fails,
    hangs,
    stalls_after,
    streams,
)
from simulators.anthropic_messages import ERROR_TYPES, Content, Message, error_json, message_events
from simulators.script import Gate, Script, Send, WaitFor
from tests.support.gateway import client_of, messages_body, running_gateway

USAGE = ReportedUsage(input_tokens=1_000, output_tokens=60)
EXACT_NANOUSD = 1_000 * 3_000 + 60 * 15_000
"""What USAGE costs on claude-sonnet-4-5, at 3 and 15 USD per million."""
BODY = messages_body(stream=True, max_tokens=1_000, system="word " * 2_000)
HOLD_NANOUSD = -(-len(httpx.Request("POST", "http://x", json=BODY).content) // 2) * 3_000 + 1_000 * 15_000


@asynccontextmanager
async def serving(tmp_path, vendor, **env):
    """A gateway, and a client of its own."""
    upstream = vendor if isinstance(vendor, str) else vendor.url
    async with (
        running_gateway(
            tmp_path, upstream=upstream, env={name.upper(): text for name, text in env.items()}
        ) as gateway,
        client_of(gateway, await gateway.new_token()) as client,
    ):
        yield gateway, client


def asked(*, stream):
    return BODY if stream else {**BODY, "stream": False}


async def post(client, *, stream=True, **headers):
    return await client.post("/v1/messages", json=asked(stream=stream), headers=headers)


@asynccontextmanager
async def leaving_after(client, gate, *, stream=True):
    """A client that leaves once the vendor stands at the gate."""
    pending = asyncio.get_running_loop().create_task(post(client, stream=stream))
    await gate.reached()
    pending.cancel()
    await asyncio.wait({pending})
    yield


def told(entry):
    return entry["outcome"], entry["basis"]


def assert_estimated(entry, outcome):
    assert told(entry) == (outcome, "estimated")
    assert 0 < entry["cost_nanousd"] <= HOLD_NANOUSD


async def test_a_lost_answer_about_a_picture_is_estimated_as_about_a_picture(tmp_path, vendor):
    """A screenshot of megabytes is some thousand tokens: by its length it would cost its user dollars."""
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 3_000_000}
    messages = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    vendor.next(drops())
    async with serving(tmp_path, vendor) as (gateway, client):
        answer = await client.post("/v1/messages", json=messages_body(messages=messages))
        assert answer.status_code == 502
        entry = await gateway.only_entry()
        assert told(entry) == ("upstream_failed", "estimated")
        assert PICTURE_TOKENS_USUAL < entry["input_tokens"] < PICTURE_TOKENS_USUAL + 200


async def test_a_tool_call_with_half_a_surrogate_pair_is_booked_as_reported(tmp_path, vendor):
    """What a model writes into the arguments of a call, the vendor repeats; half a pair is JSON all the same."""
    body = (
        b'{"type":"message","model":"claude-sonnet-4-5","content":[{"type":"tool_use","id":"toolu_1","name":"n",'
        b'"input":{"text":"half \\ud83d"}}],"stop_reason":"tool_use","usage":{"input_tokens":1000,"output_tokens":60}}'
    )
    vendor.next(answers(body))
    async with serving(tmp_path, vendor) as (gateway, client):
        assert (await post(client, stream=False)).content == body
        entry = await gateway.only_entry()
        assert told(entry) == ("completed", "reported")
        assert entry["cost_nanousd"] == EXACT_NANOUSD


# --- the client leaves ----------------------------------------------------------------------------------


def _stalls(*, gate, **more):
    return stalls_after(5, gate=gate, **more)


@pytest.mark.parametrize("when", ["before the first byte", "in the middle"])
@pytest.mark.parametrize(
    "bounds", [{"drains_max": "0"}, {"drain_after_client_left_s": "0.1"}, {"drain_after_client_left_s": "0"}]
)
async def test_beyond_the_bounds_of_draining_the_vendor_is_left_and_an_estimate_booked(
    tmp_path, vendor, bounds, when
):
    gate = Gate()
    vendor.next((hangs if when == "before the first byte" else _stalls)(gate=gate, usage=USAGE))
    async with serving(tmp_path, vendor, **bounds) as (gateway, client):
        async with leaving_after(client, gate):
            await vendor.until(lambda: vendor.client_gone_total == 1)
        assert_estimated(await gateway.only_entry(), "client_left")


async def test_only_so_many_answers_are_drained_at_once(tmp_path, vendor):
    first, second = Gate(), Gate()
    vendor.next(_stalls(gate=first, usage=USAGE), _stalls(gate=second, usage=USAGE))
    async with serving(tmp_path, vendor, drains_max="1") as (gateway, client):
        async with leaving_after(client, first):
            await gateway.until(lambda: gateway.metric("automna_drains") == 1)
            async with leaving_after(client, second):
                await vendor.until(lambda: vendor.client_gone_total == 1)
            first.open()
        await gateway.assert_clean()
        entries = await gateway.entries()
    assert sorted(entry["basis"] for entry in entries) == ["estimated", "reported"]
    assert {entry["outcome"] for entry in entries} == {"client_left"}


async def test_a_client_that_leaves_while_it_is_being_refused_is_not_drained_for(tmp_path, vendor):
    gate = Gate()
    vendor.next(fails(401, before=(WaitFor(gate),)))
    async with serving(tmp_path, vendor, settle_wait_s="30", store_busy_timeout_s="0.1") as (gateway, client):
        pending = asyncio.get_running_loop().create_task(post(client))
        await gate.reached()
        with gateway.locked_store() as other:
            gate.open()
            await gateway.until(lambda: not gateway.service.engine.open_exchanges)
            pending.cancel()
            await asyncio.wait({pending})
            other.rollback()
        assert (await gateway.only_entry())["cost_nanousd"] == 0


async def test_every_request_of_a_connection_is_watched(tmp_path, vendor):
    gates = [Gate(), Gate()]
    for gate in gates:
        vendor.next(streams(usage=USAGE), _stalls(gate=gate, usage=USAGE))
    async with serving(tmp_path, vendor) as (gateway, client):
        for gate in gates:
            assert (await post(client)).status_code == 200
            async with leaving_after(client, gate):
                await gateway.until(lambda: gateway.metric("automna_drains") == 1)
                gate.open()
            await gateway.quiet()
        await gateway.assert_clean()
        ends = [entry["outcome"] for entry in await gateway.entries()]
        assert ends == ["completed", "client_left"] * 2


async def test_a_connection_that_the_vendor_closed_while_unused_is_replaced(tmp_path, vendor):
    async with serving(tmp_path, vendor) as (gateway, client):
        for _ in range(3):
            assert (await post(client)).status_code == 200
            vendor.close_idle_connections()
            await vendor.until(lambda: not vendor.connections_open)
        await gateway.assert_clean()
        assert {entry["outcome"] for entry in await gateway.entries()} == {"completed"}


# --- the vendor answers with an error ---------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 413, 422, 500, 503, 529])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_an_error_about_the_request_passes_untouched_and_costs_nothing(
    tmp_path, vendor, status, coding
):
    vendor.next(
        fails(status, message="Simulated \u2713", headers={"x-should-retry": "true"}, gzip=coding == "gzip")
    )
    async with serving(tmp_path, vendor) as (gateway, client):
        answer = await post(client, **{"accept-encoding": coding})
        kind = ERROR_TYPES.get(status, "api_error")
        assert answer.status_code == status
        assert answer.content == error_json(kind, "Simulated \u2713", answer.headers["request-id"])
        assert answer.headers.get("content-encoding", "identity") == coding
        assert answer.headers["x-should-retry"] == "true"
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"]) == ("upstream_failed", "reported")
        assert (entry["cost_nanousd"], entry["upstream_status"]) == (0, status)


ACCOUNT = [
    (401, "invalid x-api-key", 503),
    (403, "Your account does not have access", 503),
    (402, "Payment required", 503),
    (400, "Your credit balance is too low to access the Anthropic API.", 503),
    (429, "This would exceed your organization's rate limit", 429),
]


@pytest.mark.parametrize(("status", "words", "becomes"), ACCOUNT)
@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_an_error_about_our_account_is_not_the_agents_and_raises_an_alarm(
    tmp_path, vendor, status, words, becomes, coding
):
    vendor.next(fails(status, message=words, gzip=coding == "gzip", headers={"retry-after": "7"}))
    async with serving(tmp_path, vendor) as (gateway, client):
        answer = await post(client, **{"accept-encoding": coding})
        assert answer.status_code == becomes
        assert answer.json()["type"] == "error"
        assert words not in answer.text
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "x-should-retry" not in answer.headers
        labels = {"surface": "anthropic", "status": str(status)}
        assert gateway.metric("automna_upstream_account_alarms_total", **labels) == 1
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["cost_nanousd"]) == ("upstream_failed", 0)


async def test_a_very_long_error_is_not_held_in_memory_and_not_ended_cleanly(tmp_path, vendor):
    vendor.next(answers(b"x" * 5_000_000, status=500))
    async with serving(tmp_path, vendor) as (gateway, client):
        with pytest.raises(httpx.RemoteProtocolError):
            await post(client)
        assert (await gateway.only_entry())["cost_nanousd"] == 0


# --- a stream whose vendor is silent at first ---------------------------------------------------------------


@asynccontextmanager
async def after_comments(tmp_path, vendor, gate, **headers):
    """A stream that got its 200 and comments while the vendor says nothing; yields what follows them."""
    async with (
        serving(tmp_path, vendor, stream_silence_s="0.05") as (gateway, client),
        client.stream("POST", "/v1/messages", json=BODY, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        pieces, received = answer.aiter_raw(), b""
        while received.count(b": waiting\n\n") < 3:
            received += await anext(pieces)

        async def rest():
            found = received
            async for piece in pieces:
                found += piece
            return re.sub(rb"^(: waiting\n\n)+", b"", found)

        gate.open()
        yield gateway, answer, rest


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_a_silent_stream_gets_its_200_and_comments_and_then_the_stream(tmp_path, vendor, coding):
    gate = Gate()
    vendor.next(hangs(gate=gate, usage=USAGE, text="Teal.", gzip=coding == "gzip"))
    headers = {"accept-encoding": coding}
    async with after_comments(tmp_path, vendor, gate, **headers) as (gateway, answer, rest):
        received = await rest()
        assert "content-encoding" not in answer.headers
        assert received.startswith(b"event: message_start\n")
        assert received.endswith(b'data: {"type":"message_stop"               }\n\n')
        entry = await gateway.only_entry()
        assert told(entry) == ("completed", "reported")
        assert entry["cost_nanousd"] == EXACT_NANOUSD


async def test_a_stream_that_falls_silent_after_its_head_gets_comments_too(tmp_path, vendor):
    gate = Gate()
    vendor.next(stalls_after(0, gate=gate, usage=USAGE))
    async with after_comments(tmp_path, vendor, gate) as (gateway, answer, rest):
        assert (await rest()).startswith(b"event: message_start\n")
        assert answer.headers["request-id"].startswith("req_011Sim")
        assert told(await gateway.only_entry()) == ("completed", "reported")


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (lambda **more: fails(529, message="Overloaded", **more), "overloaded_error"),
        (lambda **more: fails(529, message="Overloaded", gzip=True, **more), "overloaded_error"),
        (lambda **more: fails(400, message="No such beta", **more), "invalid_request_error"),
        (lambda **more: fails(401, message="invalid x-api-key", **more), "api_error"),
        (lambda **more: fails(429, message="Slow down", **more), "rate_limit_error"),
    ],
)
async def test_an_error_after_the_comments_is_told_inside_the_stream(tmp_path, vendor, behaviour, kind):
    gate = Gate()
    vendor.next(behaviour(before=(WaitFor(gate),)))
    async with after_comments(tmp_path, vendor, gate, **{"accept-encoding": "gzip"}) as (gateway, _, rest):
        received = await rest()
        assert received.startswith(b'event: error\ndata: {"type":"error"')
        assert f'"type":"{kind}"'.encode() in received
        assert (await gateway.only_entry())["cost_nanousd"] == 0


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_an_answer_without_a_stream_after_the_comments_is_told_as_an_error_and_booked(
    tmp_path, vendor, coding
):
    """Raw JSON in a stream is no event to any SDK: the caller would take it for an empty answer."""
    gate = Gate()
    message = {"type": "message", "model": BODY["model"], "stop_reason": "end_turn"}
    body = orjson.dumps({**message, "usage": USAGE.in_message()})
    body = gzip.compress(body) if coding == "gzip" else body
    headers = (("content-type", "application/json"), ("content-encoding", coding))
    vendor.next(Script(headers=headers, before=(WaitFor(gate),), steps=(Send(body),)))
    async with after_comments(tmp_path, vendor, gate, **{"accept-encoding": coding}) as (gateway, _, rest):
        received = await rest()
        assert received.startswith(b'event: error\ndata: {"type":"error","error":{"type":"api_error"')
        assert received.endswith(b"}\n\n")
        assert b"usage" not in received
        entry = await gateway.only_entry()
        assert told(entry) == ("upstream_failed", "reported")
        assert entry["cost_nanousd"] == EXACT_NANOUSD


@pytest.mark.parametrize("is_reset", [True, False])
async def test_a_vendor_that_hangs_up_after_the_comments_is_told_inside_the_stream(
    tmp_path, vendor, is_reset
):
    gate = Gate()
    (end,) = drops(is_reset=is_reset).before
    vendor.next(fails(500, before=(WaitFor(gate), end)))
    async with after_comments(tmp_path, vendor, gate) as (gateway, _, rest):
        assert b'"type":"api_error"' in await rest()
        assert_estimated(await gateway.only_entry(), "upstream_failed")


async def test_a_client_that_leaves_during_the_comments_is_drained_for(tmp_path, vendor):
    gate = Gate()
    vendor.next(hangs(gate=gate, usage=USAGE))
    async with serving(tmp_path, vendor, stream_silence_s="0.05") as (gateway, client):
        async with client.stream("POST", "/v1/messages", json=BODY) as answer:
            assert await anext(answer.aiter_raw()) == b": waiting\n\n"
        await gateway.until(lambda: gateway.metric("automna_drains") == 1)
        gate.open()
        entry = await gateway.only_entry()
        assert told(entry) == ("client_left", "reported")
        assert entry["cost_nanousd"] == EXACT_NANOUSD


async def test_an_unstreamed_request_waits_without_comments(tmp_path, vendor):
    gate = Gate()
    vendor.next(hangs(gate=gate, usage=USAGE))
    async with serving(tmp_path, vendor, stream_silence_s="0.05") as (gateway, client):
        pending = asyncio.get_running_loop().create_task(post(client, stream=False))
        await gate.reached()
        await asyncio.wait({pending}, timeout=0.2)
        gate.open()
        assert (await pending).json()["usage"]["output_tokens"] == 60
        await gateway.only_entry()


# --- answers that the meter cannot read -------------------------------------------------------------------


async def test_a_stream_in_a_coding_that_nobody_asked_for_passes_and_is_estimated(tmp_path, vendor):
    body = b"not really brotli" * 10
    vendor.next(answers(body, headers=(("content-encoding", "br"),)))
    async with serving(tmp_path, vendor) as (gateway, client):
        async with client.stream("POST", "/v1/messages", json=BODY) as answer:
            assert b"".join([piece async for piece in answer.aiter_raw()]) == body
        assert_estimated(await gateway.only_entry(), "completed")


async def test_a_gzip_answer_with_broken_bytes_passes_and_is_estimated(tmp_path, vendor):
    body = bytearray(gzip.compress(b"event: ping\ndata: {}\n\n" * 50))
    body[30] ^= 0xFF
    vendor.next(answers(bytes(body), headers=(("content-encoding", "gzip"),)))
    async with serving(tmp_path, vendor) as (gateway, client):
        async with client.stream("POST", "/v1/messages", json=BODY) as answer:
            assert b"".join([piece async for piece in answer.aiter_raw()]) == bytes(body)
        assert_estimated(await gateway.only_entry(), "completed")


async def test_a_gzip_stream_that_unpacks_beyond_the_bound_passes_and_is_estimated(tmp_path, vendor):
    """What ends it says exactly what it used; the meter does not look so far."""
    message = Message("msg_1", BODY["model"], Content("Teal."), USAGE, "end_turn")
    start, *events = message_events(message)
    filler = [b"data: " + b" " * 1_000_000 + b"\n\n"] * (DECODED_BYTES_MAX // 1_000_000 + 1)
    body = gzip.compress(b"".join([start, *filler, *events]), compresslevel=1)
    headers = (("content-type", "text/event-stream"), ("content-encoding", "gzip"))
    vendor.next(Script(headers=headers, steps=(Send(body),)))
    async with serving(tmp_path, vendor) as (gateway, client):
        async with client.stream("POST", "/v1/messages", json=BODY) as answer:
            assert b"".join([piece async for piece in answer.aiter_raw()]) == body
        entry = await gateway.only_entry()
        assert_estimated(entry, "completed")
        assert entry["cost_nanousd"] >= 1_000 * 3_000, "below what the vendor had reported at its beginning"


async def test_a_whole_answer_without_usage_passes_and_is_estimated(tmp_path, vendor):
    vendor.next(answers(b'{"type":"message","content":[]}'))
    async with serving(tmp_path, vendor) as (gateway, client):
        assert (await post(client, stream=False)).content == b'{"type":"message","content":[]}'
        assert_estimated(await gateway.only_entry(), "completed")


async def test_a_vendors_redirect_is_not_passed_on(tmp_path, vendor):
    """A client that followed it would carry its gateway token to wherever the vendor points."""
    vendor.next(answers(b"", status=307))
    async with running_gateway(tmp_path, upstream=vendor.url) as gateway:
        async with client_of(gateway, await gateway.new_token()) as client:
            answer = await client.post("/v1/messages", json=messages_body(), follow_redirects=False)
        assert (answer.status_code, "location" in answer.headers) == (502, False)
        entry = await gateway.only_entry()
        assert (entry["cost_nanousd"], entry["upstream_status"]) == (0, 307)
