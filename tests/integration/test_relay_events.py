"""Each event is passed on when it comes; only the end waits, for the settle to be durable and not for long."""

import asyncio
import sqlite3
import zlib
from contextlib import asynccontextmanager, closing

import pytest

from simulators.anthropic import ReportedUsage, streams
from simulators.anthropic_messages import Content, Message, message_events, message_json
from simulators.script import Framing, Gate, Script, Send, WaitFor
from tests.support.gateway import client_of, messages_body, running_gateway

USAGE = ReportedUsage(input_tokens=20, output_tokens=7)
MESSAGE = Message("msg_1", "claude-sonnet-4-5-20250929", Content("Teal and ochre.", deltas=5), USAGE)
EVENTS = message_events(MESSAGE)
SSE = ("content-type", "text/event-stream; charset=utf-8")
MIB = 1024 * 1024


class Reader:
    """Reads an answer as far as it is told."""

    def __init__(self, answer):
        self.answer = answer
        self.received = b""
        self._pieces = answer.aiter_bytes()

    async def until(self, expected: bytes):
        """Until exactly `expected` is there in all; TimeoutError when it is held back."""
        async with asyncio.timeout(60):
            while len(self.received) < len(expected):
                self.received += await anext(self._pieces)
        assert self.received == expected

    async def rest(self) -> bytes:
        async with asyncio.timeout(60):
            self.received += b"".join([piece async for piece in self._pieces])
        return self.received


@asynccontextmanager
async def reading(gateway, *, stream=True, **headers):
    async with (
        client_of(gateway, await gateway.new_token()) as client,
        client.stream("POST", "/v1/messages", json=messages_body(stream=stream), headers=headers) as answer,
    ):
        yield Reader(answer)


def gated(pieces, *headers):
    """An answer that stops after each piece until its gate opens."""
    gates = [Gate() for _ in pieces]
    steps = [step for piece, gate in zip(pieces, gates, strict=True) for step in (Send(piece), WaitFor(gate))]
    return gates, Script(headers=headers, steps=tuple(steps))


def compressed(pieces):
    encoder = zlib.compressobj(wbits=31)
    *most, last = pieces
    flushed = [encoder.compress(piece) + encoder.flush(zlib.Z_SYNC_FLUSH) for piece in most]
    return [*flushed, encoder.compress(last) + encoder.flush(zlib.Z_FINISH)]


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_each_event_arrives_before_the_vendor_sends_the_next(tmp_path, vendor, coding):
    pieces = EVENTS if coding == "identity" else compressed(EVENTS)
    gates, script = gated(pieces, SSE, *([("content-encoding", "gzip")] if coding == "gzip" else []))
    vendor.next(script)
    async with (
        running_gateway(tmp_path, upstream=vendor.url) as gateway,
        reading(gateway, **{"accept-encoding": coding}) as reader,
    ):
        for number, gate in enumerate(gates, 1):
            await reader.until(b"".join(EVENTS[:number]))
            gate.open()
        assert await reader.rest() == b"".join(EVENTS)
        assert (await gateway.only_entry())["basis"] == "reported"


@pytest.mark.parametrize("piece_bytes", [1, 13])
async def test_half_an_event_arrives_as_early_as_a_whole_one(tmp_path, vendor, piece_bytes):
    start = EVENTS[0]
    pieces = [start[at : at + piece_bytes] for at in range(0, 60, piece_bytes)]
    gates, script = gated(pieces, SSE)
    vendor.next(script)
    async with running_gateway(tmp_path, upstream=vendor.url) as gateway, reading(gateway) as reader:
        for number, gate in enumerate(gates, 1):
            await reader.until(b"".join(pieces[:number]))
            gate.open()


def state_of_only_reservation(database):
    """As another process sees it at this very moment."""
    with closing(sqlite3.connect(database.path)) as connection:
        ((state,),) = connection.execute("SELECT state FROM reservations")
        return state


def is_settle_queued(gateway):
    return any(exchange.settled is not None for exchange in gateway.service.engine._open)


@pytest.mark.parametrize("is_in_one_piece", [True, False])
async def test_the_terminator_waits_until_the_settle_is_durable(tmp_path, vendor, is_in_one_piece):
    *before, stop = EVENTS
    gate = Gate()
    end = (Send(before[-1] + stop),) if is_in_one_piece else (Send(before[-1]), Send(stop))
    first = b"".join(before[:-1])
    vendor.next(Script(headers=(SSE,), steps=(Send(first), WaitFor(gate), *end)))
    env = {"SETTLE_WAIT_S": "30", "STORE_BUSY_TIMEOUT_S": "0.1"}
    async with running_gateway(tmp_path, upstream=vendor.url, env=env) as gateway, reading(gateway) as reader:
        await reader.until(first)
        with gateway.locked_store() as other:
            gate.open()
            await reader.until(b"".join(before))
            await gateway.until(lambda: is_settle_queued(gateway))
            assert state_of_only_reservation(gateway.database) == "HELD"
            other.rollback()
        await reader.until(b"".join(EVENTS))
        assert state_of_only_reservation(gateway.database) == "SETTLED"
        await reader.rest()
        await gateway.only_entry()


async def test_the_last_bytes_of_an_unstreamed_answer_wait_until_the_settle_is_durable(tmp_path, vendor):
    body, gate = message_json(MESSAGE), Gate()
    steps = (Send(body[:-10]), WaitFor(gate), Send(body[-10:]))
    vendor.next(Script(headers=(("content-type", "application/json"),), steps=steps, framing=Framing.LENGTH))
    env = {"SETTLE_WAIT_S": "30", "STORE_BUSY_TIMEOUT_S": "0.1"}
    async with (
        running_gateway(tmp_path, upstream=vendor.url, env=env) as gateway,
        reading(gateway, stream=False) as reader,
    ):
        await reader.until(body[:-10])
        with gateway.locked_store() as other:
            gate.open()
            await gateway.until(lambda: is_settle_queued(gateway))
            assert state_of_only_reservation(gateway.database) == "HELD"
            other.rollback()
        assert await reader.rest() == body
        assert state_of_only_reservation(gateway.database) == "SETTLED"
        await gateway.only_entry()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_store_in_trouble_delays_the_end_of_an_answer_by_its_bound_and_no_more(
    tmp_path, vendor, stream
):
    gate = Gate()
    script = streams(
        usage=USAGE, text="Teal.", **({"stalls_after": 3} if stream else {"stalls_after": 30}), gate=gate
    )
    vendor.next(script)
    env = {"SETTLE_WAIT_S": "2", "STORE_BUSY_TIMEOUT_S": "0.05"}
    async with (
        running_gateway(tmp_path, upstream=vendor.url, env=env) as gateway,
        reading(gateway, stream=stream) as reader,
    ):
        await gate.reached()
        loop = asyncio.get_running_loop()
        with gateway.locked_store() as other:
            began_s = loop.time()
            gate.open()
            await reader.rest()
            took_s = loop.time() - began_s
            assert state_of_only_reservation(gateway.database) == "HELD"
            other.rollback()
        assert 1.9 < took_s < 3.9  # one bound, not two
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"]) == ("completed", "reported")


async def sent_bytes_at_rest(vendor):
    """What the vendor could send before the client's slowness reached it."""
    sent = -1
    while vendor.exchanges[0].sent_bytes != sent:
        sent = vendor.exchanges[0].sent_bytes
        await asyncio.sleep(0.1)  # rest is the absence of an event: only time shows it
    return sent


async def test_a_client_that_does_not_read_holds_the_vendor_back(tmp_path, vendor):
    total = 40 * MIB
    vendor.next(streams(text_bytes=total, events=2_000, pace_s=1e-9))
    async with running_gateway(tmp_path, upstream=vendor.url) as gateway:
        async with reading(gateway) as reader:
            await gateway.until(lambda: vendor.exchanges[0].sent_bytes > MIB)
            assert await sent_bytes_at_rest(vendor) < total / 2
            assert len(await reader.rest()) > total
        await gateway.only_entry()


async def test_a_client_that_takes_nothing_for_too_long_has_left(tmp_path, vendor):
    vendor.next(streams(text_bytes=40 * MIB, events=2_000, usage=USAGE, pace_s=1e-9))
    env = {"CLIENT_STALL_TIMEOUT_S": "0.2"}
    async with running_gateway(tmp_path, upstream=vendor.url, env=env) as gateway, reading(gateway):
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"], entry["output_tokens"]) == ("client_left", "reported", 7)
