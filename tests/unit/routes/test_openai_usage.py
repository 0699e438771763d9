"""What an answer of OpenAI used, in every way it can be told or end."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.money import usd
from metering.usage import (
    CACHE_AUDIO_READ,
    CACHE_READ,
    CACHE_WRITE_12H,
    CACHE_WRITE_30M,
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    OUTPUT,
    OUTPUT_AUDIO,
    PROMPT_UNITS,
    WEB_SEARCHES,
    WEB_SEARCHES_PREVIEW,
    Usage,
    UsageLine,
)
from proxy.meters import NothingToRead
from proxy.surface import PASS_ALL, AnswerHead
from routes import counting
from routes.openai_usage import (
    CHAT_BYTES_PER_OUTPUT_TOKEN,
    REASONED_TOKENS_PER_S,
    ChatStream,
    EmbeddingsBody,
    ResponseBody,
    ResponseStream,
    is_running,
    observe_chat,
    observe_response,
)
from tests.fixtures_llm import each_recorded
from tests.unit.routes.openai_bodies import (
    DELTA,
    DONE,
    KEEPALIVE,
    MODEL,
    PRICES,
    STARTED,
    chat_stream,
    chat_usage,
    chunk,
    completion,
    demand,
    event,
    fed,
    observer,
    read_chat,
    read_response,
    response,
    response_stream,
    terminal,
    usage_of,
)

BUCKETS = {
    "input_uncached": INPUT,
    "cache_read": CACHE_READ,
    "cache_write_5m_or_30m": CACHE_WRITE_30M,
    "output": OUTPUT,
    "web_searches": WEB_SEARCHES,
}


def observe_embeddings(wanted, _answer):
    return EmbeddingsBody(wanted)


def reader_of(recording):
    observe = observe_response if "responses" in recording.file else observe_chat
    if "embeddings" in recording.file:
        observe = observe_embeddings
    output = 0 if "embeddings" in recording.file else 1_000
    return observer(observe, recording.content_type, demand(output=output))


# --- recorded answers ---------------------------------------------------------------------------------


@each_recorded("openai")
@pytest.mark.parametrize("step", [1, 7, 4096, None])
def test_a_recorded_answer_uses_what_was_worked_out_by_hand(recording, step):
    reader = reader_of(recording)
    step = step or len(recording.body)
    for at in range(0, len(recording.body), step):
        reader.feed(recording.body[at : at + step])
    reader.end()
    usage = reader.usage()
    assert reader.is_complete
    if recording.expected is None:
        assert not usage.is_exact
        assert usage.lines == (UsageLine(MODEL, {INPUT: 50, OUTPUT: len(recording.body) // 50}),)
        return
    expected = [
        (
            row["model"],
            {unit: row[name] for name, unit in BUCKETS.items() if row[name]},
            {} if row["tier"] == "standard" else {"service_tier": row["tier"]},
        )
        for row in recording.expected
    ]
    assert [(line.model, line.counts, line.modifiers) for line in usage.lines] == expected
    assert usage.is_exact
    assert not usage.notes


@each_recorded("openai")
def test_a_recorded_answer_costs_its_list_price(recording):
    if recording.usd is None:
        return
    at_ms = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp() * 1000)
    reader = reader_of(recording)
    reader.feed(recording.body)
    reader.end()
    priced = PRICES.price("openai", reader.usage(), at_ms=at_ms)
    whole_nanousd = Decimal(recording.usd).quantize(Decimal("1e-9"))
    assert abs(Decimal(usd(priced.cost_nanousd)) - whole_nanousd) <= Decimal("1e-9")
    assert not priced.flags


@each_recorded("openai")
def test_a_recorded_stream_holds_back_exactly_its_last_event_and_a_whole_answer_nothing(recording):
    reader = reader_of(recording)
    ends = [recording.body.rfind(last) for last in (b"data: [DONE]", b"event: response.completed")]
    assert reader.feed(recording.body) == max(*ends, PASS_ALL)


# --- counts -------------------------------------------------------------------------------------------

COUNTS = [
    # prompt's details                                                buckets
    ({}, {INPUT: 100}),
    ({"cached_tokens": None}, {INPUT: 100}),
    ({"cached_tokens": 60}, {INPUT: 40, CACHE_READ: 60}),
    ({"cached_tokens": 60, "cache_write_tokens": 30}, {INPUT: 10, CACHE_READ: 60, CACHE_WRITE_30M: 30}),
    (
        {
            "cache_write_tokens": 30,
            "cache_write_tokens_details": {"ttl_30m_tokens": 10, "ttl_12h_tokens": 20},
        },
        {INPUT: 70, CACHE_WRITE_30M: 10, CACHE_WRITE_12H: 20},
    ),
    ({"audio_tokens": 30, "text_tokens": 70}, {INPUT: 70, INPUT_AUDIO: 30}),
    ({"audio_tokens": 30, "image_tokens": 20}, {INPUT: 50, INPUT_AUDIO: 30, INPUT_IMAGE: 20}),
    ({"audio_tokens": 50, "cached_tokens": 60}, {INPUT_AUDIO: 40, CACHE_READ: 50, CACHE_AUDIO_READ: 10}),
    ({"image_tokens": 50, "cached_tokens": 60}, {INPUT_IMAGE: 40, CACHE_READ: 60}),
]


@pytest.mark.parametrize(("details", "buckets"), COUNTS)
def test_the_prompts_total_is_taken_apart_into_disjoint_buckets(details, buckets):
    usage = read_chat(completion(chat_usage(100, 7, of_prompt=details)))
    assert usage.lines == (UsageLine(MODEL, {**buckets, OUTPUT: 7}),)
    assert usage.is_exact
    assert not usage.notes


def test_reasoning_and_rejected_predictions_are_output_once_and_sound_is_told_apart():
    details = {
        "reasoning_tokens": 30,
        "audio_tokens": 20,
        "accepted_prediction_tokens": 5,
        "rejected_prediction_tokens": 15,
    }
    usage = read_chat(completion(chat_usage(9, 100, of_output=details)))
    assert usage.lines == (UsageLine(MODEL, {INPUT: 9, OUTPUT: 80, OUTPUT_AUDIO: 20}),)


@pytest.mark.parametrize(
    ("is_long", "unit", "note"), [(False, CACHE_WRITE_30M, ()), (True, CACHE_WRITE_12H, 1)]
)
def test_cache_writes_without_lifetimes_get_the_dearest_that_the_request_asks_for(is_long, unit, note):
    body = completion(chat_usage(100, 7, of_prompt={"cache_write_tokens": 80}))
    usage = read_chat(body, wanted=demand(is_long=is_long))
    assert usage.lines[0].counts == {INPUT: 20, unit: 80, OUTPUT: 7}
    assert usage.notes == (("cache_write_ttl_assumed_12h",) if note else ())


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": "9", "completion_tokens": 1},
        {"prompt_tokens": 9, "completion_tokens": None},
        {"prompt_tokens": 9, "completion_tokens": -1},
        {"prompt_tokens": 9, "completion_tokens": 10**10},
        chat_usage(9, 1, of_prompt={"cached_tokens": 10}),
        chat_usage(9, 1, of_prompt={"cached_tokens": 5, "cache_write_tokens": 5}),
        chat_usage(9, 1, of_prompt={"cached_tokens": True}),
        chat_usage(9, 1, of_prompt=[]),
        chat_usage(9, 1, of_output={"audio_tokens": 2}),
        {"input_tokens": 9, "output_tokens": 1, "input_tokens_details": {"cache_write_tokens_details": 3}},
        [],
    ],
)
def test_counts_that_cannot_be_are_never_exact_and_never_negative(usage):
    found = read_chat(completion(usage))
    assert not found.is_exact
    assert all(count >= 0 for line in found.lines for count in line.counts.values())
    assert found.lines
    assert sum(found.total(unit) for unit in PROMPT_UNITS) >= 9


VECTORS = json.dumps([{"object": "embedding", "index": 0, "embedding": [0.25] * 3_000}]).encode()
COUNTS_OF_VECTORS = b'"model":"m","usage":{"prompt_tokens":8,"total_tokens":8}'
EMBEDDINGS = [
    b'{"object":"list","data":%b,%b}' % (VECTORS, COUNTS_OF_VECTORS),
    b'{"object":"list","data":%b ,\n %b\n}\n' % (VECTORS, COUNTS_OF_VECTORS),
    b'{"data":"]","x":%b,%b}' % (VECTORS, COUNTS_OF_VECTORS),
    b'{%b,"data":%b}' % (COUNTS_OF_VECTORS, VECTORS),
]


def read_embeddings(body, *, step=None, output=0):
    return fed(body, observe=observe_embeddings, step=step, wanted=demand(output=output)).usage()


@pytest.mark.parametrize("step", [None, 1_000])
@pytest.mark.parametrize("body", EMBEDDINGS)
def test_an_embedding_has_input_alone(body, step):
    usage = read_embeddings(body, step=step)
    assert usage.lines == (UsageLine("m", {INPUT: 8}),)
    assert usage.is_exact
    assert not usage.notes
    assert not read_embeddings(body, output=1).is_exact
    cut = read_embeddings(body[:-3])
    assert not cut.is_exact
    assert cut.lines == (UsageLine(MODEL, {INPUT: 50}),)


def test_vectors_are_not_parsed_and_may_be_longer_than_what_is_kept(monkeypatch):
    monkeypatch.setattr(counting, "BODY_COPY_BYTES_MAX", 100)
    assert read_embeddings(EMBEDDINGS[0], step=64).is_exact
    late = read_embeddings(EMBEDDINGS[3], step=64)
    assert late.notes == ("usage_not_looked_at",)
    assert not late.is_exact


def test_the_tier_is_the_answers_and_the_requests_where_it_names_none():
    counts = chat_usage(5, 6)
    asked = demand(service_tier="priority", region="eu")
    for told, tier in (
        ("flex", {"service_tier": "flex"}),
        ("default", {}),
        ("auto", {"service_tier": "priority"}),
        (None, {"service_tier": "priority"}),
    ):
        line = read_chat(completion(counts, service_tier=told), wanted=asked).lines[0]
        assert line.modifiers == {"region": "eu", **tier}


def test_a_chat_that_may_search_has_searched_once():
    usage = read_chat(completion(chat_usage(5, 6)), wanted=demand(searches=1))
    assert usage.lines[0].counts == {INPUT: 5, OUTPUT: 6, WEB_SEARCHES: 1}


def test_a_chat_that_was_cut_has_searched_once_it_has_answered():
    wanted = demand(searches=1)
    cut = chat_stream(chunk("a"), is_done=False)
    for body in (cut, completion(None)):
        usage = read_chat(body, wanted=wanted)
        assert (usage.total(INPUT), usage.total(WEB_SEARCHES), usage.is_exact) == (50, 1, False)
        assert len(usage.lines) == 1
    error = chat_stream({"error": {"message": "m", "type": "server_error"}}, is_done=False)
    for body, asked in ((b"", wanted), (cut + error, wanted), (cut, demand())):
        assert read_chat(body, wanted=asked).total(WEB_SEARCHES) == 0


# --- chat streams -------------------------------------------------------------------------------------


def test_the_last_usage_that_is_not_null_wins_wherever_it_stands():
    stream = chat_stream(
        chunk("a", usage=chat_usage(999, 999)),
        chunk("b"),
        chunk(usage=chat_usage(5, 6), model="gpt-5.6-sol-2026-01-01", service_tier="flex"),
        chunk(moderation={"input": {"type": "error", "code": "x", "message": "y"}}),
    )
    usage = read_chat(stream)
    assert usage.lines == (
        UsageLine("gpt-5.6-sol-2026-01-01", {INPUT: 5, OUTPUT: 6}, {"service_tier": "flex"}),
    )
    assert usage.is_exact


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" , ", " :  ")])
def test_usage_is_found_however_the_json_is_spaced(separators):
    stream = chat_stream(chunk("a"), chunk(usage=chat_usage(5, 6)), separators=separators)
    assert read_chat(stream).lines == (UsageLine(MODEL, {INPUT: 5, OUTPUT: 6}),)


def test_chunks_without_usage_are_not_parsed(monkeypatch):
    parsed = []
    monkeypatch.setattr("routes.openai_usage.json_of", lambda data: parsed.append(data) or json.loads(data))
    quoted = 'it says "prompt_tokens" and "error"'
    read_chat(chat_stream(*[chunk(quoted) for _ in range(50)], chunk(usage=chat_usage(5, 6))))
    assert len(parsed) == 1


def test_text_that_quotes_the_end_of_a_stream_does_not_end_it():
    reader = ChatStream(demand())
    assert reader.feed(chat_stream(chunk("data: [DONE]"), is_done=False)) == PASS_ALL
    assert not reader.is_complete
    assert reader.feed(DONE) == 0
    assert reader.is_complete


def test_a_stream_that_lacks_only_its_last_empty_line_is_whole():
    stream = chat_stream(chunk(usage=chat_usage(5, 6))).removesuffix(b"\n\n")
    reader = fed(stream, observe=observe_chat)
    assert reader.is_complete
    assert reader.usage().is_exact


def test_a_stream_without_usage_is_an_estimate():
    stream = chat_stream(*[chunk("word") for _ in range(50)])
    usage = read_chat(stream)
    assert usage.lines == (UsageLine(MODEL, {INPUT: 50, OUTPUT: len(stream) // CHAT_BYTES_PER_OUTPUT_TOKEN}),)
    assert not usage.is_exact
    assert read_chat(stream, wanted=demand(output=3)).total(OUTPUT) == 3


def test_a_stream_cut_after_its_usage_books_what_was_reported():
    usage = read_chat(chat_stream(chunk("a"), chunk(usage=chat_usage(5, 6)), is_done=False))
    assert usage.lines == (UsageLine(MODEL, {INPUT: 5, OUTPUT: 6}),)
    assert not usage.is_exact


def test_an_error_in_a_stream_ends_it_and_is_not_guessed_about():
    stream = chat_stream(chunk("a"), {"error": {"message": "m", "type": "server_error", "code": None}})
    reader = fed(stream, observe=observe_chat)
    assert reader.error == "server_error"
    assert reader.usage().lines == ()
    assert not reader.usage().is_exact
    fresh = ChatStream(demand())
    assert fresh.feed(stream) == stream.index(b'data: {"error"')


def test_an_event_that_is_no_json_makes_a_stream_inexact():
    stream = b'data: {"prompt_tokens" \n\n' + chat_stream(chunk(usage=chat_usage(5, 6)))
    usage = read_chat(stream)
    assert not usage.is_exact
    assert usage.notes == ("usage_malformed",)


# --- responses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_response_stream_ends_with_its_terminal_event(status):
    last = terminal(status, usage=usage_of(100, 20, cached_tokens=60), service_tier="flex")
    stream = response_stream(STARTED, KEEPALIVE, DELTA, last)
    reader = ResponseStream(demand())
    assert reader.feed(stream) == stream.index(b"event: response." + status.encode())
    assert (reader.is_complete, reader.error, reader.status) == (True, None, status)
    line = UsageLine(MODEL, {INPUT: 40, CACHE_READ: 60, OUTPUT: 20}, {"service_tier": "flex"})
    assert reader.usage().lines == (line,)
    assert reader.usage().is_exact


def test_a_failed_response_costs_what_it_reports_and_nothing_where_it_reports_nothing():
    error = {"code": "server_error", "message": "m"}
    for usage, lines, is_exact in (
        (None, (), False),
        (usage_of(5, 6), (UsageLine(MODEL, {INPUT: 5, OUTPUT: 6}),), True),
    ):
        streamed = fed(
            response_stream(STARTED, terminal("failed", usage=usage, error=error)), observe=observe_response
        )
        whole = fed(
            json.dumps(response("failed", usage=usage, error=error)).encode(), observe=observe_response
        )
        for reader in (streamed, whole):
            assert (reader.is_complete, reader.error) == (True, "server_error")
            assert (reader.usage().lines, reader.usage().is_exact) == (lines, is_exact)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (event("error", code="rate_limit_exceeded", message="m"), "rate_limit_exceeded"),
        (event("error", code=None, message="m"), "error"),
        (event("error", error={"type": "server_error", "message": "m"}), "server_error"),
    ],
)
def test_a_bare_error_flat_or_nested_ends_a_response_stream(error, name):
    stream = response_stream(STARTED, DELTA, error)
    reader = ResponseStream(demand())
    assert reader.feed(stream) == stream.index(b"event: error")
    assert (reader.error, reader.is_complete) == (name, False)
    assert reader.usage().lines == ()


def test_a_response_stream_without_event_lines_is_read_as_well():
    stream = response_stream(STARTED, terminal(usage=usage_of(5, 6)))
    bare = b"".join(line + b"\n" for line in stream.split(b"\n") if not line.startswith(b"event:"))
    assert read_response(bare).lines == (UsageLine(MODEL, {INPUT: 5, OUTPUT: 6}),)


@pytest.mark.parametrize(
    ("told", "searches", "notes"),
    [
        ({"web_search": {"num_requests": 2}, "image_gen": {"total_tokens": 0}}, 2, ()),
        ({"web_search": {"num_requests": 0}}, 0, ()),
        (None, 1, ("web_searches_counted_from_output",)),
    ],
)
def test_searches_are_those_that_the_vendor_bills(told, searches, notes):
    output = [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "message"},
    ]
    usage = read_response(response(usage=usage_of(5, 6), output=output, tool_usage=told))
    assert usage.total(WEB_SEARCHES) == searches
    assert usage.notes == notes
    assert usage.is_exact


def search_item(status="completed", action="search"):
    return {"type": "web_search_call", "status": status, "action": {"type": action}}


def searched(item, stage="done"):
    return event(f"response.output_item.{stage}", output_index=0, item=item)


SEARCHED = (
    searched(search_item("in_progress"), "added"),
    event("response.web_search_call.completed", output_index=0),
    searched(search_item()),
    searched(search_item(action="open_page")),
    searched(search_item("failed")),
    searched({"type": "message", "content": [{"text": 'a "web_search_call" quoted'}]}),
    searched(search_item()),
)


def test_a_response_stream_that_was_cut_has_made_the_searches_that_it_showed_as_done():
    wanted = demand(searches=20)
    cancelled = terminal("cancelled")
    for stream in (response_stream(STARTED, *SEARCHED), response_stream(STARTED, *SEARCHED, cancelled)):
        usage = read_response(stream, wanted=wanted)
        assert (usage.total(INPUT), usage.total(WEB_SEARCHES), usage.is_exact) == (50, 2, False)
        assert usage.notes == ("web_searches_counted_from_output",)
        assert len(usage.lines) == 1
    begun = read_response(response_stream(STARTED, *SEARCHED[:2]), wanted=wanted)
    assert (begun.total(WEB_SEARCHES), begun.notes) == (0, ())


def test_searches_that_a_stream_showed_add_nothing_to_what_its_end_reports():
    wanted = demand(searches=20)
    for more, searches in (({"tool_usage": {"web_search": {"num_requests": 1}}}, 1), ({"output": []}, 0)):
        last = terminal(usage=usage_of(5, 6), **more)
        usage = read_response(response_stream(STARTED, *SEARCHED, last), wanted=wanted)
        assert (usage.total(WEB_SEARCHES), usage.is_exact, usage.notes) == (searches, True, ())
    for last in (terminal("failed", error={"code": "server_error"}), event("error", code="server_error")):
        assert read_response(response_stream(STARTED, *SEARCHED, last), wanted=wanted).lines == ()


def test_searches_of_a_cancelled_response_are_those_that_it_tells_or_shows():
    told = {"web_search": {"num_requests": 1}}
    output = [search_item(), search_item()]
    for more, searches in (({"output": output}, 2), ({"output": output, "tool_usage": told}, 1)):
        usage = read_response(response("cancelled", **more), wanted=demand(searches=20))
        assert (usage.total(WEB_SEARCHES), usage.is_exact) == (searches, False)


def test_items_are_parsed_only_where_they_are_searches_that_were_asked_for(monkeypatch):
    parsed = []
    monkeypatch.setattr("routes.openai_usage.json_of", lambda data: parsed.append(data) or json.loads(data))
    message = searched({"type": "message", "content": [{"text": 'a "web_search_call" quoted'}]})
    read_response(response_stream(STARTED, message, DELTA, KEEPALIVE), wanted=demand(searches=20))
    read_response(response_stream(STARTED, *SEARCHED), wanted=demand())
    assert parsed == []


def test_a_tool_that_is_not_offered_is_flagged_if_it_was_used():
    usage = read_response(response(usage=usage_of(5, 6), tool_usage={"image_gen": {"total_tokens": 7}}))
    assert usage.lines[0].counts["image_gen_tokens"] == 7
    flags = PRICES.price("openai", usage, at_ms=1_795_000_000_000).flags
    assert flags == ("unpriced_unit:image_gen_tokens",)


def test_a_compacted_conversation_is_billed_at_the_requests_model_and_tier():
    body = {"id": "resp_1", "object": "response.compaction", "output": [], "usage": usage_of(5, 6)}
    usage = read_response(body, wanted=demand(service_tier="flex"))
    assert usage.lines == (UsageLine(MODEL, {INPUT: 5, OUTPUT: 6}, {"service_tier": "flex"}),)
    assert usage.is_exact


def test_searches_by_a_preview_tool_cost_what_such_a_tool_costs():
    wanted = replace(
        demand(), ceiling=Usage((UsageLine("gpt-4o", {WEB_SEARCHES_PREVIEW: 20}),), is_exact=False)
    )
    told = {"web_search": {"num_requests": 2}}
    body = response(usage=usage_of(5, 6), tool_usage=told, model="gpt-4o-2024-08-06")
    usage = read_response(body, wanted=wanted)
    assert usage.lines[0].counts == {INPUT: 5, OUTPUT: 6, WEB_SEARCHES_PREVIEW: 2}
    body = completion(chat_usage(5, 6), model="gpt-4o-search-preview-2025-03-11")
    assert read_chat(body, wanted=wanted).lines[0].counts == {INPUT: 5, OUTPUT: 6, WEB_SEARCHES_PREVIEW: 1}


# --- work that goes on --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("queued", True),
        ("in_progress", True),
        ("completed", False),
        ("failed", False),
        ("incomplete", False),
        ("cancelled", False),
    ],
)
def test_a_response_runs_until_its_status_says_otherwise(status, expected):
    reader = fed(json.dumps(response(status)).encode(), observe=observe_response)
    assert reader.is_complete
    assert is_running(reader) is expected


def test_a_background_stream_that_is_cut_goes_on_and_one_that_ended_does_not():
    wanted = demand(is_deferred=True)
    queued = event("response.queued", response=response("queued"))
    assert is_running(fed(response_stream(queued, STARTED, DELTA), observe=observe_response, wanted=wanted))
    ended = response_stream(queued, terminal(usage=usage_of(5, 6)))
    assert not is_running(fed(ended, observe=observe_response, wanted=wanted))
    assert not is_running(fed(b"", observe=observe_response, wanted=wanted))
    assert not is_running(NothingToRead())


@pytest.mark.parametrize(
    ("output", "seconds", "expected"),
    [
        ([], 0, 0),
        ([], 2, 2 * REASONED_TOKENS_PER_S),
        ([], 86_400, 1_000),  # the ceiling
        ([], -5, 0),
        ([{"type": "message", "content": "x" * 150}], 0, 61),
        ([{"type": "message", "content": "x" * 150}], 1, 61),
    ],
)
def test_a_cancelled_response_costs_what_it_shows_or_had_time_for_but_not_its_request_again(
    output, seconds, expected
):
    told = response("cancelled", output=output, created_at=1_795_000_000, instructions="i" * 100_000)
    date = format_datetime(datetime.fromtimestamp(1_795_000_000 + seconds, UTC), usegmt=True)
    head = AnswerHead(200, [(b"content-type", b"application/json"), (b"date", date.encode())])
    reader = observe_response(demand(), head)
    reader.feed(json.dumps(told).encode())
    reader.end()
    usage = reader.usage()
    assert (usage.lines[0].counts[INPUT], usage.total(OUTPUT), usage.is_exact) == (50, expected, False)


@pytest.mark.parametrize("date", [b"", b"soon"])
def test_a_cancelled_response_of_unknown_time_costs_what_it_shows(date):
    head = AnswerHead(200, [(b"content-type", b"application/json"), (b"date", date)])
    reader = observe_response(demand(), head)
    reader.feed(json.dumps(response("cancelled", created_at=1_795_000_000)).encode())
    reader.end()
    assert reader.usage().total(OUTPUT) == 0


def test_a_stream_without_usage_does_not_cost_what_it_repeats_of_the_request():
    kinds = ("response.created", "response.in_progress", "response.cancelled")
    created, running, cancelled = (
        event(kind, response=response(kind.partition(".")[2], instructions="i" * 50_000)) for kind in kinds
    )
    short = read_response(response_stream(DELTA)).total(OUTPUT)
    assert read_response(response_stream(created, running, DELTA)).total(OUTPUT) - short < 10
    assert read_response(response_stream(created, running, DELTA, cancelled)).total(OUTPUT) - short < 10


def test_the_kind_of_answer_decides_the_reader():
    assert isinstance(observer(observe_response, "application/json"), ResponseBody)
    assert isinstance(observer(observe_response, "text/event-stream"), ResponseStream)
    assert isinstance(observer(observe_chat, "text/event-stream"), ChatStream)


# --- whatever comes -----------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
named = st.sampled_from(
    [
        *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"),
        *("prompt_tokens_details", "input_tokens_details", "output_tokens_details"),
        *("cached_tokens", "cache_write_tokens", "cache_write_tokens_details", "ttl_12h_tokens"),
        *("audio_tokens", "image_tokens", "web_search", "num_requests", "total_tokens"),
    ]
)
odd = anything | st.dictionaries(named, anything | st.dictionaries(named, anything | st.integers(0, 99)))


def assert_bookable(usage):
    for line in usage.lines:
        assert isinstance(line.model, str)
        assert all(isinstance(count, int) and count >= 0 for count in line.counts.values())
        assert all(isinstance(value, str) for value in line.modifiers.values())
    assert PRICES.price("openai", usage, at_ms=1_795_000_000_000).cost_nanousd >= 0


@given(odd, anything, anything)
def test_no_chat_usage_however_malformed_makes_an_observer_raise(usage, model, tier):
    more = {"model": model, "service_tier": tier}
    assert_bookable(read_chat(completion(usage, **more)))
    assert_bookable(read_chat(chat_stream(chunk("a"), chunk(usage=usage, **more))))
    assert_bookable(read_embeddings(completion(usage, **more)))


@given(odd, odd, anything, anything, st.sampled_from(["completed", "failed", "in_progress"]) | anything)
def test_no_response_however_malformed_makes_an_observer_raise(usage, tools, output, error, status):
    told = response(status, usage=usage, tool_usage=tools, output=output, error=error)
    assert_bookable(read_response(told))
    for kind in ("response.completed", "response.failed", "response.queued", "error"):
        for one in (event(kind, response=told), event(kind, response=error), event(kind, error=error)):
            reader = fed(response_stream(one), observe=observe_response, wanted=demand(is_deferred=True))
            assert_bookable(reader.usage())
            assert reader.error is None or isinstance(reader.error, str)
            assert is_running(reader) in (True, False)
