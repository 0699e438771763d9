"""What an answer of Gemini used, in every way it can be told or end."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import orjson
import pytest

from metering.money import usd
from metering.usage import (
    CACHE_AUDIO_READ,
    CACHE_READ,
    INPUT,
    INPUT_AUDIO,
    INPUT_IMAGE,
    INPUT_VIDEO,
    MAPS_SEARCHES,
    OUTPUT,
    OUTPUT_AUDIO,
    OUTPUT_IMAGE,
    WEB_SEARCHES,
    UsageLine,
)
from proxy.surface import PASS_ALL
from routes import gemini_usage
from routes.gemini import SURFACE
from routes.gemini_usage import (
    STREAM_BYTES_PER_OUTPUT_TOKEN,
    BodyObserver,
    EventsObserver,
    ListObserver,
)
from tests.fixtures_llm import each_recorded
from tests.unit.routes.gemini_bodies import (
    JSON,
    MODEL,
    SSE,
    TABLE,
    by_modality,
    chunk,
    demand,
    events,
    failed,
    fed,
    listed,
    observer,
    read,
    tokens,
)

UNARY = demand(is_streaming=False)
DONE = chunk("end", finish="STOP", usage=tokens(10, 5, 7))
BUCKETS = {"input_uncached": INPUT, "cache_read": CACHE_READ, "output": OUTPUT}


def counts(usage):
    (line,) = usage.lines
    return dict(line.counts)


def counted(usage, **options):
    """The counts of a whole answer with this usage."""
    found = read(
        orjson.dumps(chunk("x", finish="STOP", usage=usage)),
        JSON,
        wanted=demand(is_streaming=False, **options),
    )
    return counts(found)


# --- recorded answers -------------------------------------------------------------------------------------


@each_recorded("gemini")
@pytest.mark.parametrize("step", [1, 7, 4096, None])
def test_a_recorded_answer_uses_what_was_worked_out_by_hand(recording, step):
    usage = read_recorded(recording, step)
    expected = [
        (row["model"], {unit: row[name] for name, unit in BUCKETS.items() if row[name]})
        for row in recording.expected
    ]
    assert [(line.model, line.counts) for line in usage.lines] == expected
    assert usage.is_exact
    assert not usage.notes


@each_recorded("gemini")
def test_a_recorded_answer_costs_its_list_price(recording):
    at_ms = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp() * 1000)
    priced = TABLE.price("gemini", read_recorded(recording), at_ms=at_ms)
    assert Decimal(usd(priced.cost_nanousd)) == Decimal(recording.usd)
    assert not priced.flags


def read_recorded(recording, step=None):
    is_stream = "stream" in recording.file
    wanted = demand(
        model="gemini-flash-latest" if is_stream else "gemini-embedding-2", is_streaming=is_stream
    )
    return read(recording.body, recording.content_type, step=step, wanted=wanted)


@each_recorded("gemini")
def test_a_recorded_list_holds_back_its_last_bracket_and_a_whole_answer_nothing(recording):
    is_stream = "stream" in recording.file
    reader = observer(recording.content_type, wanted=demand(is_streaming=is_stream))
    assert reader.feed(recording.body) == (recording.body.rindex(b"]") if is_stream else PASS_ALL)


@pytest.mark.parametrize("operation", SURFACE.operations, ids=lambda operation: operation.name)
def test_the_examples_of_the_surface_use_what_they_declare(operation):
    if operation.meter.is_free:
        return
    example = operation.example
    model = example.path.split("/")[-1].partition(":")[0]
    wanted = demand(model=model, is_streaming="stream" in example.path)
    usage = read(example.answer, example.answer_content_type, wanted=wanted)
    assert usage == example.usage


# --- the counters -----------------------------------------------------------------------------------------

COUNTERS = [
    # what the vendor says                                                      what is billed
    (tokens(10, 5), {INPUT: 10, OUTPUT: 5}),
    (tokens(10, 5, 7), {INPUT: 10, OUTPUT: 12}),
    (tokens(10), {INPUT: 10}),
    (tokens(10, 5, totalTokenCount=15), {INPUT: 10, OUTPUT: 5}),
    (tokens(10, 5, totalTokenCount=40), {INPUT: 10, OUTPUT: 30}),
    (tokens(10, 5, totalTokenCount=3), {INPUT: 10, OUTPUT: 5}),
    (tokens(10, 5, cachedContentTokenCount=4), {INPUT: 6, CACHE_READ: 4, OUTPUT: 5}),
    (tokens(10, 5, cachedContentTokenCount=99), {CACHE_READ: 10, OUTPUT: 5}),
    (tokens(10, 5, toolUsePromptTokenCount=90), {INPUT: 100, OUTPUT: 5}),
    (tokens("10", "5"), {INPUT: 10, OUTPUT: 5}),
    # details split a count, and never take more than there is
    (tokens(10, 5, promptTokensDetails=by_modality(text=10)), {INPUT: 10, OUTPUT: 5}),
    (tokens(10, 5, promptTokensDetails=by_modality(text=4, audio=6)), {INPUT: 4, INPUT_AUDIO: 6, OUTPUT: 5}),
    (tokens(10, 5, promptTokensDetails=by_modality(document=10)), {INPUT: 10, OUTPUT: 5}),
    (tokens(10, 5, promptTokensDetails=by_modality(audio=600)), {INPUT_AUDIO: 10, OUTPUT: 5}),
    (tokens(301, 5, promptTokensDetails=by_modality(text=432)), {INPUT: 301, OUTPUT: 5}),
    (
        tokens(10, 5, promptTokensDetails=by_modality(audio=4, image=4, video=4)),
        {INPUT_AUDIO: 4, INPUT_IMAGE: 4, INPUT_VIDEO: 2, OUTPUT: 5},
    ),
    (
        tokens(
            10,
            5,
            cachedContentTokenCount=6,
            promptTokensDetails=by_modality(audio=8, text=2),
            cacheTokensDetails=by_modality(audio=5, text=1),
        ),
        {INPUT: 1, INPUT_AUDIO: 3, CACHE_AUDIO_READ: 5, CACHE_READ: 1, OUTPUT: 5},
    ),
    (
        tokens(
            10,
            toolUsePromptTokenCount=8,
            promptTokensDetails=by_modality(text=10),
            toolUsePromptTokensDetails=by_modality(image=3, text=5),
        ),
        {INPUT: 15, INPUT_IMAGE: 3},
    ),
    (tokens(10, 5, 7, candidatesTokensDetails=by_modality(image=5)), {INPUT: 10, OUTPUT_IMAGE: 5, OUTPUT: 7}),
    (tokens(10, 5, candidatesTokensDetails=by_modality(audio=9)), {INPUT: 10, OUTPUT_AUDIO: 5}),
    (tokens(10, 5, promptTokensDetails="odd", candidatesTokensDetails=[7, {}]), {INPUT: 10, OUTPUT: 5}),
]  # fmt: skip


@pytest.mark.parametrize(("usage", "expected"), COUNTERS)
def test_counters_become_disjoint_buckets(usage, expected):
    assert counted(usage) == expected


def test_a_total_above_its_parts_is_noted():
    usage = read(
        orjson.dumps(chunk(finish="STOP", usage=tokens(1, 1, totalTokenCount=9))), JSON, wanted=UNARY
    )
    assert usage.notes == ("total_above_its_parts",)
    assert usage.is_exact


def test_what_the_vendor_does_not_split_is_of_the_dear_kind_that_was_held_for():
    wanted = demand(ceiling={INPUT_AUDIO: 9_000, OUTPUT_IMAGE: 9_000}, is_streaming=False)
    body = orjson.dumps(chunk(finish="STOP", usage=tokens(10, 5, 7)))
    usage = read(body, JSON, wanted=wanted)
    assert counts(usage) == {INPUT_AUDIO: 10, OUTPUT_IMAGE: 5, OUTPUT: 7}
    assert usage.notes == ("modality_assumed",)


@pytest.mark.parametrize(
    "usage",
    [
        tokens(-1, 5), tokens(True, 5), tokens(1.5, 5), tokens("many", 5), tokens(10**10, 5), tokens(10, [5]), [], "x", 7
    ],
)  # fmt: skip
def test_counts_that_make_no_sense_are_an_estimate_at_least_of_the_floor(usage):
    found = read(orjson.dumps(chunk("x", finish="STOP", usage=usage)), JSON, wanted=UNARY)
    assert not found.is_exact
    assert found.total(INPUT) == 500


# --- model and tier -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("gemini-3.6-flash", "gemini-3.6-flash"),
        ("models/gemini-3.6-flash", "gemini-3.6-flash"),
        (None, "gemini-flash-latest"),
        (7, "gemini-flash-latest"),
        ("x" * 500, "gemini-flash-latest"),
    ],
)
def test_the_model_that_answered_is_billed_and_without_its_name_the_one_asked_for(told, expected):
    usage = read(events(chunk(finish="STOP", usage=tokens(1, 1), model=told)))
    assert [line.model for line in usage.lines] == [expected]


TIERS = [
    # in the usage             in the head       asked for    billed as
    ("standard", b"", None, {}),
    ("SERVICE_TIER_STANDARD", b"", "priority", {}),
    ("unspecified", b"", None, {}),
    ("flex", b"", None, {"service_tier": "flex"}),
    ("FLEX", b"", None, {"service_tier": "flex"}),
    ("SERVICE_TIER_PRIORITY", b"", None, {"service_tier": "priority"}),
    ("priority", b"standard", "flex", {"service_tier": "priority"}),
    (None, b"priority", None, {"service_tier": "priority"}),
    (None, b"", "flex", {"service_tier": "flex"}),
    (None, b"", None, {}),
    ("turbo", b"", None, {"service_tier": "turbo"}),
]


@pytest.mark.parametrize(("told", "header", "asked", "expected"), TIERS)
def test_the_tier_that_served_is_billed(told, header, asked, expected):
    body = events(chunk(finish="STOP", usage=tokens(1, 1, serviceTier=told)))
    headers = [(b"x-gemini-service-tier", header)] if header else []
    usage = read(body, wanted=demand(tier=asked), headers=headers)
    assert [line.modifiers for line in usage.lines] == [expected]


# --- grounding ----------------------------------------------------------------------------------------------


def grounded(*queries, images=(), chunks=()):
    metadata = {"webSearchQueries": list(queries), "groundingChunks": [{kind: {}} for kind in chunks]}
    return {**metadata, "imageSearchQueries": list(images)} if images else metadata


GROUNDING = [
    # model                metadata, chunk by chunk                             web  maps
    ("gemini-3.5-flash", [grounded("a", "b")], 2, 0),
    ("gemini-3.5-flash", [grounded("a", "b", "")], 2, 0),
    ("gemini-3.5-flash", [grounded("a"), grounded("a", "b")], 2, 0),
    ("gemini-3.5-flash", [grounded("a"), grounded("b")], 2, 0),
    ("gemini-3.5-flash", [grounded("a", "a")], 2, 0),
    ("gemini-3.5-flash", [grounded("a", images=["a", "c"])], 3, 0),
    ("gemini-3.5-flash", [grounded(chunks=["web"])], 1, 0),
    ("gemini-3.5-flash", [grounded(chunks=["maps"])], 0, 1),
    ("gemini-3.5-flash", [grounded("a", "b", chunks=["maps"])], 0, 2),
    ("gemini-3.5-flash", [grounded("a", "b", chunks=["maps", "web"])], 2, 1),
    ("gemini-3.5-flash", [grounded()], 0, 0),
    ("gemini-3.5-flash", ["odd", {"webSearchQueries": 7, "groundingChunks": [7]}], 0, 0),
    ("gemini-2.5-flash", [grounded("a", "b", chunks=["web"])], 1, 0),
    ("gemini-2.5-flash", [grounded("a", "b", chunks=["maps"])], 0, 1),
    ("gemini-2.0-flash", [grounded()], 0, 0),
]


@pytest.mark.parametrize(
    ("body", "content_type", "is_streaming"),
    [(events, SSE, True), (listed, JSON, True), (orjson.dumps, JSON, False)],
)
@pytest.mark.parametrize("text", ["x", "x" * 100_000])
def test_queries_too_long_to_be_kept_are_counted_like_others(body, content_type, is_streaming, text):
    """A sentence in Cyrillic has 260 bytes soon; an empty query is still none."""
    metadata = grounded("ж" * 130, "я" * 130, "", chunks=["web"])
    answer = chunk(text, finish="STOP", model="gemini-3.5-flash", grounding=metadata, usage=tokens(9, 1))
    usage = read(body(answer), content_type, wanted=demand(is_streaming=is_streaming))
    assert (usage.total(WEB_SEARCHES), usage.is_exact) == (2, True)


@pytest.mark.parametrize(("model", "metadata", "web", "maps"), GROUNDING)
def test_searches_are_billed_one_by_one_or_once_a_request_as_the_model_has_it(model, metadata, web, maps):
    chunks = [chunk("x", model=model, grounding=one, usage=tokens(9, 1)) for one in metadata]
    usage = read(events(*chunks, chunk(finish="STOP", usage=tokens(9, 1), model=model)))
    assert (usage.total(WEB_SEARCHES), usage.total(MAPS_SEARCHES)) == (web, maps)
    assert usage.is_exact


# --- streams --------------------------------------------------------------------------------------------------

FIRST, SECOND = chunk("a", usage=tokens(10)), chunk("b", usage=tokens(10, 3))


@pytest.mark.parametrize(("body", "content_type"), [(events, SSE), (listed, JSON)])
@pytest.mark.parametrize("step", [1, 5, 64, None])
def test_the_last_counts_of_a_stream_hold_even_where_they_fell(body, content_type, step):
    fell = chunk("", finish="STOP", usage=tokens(10, 2))
    usage = read(body(FIRST, chunk("b", usage=tokens(10, 50)), fell), content_type, step=step)
    assert usage.lines == (UsageLine(MODEL, {INPUT: 10, OUTPUT: 2}),)
    assert usage.is_exact


@pytest.mark.parametrize("step", [1, 64, None])
def test_counts_may_follow_the_reason_why_the_answer_stopped(step):
    body = events(FIRST, chunk("b", finish="STOP"), {"usageMetadata": tokens(10, 9), "modelVersion": MODEL})
    usage = read(body, step=step)
    assert counts(usage) == {INPUT: 10, OUTPUT: 9}
    assert usage.is_exact


@pytest.mark.parametrize("step", [1, 64])
def test_of_a_stream_that_was_cut_the_greatest_counts_are_the_estimate(step):
    """In one chunk of bytes only the newest counts are looked at, so it comes in several."""
    fell = chunk("", usage=tokens(10))
    usage = read(events(FIRST, chunk("b", usage=tokens(10, 50, 4)), fell), step=step)
    assert counts(usage) == {INPUT: 10, OUTPUT: 54}
    assert not usage.is_exact


def test_without_any_counts_the_floor_and_the_bytes_are_the_estimate():
    body = events(*[chunk("words, words", model=None)] * 5)
    usage = read(body)
    assert not usage.is_exact
    assert usage.lines == (UsageLine("gemini-flash-latest", {INPUT: 500, OUTPUT: min(len(body) // 10, 100)}),)


def test_an_error_inside_a_stream_is_not_charged_beyond_what_was_counted():
    reader = fed(events(SECOND, failed()))
    assert (reader.error, reader.is_complete) == ("UNAVAILABLE", False)
    assert counts(reader.usage()) == {INPUT: 10, OUTPUT: 3}
    assert not reader.usage().is_exact
    assert read(events(failed())).lines == ()


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n"])
@pytest.mark.parametrize("step", [1, None])
def test_an_error_that_is_no_event_is_seen_though_the_answer_seemed_to_be_over(end, step):
    """So the vendor was seen to do it: events, a reason to stop, and then a bare object."""
    reader = fed(events(FIRST, DONE) + json.dumps(failed(), indent=2).encode() + end, step=step)
    assert (reader.error, reader.is_complete) == ("UNAVAILABLE", True)
    assert not reader.usage().is_exact


ENDS = [
    # what the stream says                                   whole
    ([FIRST, DONE], True),
    ([DONE, chunk("more", usage=tokens(10, 6))], True),
    ([chunk(finish="MAX_TOKENS", usage=tokens(1, 1))], True),
    ([chunk(finish="SAFETY", usage=tokens(1))], True),
    (
        [{"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": tokens(4), "modelVersion": MODEL}],
        True,
    ),
    ([FIRST, SECOND], False),
    ([chunk(finish="", usage=tokens(1))], False),
    ([chunk(finish="FINISH_REASON_UNSPECIFIED", usage=tokens(1))], False),
    ([{"promptFeedback": {"safetyRatings": []}, "usageMetadata": tokens(4)}], False),
    ([], False),
]


@pytest.mark.parametrize(("chunks", "is_whole"), ENDS)
@pytest.mark.parametrize(("body", "content_type"), [(events, SSE), (listed, JSON)])
def test_a_stream_is_whole_when_it_said_why_it_stopped_and_ended_properly(
    body, content_type, chunks, is_whole
):
    reader = fed(body(*chunks), content_type)
    assert reader.is_complete is is_whole
    assert reader.usage().is_exact is is_whole


def test_events_without_a_proper_end_are_never_whole():
    reader = fed(events(FIRST, DONE), ends=False)
    assert not reader.is_complete
    assert not reader.usage().is_exact
    reader.end()
    assert reader.is_complete


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_an_event_cut_in_its_middle_does_not_hide_the_counts_before_it(cut):
    body = events(SECOND, DONE)
    usage = read(body[:-cut])
    assert usage.total(INPUT) == 10
    assert usage.is_exact is (cut < 5), "only its empty line is missing"


def test_a_list_without_its_bracket_is_not_whole():
    body = listed(FIRST, DONE)
    reader = fed(body[:-1], JSON)
    assert not reader.is_complete
    assert reader.feed(b" ]\n") == 1
    assert reader.is_complete
    assert reader.feed(b"\n") == 0, "what follows the end waits as well"


def test_of_events_only_an_error_is_held_back():
    reader = observer()
    assert reader.feed(events(FIRST, DONE)) == PASS_ALL
    body = events(SECOND, failed())
    assert reader.feed(body) == len(events(SECOND))
    assert reader.feed(b"data: {}\r\n\r\n") == 0


def test_an_event_may_be_appended_between_events_and_never_to_a_list_or_a_body():
    reader = observer()
    assert reader.at_boundary
    reader.feed(events(FIRST)[:-2])
    assert not reader.at_boundary
    reader.feed(b"\r\n")
    assert reader.at_boundary
    assert not fed(listed(FIRST), JSON).at_boundary
    assert not fed(b"{}", JSON, wanted=UNARY).at_boundary


def test_the_kind_of_answer_decides_how_it_is_read():
    assert isinstance(observer(SSE), EventsObserver)
    assert isinstance(observer("text/event-stream; charset=utf-8"), EventsObserver)
    assert isinstance(observer(""), EventsObserver)
    assert isinstance(observer(JSON), ListObserver)
    assert isinstance(observer("", wanted=UNARY), BodyObserver)


def test_a_stream_may_be_an_object_where_a_list_is_expected():
    reader = fed(orjson.dumps(DONE), JSON)
    assert reader.is_complete
    assert counts(reader.usage()) == {INPUT: 10, OUTPUT: 12}


def test_names_of_counters_inside_the_answers_own_text_and_arguments_mislead_nobody():
    text = '"usageMetadata": {"promptTokenCount": 0} "finishReason": "STOP" "error"'
    call = {
        "functionCall": {
            "name": "f",
            "args": {"usageMetadata": tokens(0, 0), "finishReason": "STOP", "error": {}},
        }
    }
    talk = chunk(text, usage=tokens(10, 3))
    talk["candidates"][0]["content"]["parts"].append(call)
    for body, content_type in ((events(talk), SSE), (listed(talk), JSON)):
        reader = fed(body, content_type)
        assert (reader.is_complete, reader.error) == (False, None)
        assert counts(reader.usage()) == {INPUT: 10, OUTPUT: 3}


def test_a_chunk_that_is_no_json_makes_the_counts_an_estimate():
    reader = fed(events(FIRST) + b'data: {"finishReason": \r\n\r\n' + events(DONE))
    assert reader.is_complete
    usage = reader.usage()
    assert (usage.is_exact, usage.notes) == (False, ("usage_malformed",))
    assert counts(usage) == {INPUT: 10, OUTPUT: 12}


@pytest.mark.parametrize(("body", "content_type"), [(events, SSE), (listed, JSON)])
def test_a_chunk_too_long_to_be_kept_is_made_good_by_counts_at_the_end(body, content_type):
    rows = [{"row": ["x" * 200]}] * 25_000
    huge = chunk("", usage=tokens(10, 1), rows=rows)
    usage = read(body(huge, DONE), content_type, step=1 << 16)
    assert counts(usage) == {INPUT: 10, OUTPUT: 12}
    assert usage.is_exact
    cut = read(body(FIRST, huge), content_type, step=1 << 16)
    assert "usage_not_looked_at" in cut.notes


# --- whole answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture_bytes", [0, 100_000, 12_000_000])
def test_a_whole_answer_is_read_whatever_it_carries(picture_bytes):
    part = {"inlineData": {"mimeType": "image/png", "data": "iVBOR" * (picture_bytes // 5)}}
    body = chunk(finish="STOP", usage=tokens(10, 1290, candidatesTokensDetails=by_modality(image=1290)))
    body["candidates"][0]["content"]["parts"].append(part)
    reader = fed(orjson.dumps(body), JSON, wanted=UNARY, step=1 << 16)
    assert reader.is_complete
    assert counts(reader.usage()) == {INPUT: 10, OUTPUT_IMAGE: 1290}
    assert reader.usage().is_exact


def test_embeddings_are_billed_to_the_model_asked_for_and_many_of_them_are_read_as_well():
    wanted = demand(model="gemini-embedding-2", is_streaming=False)
    usage = tokens(70, promptTokenDetails=by_modality(text=60, image=10))
    body = orjson.dumps({"embeddings": [{"values": [0.0123456789] * 3072}] * 50, "usageMetadata": usage})
    assert len(body) > 1_000_000
    found = read(body, JSON, wanted=wanted, step=1 << 16)
    assert found.lines == (UsageLine("gemini-embedding-2", {INPUT: 60, INPUT_IMAGE: 10}),)
    assert found.is_exact


def test_embeddings_of_older_days_tell_nothing_and_are_estimated():
    wanted = demand(model="gemini-embedding-001", is_streaming=False, ceiling={INPUT: 700})
    found = read(b'{"embedding":{"values":[0.1]}}', JSON, wanted=wanted)
    assert found.lines == (UsageLine("gemini-embedding-001", {INPUT: 500}),)
    assert not found.is_exact


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"<html>", b"7", b"null", b"{}"])
def test_a_body_that_says_nothing_is_an_estimate(body):
    found = read(body, JSON, wanted=UNARY)
    assert not found.is_exact
    assert found.total(INPUT) == 500


def test_a_body_whose_framing_is_unfinished_counts_when_its_last_brace_is_there():
    body = orjson.dumps(DONE)
    reader = observer(JSON, wanted=UNARY)
    reader.feed(body[:-1])
    before = reader.usage()
    reader.feed(body[-1:])
    counted = reader.usage()
    reader.end()
    assert counted.lines == reader.usage().lines != before.lines
    assert [usage.is_exact for usage in (before, counted, reader.usage())] == [False, False, True]


def test_of_a_stream_that_was_cut_before_its_output_was_counted_the_bytes_are_the_estimate_of_that():
    """The first chunks tell the prompt alone, though they carry text."""
    reader = observer(SSE)
    chunk = {"candidates": [{"content": {"parts": [{"text": "Teal " * 100}]}}], "usageMetadata": tokens(7)}
    data = b"data: " + orjson.dumps(chunk) + b"\r\n\r\n"
    reader.feed(data)
    usage = reader.usage()
    assert not usage.is_exact
    assert (usage.total(INPUT), usage.total(OUTPUT)) == (7, len(data) // STREAM_BYTES_PER_OUTPUT_TOKEN)


def test_a_blocked_prompt_is_billed_as_the_vendor_counts_it():
    body = orjson.dumps(
        {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": tokens(4), "modelVersion": MODEL}
    )
    usage = read(body, JSON, wanted=UNARY)
    assert usage.lines == (UsageLine(MODEL, {INPUT: 4}),)
    assert usage.is_exact


# --- what it costs to look ------------------------------------------------------------------------------------


def test_chunks_that_only_repeat_the_counts_are_not_read_until_somebody_asks(monkeypatch):
    loads, calls = gemini_usage.json_of, []

    def watched(data):
        calls.append(data)
        return loads(data)

    monkeypatch.setattr(gemini_usage, "json_of", watched)
    reader = observer()
    for _ in range(50):
        reader.feed(events(SECOND))
    assert calls == []
    reader.feed(events(DONE))
    assert len(calls) == 1
