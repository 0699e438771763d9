"""Streams whose caller loses access meanwhile: ended within about a second, as one that nobody pays for any more."""

import asyncio
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from metering.errors import Reason, Refused
from metering.sse import EventCutter, data_of
from proxy.relay import FINISH_EVENT_S
from simulators.anthropic import ReportedUsage, stalls_after, streams
from simulators.anthropic_messages import Content, Message, message_events
from simulators.openai import OpenAISimulator
from simulators.openai import stalls_after as openai_stalls_after
from simulators.script import Gate, Script, Send, WaitFor
from tests.support.gateway import DatedClock, client_of, messages_body, running_gateway
from tests.support.openai import chat_body, openai_client_of, serving_openai

BODY = messages_body(stream=True, max_tokens=1_000)
WITHIN_S = 30.0
"""Hearing of it takes a quarter of a second, an expiry half a one; tests that run beside others have more."""
EVENTS = message_events(
    Message(
        "msg_1",
        "claude-sonnet-4-5",
        Content("Teal is a colour."),
        ReportedUsage(input_tokens=10, output_tokens=9),
    )
)
STREAM = (("Content-Type", "text/event-stream"),)


@asynccontextmanager
async def serving(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    async with running_gateway(tmp_path, upstream=vendor.url, clock=clock) as gateway:
        expires_at_ms = clock.now_ms() + 3_600_000
        async with client_of(gateway, await gateway.new_token(expires_at_ms=expires_at_ms)) as client:
            yield gateway, client


async def disabled(gateway):
    await gateway.directory.disable("u1")


async def revoked(gateway):
    (token,) = await gateway.directory.tokens("u1")
    await gateway.directory.revoke(token.id)


async def expired(gateway):
    gateway.clock.advance(3_601)


every_loss = pytest.mark.parametrize("lose", [disabled, revoked, expired])


def asking(client, body=BODY):
    return asyncio.get_running_loop().create_task(client.post("/v1/messages", json=body))


async def soon(task, within_s=WITHIN_S):
    async with asyncio.timeout(within_s):
        return await task


def events_of(body):
    return [data_of(event) for event in EventCutter.events(body)]


def script(*steps):
    return Script(headers=STREAM, steps=steps)


async def assert_booked(gateway):
    """An estimate of what was seen; the vendor is not read on."""
    entry = await gateway.only_entry()
    assert (entry["outcome"], entry["basis"]) == ("access_lost", "estimated")
    assert entry["cost_nanousd"] > 0
    (line,) = gateway.lines
    assert line["reason"] in {"unauthenticated", "forbidden"}
    assert line["status"] == 200
    assert gateway.service.client.open_connections == 0


@every_loss
@pytest.mark.parametrize("shown", [1, 5])
async def test_a_stream_ends_with_the_vendors_error_event_and_what_was_seen_is_booked(
    tmp_path, vendor, lose, shown
):
    gate = Gate()
    vendor.next(stalls_after(shown, gate=gate))
    async with serving(tmp_path, vendor) as (gateway, client):
        stream = asking(client)
        await gate.reached()
        await gateway.until(lambda: gateway.metric("automna_open_streams") == 1)
        await lose(gateway)
        answer = await soon(stream)
        *events, last = events_of(answer.content)
        assert (answer.status_code, len(events)) == (200, shown)
        assert b'"type":"error"' in last
        assert any(word in last for word in (b"disabled", b"revoked", b"expired"))
        await assert_booked(gateway)
        gate.open()


async def test_an_event_that_has_begun_comes_to_its_end_first(tmp_path, vendor):
    first, second, third, *_ = EVENTS
    go_on, never = Gate(), Gate()
    rest = Send(second[20:] + third)
    vendor.next(script(Send(first + second[:20]), WaitFor(go_on), rest, WaitFor(never)))
    async with serving(tmp_path, vendor) as (gateway, client):
        stream = asking(client)
        await go_on.reached()
        await disabled(gateway)
        (exchange,) = await served(gateway)
        await gateway.until(lambda: exchange.access_lost is not None)
        go_on.open()
        *events, last = events_of((await soon(stream)).content)
        assert events == [data_of(first), data_of(second)]
        assert b'"type":"error"' in last
        await assert_booked(gateway)
        never.open()


async def test_an_event_whose_end_is_here_when_access_is_lost_is_passed_to_it(tmp_path, vendor):
    """In the same turn of the loop, before the task of the answer has read it."""
    *begun, last = EVENTS
    go_on = Gate()
    vendor.next(script(Send(b"".join(begun) + last[:20]), WaitFor(go_on), Send(last[20:])))
    async with serving(tmp_path, vendor) as (gateway, client):
        stream = asking(client)
        await go_on.reached()
        (exchange,) = await served(gateway)
        answer = exchange.on_access_lost.__self__._answer
        await gateway.until(lambda: answer.taker is not None)
        take = answer.taker

        def taker(chunk):
            is_taken = take(chunk)
            if not is_taken:
                exchange.lose_access(Refused(Reason.FORBIDDEN, "This user is disabled."))
            return is_taken

        answer.taker = taker
        go_on.open()
        assert (await soon(stream)).content == b"".join(EVENTS)
        assert (await gateway.only_entry())["outcome"] == "completed"


async def served(gateway):
    """The exchanges under way."""
    await gateway.until(lambda: gateway.service.engine.open_exchanges)
    return list(gateway.service.engine._open)


async def test_an_event_that_does_not_end_is_broken_off(tmp_path, vendor):
    first, second, *_ = EVENTS
    gate = Gate()
    vendor.next(script(Send(first + second[:20]), WaitFor(gate)))
    async with serving(tmp_path, vendor) as (gateway, client):
        stream = asking(client)
        await gate.reached()
        await disabled(gateway)
        with pytest.raises(httpx.RemoteProtocolError):
            await soon(stream, WITHIN_S + FINISH_EVENT_S)
        await assert_booked(gateway)
        gate.open()


async def test_a_compressed_stream_is_broken_off(tmp_path, vendor):
    gate = Gate()
    vendor.next(stalls_after(5, gate=gate, gzip=True))
    async with serving(tmp_path, vendor) as (gateway, client):
        stream = asking(client)
        await gate.reached()
        await disabled(gateway)
        with pytest.raises(httpx.RemoteProtocolError):
            await soon(stream, WITHIN_S + FINISH_EVENT_S)
        await assert_booked(gateway)
        gate.open()


async def test_a_client_that_takes_nothing_does_not_hold_it_up(tmp_path, vendor):
    vendor.next(streams(text="x" * 8_000_000, events=400))
    async with serving(tmp_path, vendor) as (gateway, client):
        async with client.stream("POST", "/v1/messages", json={**BODY, "max_tokens": 64_000}) as answer:
            (exchange,) = await served(gateway)
            await gateway.until(lambda: exchange.connection.is_write_paused)
            await disabled(gateway)
            await gateway.until(lambda: not gateway.service.engine.open_exchanges, WITHIN_S + FINISH_EVENT_S)
            with suppress(httpx.HTTPError):
                await answer.aread()
        entry = await gateway.only_entry()
        assert entry["outcome"] == "access_lost"


async def test_who_loses_access_before_the_answer_hears_so_when_it_comes(tmp_path, vendor):
    gate = Gate()
    vendor.next(script(WaitFor(gate), Send(b"".join(EVENTS))))
    async with serving(tmp_path, vendor) as (gateway, client):
        stream = asking(client)
        await gate.reached()
        await disabled(gateway)
        (exchange,) = await served(gateway)
        await gateway.until(lambda: exchange.access_lost is not None)
        gate.open()
        (last,) = events_of((await soon(stream)).content)
        assert b"disabled" in last


async def test_an_answer_in_one_piece_may_finish(tmp_path, vendor):
    gate = Gate()
    vendor.next(stalls_after(0, gate=gate))
    async with serving(tmp_path, vendor) as (gateway, client):
        whole = asking(client, messages_body())
        await gate.reached()
        await disabled(gateway)
        await gateway.until(lambda: not gateway.service.engine._authenticator._cache)
        await gateway.service.engine._access.look()
        gate.open()
        assert (await soon(whole)).status_code == 200
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"]) == ("completed", "reported")


async def test_others_and_other_tokens_are_not_touched(tmp_path, vendor):
    gate = Gate()
    async with serving(tmp_path, vendor) as (gateway, _):
        other, neighbour = await gateway.new_token(), await gateway.new_token("u2")
        async with client_of(gateway, other) as same_user, client_of(gateway, neighbour) as other_user:
            vendor.next(stalls_after(5, gate=gate), stalls_after(5, gate=gate))
            tasks = [asking(client) for client in (same_user, other_user)]
            await gateway.until(lambda: gateway.metric("automna_open_streams") == 2)
            first, *_ = await gateway.directory.tokens("u1")
            await gateway.directory.revoke(first.id)
            seen = gateway.service.engine._authenticator
            await gateway.until(lambda: seen._seen_seq and seen._seen_seq > 0)
            await gateway.service.engine._access.look()
            gate.open()
            for task in tasks:
                assert b"message_stop" in (await soon(task, 10)).content
        assert {entry["outcome"] for entry in await gateway.entries()} == {"completed"}


async def test_what_nobody_reads_any_more_is_read_on_for_the_meter(tmp_path, vendor):
    gate = Gate()
    vendor.next(stalls_after(5, gate=gate))
    async with serving(tmp_path, vendor) as (gateway, client):
        stream = asking(client)
        await gate.reached()
        stream.cancel()
        await gateway.until(lambda: gateway.metric("automna_drains") == 1)
        await disabled(gateway)
        (exchange,) = await served(gateway)
        await gateway.until(lambda: exchange.access_lost is not None)
        gate.open()
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"]) == ("client_left", "reported")


async def test_openais_streams_end_in_its_own_words(tmp_path):
    gate = Gate()
    async with OpenAISimulator() as openai, serving_openai(tmp_path, openai) as gateway:
        openai.next(openai_stalls_after(5, gate=gate))
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            stream = asyncio.get_running_loop().create_task(
                client.post("/chat/completions", json=chat_body(stream=True))
            )
            await gate.reached()
            await disabled(gateway)
            *_, last = events_of((await soon(stream)).content)
            assert b'"error"' in last
            assert b"disabled" in last
            gate.open()
        (entry,) = await gateway.entries()
        assert entry["outcome"] == "access_lost"
