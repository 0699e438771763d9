"""Anthropic, simulated: shapes, checks, scripts, and that every answer reports what the simulator says."""

import asyncio
import gzip
import json
import zlib

import httpx
import pytest

from simulators.anthropic import (
    ORGANIZATION_ID,
    VENDOR_KEY,
    AnthropicSimulator,
    Behaviour,
    Ending,
    ReportedUsage,
    answers,
    breaks_after,
    drops,
    errors_after,
    fails,
    hangs,
    replays,
    stalls_after,
    streams,
)
from simulators.anthropic_behaviour import parse_simulate
from simulators.anthropic_messages import Content, Message, content_events, message_events, text_pieces
from simulators.script import AtRandom, Gate, Script, Send
from simulators.server import State, read_record

HEADERS = {"x-api-key": VENDOR_KEY, "anthropic-version": "2026-10-21", "accept-encoding": "identity"}
USAGE = ReportedUsage(
    input_tokens=11,
    output_tokens=22,
    cache_read_tokens=33,
    cache_write_5m_tokens=44,
    cache_write_1h_tokens=55,
    web_searches=2,
)


def asked(*, stream=False, **more):
    return {
        "model": "claude-haiku-4-5",
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": "hi there"}],
        "stream": stream,
        **more,
    }


@pytest.fixture
async def simulator():
    async with AnthropicSimulator() as running:
        yield running


@pytest.fixture
async def client(simulator):
    async with httpx.AsyncClient(base_url=simulator.url, headers=HEADERS) as opened:
        yield opened


async def post(client, *, headers=None, **request):
    return await client.post("/v1/messages", json=asked(**request), headers=headers)


def events_of(body):
    """(name, data) of each event; the shape of every one is checked on the way."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        found.append((name[7:], json.loads(data[6:])))
        assert found[-1][1]["type"] == found[-1][0]
    return found


# --- ordinary answers


async def test_an_unstreamed_answer_is_a_message_by_the_dated_model(client, simulator):
    answer = await post(client)
    message = answer.json()
    assert answer.status_code == 200
    assert message["model"] == "claude-haiku-4-5-20251001"
    assert message["content"] == [{"type": "text", "text": "You said: hi there"}]
    assert message["stop_reason"] == "end_turn"
    (told,) = simulator.answers
    assert (told.message_id, told.model, told.is_streaming) == (message["id"], message["model"], False)
    assert told.usage.in_message() == message["usage"]
    assert message["usage"]["input_tokens"] == -(-len(answer.request.content) // 4)
    assert message["usage"]["output_tokens"] == 5


async def test_a_streamed_answer_has_every_event_in_order(client, simulator):
    answer = await post(client, stream=True)
    events = events_of(answer.content)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    names = [name for name, _ in events]
    assert names[:4] == ["message_start", "content_block_start", "ping", "content_block_delta"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")
    assert text == "You said: hi there"
    (told,) = simulator.answers
    started, ended = events[0][1]["message"]["usage"], events[-2][1]["usage"]
    assert started == {**told.usage.in_message(), "output_tokens": 3}
    assert ended["output_tokens"] == told.usage.output_tokens == 5
    assert "cache_creation" not in ended


async def test_the_data_of_events_is_padded_and_the_ping_is_as_the_vendor_writes_it(client):
    body = (await post(client, stream=True)).content
    assert b'event: ping\ndata: {"type": "ping"}\n\n' in body
    assert b'data: {"type":"message_stop"               }\n\n' in body


@pytest.mark.parametrize("stream", [False, True])
async def test_the_usage_given_is_the_usage_reported(client, simulator, stream):
    simulator.next(streams(usage=USAGE))
    body = (await post(client, stream=stream, max_tokens=1)).content
    said = events_of(body)[-2][1]["usage"] if stream else json.loads(body)["usage"]
    assert said["input_tokens"] == 11
    assert said["output_tokens"] == 22
    assert said["cache_read_input_tokens"] == 33
    assert said["cache_creation_input_tokens"] == 99
    assert said["server_tool_use"]["web_search_requests"] == 2
    split = events_of(body)[0][1]["message"]["usage"] if stream else said
    assert split["cache_creation"] == {"ephemeral_5m_input_tokens": 44, "ephemeral_1h_input_tokens": 55}
    assert simulator.answers[0].usage == USAGE
    assert USAGE.counts() == {
        "input_tokens": 11,
        "output_tokens": 22,
        "cache_read_tokens": 33,
        "cache_write_5m_tokens": 44,
        "cache_write_1h_tokens": 55,
        "web_searches": 2,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_max_tokens_limits_the_answer(client, simulator, stream):
    body = (await post(client, stream=stream, max_tokens=2)).content
    stop = events_of(body)[-2][1]["delta"] if stream else json.loads(body)
    assert stop["stop_reason"] == "max_tokens"
    assert simulator.answers[0].usage.output_tokens == 2


async def test_max_tokens_of_zero_answers_without_content(client, simulator):
    assert (await post(client, max_tokens=0)).json()["content"] == []
    names = [name for name, _ in events_of((await post(client, max_tokens=0, stream=True)).content)]
    assert names == ["message_start", "ping", "message_delta", "message_stop"]
    assert [told.usage.output_tokens for told in simulator.answers] == [0, 0]


@pytest.mark.parametrize("thinking", [None, "let me see"])
@pytest.mark.parametrize("events", [20, 60])
async def test_a_stream_has_as_many_events_as_asked_for(client, simulator, events, thinking):
    simulator.next(streams(events=events, thinking=thinking))
    assert len(events_of((await post(client, stream=True)).content)) == events


async def test_thinking_comes_first_and_counts_as_output(client, simulator):
    simulator.next(*[streams(thinking="let me see", text="yes")] * 2)
    message = (await post(client)).json()
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["usage"]["output_tokens"] == 4
    assert message["usage"]["output_tokens_details"] == {"thinking_tokens": 3}
    deltas = [
        data["delta"]["type"]
        for name, data in events_of((await post(client, stream=True)).content)
        if name == "content_block_delta"
    ]
    assert deltas == ["thinking_delta", "signature_delta", "text_delta"]


async def test_the_question_may_come_in_blocks(client):
    blocks = [{"type": "text", "text": "one "}, {"type": "image"}, {"type": "text", "text": "two"}]
    message = (await post(client, messages=[{"role": "user", "content": blocks}])).json()
    assert message["content"][0]["text"] == "You said: one two"


async def test_speed_and_place_of_the_request_are_reported(client):
    usage = (await post(client, speed="fast", inference_geo="us")).json()["usage"]
    assert (usage["speed"], usage["inference_geo"]) == ("fast", "us")


async def test_the_usage_at_the_start_may_differ_from_the_end(client, simulator):
    simulator.next(streams(usage=USAGE, usage_at_start=ReportedUsage(input_tokens=1)))
    events = events_of((await post(client, stream=True)).content)
    assert events[0][1]["message"]["usage"]["input_tokens"] == 1
    assert events[-2][1]["usage"]["input_tokens"] == 11


async def test_iterations_are_reported_where_the_vendor_puts_them(client, simulator):
    iterations = ({"type": "advisor_message", "model": "claude-opus-4-8", "input_tokens": 5},)
    simulator.next(*[streams(usage=ReportedUsage(iterations=iterations))] * 2)
    assert (await post(client)).json()["usage"]["iterations"] == list(iterations)
    events = events_of((await post(client, stream=True)).content)
    assert events[-2][1]["usage"]["iterations"] == list(iterations)


async def test_every_answer_has_ids_of_its_own_and_the_account_in_its_headers(client):
    first, second = await post(client), await post(client)
    assert first.json()["id"] != second.json()["id"]
    assert first.headers["request-id"] != second.headers["request-id"]
    assert first.headers["anthropic-organization-id"] == ORGANIZATION_ID
    assert "anthropic-ratelimit-tokens-remaining" in first.headers
    assert "set-cookie" in first.headers


@pytest.mark.parametrize(
    ("headers", "metadata", "tag"),
    [({"x-request-tag": "T1"}, {"user_id": "u"}, "T1"), ({}, {"user_id": "u"}, "u"), ({}, None, "")],
)
async def test_an_answer_carries_the_tag_of_its_request(client, simulator, headers, metadata, tag):
    await post(client, headers=headers, **({"metadata": metadata} if metadata else {}))
    assert simulator.answers[0].tag == tag


# --- what the real API checks


@pytest.mark.parametrize(
    ("change", "status", "error_type"),
    [
        ({"headers": {"x-api-key": "agw_of_some_agent"}}, 401, "authentication_error"),
        ({"headers": {"x-api-key": ""}}, 401, "authentication_error"),
        ({"headers": {"anthropic-version": ""}}, 400, "invalid_request_error"),
        ({"url": "/v1/nothing"}, 404, "not_found_error"),
        ({"url": "/v1/models"}, 405, "invalid_request_error"),
        ({"content": b"{"}, 400, "invalid_request_error"),
        ({"content": b"[]"}, 400, "invalid_request_error"),
        ({"json": {"model": "claude-haiku-4-5", "messages": []}}, 400, "invalid_request_error"),
        ({"json": {"max_tokens": 5, "messages": []}}, 400, "invalid_request_error"),
        ({"json": asked(max_tokens="5")}, 400, "invalid_request_error"),
        ({"json": asked(model="gpt-4o")}, 404, "not_found_error"),
    ],
)
async def test_a_wrong_request_gets_the_vendors_error(client, simulator, change, status, error_type):
    request = {"url": "/v1/messages", "json": asked(), **change}
    if "content" in request:
        del request["json"]
    answer = await client.post(request.pop("url"), **request)
    assert answer.status_code == status
    error = answer.json()
    assert (error["type"], error["error"]["type"]) == ("error", error_type)
    assert error["request_id"] == answer.headers["request-id"]
    assert simulator.requests_total == 1
    assert simulator.answers == []


async def test_the_key_may_come_as_a_bearer(simulator):
    headers = {"authorization": f"Bearer {VENDOR_KEY}", "anthropic-version": "2026-10-21"}
    async with httpx.AsyncClient(base_url=simulator.url, headers=headers) as client:
        assert (await post(client)).status_code == 200


async def test_a_request_with_a_wrong_key_does_not_use_up_a_script(client, simulator):
    simulator.next(fails(529))
    assert (await post(client, headers={"x-api-key": "wrong"})).status_code == 401
    assert (await post(client)).status_code == 529


async def test_count_tokens_counts_the_body(client, simulator):
    answer = await client.post("/v1/messages/count_tokens", json=asked())
    assert answer.json() == {"input_tokens": -(-len(answer.request.content) // 4)}
    assert simulator.answers == []


async def test_the_model_list_is_paged_in_both_directions(client):
    everything = (await client.get("/v1/models")).json()
    ids = [model["id"] for model in everything["data"]]
    assert everything["has_more"] is False
    assert (everything["first_id"], everything["last_id"]) == (ids[0], ids[-1])
    first = (await client.get("/v1/models?limit=3")).json()
    assert ([model["id"] for model in first["data"]], first["has_more"]) == (ids[:3], True)
    rest = (await client.get(f"/v1/models?limit=1000&after_id={first['last_id']}")).json()
    assert ([model["id"] for model in rest["data"]], rest["has_more"]) == (ids[3:], False)
    back = (await client.get(f"/v1/models?limit=2&before_id={ids[3]}")).json()
    assert ([model["id"] for model in back["data"]], back["has_more"]) == (ids[1:3], True)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "after_id=nobody"])
async def test_a_wrong_page_is_refused(client, query):
    assert (await client.get(f"/v1/models?{query}")).status_code == 400


async def test_one_model_is_found_by_id_and_alias_and_an_unknown_one_is_not(client):
    model = (await client.get("/v1/models/claude-haiku-4-5")).json()
    assert model["id"] == "claude-haiku-4-5-20251001"
    assert model["max_input_tokens"] == 200_000
    assert (await client.get(f"/v1/models/{model['id']}")).json() == model
    missing = await client.get("/v1/models/claude-none")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")


# --- scripts


async def test_an_error_before_the_stream_says_its_type_and_headers(client, simulator):
    simulator.next(fails(429, headers={"retry-after": "7"}), fails(400, "billing_error", message="balance"))
    limited, poor = await post(client, stream=True), await post(client)
    assert (limited.status_code, limited.json()["error"]["type"]) == (429, "rate_limit_error")
    assert limited.headers["retry-after"] == "7"
    assert poor.json()["error"] == {"type": "billing_error", "message": "balance"}
    assert [(told.status, told.usage) for told in simulator.answers] == [(429, None), (400, None)]


async def test_an_error_inside_the_stream_ends_it(client, simulator):
    simulator.next(errors_after(4, usage=USAGE))
    answer = await post(client, stream=True)
    events = events_of(answer.content)
    assert len(events) == 5
    assert events[-1][0] == "error"
    assert events[-1][1]["error"] == {"type": "overloaded_error", "message": "Overloaded"}
    assert simulator.answers[0].usage == USAGE
    assert simulator.exchanges[0].state is State.SENT


@pytest.mark.parametrize("count", [0, 1, 5, 60])
@pytest.mark.parametrize("ending", [Ending.FIN, Ending.CLEAN])
async def test_a_stream_breaks_off_after_as_many_events_as_asked(client, simulator, count, ending):
    simulator.next(breaks_after(count, ending=ending, events=60))
    body = b""
    try:
        async with client.stream("POST", "/v1/messages", json=asked(stream=True)) as answer:
            async for piece in answer.aiter_raw():
                body += piece
    except httpx.RemoteProtocolError:
        assert ending is Ending.FIN
    else:
        assert ending is Ending.CLEAN
    assert len(events_of(body)) == count
    expected = State.BROKEN_OFF if ending is Ending.FIN else State.SENT
    assert simulator.exchanges[0].state is expected
    assert simulator.answers[0].usage.output_tokens == 68  # all of it, whatever arrived


async def test_a_reset_in_the_stream_is_a_broken_connection(client, simulator):
    simulator.next(breaks_after(3, ending=Ending.RESET))
    with pytest.raises(httpx.ReadError):
        await post(client, stream=True)


@pytest.mark.parametrize("ending", [Ending.FIN, Ending.RESET])
async def test_an_unstreamed_answer_breaks_off_after_as_many_bytes(client, simulator, ending):
    simulator.next(breaks_after(10, ending=ending))
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        await post(client)
    assert simulator.exchanges[0].state is State.BROKEN_OFF


async def test_a_stalled_stream_goes_on_when_its_gate_opens(client, simulator):
    gate = Gate()
    simulator.next(stalls_after(3, gate=gate))
    async with client.stream("POST", "/v1/messages", json=asked(stream=True)) as answer:
        pieces = answer.aiter_raw()
        seen = b"".join([await anext(pieces) for _ in range(3)])
        await gate.reached()
        assert len(events_of(seen)) == 3
        assert simulator.exchanges[0].state is State.RUNNING
        gate.open()
        seen += b"".join([piece async for piece in pieces])
    assert events_of(seen)[-1][0] == "message_stop"


async def test_an_unstreamed_answer_stalls_at_its_byte(client, simulator):
    gate = Gate()
    simulator.next(stalls_after(5, gate=gate))
    running = asyncio.gather(post(client))
    await gate.reached()
    gate.open()
    assert (await running)[0].json()["type"] == "message"


async def test_a_hanging_answer_sends_no_head_and_a_client_that_gives_up_is_counted(client, simulator):
    gate = Gate()
    simulator.next(hangs(gate=gate))
    running = asyncio.gather(post(client))
    await gate.reached()
    assert simulator.exchanges[0].sent_bytes == 0
    running.cancel()
    await asyncio.wait([running])
    await simulator.until(lambda: simulator.client_gone_total == 1)
    assert simulator.answers[0].usage is not None


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_dropped_request_was_seen(client, simulator, is_reset):
    simulator.next(drops(is_reset=is_reset))
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        await post(client)
    assert len(simulator.answers) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_scripted_answer_is_the_burst_answer_in_other_pieces(stream):
    """Both ways of writing must give the same body, or the bench would measure something else than the tests."""
    bodies = []
    for behaviour in (
        Behaviour(),
        Behaviour(split=7),
        Behaviour(wire_split=AtRandom(3)),
        Behaviour(pace_s=0.0001),
    ):
        async with (
            AnthropicSimulator(default=behaviour) as simulator,
            httpx.AsyncClient(base_url=simulator.url, headers=HEADERS) as client,
        ):
            answer = await post(client, stream=stream)
            bodies.append((answer.content, sorted(answer.headers.items())))
    assert bodies[1:] == [bodies[0]] * 3


async def test_a_handler_chooses_by_the_request_and_the_queue_comes_first(client, simulator):
    simulator.script = lambda request: fails(503) if b"tail" in request.body else None
    simulator.next(fails(500))
    statuses = [(await post(client, system=system)).status_code for system in ("tail", "tail", "head")]
    assert statuses == [500, 503, 200]


async def test_a_whole_script_may_be_given(client, simulator):
    simulator.next(Script(status=418, steps=(Send(b"teapot"),)))
    answer = await post(client)
    assert (answer.status_code, answer.content) == (418, b"teapot")


async def test_a_body_of_ones_own_is_answered_as_it_is(client, simulator):
    simulator.next(answers({"own": True}, status=201, split=2))
    answer = await post(client)
    assert (answer.status_code, answer.json()) == (201, {"own": True})
    assert simulator.answers[0].usage is None


@pytest.mark.parametrize("split", [None, 1, AtRandom(5)])
async def test_a_recorded_body_is_replayed_byte_for_byte(client, simulator, split):
    recorded = gzip.compress(b"event: ping\ndata: {}\n\n" * 20, mtime=0)
    simulator.next(replays(recorded, "text/event-stream", content_encoding="gzip", usage=USAGE, split=split))
    async with client.stream("POST", "/v1/messages", json=asked(stream=True)) as answer:
        assert b"".join([piece async for piece in answer.aiter_raw()]) == recorded
    assert answer.headers["content-encoding"] == "gzip"
    assert simulator.answers[0].usage == USAGE


@pytest.mark.parametrize("stream", [False, True])
async def test_compression_is_for_clients_that_accept_it(stream):
    async with (
        AnthropicSimulator(gzip=True) as simulator,
        httpx.AsyncClient(base_url=simulator.url, headers=HEADERS) as client,
    ):
        plain = await post(client, stream=stream)
        packed = await post(client, stream=stream, headers={"accept-encoding": "gzip, deflate"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content.replace(b"000002", b"000001") == plain.content


async def test_each_event_of_a_compressed_stream_can_be_decoded_when_it_arrives(client, simulator):
    gate = Gate()
    simulator.next(stalls_after(2, gate=gate, gzip=True))
    headers = {"accept-encoding": "gzip"}
    async with client.stream("POST", "/v1/messages", json=asked(stream=True), headers=headers) as answer:
        pieces, decoder = answer.aiter_raw(), zlib.decompressobj(31)
        seen = b"".join([decoder.decompress(await anext(pieces)) for _ in range(2)])
        assert [name for name, _ in events_of(seen)] == ["message_start", "content_block_start"]
        gate.open()
        async for piece in pieces:
            decoder.decompress(piece)
        assert decoder.eof


async def test_a_big_body_is_as_big_as_asked_for(client, simulator):
    simulator.next(*[Behaviour(text_bytes=1_000_000)] * 2)
    assert len((await post(client)).json()["content"][0]["text"]) == 1_000_000
    streamed = events_of((await post(client, stream=True)).content)
    texts = [data["delta"]["text"] for name, data in streamed if name == "content_block_delta"]
    assert len("".join(texts)) == 1_000_000


async def test_more_behaviours_than_the_bound_are_refused(simulator):
    with pytest.raises(ValueError, match="more than 10000"):
        simulator.next(*[fails(500)] * 10_001)


# --- the header language


async def test_a_request_may_say_itself_what_it_wants(client, simulator):
    words = "events=12,input=1,output=2,cache_read=3,cache_write_5m=4,cache_write_1h=5,web_searches=6,geo=us"
    answer = await post(client, stream=True, headers={"x-simulate": words})
    assert len(events_of(answer.content)) == 12
    assert simulator.answers[0].usage == ReportedUsage(
        input_tokens=1,
        output_tokens=2,
        cache_read_tokens=3,
        cache_write_5m_tokens=4,
        cache_write_1h_tokens=5,
        web_searches=6,
        inference_geo="us",
    )


async def test_a_word_that_does_not_exist_is_an_error_and_not_a_silent_default(client):
    answer = await post(client, headers={"x-simulate": "evnts=3"})
    assert answer.status_code == 400
    assert "unknown word 'evnts'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("value", ["events=x", "cut=sideways", "split=rx", "output="])
def test_a_value_that_does_not_fit_is_refused(value):
    with pytest.raises(ValueError, match=r"."):
        parse_simulate(value)


async def test_words_for_failures_do_what_their_helpers_do():
    assert parse_simulate("error_before=529,retry_after=2") == Behaviour(
        status=529, headers=(("retry-after", "2"),)
    )
    assert parse_simulate("cut_after=3,cut=reset") == breaks_after(3, ending=Ending.RESET)
    assert parse_simulate("error_after=3") == errors_after(3)
    assert parse_simulate("stall_after=3, gzip=1, split=7") == stalls_after(3, gzip=True, split=7)
    assert parse_simulate("wire_split=r4,pace_ms=20,close=1") == Behaviour(
        wire_split=AtRandom(4), pace_s=0.02, closes=True
    )
    assert parse_simulate("hang=1") == hangs()
    assert parse_simulate("drop=1") == drops()
    assert parse_simulate("drop=reset") == drops(is_reset=True)


# --- records and helpers


async def test_the_durable_record_says_what_each_answer_reports(tmp_path):
    path = tmp_path / "record.jsonl"
    async with (
        AnthropicSimulator(record_to=path, default=streams(usage=USAGE)) as simulator,
        httpx.AsyncClient(base_url=simulator.url, headers=HEADERS) as client,
    ):
        await post(client, headers={"x-request-tag": "T9"})
    seen, ended = read_record(path)
    assert (seen["tag"], seen["usage"], seen["status"]) == ("T9", USAGE.counts(), 200)
    assert seen["message_id"] == simulator.answers[0].message_id
    assert ended == {"event": "ended", "number": 1, "state": "sent"}


@pytest.mark.parametrize("count", [None, 1, 3, 50])
def test_the_pieces_of_a_text_are_the_text(count):
    pieces = text_pieces("  some words, and\nmore words ", count)
    assert "".join(pieces) == "  some words, and\nmore words "
    assert count is None or len(pieces) == count


def test_the_events_of_a_message_are_its_start_its_content_and_its_end():
    message = Message("msg_1", "claude-sonnet-5", Content("a b", deltas=2), USAGE)
    events = message_events(message)
    assert [name for name, _ in events_of(b"".join(events))] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert tuple(events[1:-2]) == content_events(message.content)
