"""The real `openai` SDK with nothing changed but base URL and key: current and the major before, sync and async; and
what of it the agent uses, that of JavaScript."""

import orjson
import pytest

from simulators.openai import (
    MODELS,
    VENDOR_KEY,
    Ending,
    OpenAISimulator,
    ReportedUsage,
    ToolCall,
    breaks_after,
    drops,
    errors_after,
    fails,
    moderation,
    streams,
)
from tests.support.gateway import DatedClock, running_gateway
from tests.support.sdk import OPENAI, running_sdk

PYTHON = ("3-sync", "3-async", "2-sync", "2-async")
EVERY_SDK = pytest.mark.parametrize("sdk", [*PYTHON, "7-js"], indirect=True)
ANSWER = "You said: Name a bird."
TEXT = "A robin, I should say, or a wren."
BIRD = '{"name":"wren","can_fly":true}'
USAGE = ReportedUsage(prompt_tokens=40, completion_tokens=90, cached_tokens=20, reasoning_tokens=60)
WRITTEN = ReportedUsage(prompt_tokens=40, completion_tokens=20, cached_tokens=10, cache_write_tokens=20)
CACHING = "gpt-5.6-sol"
"""A model that writes what it is asked to a cache, and tells how much."""
WITH_USAGE = {"stream_options": {"include_usage": True}}
POLLED_AFTER_S = 60.0
"""Far beyond the pause between two looks at work in the background."""


@pytest.fixture(scope="module", params=PYTHON)
def sdk(request):
    with running_sdk(request.param, OPENAI) as running:
        yield running


@pytest.fixture
async def vendor():
    async with OpenAISimulator() as simulator:
        yield simulator


def environment(vendor, **more):
    return {"OPENAI_API_KEY": VENDOR_KEY, "OPENAI_UPSTREAM_URL": vendor.url, **more}


@pytest.fixture
async def gateway(tmp_path, vendor):
    clock = DatedClock(2026, 11, 20)
    async with running_gateway(tmp_path, env=environment(vendor), clock=clock) as running:
        yield running
        await running.assert_clean()


@pytest.fixture
async def token(gateway):
    return await gateway.new_token()


async def assert_booked_as_told(gateway, vendor) -> None:
    """Every billable answer of the vendor stands in the ledger once, with its counts; the others with nothing."""
    entries = await gateway.entries()
    assert len(entries) == vendor.requests_total > 0
    told = {answered.request_id: answered for answered in vendor.answers}
    for entry in entries:
        answered = told.pop(entry["upstream_request_id"], None)
        assert (entry["kind"], entry["outcome"]) == ("settle", "completed")
        if answered is None:
            assert (entry["usage"], entry["cost_nanousd"]) == (None, 0)
            continue
        assert entry["basis"] == "reported"
        (line,) = orjson.loads(entry["usage"])
        assert (line["model"], line["counts"]) == (answered.model, answered.usage.counts())
    assert told == {}


def seen_by_vendor(vendor, token):
    """The only request that the vendor got, which carries the platform's key and no token."""
    (request,) = vendor.requests
    assert request.header(b"authorization") == f"Bearer {VENDOR_KEY}".encode()
    assert token not in repr(request)
    assert request.header(b"user-agent").startswith((b"OpenAI/", b"AsyncOpenAI/"))
    return request


def text_of(chunks):
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


# --- chat completions -----------------------------------------------------------------------------------


@EVERY_SDK
async def test_a_chat_is_answered(sdk, gateway, token, vendor):
    completion = (await sdk("chat", gateway.url, token)).result()
    (told,) = vendor.answers
    assert completion["choices"][0]["message"]["content"] == ANSWER
    assert completion["id"] == told.message_id
    assert completion["usage"]["completion_tokens"] == told.usage.completion_tokens
    seen_by_vendor(vendor, token)
    await assert_booked_as_told(gateway, vendor)


@EVERY_SDK
async def test_who_did_not_ask_for_usage_sees_every_chunk_but_that_of_the_usage(sdk, gateway, token, vendor):
    vendor.next(streams(events=20))
    said = await sdk("chat_chunks", gateway.url, token)
    said.result()
    assert orjson.loads(seen_by_vendor(vendor, token).body)["stream_options"] == {"include_usage": True}
    assert len(said.seen) == 18, "not the one with the usage, and [DONE] is none"
    assert all(chunk["choices"] for chunk in said.seen)
    assert {chunk.get("usage") for chunk in said.seen} == {None}
    assert said.seen[-1]["choices"][0]["finish_reason"] == "stop"
    await assert_booked_as_told(gateway, vendor)


@EVERY_SDK
async def test_who_asked_for_usage_gets_its_chunk(sdk, gateway, token, vendor):
    vendor.next(streams(events=20, usage=USAGE))
    said = await sdk("chat_chunks", gateway.url, token, **WITH_USAGE)
    said.result()
    *chunks, last = said.seen
    assert len(chunks) == 18
    assert last["choices"] == []
    assert last["usage"] == USAGE.in_completion()
    await assert_booked_as_told(gateway, vendor)


@pytest.mark.parametrize("asked", [{}, WITH_USAGE], ids=["unasked", "asked"])
async def test_a_chunk_that_follows_the_usage_is_passed_on(sdk, gateway, token, vendor, asked):
    vendor.next(streams(text=TEXT, after_usage=(moderation(),)))
    said = await sdk("chat_chunks", gateway.url, token, **asked)
    said.result()
    assert text_of(said.seen) == TEXT
    assert "moderation" in said.seen[-1]
    assert len([chunk for chunk in said.seen if chunk["choices"] == []]) == (2 if asked else 1)
    await assert_booked_as_told(gateway, vendor)


@pytest.mark.parametrize("do", ["chat", "chat_chunks", "response", "response_events"])
async def test_what_was_written_to_a_cache_is_booked(sdk, gateway, token, vendor, do):
    vendor.next(streams(usage=WRITTEN))
    (await sdk(do, gateway.url, token, model=CACHING)).result()
    await assert_booked_as_told(gateway, vendor)


async def test_the_stream_helper_puts_the_completion_together(sdk, gateway, token, vendor):
    said = await sdk("chat_stream", gateway.url, token)
    assert said.result()["choices"][0]["message"]["content"] == ANSWER
    assert said.seen.count("chunk") > 3
    await assert_booked_as_told(gateway, vendor)


async def test_structured_output_is_parsed(sdk, gateway, token, vendor):
    vendor.next(streams(text=BIRD), streams(text=BIRD))
    bird = {"name": "wren", "can_fly": True}
    assert (await sdk("chat_parse", gateway.url, token)).result() == bird
    assert (await sdk("response_parse", gateway.url, token)).result() == bird
    assert vendor.requests[0].json()["response_format"]["type"] == "json_schema"
    await assert_booked_as_told(gateway, vendor)


async def test_calls_of_tools_are_passed_on_whole_and_streamed(sdk, gateway, token, vendor):
    called = streams(tool_calls=(ToolCall("look_up", '{"bird":"wren"}'),))
    vendor.next(called, called, called)
    function = {"name": "look_up", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    whole = (await sdk("chat", gateway.url, token, tools=tools)).result()["choices"][0]["message"]
    streamed = await sdk("chat_chunks", gateway.url, token, tools=tools)
    response = (await sdk("response", gateway.url, token, tools=[{"type": "function", **function}])).result()
    streamed.result()
    assert whole["tool_calls"][0]["function"] == {"name": "look_up", "arguments": '{"bird":"wren"}'}
    pieces = [
        call["function"]["arguments"]
        for chunk in streamed.seen
        for call in chunk["choices"][0]["delta"].get("tool_calls") or ()
    ]
    assert "".join(pieces) == '{"bird":"wren"}'
    assert response["output"][0]["arguments"] == '{"bird":"wren"}'
    await assert_booked_as_told(gateway, vendor)


async def test_a_compressed_answer_is_read_and_metered(sdk, gateway, token, vendor):
    vendor.next(*[streams(text=TEXT, gzip=True)] * 3)
    streamed = await sdk("chat_chunks", gateway.url, token)
    whole = await sdk("chat", gateway.url, token)
    events = await sdk("response_events", gateway.url, token)
    streamed.result()
    events.result()
    assert text_of(streamed.seen) == whole.result()["choices"][0]["message"]["content"] == TEXT
    assert events.seen[-1]["type"] == "response.completed"
    await assert_booked_as_told(gateway, vendor)


# --- responses ------------------------------------------------------------------------------------------


async def test_a_response_is_made_fetched_and_continued(sdk, gateway, token, vendor):
    vendor.next(streams(text=TEXT, usage=USAGE))
    made = (await sdk("response", gateway.url, token)).result()
    fetched = (await sdk("retrieve", gateway.url, token, response_id=made["id"])).result()
    continued = await sdk("response", gateway.url, token, previous_response_id=made["id"])
    assert made["output"][0]["content"][0]["text"] == TEXT
    assert made["usage"] == USAGE.in_response()
    assert fetched == made
    assert continued.result()["previous_response_id"] == made["id"]
    assert vendor.answers[1].usage.prompt_tokens > USAGE.total_tokens, "the conversation so far is in it"
    await assert_booked_as_told(gateway, vendor)


@EVERY_SDK
async def test_the_events_of_a_response_come_in_their_order_to_the_last(sdk, gateway, token, vendor):
    vendor.next(streams(text=TEXT, thinking="hm", keepalives=2, usage=USAGE))
    said = await sdk("response_events", gateway.url, token)
    said.result()
    assert [event["sequence_number"] for event in said.seen] == list(range(len(said.seen)))
    kinds = [event["type"] for event in said.seen]
    assert kinds[:5] == [
        "response.created",
        "response.in_progress",
        "keepalive",
        "keepalive",
        "response.output_item.added",
    ]
    assert kinds[-1] == "response.completed"
    assert said.seen[-1]["response"]["usage"] == USAGE.in_response()
    deltas = [event["delta"] for event in said.seen if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == TEXT
    await assert_booked_as_told(gateway, vendor)


async def test_the_stream_helper_puts_the_response_together(sdk, gateway, token, vendor):
    said = await sdk("response_stream", gateway.url, token)
    assert said.result()["output"][0]["content"][0]["text"] == ANSWER
    assert said.seen[-1] == "response.completed"
    await assert_booked_as_told(gateway, vendor)


async def test_a_response_streamed_again_is_not_paid_again(sdk, gateway, token, vendor):
    first = await sdk("response_events", gateway.url, token)
    first.result()
    response_id = first.seen[0]["response"]["id"]
    again = await sdk("retrieve_events", gateway.url, token, response_id=response_id)
    later = await sdk("retrieve_events", gateway.url, token, response_id=response_id, starting_after=4)
    again.result()
    later.result()
    assert again.seen == first.seen
    assert later.seen == first.seen[5:]
    assert len(vendor.answers) == 1
    await assert_booked_as_told(gateway, vendor)


async def test_a_response_cut_by_its_ceiling_and_one_that_fails_are_billed(sdk, gateway, token, vendor):
    vendor.next(streams(ends="incomplete", usage=USAGE), streams(ends="failed", usage=USAGE))
    for kind in ("incomplete", "failed"):
        said = await sdk("response_events", gateway.url, token)
        said.result()
        assert said.seen[-1]["type"] == f"response.{kind}"
    entries = await gateway.entries()
    assert [orjson.loads(entry["usage"])[0]["counts"] for entry in entries] == [USAGE.counts()] * 2


async def test_work_in_the_background_is_booked_when_it_ends(sdk, gateway, token, vendor):
    vendor.next(streams(usage=USAGE))
    begun = (await sdk("response", gateway.url, token, background=True)).result()
    waiting = (await sdk("retrieve", gateway.url, token, response_id=begun["id"])).result()
    assert (begun["status"], waiting["status"], waiting.get("usage")) == ("queued", "in_progress", None)
    vendor.finish(begun["id"])
    ended = (await sdk("retrieve", gateway.url, token, response_id=begun["id"])).result()
    assert (ended["status"], ended["usage"]) == ("completed", USAGE.in_response())
    gateway.clock.advance(POLLED_AFTER_S)
    entries = [entry for entry in await gateway.entries() if entry["usage"] is not None]
    assert [orjson.loads(entry["usage"])[0]["counts"] for entry in entries] == [USAGE.counts()]


async def test_work_in_the_background_is_cancelled(sdk, gateway, token, vendor):
    begun = (await sdk("response", gateway.url, token, background=True)).result()
    cancelled = (await sdk("cancel", gateway.url, token, response_id=begun["id"])).result()
    assert cancelled["status"] == "cancelled"
    assert vendor.kept[begun["id"]].status == "cancelled"
    gateway.clock.advance(POLLED_AFTER_S)
    (made,) = [e for e in await gateway.entries() if e["operation"] == "POST /v1/responses"]
    assert (made["kind"], made["basis"]) == ("settle", "estimated"), "the vendor tells no usage of it"


async def test_work_in_the_background_may_be_streamed_and_is_booked_once(sdk, gateway, token, vendor):
    vendor.next(streams(usage=USAGE, polls=0))
    said = await sdk("response_events", gateway.url, token, background=True)
    said.result()
    assert [event["type"] for event in said.seen[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert said.seen[-1]["type"] == "response.completed"
    gateway.clock.advance(POLLED_AFTER_S)
    (entry,) = await gateway.entries()
    assert orjson.loads(entry["usage"])[0]["counts"] == USAGE.counts()


# --- the others -----------------------------------------------------------------------------------------


async def test_embeddings_and_older_completions_are_answered_and_booked(sdk, gateway, token, vendor):
    embedded = (await sdk("embeddings", gateway.url, token)).result()
    floats = (await sdk("embeddings", gateway.url, token, encoding_format="float")).result()
    completion = (await sdk("completion", gateway.url, token)).result()
    assert [one["embedding"] for one in embedded["data"]] == [one["embedding"] for one in floats["data"]]
    assert completion["choices"][0]["text"] == ANSWER
    await assert_booked_as_told(gateway, vendor)


async def test_moderations_and_models_are_free_and_leave_a_zero_entry(sdk, gateway, token, vendor):
    assert (await sdk("moderation", gateway.url, token)).result()["results"][0]["flagged"] is False
    assert (await sdk("models", gateway.url, token)).result() == [model.id for model in MODELS]
    assert (await sdk("model", gateway.url, token, name="gpt-4o-mini")).result() == "gpt-4o-mini-2024-07-18"
    assert vendor.answers == []
    await assert_booked_as_told(gateway, vendor)


# --- errors that no retry can mend ----------------------------------------------------------------------


@EVERY_SDK
async def test_an_unknown_token_raises_authentication_error_at_once(sdk, gateway, vendor):
    error = (await sdk("chat", gateway.url, "amp_nobodys")).error("AuthenticationError")
    assert (error["status"], error["body"]["code"]) == (401, "invalid_api_key")
    assert error["request_id"] == gateway.lines[0]["request"]
    assert len(gateway.lines) == 1, "not retried"
    assert vendor.requests_total == 0


@pytest.mark.parametrize(
    ("do", "arguments"),
    [
        ("chat", {"model": "gpt-imaginary-9"}),
        ("chat_chunks", {"model": "gpt-imaginary-9"}),
        ("response", {"model": "gpt-imaginary-9"}),
        ("embeddings", {"model": "gpt-imaginary-9"}),
        ("get", {"path": "/files"}),
        ("get", {"path": "/chat/completions"}),
        ("get", {"path": "/responses/resp_1/input_items"}),
        ("post", {"path": "/batches", "body": {}}),
        ("post", {"path": "/images/generations", "body": {"prompt": "a bird"}}),
    ],
)
async def test_what_does_not_exist_raises_not_found_at_once(sdk, gateway, token, vendor, do, arguments):
    error = (await sdk(do, gateway.url, token, **arguments)).error("NotFoundError")
    assert (error["status"], error["body"]["type"]) == (404, "invalid_request_error")
    if "model" in arguments:
        assert error["body"]["code"] == "model_not_found"
    assert arguments.get("model", arguments.get("path")) in error["message"]
    assert len(gateway.lines) == 1, "not retried"
    assert vendor.requests_total == 0


@EVERY_SDK
async def test_the_response_of_another_user_does_not_exist(sdk, gateway, token, vendor):
    other = await gateway.new_token("u2")
    made = (await sdk("response", gateway.url, other)).result()
    error = (await sdk("retrieve", gateway.url, token, response_id=made["id"])).error("NotFoundError")
    assert made["id"] in error["message"]
    continued = await sdk("response", gateway.url, token, previous_response_id=made["id"])
    assert continued.error("NotFoundError")["body"]["code"] == "previous_response_not_found"
    assert vendor.requests_total == 1


async def test_the_work_of_another_user_is_not_cancelled(sdk, gateway, token, vendor):
    vendor.next(streams(polls=0))
    other = await gateway.new_token("u2")
    made = (await sdk("response", gateway.url, other, background=True)).result()
    (await sdk("cancel", gateway.url, token, response_id=made["id"])).error("NotFoundError")
    assert vendor.requests_total == 1
    gateway.clock.advance(POLLED_AFTER_S)


async def test_a_model_that_the_vendor_does_not_know_raises_not_found(sdk, gateway, token, vendor):
    error = (await sdk("model", gateway.url, token, name="gpt-imaginary-9")).error("NotFoundError")
    assert error["body"]["code"] == "model_not_found"
    assert vendor.requests_total == 1


@pytest.mark.parametrize(
    ("do", "field"),
    [("response", {"conversation": "conv_1"}), ("response", {"prompt": {"id": "pmpt_1"}})],
)
async def test_a_forbidden_field_raises_bad_request_and_names_it(sdk, gateway, token, vendor, do, field):
    error = (await sdk(do, gateway.url, token, extra_body=field)).error("BadRequestError")
    assert next(iter(field)) in error["message"]
    assert error["body"]["type"] == "invalid_request_error"
    assert len(gateway.lines) == 1, "not retried"
    assert vendor.requests_total == 0


@EVERY_SDK
async def test_a_spent_budget_raises_rate_limit_error_at_once(sdk, tmp_path, vendor):
    async with running_gateway(tmp_path, env=environment(vendor), credits_per_month=100) as gateway:
        token = await gateway.new_token()
        vendor.next(streams(usage=ReportedUsage(prompt_tokens=10, completion_tokens=1_000_000)))
        (await sdk("chat", gateway.url, token)).result()
        said = await sdk("chat", gateway.url, token, client={"max_retries": 5})
        error = said.error("RateLimitError")
        assert (error["status"], error["body"]["code"]) == (429, "usage_limit_reached")
        assert "Monthly usage limit reached" in error["message"]
        assert "retry-after" not in error["headers"]
        refusals = {"surface": "openai", "reason": "budget_exhausted"}
        assert gateway.metric("automna_refusals_total", **refusals) == 1, "not retried"
        assert vendor.requests_total == 1
        await gateway.assert_clean()


async def test_a_disabled_user_raises_permission_denied_at_once(sdk, gateway, token, vendor):
    await gateway.directory.disable("u1")
    await gateway.service.own.authenticator.look_for_changes()
    assert (await sdk("chat", gateway.url, token)).error("PermissionDeniedError")["status"] == 403
    assert len(gateway.lines) == 1, "not retried"
    assert vendor.requests_total == 0


async def test_a_body_too_long_raises_the_error_of_its_status(sdk, tmp_path, vendor):
    env = environment(vendor, BODY_BYTES_MAX="4000")
    async with running_gateway(tmp_path, env=env) as gateway:
        token = await gateway.new_token()
        messages = [{"role": "user", "content": "x" * 5_000}]
        error = (await sdk("chat", gateway.url, token, messages=messages)).error("APIStatusError")
        assert (error["classes"][0], error["status"]) == ("APIStatusError", 413)
        assert len(gateway.lines) == 1, "not retried"
        assert vendor.requests_total == 0


# --- errors that pass -----------------------------------------------------------------------------------


async def test_beyond_the_rate_it_raises_rate_limit_error_with_a_time(sdk, tmp_path, vendor):
    async with running_gateway(tmp_path, env=environment(vendor), requests_per_minute=0) as gateway:
        token = await gateway.new_token()
        error = (await sdk("chat", gateway.url, token, client={"max_retries": 0})).error("RateLimitError")
        assert (error["status"], error["body"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(error["headers"]["retry-after"]) <= 61
        assert vendor.requests_total == 0


@EVERY_SDK
async def test_the_vendors_rate_limit_is_waited_out(sdk, gateway, token, vendor):
    vendor.next(fails(429, headers={"retry-after": "1"}))
    (await sdk("chat", gateway.url, token)).result()
    assert [line["status"] for line in gateway.lines] == [429, 200]
    assert vendor.requests_total == 2
    assert [entry["cost_nanousd"] > 0 for entry in await gateway.entries()] == [False, True]


FAILURES = {
    500: lambda: fails(500),
    502: drops,
    503: lambda: fails(503),
    504: lambda: fails(504),
}


@EVERY_SDK
@pytest.mark.parametrize("status", FAILURES)
async def test_a_failure_of_the_vendor_raises_internal_server_error(sdk, gateway, token, vendor, status):
    vendor.next(FAILURES[status]())
    error = (await sdk("chat", gateway.url, token, client={"max_retries": 0})).error("InternalServerError")
    assert error["status"] == status
    assert vendor.requests_total == 1


async def test_a_vendor_that_fails_is_asked_again(sdk, gateway, token, vendor):
    vendor.next(fails(500))
    (await sdk("response", gateway.url, token)).result()
    assert [line["status"] for line in gateway.lines] == [500, 200]


@EVERY_SDK
@pytest.mark.parametrize("do", ["chat_chunks", "response_events"])
async def test_an_error_inside_the_stream_raises(sdk, gateway, token, vendor, do):
    vendor.next(errors_after(5, text=TEXT, nests_error=True))
    said = await sdk(do, gateway.url, token)
    assert "Overloaded" in said.error("APIError")["message"]
    assert said.seen, "what came before the error was passed on"
    assert vendor.requests_total == 1, "a stream that has begun is not asked for again"


@EVERY_SDK
@pytest.mark.parametrize("do", ["chat_chunks", "response_events"])
async def test_a_stream_cut_for_its_budget_raises_with_the_words_of_the_budget(sdk, tmp_path, vendor, do):
    env = environment(vendor, OUTPUT_SLICE_TOKENS="100")
    async with running_gateway(tmp_path, env=env, credits_per_month=40) as gateway:
        vendor.next(streams(text="A robin. " * 1_000, events=400, stalls_after=300))
        most = {"max_completion_tokens" if do == "chat_chunks" else "max_output_tokens": 8_000}
        said = await sdk(do, gateway.url, await gateway.new_token(), model="gpt-4o", **most)
        assert "Monthly usage limit reached" in said.error("APIError")["message"]
        assert said.seen, "what was paid for was passed on"
        assert vendor.requests_total == 1
        assert (await gateway.only_entry())["outcome"] == "budget_ended"


async def test_an_error_event_of_a_response_is_passed_on_as_it_is(sdk, gateway, token, vendor):
    vendor.next(errors_after(5, text=TEXT))
    said = await sdk("response_events", gateway.url, token)
    said.result()
    assert (said.seen[-1]["type"], said.seen[-1]["message"]) == ("error", "Overloaded"), (
        "no exception, but no end"
    )
    (entry,) = await gateway.entries()
    assert entry["outcome"] == "upstream_failed"


# --- answers that break off -----------------------------------------------------------------------------

CUTS = {
    "closed": lambda: breaks_after(5, text=TEXT),
    "reset": lambda: breaks_after(5, ending=Ending.RESET, text=TEXT),
    "as if it were whole": lambda: breaks_after(5, ending=Ending.CLEAN, text=TEXT),
    "compressed": lambda: breaks_after(5, gzip=True, text=TEXT),
}


@EVERY_SDK
@pytest.mark.parametrize("do", ["chat_chunks", "response_events"])
@pytest.mark.parametrize("cut", CUTS)
async def test_half_an_answer_is_never_taken_for_a_whole_one(sdk, gateway, token, vendor, cut, do):
    vendor.next(CUTS[cut]())
    said = await sdk(do, gateway.url, token)
    assert said.raised is not None, f"ended after {said.seen}"
    if cut in {"closed", "as if it were whole"}:
        assert "broke off its answer" in said.error("APIError")["message"]
    (entry,) = await gateway.entries()
    assert (entry["outcome"], entry["basis"]) == ("upstream_failed", "estimated")
    assert vendor.requests_total == 1


async def test_a_whole_answer_that_breaks_off_is_never_returned(sdk, gateway, token, vendor):
    vendor.next(breaks_after(200), breaks_after(200))
    said = await sdk("chat", gateway.url, token, client={"max_retries": 1})
    assert said.raised is not None, f"returned {said.returned}"
    outcomes = [entry["outcome"] for entry in await gateway.entries()]
    assert outcomes == ["upstream_failed"] * vendor.requests_total
