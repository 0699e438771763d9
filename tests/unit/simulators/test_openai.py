"""OpenAI, simulated: shapes, checks, scripts, and that every answer reports what the simulator says."""

import base64
import json
import struct

import httpx
import pytest

from simulators.openai import (
    MODELS,
    ORGANIZATION,
    PROJECT,
    VENDOR_KEY,
    Behaviour,
    Ending,
    OpenAISimulator,
    ReportedUsage,
    ToolCall,
    answers,
    breaks_after,
    drops,
    errors_after,
    fails,
    hangs,
    moderation,
    stalls_after,
    streams,
)
from simulators.openai_behaviour import parse_simulate
from simulators.script import AtRandom, Gate
from simulators.server import State, read_record

HEADERS = {"authorization": f"Bearer {VENDOR_KEY}", "accept-encoding": "identity"}
USAGE = ReportedUsage(
    prompt_tokens=1000,
    completion_tokens=200,
    cached_tokens=300,
    cache_write_tokens=150,
    cache_write_12h_tokens=50,
    audio_prompt_tokens=70,
    reasoning_tokens=80,
    audio_completion_tokens=40,
    web_searches=2,
)
CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
KINDS = {
    CHAT: {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi there"}]},
    RESPONSES: {"model": "gpt-4o-mini", "input": "hi there"},
    COMPLETIONS: {"model": "gpt-3.5-turbo-instruct", "prompt": "hi there", "max_tokens": 100},
}
ASKING = {"stream_options": {"include_usage": True}}


@pytest.fixture
async def simulator():
    async with OpenAISimulator() as running:
        yield running


@pytest.fixture
async def client(simulator):
    async with httpx.AsyncClient(base_url=simulator.url, headers=HEADERS) as opened:
        yield opened


async def post(client, path=CHAT, *, headers=None, **more):
    return await client.post(path, json={**KINDS.get(path, {}), **more}, headers=headers)


async def stream(client, path=CHAT, **more):
    """The events of a streamed answer: of a response each with its name, else the data and `[DONE]`."""
    answer = await post(client, path, stream=True, **more)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events_of(answer.content)


def events_of(body):
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        *names, data = block.split("\n")
        assert data.startswith("data: ")
        found.append(data[6:] if data == "data: [DONE]" else json.loads(data[6:]))
        assert names == ([f"event: {found[-1]['type']}"] if "sequence_number" in found[-1] else [])
    return found


def text_of(events):
    """What a stream of any kind wrote."""
    if isinstance(events[0], dict) and "sequence_number" in events[0]:
        return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    choices = [choice for event in events[:-1] for choice in event["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


# --- chat completions


async def test_an_unstreamed_chat_is_a_completion_by_the_dated_model(client, simulator):
    answer = await post(client)
    said = answer.json()
    assert (said["object"], said["model"]) == ("chat.completion", "gpt-4o-mini-2024-07-18")
    (choice,) = said["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("You said: hi there", "stop")
    (told,) = simulator.answers
    assert (told.message_id, told.model, told.is_streaming) == (said["id"], said["model"], False)
    assert (told.path, told.service_tier) == (CHAT, said["service_tier"]) == (CHAT, "default")
    assert told.usage.in_completion() == said["usage"]
    assert said["usage"]["prompt_tokens"] == -(-len(answer.request.content) // 4)
    assert said["usage"]["completion_tokens"] == 5


async def test_a_stream_that_was_not_asked_for_usage_tells_none_anywhere(client):
    events = await stream(client)
    assert events[-1] == "[DONE]"
    assert not any("usage" in event for event in events[:-1])
    assert all(len(event["choices"]) == 1 for event in events[:-1])
    assert text_of(events) == "You said: hi there"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


async def test_a_stream_asked_for_usage_tells_it_in_a_chunk_without_choices(client, simulator):
    *chunks, last, done = await stream(client, **ASKING)
    assert done == "[DONE]"
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert all(chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == simulator.answers[0].usage.in_completion()


async def test_another_chunk_may_follow_the_one_with_the_usage(client, simulator):
    simulator.next(streams(after_usage=(moderation(), {"note": 1})))
    *_, usage, moderated, noted, done = await stream(client, **ASKING)
    assert usage["usage"] is not None
    assert (moderated["usage"], moderated["choices"], noted["note"]) == (None, [], 1)
    assert moderated["moderation"]["input"]["type"] == "moderation_results"
    assert done == "[DONE]"


async def test_chunks_are_padded_unless_told_otherwise(client):
    padded = [event["obfuscation"] for event in (await stream(client))[:-1]]
    assert len({len(padding) for padding in padded}) > 2
    plain = await stream(client, stream_options={"include_obfuscation": False})
    assert not any("obfuscation" in event for event in plain[:-1])


async def test_each_choice_is_written_and_counted(client, simulator):
    whole = (await post(client, n=3)).json()
    events = await stream(client, n=3)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 15
    assert text_of(events).count("there") == 3
    finished = [c["index"] for e in events[:-1] for c in e["choices"] if c["finish_reason"]]
    assert finished == [0, 1, 2]
    assert [told.usage.completion_tokens for told in simulator.answers] == [15, 15]


async def test_calls_of_tools_are_told_whole_and_in_pieces(client, simulator):
    simulator.next(*[streams(tool_calls=(ToolCall("look", '{"at":"it"}'), ToolCall("go")))] * 2)
    message = (await post(client)).json()["choices"][0]
    assert (message["finish_reason"], message["message"]["content"]) == ("tool_calls", None)
    assert [call["function"]["name"] for call in message["message"]["tool_calls"]] == ["look", "go"]
    calls = [
        call
        for event in (await stream(client))[:-1]
        for call in event["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert [call["index"] for call in calls] == [0, 0, 1, 1]
    assert "".join(call["function"]["arguments"] for call in calls if not call["index"]) == '{"at":"it"}'
    assert [call.get("type") for call in calls] == ["function", None] * 2


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_the_ceiling_of_a_request_limits_the_answer(client, simulator, name):
    said = (await post(client, **{name: 2})).json()
    assert said["choices"][0]["finish_reason"] == "length"
    assert simulator.answers[0].usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        (None, "default"),
        ("auto", "default"),
        ("flex", "flex"),
        ("fast", "priority"),
        ("priority", "priority"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_the_tier_served_is_told(client, simulator, path, asked, served):
    more = {} if asked is None else {"service_tier": asked}
    assert (await post(client, path, **more)).json()["service_tier"] == served
    events = await stream(client, path, **more)
    if path == RESPONSES:
        assert events[0]["response"]["service_tier"] == (asked or "auto"), "the one asked for, until the end"
        assert events[-1]["response"]["service_tier"] == served
    else:
        assert {event["service_tier"] for event in events[:-1]} == {served}
    assert {told.service_tier for told in simulator.answers} == {served}


# --- every kind of text


@pytest.mark.parametrize("path", KINDS)
async def test_the_usage_given_is_the_usage_reported(client, simulator, path):
    simulator.next(*[streams(usage=USAGE)] * 2)
    whole = (await post(client, path)).json()["usage"]
    if path == RESPONSES:
        *_, last = await stream(client, path)
        assert whole == last["response"]["usage"] == USAGE.in_response()
        assert last["response"]["tool_usage"]["web_search"] == {"num_requests": 2}
    else:
        *_, last, _ = await stream(client, path, **ASKING)
        assert whole == last["usage"] == USAGE.in_completion()
    assert [told.usage for told in simulator.answers] == [USAGE, USAGE]


def test_the_counts_of_a_usage_are_disjoint():
    assert USAGE.counts() == {
        "input_tokens": 480,
        "input_audio_tokens": 70,
        "cache_read_tokens": 300,
        "cache_write_30m_tokens": 100,
        "cache_write_12h_tokens": 50,
        "output_tokens": 160,
        "output_audio_tokens": 40,
        "web_searches": 2,
    }
    assert sum(USAGE.counts().values()) - 2 == USAGE.total_tokens


def test_the_usage_stands_where_the_vendor_puts_it():
    chat, response = USAGE.in_completion(), USAGE.in_response()
    assert chat["prompt_tokens_details"] == {
        "cached_tokens": 300,
        "cache_write_tokens": 150,
        "audio_tokens": 70,
    }
    assert chat["completion_tokens_details"]["reasoning_tokens"] == 80
    assert response["input_tokens_details"]["cache_write_tokens_details"] == {
        "ttl_30m_tokens": 100,
        "ttl_12h_tokens": 50,
    }
    assert (response["input_tokens"], response["output_tokens"], response["total_tokens"]) == (
        1000,
        200,
        1200,
    )


@pytest.mark.parametrize("path", KINDS)
async def test_usage_may_be_hidden(client, simulator, path):
    simulator.next(*[streams(hides_usage=True)] * 2)
    assert (await post(client, path)).json().get("usage") is None
    events = await stream(client, path, **(ASKING if path != RESPONSES else {}))
    assert not any(event.get("usage") for event in events if isinstance(event, dict))
    assert [told.usage for told in simulator.answers] == [None, None]


@pytest.mark.parametrize("thinking", [None, "let me see"])
@pytest.mark.parametrize("path", KINDS)
async def test_a_stream_has_as_many_events_as_asked_for(client, simulator, path, thinking):
    simulator.next(streams(events=40, thinking=thinking, keepalives=2))
    assert len(await stream(client, path)) == 40


@pytest.mark.parametrize("path", KINDS)
async def test_every_kind_of_stream_says_what_its_whole_answer_says(client, simulator, path):
    simulator.next(*[streams(text="A robin, I should say, or a wren.")] * 2)
    whole = (await post(client, path)).json()
    assert text_of(await stream(client, path)) == "A robin, I should say, or a wren."
    assert "A robin, I should say, or a wren." in json.dumps(whole)


@pytest.mark.parametrize("path", KINDS)
async def test_a_scripted_answer_is_the_burst_answer_in_other_pieces(path):
    bodies = []
    for behaviour in (Behaviour(), Behaviour(split=7), Behaviour(wire_split=AtRandom(3))):
        async with (
            OpenAISimulator(default=behaviour) as simulator,
            httpx.AsyncClient(base_url=simulator.url, headers=HEADERS) as client,
        ):
            answer = await post(client, path, stream=True)
            bodies.append((answer.content, sorted(answer.headers.items())))
    assert bodies[1:] == [bodies[0]] * 2


async def test_a_stream_is_compressed_for_those_who_accept_it(client, simulator):
    simulator.next(streams(gzip=True))
    answer = await post(client, stream=True, headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert text_of(events_of(answer.content)) == "You said: hi there"


async def test_every_answer_has_ids_of_its_own_and_the_account_in_its_headers(client):
    first, second = await post(client), await post(client)
    assert first.json()["id"] != second.json()["id"]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["openai-organization"] == ORGANIZATION
    assert first.headers["openai-project"] == PROJECT
    assert {"x-ratelimit-remaining-tokens", "openai-processing-ms", "set-cookie"} <= set(first.headers)


@pytest.mark.parametrize(
    ("headers", "more", "tag"), [({"x-request-tag": "T1"}, {"user": "u"}, "T1"), ({}, {"user": "u"}, "u")]
)
async def test_an_answer_carries_the_tag_of_its_request(client, simulator, headers, more, tag):
    await post(client, headers=headers, **more)
    assert simulator.answers[0].tag == tag


# --- responses


async def test_a_response_is_kept_and_fetched_again(client, simulator):
    said = (await post(client, RESPONSES, metadata={"a": "b"})).json()
    assert (said["object"], said["status"], said["metadata"]) == ("response", "completed", {"a": "b"})
    (message,) = said["output"]
    assert message["content"][0]["text"] == "You said: hi there"
    assert said["usage"] == simulator.answers[0].usage.in_response()
    assert (await client.get(f"{RESPONSES}/{said['id']}")).json() == said
    assert len(simulator.answers) == 1, "to fetch is no new answer"


async def test_a_response_not_to_be_stored_is_not_kept(client):
    said = (await post(client, RESPONSES, store=False)).json()
    assert (await client.get(f"{RESPONSES}/{said['id']}")).status_code == 404


async def test_beyond_the_bound_the_oldest_response_is_forgotten(client, simulator, monkeypatch):
    monkeypatch.setattr("simulators.openai.KEPT_MAX", 2)
    ids = [(await post(client, RESPONSES)).json()["id"] for _ in range(3)]
    found = [(await client.get(f"{RESPONSES}/{response_id}")).status_code for response_id in ids]
    assert found == [404, 200, 200]


async def test_the_events_of_a_response_come_in_order_and_are_numbered(client, simulator):
    simulator.next(streams(thinking="hm", tool_calls=(ToolCall("look"),), text="yes", keepalives=1))
    events = await stream(client, RESPONSES)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "keepalive",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert {event["response"]["usage"] for event in events[:2]} == {None}
    assert [item["type"] for item in events[-1]["response"]["output"]] == [
        "reasoning",
        "message",
        "function_call",
    ]
    assert events[-1]["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}


async def test_a_replay_tells_the_same_events_with_the_same_usage(client, simulator):
    events = await stream(client, RESPONSES)
    url = f"{RESPONSES}/{events[0]['response']['id']}?stream=true"
    assert events_of((await client.get(url)).content) == events
    assert events_of((await client.get(f"{url}&starting_after=4")).content) == events[5:]
    assert len(simulator.answers) == 1


async def test_a_ceiling_makes_a_response_incomplete(client):
    *_, last = await stream(client, RESPONSES, max_output_tokens=2)
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["usage"]["output_tokens"] == 2


async def test_a_response_may_fail_with_and_without_usage(client, simulator):
    simulator.next(streams(ends="failed", usage=USAGE), streams(ends="failed", hides_usage=True))
    *_, last = await stream(client, RESPONSES)
    silent = (await post(client, RESPONSES)).json()
    assert last["type"] == "response.failed"
    assert last["response"]["usage"] == USAGE.in_response()
    assert (silent["status"], silent["error"]["code"], silent["usage"]) == ("failed", "server_error", None)


async def test_a_response_continues_one_that_is_kept_whose_tokens_are_in_the_prompt_again(client, simulator):
    first = (await post(client, RESPONSES)).json()
    answer = await post(client, RESPONSES, previous_response_id=first["id"])
    assert answer.json()["previous_response_id"] == first["id"]
    told = simulator.answers[1].usage
    assert told.prompt_tokens == -(-len(answer.request.content) // 4) + first["usage"]["total_tokens"]


@pytest.mark.parametrize("path", [RESPONSES, f"{RESPONSES}/compact", f"{RESPONSES}/input_tokens"])
async def test_an_unknown_response_cannot_be_continued(client, simulator, path):
    asked = {"model": "gpt-4o-mini", "input": "x", "previous_response_id": "resp_none"}
    answer = await post(client, path, **asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "previous_response_not_found"
    assert simulator.answers == []


async def test_a_response_in_the_background_is_at_work_until_it_is_told_to_finish(client, simulator):
    begun = (await post(client, RESPONSES, background=True)).json()
    url = f"{RESPONSES}/{begun['id']}"
    assert (begun["status"], begun["usage"], begun["output"]) == ("queued", None, [])
    for _ in range(3):
        assert (await client.get(url)).json()["status"] == "in_progress"
    simulator.finish(begun["id"])
    ended = (await client.get(url)).json()
    assert (ended["status"], ended["background"]) == ("completed", True)
    assert ended["usage"] == simulator.answers[0].usage.in_response()
    simulator.fail(begun["id"])
    assert (await client.get(url)).json() == ended, "what has ended stays so"


@pytest.mark.parametrize("polls", [0, 1, 2])
async def test_a_response_in_the_background_may_finish_after_some_polls(client, simulator, polls):
    simulator.next(streams(polls=polls))
    begun = (await post(client, RESPONSES, background=True)).json()
    url = f"{RESPONSES}/{begun['id']}"
    seen = [begun["status"]] + [(await client.get(url)).json()["status"] for _ in range(3)]
    unfinished = ["queued"] + ["in_progress"] * polls if polls else []
    assert seen == [*unfinished, *["completed"] * (4 - len(unfinished))]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_a_response_in_the_background_that_fails_or_is_cancelled_reports_no_usage(
    client, simulator, status
):
    begun = (await post(client, RESPONSES, background=True)).json()
    {"failed": simulator.fail, "cancelled": simulator.cancel}[status](begun["id"])
    ended = (await client.get(f"{RESPONSES}/{begun['id']}")).json()
    assert (ended["status"], ended["usage"]) == (status, None)
    assert simulator.answers[0].usage is None


async def test_cancel_ends_what_is_at_work_and_nothing_else(client, simulator):
    begun = (await post(client, RESPONSES, background=True)).json()
    done = (await post(client, RESPONSES, background=True)).json()
    plain = (await post(client, RESPONSES)).json()
    simulator.finish(done["id"])
    assert (await client.post(f"{RESPONSES}/{begun['id']}/cancel")).json()["status"] == "cancelled"
    assert (await client.post(f"{RESPONSES}/{done['id']}/cancel")).json()["status"] == "completed"
    assert (await client.post(f"{RESPONSES}/{plain['id']}/cancel")).status_code == 400
    assert (await client.post(f"{RESPONSES}/resp_none/cancel")).status_code == 404


@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
async def test_the_stream_of_a_response_in_the_background_goes_on_when_it_ends(client, simulator, end):
    asked = {**KINDS[RESPONSES], "background": True, "stream": True}
    async with client.stream("POST", RESPONSES, json=asked) as answer:
        pieces = answer.aiter_raw()
        seen = b"".join([await anext(pieces) for _ in range(3)])
        begun = events_of(seen)
        assert [event["type"] for event in begun] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]
        assert simulator.exchanges[0].state is State.RUNNING
        response_id = begun[0]["response"]["id"]
        getattr(simulator, end)(response_id)
        seen += b"".join([piece async for piece in pieces])
    events = events_of(seen)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    ends = {"finish": "response.completed", "fail": "response.failed", "cancel": "response.failed"}
    assert events[-1]["type"] == ends[end]
    replay = await client.get(f"{RESPONSES}/{response_id}?stream=true&starting_after=1")
    assert events_of(replay.content) == events[2:]


async def test_a_stream_fetched_again_while_at_work_waits_for_the_end_too(client, simulator):
    begun = (await post(client, RESPONSES, background=True)).json()
    url = f"{RESPONSES}/{begun['id']}?stream=true&starting_after=5"
    async with client.stream("GET", url) as answer:
        simulator.finish(begun["id"])
        events = events_of(b"".join([piece async for piece in answer.aiter_raw()]))
    assert events[0]["sequence_number"] == 6
    assert events[-1]["type"] == "response.completed"


async def test_a_conversation_is_made_shorter(client, simulator):
    asked = {"model": "gpt-4o-mini", "input": [{"role": "user", "content": "hello"}]}
    said = (await post(client, f"{RESPONSES}/compact", **asked)).json()
    assert (said["object"], said["output"][-1]["type"]) == ("response.compaction", "compaction")
    assert said["usage"] == simulator.answers[0].usage.in_response()


async def test_input_tokens_are_counted_for_nothing(client, simulator):
    answer = await post(client, f"{RESPONSES}/input_tokens", model="gpt-4o-mini", input="hello")
    told = {"object": "response.input_tokens", "input_tokens": -(-len(answer.request.content) // 4)}
    assert answer.json() == told
    assert simulator.answers == []


# --- embeddings, moderations, models


async def test_embeddings_are_the_same_in_floats_and_in_base64(client, simulator):
    asked = {"model": "text-embedding-3-small", "input": ["one", "two"], "dimensions": 4}
    floats = (await post(client, "/v1/embeddings", **asked)).json()
    packed = (await post(client, "/v1/embeddings", encoding_format="base64", **asked)).json()
    assert [one["index"] for one in floats["data"]] == [0, 1]
    for one, other in zip(floats["data"], packed["data"], strict=True):
        assert list(struct.unpack("<4f", base64.b64decode(other["embedding"]))) == one["embedding"]
    assert floats["data"][0]["embedding"] != floats["data"][1]["embedding"]
    told = simulator.answers[0].usage
    assert floats["usage"] == {"prompt_tokens": told.prompt_tokens, "total_tokens": told.prompt_tokens}
    assert told.counts() == {"input_tokens": told.prompt_tokens}


@pytest.mark.parametrize(("given", "inputs"), [("a", 1), ([1, 2], 1), (["a", "b"], 2), ([[1], [2], [3]], 3)])
async def test_an_input_is_one_text_or_several(client, given, inputs):
    said = (await post(client, "/v1/embeddings", model="text-embedding-3-small", input=given)).json()
    assert len(said["data"]) == inputs


async def test_moderations_flag_nothing_and_are_free(client, simulator):
    said = (await post(client, "/v1/moderations", input=["a", "b"])).json()
    assert said["model"] == "omni-moderation-2024-09-26"
    assert [result["flagged"] for result in said["results"]] == [False, False]
    assert simulator.answers == []


async def test_the_models_are_listed_and_found_by_id_and_alias(client):
    listed = (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == [model.id for model in MODELS]
    assert (await client.get("/v1/models/gpt-4o-mini")).json()["id"] == "gpt-4o-mini-2024-07-18"
    missing = await client.get("/v1/models/gpt-none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


# --- what the real API checks


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"headers": {"authorization": "Bearer wrong"}}, 401, {"code": "invalid_api_key"}),
        ({"headers": {"authorization": VENDOR_KEY}}, 401, {"code": None}),
        ({"headers": {"authorization": ""}}, 401, {"code": None}),
        ({"url": "/v1/nothing"}, 404, {"message": "Invalid URL (POST /v1/nothing)"}),
        ({"url": "/v1/models"}, 404, {"code": None}),
        ({"url": "/v1/files"}, 404, {"code": None}),
        ({"url": f"{RESPONSES}/resp_1"}, 404, {"code": None}),
        ({"content": b"{"}, 400, {"type": "invalid_request_error"}),
        ({"content": b"[]"}, 400, {"type": "invalid_request_error"}),
        (
            {"json": {"model": "gpt-4o-mini"}},
            400,
            {"param": "messages", "code": "missing_required_parameter"},
        ),
        ({"json": {"messages": []}}, 400, {"param": "model"}),
        ({"json": {**KINDS[CHAT], "model": "claude-sonnet-5"}}, 404, {"code": "model_not_found"}),
        ({"json": {**KINDS[CHAT], **ASKING}}, 400, {"param": "stream_options"}),
        ({"json": {**KINDS[CHAT], **ASKING, "stream": False}}, 400, {"param": "stream_options"}),
        (
            {"url": RESPONSES, "json": {**KINDS[RESPONSES], "background": True, "store": False}},
            400,
            {"param": "store"},
        ),
        ({"url": "/v1/moderations", "json": {}}, 400, {"param": "input"}),
    ],
)
async def test_a_wrong_request_gets_the_vendors_error(client, simulator, change, status, error):
    request = {"url": CHAT, "json": KINDS[CHAT], **change}
    if "content" in request:
        del request["json"]
    answer = await client.post(request.pop("url"), **request)
    told = answer.json()["error"]
    assert answer.status_code == status
    assert set(told) == {"message", "type", "param", "code"}
    assert told["type"] == "invalid_request_error"
    assert {name: told[name] for name in error} == error
    assert simulator.answers == []


async def test_a_wrong_place_in_a_stream_is_refused(client):
    said = (await post(client, RESPONSES)).json()
    answer = await client.get(f"{RESPONSES}/{said['id']}?stream=true&starting_after=x")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "starting_after")


async def test_a_request_with_a_wrong_key_does_not_use_up_a_script(client, simulator):
    simulator.next(fails(503))
    assert (await post(client, headers={"authorization": "Bearer no"})).status_code == 401
    assert (await post(client)).status_code == 503


# --- scripts


async def test_an_error_says_its_type_code_and_headers(client, simulator):
    simulator.next(
        fails(429, headers={"retry-after": "7"}),
        fails(429, "insufficient_quota", error_code="insufficient_quota", message="You exceeded it"),
        fails(500),
        fails(400, error_code="context_length_exceeded", error_param="messages"),
    )
    limited, poor, failed, long = [await post(client) for _ in range(4)]
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "7")
    assert limited.json()["error"]["code"] == "rate_limit_exceeded"
    assert poor.json()["error"] == {
        "message": "You exceeded it",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
    assert failed.json()["error"]["type"] == "server_error"
    assert long.json()["error"]["param"] == "messages"
    assert [(told.status, told.usage) for told in simulator.answers] == [
        (429, None),
        (429, None),
        (500, None),
        (400, None),
    ]


async def test_an_error_inside_a_chat_stands_in_an_error_object_and_ends_it(client, simulator):
    simulator.next(errors_after(2, usage=USAGE))
    events = await stream(client)
    assert len(events) == 3
    assert events[-1]["error"]["message"] == "Overloaded"
    assert simulator.answers[0].usage == USAGE


@pytest.mark.parametrize("nests", [False, True])
async def test_an_error_inside_a_response_is_an_event(client, simulator, nests):
    simulator.next(errors_after(3, nests_error=nests))
    events = await stream(client, RESPONSES)
    assert (events[-1]["type"], events[-1]["sequence_number"]) == ("error", 3)
    told = events[-1]["error"] if nests else events[-1]
    assert told["message"] == "Overloaded"


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize("ending", [Ending.FIN, Ending.CLEAN])
async def test_a_stream_breaks_off_after_as_many_events_as_asked(client, simulator, path, ending):
    simulator.next(breaks_after(3, ending=ending, events=20))
    body = b""
    try:
        async with client.stream("POST", path, json={**KINDS[path], "stream": True}) as answer:
            async for piece in answer.aiter_raw():
                body += piece
    except httpx.RemoteProtocolError:
        assert ending is Ending.FIN
    else:
        assert ending is Ending.CLEAN
    assert len(events_of(body)) == 3
    assert simulator.answers[0].usage is not None


async def test_a_stalled_stream_goes_on_when_its_gate_opens(client, simulator):
    gate = Gate()
    simulator.next(stalls_after(2, gate=gate))
    async with client.stream("POST", CHAT, json={**KINDS[CHAT], "stream": True}) as answer:
        pieces = answer.aiter_raw()
        seen = b"".join([await anext(pieces) for _ in range(2)])
        await gate.reached()
        gate.open()
        seen += b"".join([piece async for piece in pieces])
    assert events_of(seen)[-1] == "[DONE]"


async def test_a_dropped_and_a_given_answer_are_as_scripted(client, simulator):
    simulator.next(drops(), answers({"any": "thing"}, status=201))
    with pytest.raises(httpx.RemoteProtocolError):
        await post(client)
    given = await post(client, RESPONSES, stream=True)
    assert (given.status_code, given.json()) == (201, {"any": "thing"})
    assert simulator.answers[1].usage is None


async def test_a_fetched_response_may_be_scripted_too(client, simulator):
    said = (await post(client, RESPONSES)).json()
    simulator.script = lambda request: fails(500) if request.method == "GET" else None
    assert (await client.get(f"{RESPONSES}/{said['id']}")).status_code == 500
    assert (await client.get(f"{RESPONSES}/{said['id']}?stream=true")).status_code == 500


# --- the header language


async def test_a_request_may_say_in_a_header_what_its_answer_does(client, simulator):
    words = "input=100,output=20,cache_read=30,cache_write=40,cache_write_12h=10,reasoning=5,tier=flex"
    said = (await post(client, RESPONSES, headers={"x-simulate": words})).json()
    assert said["service_tier"] == "flex"
    assert simulator.answers[0].usage == ReportedUsage(100, 20, 30, 40, 10, reasoning_tokens=5)


def test_words_do_what_their_helpers_do():
    assert parse_simulate("polls=2,keepalives=3,ends=failed,hide_usage=1") == streams(
        polls=2, keepalives=3, ends="failed", hides_usage=True
    )
    assert parse_simulate("tool=look,moderated=1") == streams(
        tool_calls=(ToolCall("look"),), after_usage=(moderation(),)
    )
    assert parse_simulate("audio_input=4,audio_output=5,web_searches=6").usage_changes == {
        "audio_prompt_tokens": 4,
        "audio_completion_tokens": 5,
        "web_searches": 6,
    }
    assert parse_simulate("error_after=3") == errors_after(3)
    assert parse_simulate("hang=1") == hangs()


@pytest.mark.parametrize("value", ["nothing=1", "cache_write_1h=3", "polls=x"])
async def test_a_word_that_is_none_here_is_refused(client, value):
    answer = await post(client, headers={"x-simulate": value})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_the_durable_record_says_what_each_answer_reports(tmp_path):
    path = tmp_path / "record.jsonl"
    async with (
        OpenAISimulator(record_to=path, default=streams(usage=USAGE)) as simulator,
        httpx.AsyncClient(base_url=simulator.url, headers=HEADERS) as client,
    ):
        await post(client, headers={"x-request-tag": "T9"})
    seen, ended = read_record(path)
    assert (seen["tag"], seen["usage"], seen["status"]) == ("T9", USAGE.counts(), 200)
    assert ended == {"event": "ended", "number": 1, "state": "sent"}
