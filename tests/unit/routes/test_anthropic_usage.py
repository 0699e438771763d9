"""What an answer of the Messages API used, in every way it can be told or end."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering import json_stream
from metering.money import usd
from metering.prices import PriceTable
from metering.usage import CACHE_READ, CACHE_WRITE_1H, CACHE_WRITE_5M, INPUT, OUTPUT, WEB_SEARCHES, UsageLine
from proxy.surface import PASS_ALL, AnswerHead
from routes import counting
from routes.anthropic import SURFACE
from routes.anthropic_usage import observe
from routes.counting import BodyObserver, StreamObserver
from tests.fixtures_llm import each_recorded
from tests.unit.routes.anthropic_bodies import (
    MODEL,
    PING,
    STOP,
    block,
    delta,
    demand,
    failed,
    message,
    observer,
    read,
    started,
    stream,
    text,
)

BUCKETS = {
    "input_uncached": INPUT,
    "cache_read": CACHE_READ,
    "cache_write_5m_or_30m": CACHE_WRITE_5M,
    "cache_write_1h": CACHE_WRITE_1H,
    "output": OUTPUT,
    "web_searches": WEB_SEARCHES,
}


@each_recorded("anthropic")
@pytest.mark.parametrize("step", [1, 7, 4096, None])
def test_a_recorded_answer_uses_what_was_worked_out_by_hand(recording, step):
    usage = read(recording.body, content_type=recording.content_type, step=step)
    expected = [
        (row["model"], {unit: row[name] for name, unit in BUCKETS.items() if row[name]})
        for row in recording.expected
    ]
    assert [(line.model, line.counts) for line in usage.lines] == expected
    assert usage.is_exact
    assert not usage.notes


@each_recorded("anthropic")
def test_a_recorded_answer_costs_its_list_price(recording):
    at_ms = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp() * 1000)
    usage = read(recording.body, content_type=recording.content_type)
    priced = PriceTable.load().price("anthropic", usage, at_ms=at_ms)
    assert Decimal(usd(priced.cost_nanousd)) == Decimal(recording.usd)
    assert not priced.flags


@each_recorded("anthropic")
def test_a_recorded_stream_holds_back_exactly_its_last_event_and_a_whole_answer_nothing(recording):
    reader = observer(recording.content_type)
    is_stream = recording.file.endswith(".sse")
    last_event = recording.body.index(b"event: message_stop") if is_stream else PASS_ALL
    assert reader.feed(recording.body) == last_event
    assert reader.is_complete == is_stream


ZERO = {"input_tokens": 0, "output_tokens": 0}
SPLIT = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 40}

WRITES = [
    # ttl asked   usage                                                                  5m  1h  notes
    (None, {"cache_creation_input_tokens": 70, "cache_creation": SPLIT}, 30, 40, ()),
    ("1h", {"cache_creation_input_tokens": 70, "cache_creation": SPLIT}, 30, 40, ()),
    ("1h", {"cache_creation": SPLIT}, 30, 40, ()),
    ("5m", {"cache_creation_input_tokens": 90}, 90, 0, ()),
    ("1h", {"cache_creation_input_tokens": 90}, 0, 90, ("cache_write_ttl_assumed_1h",)),
    ("5m", {"cache_creation_input_tokens": 90, "cache_creation": SPLIT}, 50, 40, ()),
    (
        "1h",
        {"cache_creation_input_tokens": 90, "cache_creation": SPLIT},
        30,
        60,
        ("cache_write_ttl_assumed_1h",),
    ),
    ("1h", {"cache_creation_input_tokens": 50, "cache_creation": SPLIT}, 10, 40, ()),
    ("1h", {"cache_creation_input_tokens": 0, "cache_creation": SPLIT}, 0, 0, ()),
    ("1h", {"cache_creation_input_tokens": None, "cache_creation": None}, 0, 0, ()),
]


@pytest.mark.parametrize(("ttl", "usage", "five", "one", "notes"), WRITES)
def test_cache_writes_are_told_apart_by_lifetime(ttl, usage, five, one, notes):
    found = read(message({**ZERO, "input_tokens": 1, **usage}), wanted=demand(ttl=ttl))
    assert (found.total(CACHE_WRITE_5M), found.total(CACHE_WRITE_1H)) == (five, one)
    assert found.notes == notes
    assert found.is_exact


def test_a_delta_may_take_back_how_the_cache_was_written():
    writes = {"cache_creation_input_tokens": 70, "cache_creation": SPLIT}
    back = {"output_tokens": 5, "cache_creation": dict.fromkeys(SPLIT, 0)}
    body = stream(started({**ZERO, **writes}), block(), delta(back), STOP)
    usage = read(body, wanted=demand(ttl="5m"))
    assert (usage.total(CACHE_WRITE_5M), usage.total(CACHE_WRITE_1H)) == (70, 0)


def test_what_a_delta_adds_to_the_cache_gets_its_lifetime_from_the_request():
    first = {
        "input_tokens": 3,
        "output_tokens": 1,
        "cache_creation_input_tokens": 70,
        "cache_creation": SPLIT,
    }
    body = stream(
        started(first), block(), delta({"output_tokens": 5, "cache_creation_input_tokens": 170}), STOP
    )
    for ttl, five, one in (("5m", 130, 40), ("1h", 30, 140)):
        usage = read(body, wanted=demand(ttl=ttl))
        assert usage.lines == (
            UsageLine(MODEL, {INPUT: 3, CACHE_WRITE_5M: five, CACHE_WRITE_1H: one, OUTPUT: 5}),
        )


def test_a_delta_replaces_what_came_before_and_its_nulls_say_nothing():
    first = {
        "input_tokens": 2068,
        "cache_read_input_tokens": 9,
        "output_tokens": 8,
        "service_tier": "standard",
    }
    last = {
        "input_tokens": 22397,
        "cache_read_input_tokens": None,
        "output_tokens": 6,
        "server_tool_use": None,
    }
    usage = read(stream(started(first), block(), delta(last), STOP))
    assert usage.lines == (UsageLine(MODEL, {INPUT: 22397, CACHE_READ: 9, OUTPUT: 6}),)
    assert usage.is_exact


def test_web_searches_are_counted_once_and_fetches_are_free():
    usage = {
        "input_tokens": 5,
        "output_tokens": 6,
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 4},
    }
    found = read(stream(started(usage), block(), delta(usage), delta(usage), STOP))
    assert found.lines == (UsageLine(MODEL, {INPUT: 5, OUTPUT: 6, WEB_SEARCHES: 2}),)


SEARCH_STARTED = block("server_tool_use", name="web_search", id="srvtoolu_1", input={})
SEARCH_RESULT = block("web_search_tool_result", content=[{"type": "web_search_result", "title": "t"}])
SEARCH_FAILED = block(
    "web_search_tool_result", content={"type": "web_search_tool_result_error", "error_code": "unavailable"}
)
QUOTED = text('of type "web_search_tool_result"')
NONE_YET = {"input_tokens": 40, "output_tokens": 2, "server_tool_use": {"web_search_requests": 0}}


@pytest.mark.parametrize("step", [1, 700, None])
@pytest.mark.parametrize(
    ("blocks", "searches"),
    [
        ([SEARCH_RESULT], 1),
        ([SEARCH_STARTED], 0),
        ([SEARCH_STARTED, SEARCH_RESULT, block(), QUOTED, SEARCH_STARTED, SEARCH_RESULT], 2),
        ([block(), SEARCH_STARTED, SEARCH_FAILED, SEARCH_STARTED, SEARCH_RESULT, SEARCH_STARTED], 1),
        ([block(), *[SEARCH_STARTED, SEARCH_RESULT] * 5], 4),  # the ceiling
    ],
)
def test_a_stream_that_was_cut_has_made_the_searches_whose_results_it_showed(blocks, searches, step):
    """Searches that fail are not billed ("Web search tool", 2026-11)."""
    for first, inputs in ((started(NONE_YET), 40), (PING, 50)):
        usage = read(stream(first, *blocks), wanted=demand(searches=4), step=step)
        assert (usage.total(INPUT), usage.total(WEB_SEARCHES), usage.is_exact) == (inputs, searches, False)
        assert len(usage.lines) == 1


def test_searches_whose_results_were_shown_add_nothing_to_what_is_reported():
    head = (started(NONE_YET), *[SEARCH_STARTED, SEARCH_RESULT] * 2)
    last = delta({"output_tokens": 6, "server_tool_use": {"web_search_requests": 1}})
    wanted = demand(searches=4)
    for body, is_exact in ((stream(*head, last, STOP), True), (stream(*head, last), False)):
        usage = read(body, wanted=wanted)
        assert usage.lines == (UsageLine(MODEL, {INPUT: 40, OUTPUT: 6, WEB_SEARCHES: 1}),)
        assert usage.is_exact is is_exact
    reported = started({**NONE_YET, "server_tool_use": {"web_search_requests": 3}})
    assert read(stream(reported, *head[1:]), wanted=wanted).total(WEB_SEARCHES) == 3
    assert read(stream(*head, failed()), wanted=wanted).total(WEB_SEARCHES) == 0


def test_blocks_after_the_first_are_parsed_only_where_they_are_results_of_searches(monkeypatch):
    parsed = []
    monkeypatch.setattr(
        "routes.anthropic_usage.json_of", lambda data: parsed.append(data) or json.loads(data)
    )
    body = stream(block(), SEARCH_STARTED, QUOTED, block("tool_use"), SEARCH_RESULT)
    for searches, times in ((0, 1), (4, 2)):
        parsed.clear()
        read(body, wanted=demand(searches=searches), step=7)
        assert len(parsed) == times


def test_a_counter_that_nobody_has_priced_is_kept_so_that_pricing_flags_it():
    found = read(message({"input_tokens": 5, "output_tokens": 6, "server_tool_use": {"image_requests": 3}}))
    assert found.lines[0].counts == {INPUT: 5, OUTPUT: 6, "image_requests": 3}
    flags = PriceTable.load().price("anthropic", found, at_ms=1_795_000_000_000).flags
    assert flags == ("unpriced_unit:image_requests",)


def test_price_modifiers_are_reported_and_standard_ones_left_out():
    counts = {"input_tokens": 5, "output_tokens": 6}
    special = {"service_tier": "batch", "speed": "fast", "inference_geo": "us"}
    normal = {"service_tier": "standard", "speed": "standard", "inference_geo": "not_available"}
    assert read(message({**counts, **special})).lines[0].modifiers == special
    assert read(message({**counts, **normal})).lines[0].modifiers == {}
    assert read(message({**counts, "inference_geo": "global"})).lines[0].modifiers == {}
    body = stream(
        started({**counts, **special}), block(), delta({"output_tokens": 9, "speed": "standard"}), STOP
    )
    assert read(body).lines[0].modifiers == {"service_tier": "batch", "inference_geo": "us"}


# --- iterations ---------------------------------------------------------------------------------------


def step_of(kind, inputs, outputs, **more):
    return {"type": kind, "input_tokens": inputs, "output_tokens": outputs, **more}


def test_iterations_are_billed_each_with_its_model_and_never_beside_the_sum():
    usage = {
        "input_tokens": 300,
        "output_tokens": 30,
        "speed": "fast",
        "server_tool_use": {"web_search_requests": 1},
        "iterations": [
            step_of("message", 100, 10),
            step_of("advisor_message", 40, 400, model="claude-opus-4-8"),
            step_of("compaction", 900, 90),
            step_of("message", 200, 20, cache_creation=SPLIT, cache_creation_input_tokens=70),
        ],
    }
    fast = {"speed": "fast"}
    expected = (
        UsageLine(MODEL, {INPUT: 100, OUTPUT: 10}, fast),
        UsageLine("claude-opus-4-8", {INPUT: 40, OUTPUT: 400}),
        UsageLine(MODEL, {INPUT: 900, OUTPUT: 90}, fast),
        UsageLine(
            MODEL,
            {INPUT: 200, CACHE_WRITE_5M: 30, CACHE_WRITE_1H: 40, OUTPUT: 20, WEB_SEARCHES: 1},
            fast,
        ),
    )
    assert read(message(usage)).lines == expected
    assert read(stream(started(ZERO), block(), delta(usage), STOP)).lines == expected


def test_a_hop_that_declined_before_it_wrote_is_free_and_one_that_wrote_is_not():
    usage = {
        "input_tokens": 100,
        "output_tokens": 50,
        "iterations": [
            step_of("message", 100, 1, model="claude-fable-5"),
            step_of("message", 100, 7, model="claude-opus-5"),
            step_of("fallback_message", 100, 50, model=MODEL),
        ],
    }
    found = read(message(usage))
    assert [(line.model, line.counts[OUTPUT]) for line in found.lines] == [("claude-opus-5", 7), (MODEL, 50)]
    assert found.is_exact


def test_a_single_iteration_without_output_is_billed_as_a_cache_warm_up_is():
    usage = {"input_tokens": 9, "output_tokens": 0, "iterations": [step_of("message", 9, 0)]}
    assert read(message(usage, stop_reason="max_tokens", content=())).lines == (UsageLine(MODEL, {INPUT: 9}),)


def test_a_single_iteration_that_refused_after_one_token_is_billed():
    usage = {"input_tokens": 9, "output_tokens": 1, "iterations": [step_of("message", 9, 1)]}
    assert read(message(usage, stop_reason="refusal")).lines == (UsageLine(MODEL, {INPUT: 9, OUTPUT: 1}),)


def test_many_iterations_are_added_up_by_model():
    usage = {"input_tokens": 1, "output_tokens": 1, "iterations": [step_of("message", 10, 1)] * 100}
    assert read(message(usage)).lines == (UsageLine(MODEL, {INPUT: 1000, OUTPUT: 100}),)


# --- refusals and failures ----------------------------------------------------------------------------


def test_a_refusal_before_any_output_is_free():
    counts = {"input_tokens": 106, "output_tokens": 1}
    for body in (
        message(counts, stop_reason="refusal", content=()),
        message(counts, stop_reason="refusal", content=[{"type": "fallback"}]),
        stream(started(counts), PING, delta(counts, "refusal"), STOP),
        stream(started(counts), block("fallback"), delta(counts, "refusal"), STOP),
    ):
        for step in (1, None):
            usage = read(body, step=step)
            assert usage.lines == (UsageLine(MODEL, {}),)
            assert usage.is_exact
            assert usage.notes == ("refused_before_output",)


def test_a_refusal_after_some_output_is_billed():
    counts = {"input_tokens": 106, "output_tokens": 12}
    for body in (
        message(counts, stop_reason="refusal"),
        stream(started(counts), block("fallback"), block(), text("So"), delta(counts, "refusal"), STOP),
    ):
        assert read(body).lines == (UsageLine(MODEL, {INPUT: 106, OUTPUT: 12}),)


def test_an_error_inside_the_stream_is_named_held_back_and_billed_as_seen():
    body = stream(started({"input_tokens": 40, "output_tokens": 2}), block(), text("x" * 900), failed())
    reader = observer()
    assert reader.feed(body) == body.index(b"event: error")
    assert reader.feed(b"trailing") == 0
    reader.end()
    assert (reader.error, reader.is_complete) == ("overloaded_error", False)
    usage = reader.usage()
    assert usage.lines == (UsageLine(MODEL, {INPUT: 40, OUTPUT: 2}),)
    assert not usage.is_exact


def test_an_error_before_anything_else_costs_nothing_known():
    usage = read(stream(failed("api_error")))
    assert usage.lines == ()
    assert not usage.is_exact


def test_a_stream_that_broke_off_is_estimated_upwards_from_what_was_seen():
    body = stream(started({"input_tokens": 40, "output_tokens": 2}), block(), text("word " * 200))
    usage = read(body)
    assert usage.lines == (UsageLine(MODEL, {INPUT: 40, OUTPUT: len(body) // 10}),)
    assert not usage.is_exact


def test_an_event_that_was_cut_in_the_middle_is_not_called_malformed():
    body = stream(started({"input_tokens": 40, "output_tokens": 2}), block(), delta({"output_tokens": 11}))
    assert read(body[:-12]).notes == ()
    assert read(body[:60]).notes == ()


def test_an_estimate_stays_between_what_was_reported_and_what_was_allowed():
    reported = stream(started({"input_tokens": 40, "output_tokens": 777}), block())
    assert read(reported).total(OUTPUT) == 777
    long = stream(started({"input_tokens": 40, "output_tokens": 1}), block(), text("word " * 5000))
    assert read(long, wanted=demand(output=300)).total(OUTPUT) == 300


def test_final_counts_stand_even_when_the_terminator_is_missing():
    body = stream(
        started({"input_tokens": 40, "output_tokens": 2}),
        block(),
        text("w " * 900),
        delta({"output_tokens": 11}),
    )
    usage = read(body)
    assert usage.lines == (UsageLine(MODEL, {INPUT: 40, OUTPUT: 11}),)
    assert not usage.is_exact


def test_before_anything_was_reported_the_request_itself_is_the_estimate():
    assert observer(wanted=demand(floor=50)).usage().lines == (UsageLine(MODEL, {INPUT: 50}),)
    assert read(b'{"type":"mess', wanted=demand(floor=50)).lines == (
        UsageLine(MODEL, {INPUT: 50, OUTPUT: 4}),
    )
    assert not observer().usage().is_exact


# --- the protocol -------------------------------------------------------------------------------------


def test_a_stream_is_complete_with_its_terminator_and_holds_all_that_follows():
    head = stream(started({"input_tokens": 4, "output_tokens": 1}), block(), delta({"output_tokens": 3}))
    reader = observer()
    assert (reader.feed(head), reader.is_complete, reader.at_boundary) == (PASS_ALL, False, True)
    assert (reader.feed(b"event: message_"), reader.at_boundary) == (PASS_ALL, False)
    assert reader.feed(b'stop\ndata: {"type":"message_stop"}\n') == PASS_ALL
    assert (reader.feed(b"\n"), reader.is_complete, reader.at_boundary) == (0, True, True)
    assert reader.feed(stream(PING)) == 0


def test_a_stream_without_event_lines_is_read_all_the_same():
    body = stream(
        started({"input_tokens": 4, "output_tokens": 1}), block(), delta({"output_tokens": 3}), STOP
    )
    bare = b"\n".join(line for line in body.split(b"\n") if not line.startswith(b"event:"))
    assert read(bare).lines == (UsageLine(MODEL, {INPUT: 4, OUTPUT: 3}),)
    assert read(bare.replace(b"\n", b"\r\n")) == read(bare)


def test_a_terminator_without_its_blank_line_counts_when_the_answer_ends():
    body = stream(
        started({"input_tokens": 4, "output_tokens": 1}), block(), delta({"output_tokens": 3}), STOP
    )
    assert read(body.rstrip(b"\n")).is_exact


def test_text_that_quotes_events_is_not_taken_for_them():
    quoted = '{"type":"message_stop"} {"type":"error"} \n\nevent: message_stop\n\n "message_delta"'
    body = stream(started({"input_tokens": 4, "output_tokens": 1}), block(), text(quoted))
    reader = observer()
    assert reader.feed(body) == PASS_ALL
    assert (reader.is_complete, reader.error) == (False, None)


def test_a_whole_answer_passes_and_is_complete_once_it_ended():
    reader = observer("application/json")
    body = message({"input_tokens": 4, "output_tokens": 3})
    assert reader.feed(body[:30]) == reader.feed(body[30:]) == PASS_ALL
    assert (reader.is_complete, reader.at_boundary, reader.error) == (False, False, None)
    reader.end()
    assert reader.is_complete
    assert reader.usage().is_exact


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"{", b'"x"', b'{"usage":3}', b'{"usage":null}', b"\xff"]
)
def test_a_whole_answer_without_usage_is_never_complete_nor_exact(body):
    reader = observer("application/json")
    reader.feed(body)
    reader.end()
    assert (reader.is_complete, reader.usage().is_exact) == (False, False)


def test_a_whole_answer_that_gives_no_reason_to_stop_costs_what_it_reported_all_the_same():
    usage = read(message({"input_tokens": 4, "output_tokens": 3}, stop_reason=None) + b" " * 900)
    assert (usage.total(INPUT), usage.total(OUTPUT), usage.is_exact) == (4, 3, True)


def test_a_whole_answer_whose_transfer_never_ended_stands_as_reported():
    reader = observer("application/json")
    body = message({"input_tokens": 9, "output_tokens": 700})
    reader.feed(body[:-1])
    assert reader.usage().total(OUTPUT) < 700
    reader.feed(body[-1:])
    usage = reader.usage()
    assert (usage.total(INPUT), usage.total(OUTPUT), usage.is_exact) == (9, 700, False)


@pytest.mark.parametrize("step", [40, 5_000])
def test_a_whole_answer_too_long_to_keep_as_it_came_is_read_condensed(monkeypatch, step):
    monkeypatch.setattr(counting, "BODY_COPY_BYTES_MAX", 100)
    long = message({"input_tokens": 4, "output_tokens": 3}, content=[{"type": "text", "text": "x" * 2_000}])
    for body in (long, long + b" " * 900, b" " * 900 + long):
        usage = read(body, step=step)
        assert (usage.total(INPUT), usage.total(OUTPUT)) == (4, 3)
        assert usage.is_exact
        assert not usage.notes
    cut = read(long[:-3], step=step)
    assert cut.notes == ("usage_not_looked_at",)
    assert not cut.is_exact
    assert cut.total(OUTPUT) > 300


def test_a_whole_answer_too_long_even_condensed_is_estimated(monkeypatch):
    monkeypatch.setattr(counting, "BODY_COPY_BYTES_MAX", 100)
    monkeypatch.setattr(json_stream, "ELEMENT_BYTES_MAX", 100)
    usage = read(message({"input_tokens": 4, "output_tokens": 3}) + b" " * 900, step=40)
    assert not usage.is_exact
    assert usage.notes == ("usage_not_looked_at",)
    assert usage.total(OUTPUT) > 300


def test_a_long_answer_of_many_small_things_is_given_up_instead_of_keeping_everybody_waiting(monkeypatch):
    monkeypatch.setattr(counting, "BODY_COPY_BYTES_MAX", 100)
    monkeypatch.setattr(counting, "CONDENSED_BYTES_MIN", 100)
    fed: list[int] = []
    monkeypatch.setattr(counting, "JsonStream", counted_stream(fed))
    body = message({"input_tokens": 4, "output_tokens": 3}, content=[{"a": 1}] * 10_000)
    usage = read(body, step=1_000)
    assert (usage.is_exact, usage.notes) == (False, ("usage_not_looked_at",))
    assert sum(fed) < 3_000 < len(body)


def counted_stream(fed: list[int]) -> type[json_stream.JsonStream]:
    class Counted(json_stream.JsonStream):
        def feed(self, chunk: bytes) -> tuple[list[bytes], int]:
            fed.append(len(chunk))
            return super().feed(chunk)

    return Counted


def test_the_content_type_decides_how_an_answer_is_read_and_else_the_request():
    assert isinstance(
        observe(demand(), AnswerHead(200, [(b"content-type", b"Text/Event-Stream")])), StreamObserver
    )
    assert isinstance(
        observe(demand(), AnswerHead(200, [(b"content-type", b"application/json")])), BodyObserver
    )
    assert isinstance(observe(demand(), AnswerHead(200, [])), StreamObserver)


WRONG = [
    {"input_tokens": "5", "output_tokens": 6},
    {"input_tokens": 5, "output_tokens": True},
    {"input_tokens": -5, "output_tokens": 6},
    {"input_tokens": 5.5, "output_tokens": 6},
    {"input_tokens": 5, "output_tokens": 10**15},
    {"input_tokens": 5},
    {"output_tokens": 6},
    {"input_tokens": 5, "output_tokens": 6, "cache_creation": [1]},
    {"input_tokens": 5, "output_tokens": 6, "cache_creation": {"ephemeral_1h_input_tokens": "many"}},
    {"input_tokens": 5, "output_tokens": 6, "server_tool_use": 3},
    {"input_tokens": 5, "output_tokens": 6, "server_tool_use": {"web_search_requests": {}}},
    {"input_tokens": 5, "output_tokens": 6, "iterations": {}},
    {"input_tokens": 5, "output_tokens": 6, "iterations": [7]},
    {"input_tokens": 5, "output_tokens": 6, "iterations": [step_of("message", "x", 1)]},
    {"input_tokens": 5, "output_tokens": 6, "iterations": [step_of("message", 1, 1, model=5)]},
    {"input_tokens": 5, "output_tokens": 6, "iterations": [step_of("message", 1, 1, cache_creation="x")]},
    {"input_tokens": 5, "output_tokens": 6, "speed": 7},
    {"input_tokens": 5, "output_tokens": 6, "service_tier": ["batch"]},
]


@pytest.mark.parametrize("usage", WRONG, ids=str)
def test_a_wrong_type_makes_usage_inexact_and_does_not_raise(usage):
    assert not read(message(usage)).is_exact
    assert not read(stream(started(usage), block(), STOP)).is_exact


def test_a_good_value_survives_a_bad_one_that_follows():
    first = {"input_tokens": 5, "output_tokens": 6}
    usage = read(stream(started(first), block(), delta({"input_tokens": "?", "output_tokens": 9}), STOP))
    assert usage.total(INPUT) == 5
    assert usage.notes == ("usage_malformed",)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
named = st.sampled_from(
    [
        *(
            "input_tokens",
            "output_tokens",
            "cache_creation",
            "cache_creation_input_tokens",
            "iterations",
            "type",
        ),
        *("ephemeral_1h_input_tokens", "server_tool_use", "web_search_requests", "speed", "model"),
    ]
)
usages = anything | st.dictionaries(
    named,
    anything | st.dictionaries(named, anything) | st.lists(st.dictionaries(named, anything), max_size=3),
)


@given(usages, usages, anything, anything)
def test_no_usage_however_malformed_makes_an_observer_raise(first, second, model, stop_reason):
    streamed = read(stream(started(first, model=model), block(), delta(second, stop_reason), STOP))
    whole = read(message(second, model=model, stop_reason=stop_reason))
    for usage in (streamed, whole):
        for line in usage.lines:
            assert isinstance(line.model, str)
            assert all(isinstance(count, int) and count >= 0 for count in line.counts.values())
            assert all(isinstance(value, str) for value in line.modifiers.values())


@given(
    anything,
    st.sampled_from(["message_start", "message_delta", "message_stop", "error", "content_block_start"]),
)
def test_no_event_however_malformed_makes_an_observer_raise(value, kind):
    reader = observer()
    reader.feed(
        stream({"type": kind, "message": value, "delta": value, "error": value, "content_block": value})
    )
    reader.feed(b'data: "message_" "error"\n\ndata: ["message_"]\n\n')
    reader.end()
    assert not (reader.usage().is_exact and reader.usage().lines)


def test_the_example_of_the_surface_is_read_as_it_says():
    example = SURFACE.operations[0].example
    usage = read(example.answer, content_type=example.answer_content_type)
    assert usage == example.usage
