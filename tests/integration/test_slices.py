"""Budgets that hold without starving: streams held in slices, cut where the money ends, at most by the stated bound."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest

from metering.grants import grant
from metering.sse import EventCutter, data_of
from metering.terms import Cap, CapMeter, CapPeriod
from simulators.anthropic import AnthropicSimulator, ReportedUsage, streams
from simulators.anthropic_messages import Content, Message, event, message_events, message_start
from simulators.gemini import VENDOR_KEY as GEMINI_KEY
from simulators.gemini import GeminiSimulator
from simulators.gemini import streams as gemini_streams
from simulators.openai import OpenAISimulator
from simulators.openai import streams as openai_streams
from simulators.script import AtRandom, Gate, Script, Send, Stall, WaitFor
from simulators.text import filler_of_bytes
from tests.support.gateway import Gateway, client_of, messages_body, running_gateway
from tests.support.openai import chat_body, openai_client_of, serving_openai
from tests.support.process import serving as serving_process

CREDIT_NANOUSD = 100_000
SLICE_TOKENS = 100
SLICES = {"OUTPUT_SLICE_TOKENS": str(SLICE_TOKENS)}
LARGE = messages_body(stream=True, model="claude-opus-4-5", max_tokens=64_000)
"""At 5 and 25 USD per million tokens: all its output costs 1.6 USD."""
OUTPUT_NANOUSD = 25_000
INPUT_NANOUSD = -(-len(httpx.Request("POST", "http://x", json=LARGE).content) // 2) * 5_000
ONE_SLICE_NANOUSD = INPUT_NANOUSD + SLICE_TOKENS * OUTPUT_NANOUSD
BUDGET_WORDS = re.compile(r"Monthly usage limit reached.* Resets on \d+ \w+ \d{4}\.")
"""OpenClaw shows such a text as it is: a usage limit, at most 300 characters, and when it resets."""


@asynccontextmanager
async def serving(
    folder: Path, vendor: AnthropicSimulator, *, env: dict[str, str] | None = None, **plan: object
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    async with (
        running_gateway(folder, upstream=vendor.url, env={**SLICES, **(env or {})}, **plan) as gateway,
        client_of(gateway, await gateway.new_token()) as client,
    ):
        yield gateway, client


async def hold_of(gateway: Gateway) -> int:
    row = await gateway.service.store.readers.row("SELECT hold_nanousd FROM reservations ORDER BY id DESC")
    assert row is not None
    return int(str(row[0]))


def events_of(body: bytes) -> list[bytes]:
    return [data_of(event) for event in EventCutter.events(body)]


def spawned(coroutine):
    return asyncio.get_running_loop().create_task(coroutine)


# --- held in slices -------------------------------------------------------------------------------------


async def test_a_large_max_tokens_holds_a_slice_and_grows_ahead_of_what_is_shown(tmp_path, vendor):
    gate = Gate()
    vendor.next(streams(text=filler_of_bytes(1_500), events=60, stalls_after=30, gate=gate))
    async with (
        serving(tmp_path, vendor) as (gateway, client),
        client.stream("POST", "/v1/messages", json=LARGE) as answer,
    ):
        pieces = answer.aiter_bytes()
        body = await anext(pieces)
        await gate.reached()
        async with asyncio.timeout(60):
            while await hold_of(gateway) == ONE_SLICE_NANOUSD:
                await asyncio.sleep(0.005)
        shown_tokens = 1_500 * 30 // 54 // 3
        at_most = INPUT_NANOUSD + (shown_tokens + 2 * SLICE_TOKENS) * OUTPUT_NANOUSD
        assert await hold_of(gateway) <= at_most
        gate.open()
        async for piece in pieces:
            body += piece
        assert b"message_stop" in body
        settled, *_ = await gateway.entries()
        assert (settled["kind"], settled["basis"], settled["outcome"]) == ("settle", "reported", "completed")
        assert settled["output_tokens"] == 375
        await gateway.assert_clean()


async def test_a_short_stream_asks_for_no_further_slice(tmp_path, vendor):
    vendor.next(streams(text=filler_of_bytes(200), events=20))
    async with serving(tmp_path, vendor) as (gateway, client):
        await client.post("/v1/messages", json=LARGE)
        assert await hold_of(gateway) == ONE_SLICE_NANOUSD


HELD_WHOLE = [
    {"stream": False},
    {"model": "claude-opus-5"},
    {"thinking": {"type": "adaptive"}},
    {"thinking": {"type": "enabled", "budget_tokens": 63_900}},
    {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]},
]


@pytest.mark.parametrize("more", HELD_WHOLE, ids=str)
async def test_what_cannot_be_cut_or_seen_holds_all_it_may_write(tmp_path, vendor, more):
    async with serving(tmp_path, vendor) as (gateway, client):
        await client.post("/v1/messages", json={**LARGE, **more})
        assert await hold_of(gateway) > 64_000 * OUTPUT_NANOUSD


async def test_a_budget_of_thoughts_is_held_beside_the_slice(tmp_path, vendor):
    body = {**LARGE, "thinking": {"type": "enabled", "budget_tokens": 10_000}}
    async with serving(tmp_path, vendor) as (gateway, client):
        await client.post("/v1/messages", json=body)
        assert 10_100 * OUTPUT_NANOUSD < await hold_of(gateway) < 10_200 * OUTPUT_NANOUSD


# --- cut ------------------------------------------------------------------------------------------------

FOR_TWO_SLICES = -(-(INPUT_NANOUSD + 230 * OUTPUT_NANOUSD) // CREDIT_NANOUSD)


@pytest.mark.parametrize("split", [None, 1, 7, AtRandom(5, 600)], ids=str)
@pytest.mark.parametrize("gzip", [False, True])
async def test_where_no_slice_is_granted_the_stream_ends_with_an_error_event_and_what_was_used_is_booked(
    tmp_path, vendor, split, gzip
):
    vendor.next(streams(text=filler_of_bytes(40_000), events=800, stalls_after=60, split=split, gzip=gzip))
    async with serving(tmp_path, vendor, credits_per_month=FOR_TWO_SLICES) as (gateway, client):
        answer = await client.post("/v1/messages", json=LARGE)
        *shown, last = events_of(answer.content)
        assert answer.status_code == 200
        assert b'"type":"error"' in last
        assert BUDGET_WORDS.search(last.decode())
        assert all(data.startswith(b"{") and data.endswith(b"}") for data in map(bytes.strip, shown))
        assert not any(b"message_stop" in data for data in shown)
        text = b"".join(re.findall(rb'"text_delta","text":"([^"]*)"', answer.content))
        assert 100 * 3 <= len(text) <= 230 * 3 + 600, "no more than was granted, and the event it ended in"
        assert filler_of_bytes(40_000).encode().startswith(text)
        entry = await gateway.only_entry()
        assert (entry["outcome"], entry["basis"]) == ("budget_ended", "estimated")
        assert 0 < entry["cost_nanousd"] <= FOR_TWO_SLICES * CREDIT_NANOUSD
        await gateway.until(lambda: vendor.client_gone_total == 1)
        (line,) = gateway.lines
        assert line["reason"] == "budget_exhausted"
        refused = await client.post("/v1/messages", json=LARGE)
        assert refused.status_code == 402


async def test_a_stream_whose_client_has_left_is_cut_as_well(tmp_path, vendor):
    gate = Gate()
    text = filler_of_bytes(40_000)
    first, *others = message_events(
        Message("msg_1", "claude-opus-4-5", Content(text, deltas=800), ReportedUsage(30, 10_000))
    )
    steps = (Send(first), WaitFor(gate), *map(Send, others[:60]), Stall())
    headers = (("content-type", "text/event-stream"),)
    vendor.next(Script(200, headers, steps))
    async with serving(tmp_path, vendor, credits_per_month=FOR_TWO_SLICES) as (gateway, client):
        async with client.stream("POST", "/v1/messages", json=LARGE) as answer:
            await anext(answer.aiter_bytes())
        await gateway.until(lambda: gateway.metric("automna_drains") == 1)
        gate.open()
        entry = await gateway.only_entry()
        assert entry["outcome"] == "budget_ended"
        await gateway.until(lambda: vendor.client_gone_total == 1)


async def test_calls_of_tools_are_cut_though_they_show_nothing(tmp_path, vendor):
    start = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "tool_use", "name": "ping", "input": {}},
    }
    call = event("content_block_start", start) + event(
        "content_block_stop", {"type": "content_block_stop", "index": 0}
    )
    first = message_start(Message("msg_1", "claude-opus-4-5", Content(""), ReportedUsage(30, 60_000)))
    steps = (Send(first), *[Send(call)] * 20, Stall())
    vendor.next(Script(200, (("content-type", "text/event-stream"),), steps))
    async with serving(tmp_path, vendor, credits_per_month=FOR_TWO_SLICES) as (gateway, client):
        answer = await client.post("/v1/messages", json=LARGE)
        assert BUDGET_WORDS.search(events_of(answer.content)[-1].decode())
        assert answer.content.count(b'"tool_use"') <= 4
        assert (await gateway.only_entry())["outcome"] == "budget_ended"


async def test_thoughts_that_are_held_are_not_counted_again_where_they_show(tmp_path, vendor):
    body = {**LARGE, "thinking": {"type": "enabled", "budget_tokens": 10_000}}
    vendor.next(streams(thinking=filler_of_bytes(20_000), text=filler_of_bytes(200), events=400))
    for_thoughts = -(-(INPUT_NANOUSD + 10_200 * OUTPUT_NANOUSD) // CREDIT_NANOUSD)
    async with serving(tmp_path, vendor, credits_per_month=for_thoughts) as (gateway, client):
        answer = await client.post("/v1/messages", json=body)
        assert b"message_stop" in answer.content
        assert (await gateway.only_entry())["outcome"] == "completed"


async def test_a_store_in_trouble_cuts_a_stream_in_words_that_are_true(tmp_path, vendor):
    gate = Gate()
    first, *others = message_events(
        Message(
            "msg_1",
            "claude-opus-4-5",
            Content(filler_of_bytes(40_000), deltas=800),
            ReportedUsage(30, 10_000),
        )
    )
    steps = (Send(first), WaitFor(gate), *map(Send, others[:60]), Stall())
    vendor.next(Script(200, (("content-type", "text/event-stream"),), steps))
    env = {"STORE_BUSY_TIMEOUT_S": "0.1", "SETTLE_WAIT_S": "1"}
    async with serving(tmp_path, vendor, env=env) as (gateway, client):
        async with client.stream("POST", "/v1/messages", json=LARGE) as answer:
            pieces = answer.aiter_bytes()
            body = await anext(pieces)
            with gateway.locked_store() as other:
                gate.open()
                async for piece in pieces:
                    body += piece
                other.execute("ROLLBACK")
        assert b"the answer is cut short here" in body
        assert b"Nothing was sent" not in body
        assert (await gateway.only_entry())["outcome"] == "timed_out"


async def test_openai_tells_a_cut_in_its_own_shape(tmp_path):
    body = chat_body(model="gpt-4o", stream=True, max_completion_tokens=16_000)
    async with (
        OpenAISimulator() as vendor,
        serving_openai(tmp_path, vendor, env=SLICES, credits_per_month=40) as gateway,
    ):
        vendor.next(openai_streams(text=filler_of_bytes(40_000), events=800, stalls_after=60))
        async with openai_client_of(gateway, await gateway.new_token()) as client:
            answer = await client.post("/chat/completions", json=body)
        last = events_of(answer.content)[-1]
        assert last.startswith(b'{"error":')
        assert BUDGET_WORDS.search(last.decode())
        assert b"[DONE]" not in answer.content
        assert b'"usage":{' not in answer.content
        assert (await gateway.only_entry())["outcome"] == "budget_ended"


@pytest.mark.parametrize("alt", ["?alt=sse", ""])
async def test_gemini_is_cut_with_its_error_in_events_and_broken_off_in_an_array(tmp_path, alt):
    body = {
        "contents": [{"parts": [{"text": "Hello"}]}],
        "generationConfig": {"maxOutputTokens": 60_000, "thinkingConfig": {"thinkingBudget": 0}},
    }
    env = {**SLICES, "GEMINI_API_KEY": GEMINI_KEY}
    async with GeminiSimulator() as vendor:
        env["GEMINI_UPSTREAM_URL"] = vendor.url
        vendor.next(gemini_streams(text=filler_of_bytes(40_000), events=800, stalls_after=60))
        async with running_gateway(tmp_path, env=env, credits_per_month=8) as gateway:
            token = await gateway.new_token()
            url = f"{gateway.url}/api/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent{alt}"
            async with httpx.AsyncClient(trust_env=False, headers={"x-goog-api-key": token}) as client:
                received = b""
                try:
                    async with client.stream("POST", url, json=body) as answer:
                        async for piece in answer.aiter_bytes():
                            received += piece
                except httpx.RemoteProtocolError:
                    assert not alt
                else:
                    assert alt
                    assert BUDGET_WORDS.search(received.decode()[-400:])
            assert (await gateway.only_entry())["outcome"] == "budget_ended"


# --- many at once ---------------------------------------------------------------------------------------


async def overdrafts(store, allowance_nanousd):
    """Watch the account from outside until cancelled; every instant at which it stood above its allowance."""
    found = []
    with closing(sqlite3.connect(store)) as connection:
        while True:
            for spent, held in connection.execute("SELECT spent, held FROM accounts WHERE meter = 'money'"):
                if spent + held > allowance_nanousd:
                    found.append((spent, held))
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                return found


async def test_thirty_large_streams_run_on_five_dollars_as_their_real_cost_fits(tmp_path, vendor):
    gate = Gate()
    vendor.script = lambda _: streams(text=filler_of_bytes(16_000), events=400, stalls_after=390, gate=gate)
    async with serving(tmp_path, vendor, env={"OUTPUT_SLICE_TOKENS": "2000"}, credits_per_month=50_000) as (
        gateway,
        client,
    ):
        client._transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))
        watch = spawned(overdrafts(gateway.database.path, 5 * 10**9))
        asked = [spawned(client.post("/v1/messages", json=LARGE)) for _ in range(30)]
        await gateway.until(lambda: gateway.metric("automna_open_streams") == 30)
        gate.open()
        answers = await asyncio.gather(*asked)
        assert [answer.status_code for answer in answers] == [200] * 30
        assert all(b"message_stop" in answer.content for answer in answers)
        watch.cancel()
        assert await watch == []
        entries = await gateway.entries()
        assert {entry["outcome"] for entry in entries} == {"completed"}
        assert sum(entry["cost_nanousd"] for entry in entries) > 3 * 10**9
        await gateway.assert_clean()


CHEAP = messages_body(stream=True, max_tokens=4_000)
CHEAP_INPUT_NANOUSD = -(-len(httpx.Request("POST", "http://x", json=CHEAP).content) // 2) * 3_000
CHEAP_HOLD_NANOUSD = CHEAP_INPUT_NANOUSD + 100 * 15_000
"""Input and a slice, at 3 and 15 USD per million tokens."""


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2])
async def test_five_hundred_streams_with_money_for_twenty_never_exceed_it(tmp_path, vendor, workers):
    """Each writes 500 tokens, event by event. Twenty of them cost what the plan has: the others are refused, or cut."""
    real_nanousd = 30 * 3_000 + 500 * 15_000
    bought = 20 * real_nanousd // CREDIT_NANOUSD
    usage = ReportedUsage(input_tokens=30, output_tokens=500)
    vendor.script = lambda _: streams(text=filler_of_bytes(2_000), events=50, usage=usage, pace_s=0.005)
    async with serving_process(
        tmp_path, upstream=vendor.url, workers=workers, env=SLICES, credits_per_month=bought
    ) as server:
        watch = spawned(overdrafts(server.store, bought * CREDIT_NANOUSD))
        async with server.client(await server.new_token()) as client:
            client.timeout = httpx.Timeout(60)
            client._transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))
            answers = await asyncio.gather(*(client.post("/v1/messages", json=CHEAP) for _ in range(500)))
        whole = [answer for answer in answers if b"message_stop" in answer.content]
        cut = [
            answer for answer in answers if answer.status_code == 200 and b'"type":"error"' in answer.content
        ]
        refused = [answer for answer in answers if answer.status_code in {402, 429}]
        assert len(whole) + len(cut) + len(refused) == 500
        assert len(whole) <= 20
        assert cut
        watch.cancel()
        assert await watch == []
        await server.until_nothing_is_held()
        ((spent,),) = server.rows("SELECT spent FROM accounts WHERE meter = 'money'")
        assert spent <= bought * CREDIT_NANOUSD
        await server.assert_verified()


# --- a soft budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_streaming", [True, False])
async def test_on_a_soft_budget_what_runs_finishes_and_then_nothing_is_admitted(
    tmp_path, vendor, is_streaming
):
    vendor.next(streams(text=filler_of_bytes(6_000), events=100))
    async with serving(tmp_path, vendor, credits_per_month=FOR_TWO_SLICES, budget="soft") as (
        gateway,
        client,
    ):
        answer = await client.post("/v1/messages", json={**LARGE, "stream": is_streaming})
        assert answer.status_code == 200
        assert b"error" not in answer.content
        entries = await gateway.entries()
        assert sum(entry["cost_nanousd"] for entry in entries) > 1_500 * OUTPUT_NANOUSD
        assert {entry["basis"] for entry in entries} == {"reported"}
        assert (await client.post("/v1/messages", json=LARGE)).status_code == 402
        await gateway.assert_clean()


# --- caps -----------------------------------------------------------------------------------------------


async def test_on_a_soft_budget_a_stream_beyond_month_and_credit_is_booked_on_the_accounts_that_paid(
    tmp_path, vendor
):
    """A cap holds more and more of it, while neither the month nor the prepaid credit has anything left to hold."""
    vendor.next(streams(text=filler_of_bytes(40_000), events=800))
    cap = Cap(CapMeter.CREDITS, CapPeriod.MONTH, 1_000_000)
    async with running_gateway(
        tmp_path, upstream=vendor.url, env=SLICES, credits_per_month=FOR_TWO_SLICES, budget="soft"
    ) as gateway:
        token = await gateway.new_token(caps=(cap,))
        await grant(gateway.service.store, gateway.clock, "u1", 5 * CREDIT_NANOUSD, source="src_1")
        async with client_of(gateway, token) as client:
            answer = await client.post("/v1/messages", json=LARGE)
        assert b"message_stop" in answer.content
        await gateway.assert_clean()


@pytest.mark.parametrize("budget", ["hard", "soft"])
async def test_a_stream_is_cut_where_the_cap_of_its_token_ends_and_the_error_says_whose(
    tmp_path, vendor, budget
):
    cap = Cap(CapMeter.CREDITS, CapPeriod.DAY, FOR_TWO_SLICES)
    vendor.next(streams(text=filler_of_bytes(40_000), events=800, stalls_after=60))
    async with running_gateway(tmp_path, upstream=vendor.url, env=SLICES, budget=budget) as gateway:
        async with client_of(gateway, await gateway.new_token(caps=[cap])) as client:
            answer = await client.post("/v1/messages", json=LARGE)
        last = events_of(answer.content)[-1].decode()
        assert re.search(
            r"Daily usage limit reached \(\d+ of \d+ credits of this gateway token\)\. Resets on ", last
        )
        entry = await gateway.only_entry()
        assert entry["outcome"] == "budget_ended"
        assert entry["cost_nanousd"] <= FOR_TWO_SLICES * CREDIT_NANOUSD


# --- death ----------------------------------------------------------------------------------------------


@pytest.mark.heavy
async def test_killed_while_slices_are_granted_it_loses_nothing_and_nothing_stays_held(tmp_path, vendor):
    """At several numbers of streams that have been granted a further slice; some are waiting for theirs."""
    vendor.script = lambda _: streams(text=filler_of_bytes(6_000), events=150, pace_s=0.002, stalls_after=140)
    grown = "SELECT COUNT(*) FROM reservations WHERE state = 'HELD' AND hold_nanousd > ?1"
    async with serving_process(tmp_path, upstream=vendor.url, env=SLICES, concurrent=100) as server:
        token = await server.new_token()
        for number_grown in (1, 10, 20):
            async with server.client(token) as client:
                asked = [spawned(client.post("/v1/messages", json=LARGE)) for _ in range(20)]
                await server.until(lambda n=number_grown: server.rows(grown, ONE_SLICE_NANOUSD) >= [(n,)])
                await server.kill_all()
                await asyncio.gather(*asked, return_exceptions=True)
            await server.start()
            await server.until_nothing_is_held()
        await server.assert_verified()
        sent = server.rows(
            "SELECT kind, COUNT(*) FROM entries WHERE kind IN ('settle', 'expire') GROUP BY kind"
        )
        assert vendor.requests_total <= sum(count for _, count in sent) <= vendor.requests_total + 3 * 20
        above = "SELECT id FROM reservations WHERE state = 'EXPIRED' AND booked_nanousd > hold_nanousd"
        assert server.rows(above) == []
        grown_and_dead = "SELECT COUNT(*) FROM reservations WHERE state = 'EXPIRED' AND hold_nanousd > ?1"
        assert server.rows(grown_and_dead, ONE_SLICE_NANOUSD) >= [(20,)]
