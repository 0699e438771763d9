"""However a stream is cut, an observer reports the same usage and holds back the same bytes."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.surface import PASS_ALL
from routes.openai_usage import observe_chat, observe_response
from tests.fixtures_llm import recorded
from tests.unit.routes import openai_bodies as openai
from tests.unit.routes.anthropic_bodies import (
    PING,
    STOP,
    block,
    delta,
    demand,
    failed,
    observer,
    started,
    stream,
    text,
)

START = started({"input_tokens": 7, "cache_creation_input_tokens": 5, "output_tokens": 1})
WHOLE = stream(
    START, block(), PING, text('a "quoted" \n\n line'), text("é" * 40), delta({"output_tokens": 9}), STOP
)
FAILED = stream(START, block(), text("half"), failed())
REFUSED = stream(START, PING, delta({"output_tokens": 1}, "refusal"), STOP)
SEARCHED = stream(
    START, block(), delta({"output_tokens": 3, "server_tool_use": {"web_search_requests": 2}}), STOP
)
RESULT = block("web_search_tool_result", content=[{"type": "web_search_result"}])
SEARCHING = stream(START, block("server_tool_use"), RESULT, block(), text("é"), RESULT, PING)

CHAT = openai.chat_stream(
    openai.chunk('says "prompt_tokens" \n\n and [DONE]'),
    openai.chunk("é" * 40),
    openai.chunk(usage=openai.chat_usage(50, 9, of_prompt={"cached_tokens": 20})),
    openai.chunk(moderation={"input": {"type": "error"}}),
)
CHAT_FAILED = openai.chat_stream(openai.chunk("half"), {"error": {"type": "server_error"}}, is_done=False)
RESPONSE = openai.response_stream(
    openai.STARTED, openai.KEEPALIVE, openai.DELTA, openai.terminal(usage=openai.usage_of(50, 9))
)
RESPONSE_FAILED = openai.response_stream(
    openai.STARTED, openai.terminal("failed", error={"code": "server_error"})
)
FOUND = {"type": "web_search_call", "status": "completed", "action": {"type": "search"}}
RESPONSE_SEARCHING = openai.response_stream(
    openai.STARTED, *[openai.event("response.output_item.done", item=FOUND), openai.DELTA] * 2
)


def recorded_streams(vendor, part=""):
    return [one.body for one in recorded(vendor) if one.file.endswith(".sse") and part in one.file]


def anthropic_observer():
    return observer(wanted=demand(ttl="1h"))


def chat_observer():
    return openai.observer(observe_chat, "text/event-stream")


def response_observer():
    return openai.observer(observe_response, "text/event-stream")


def searching_observer():
    return observer(wanted=demand(searches=9))


def searching_response_observer():
    return openai.observer(observe_response, "text/event-stream", openai.demand(searches=9))


OURS = [
    *((anthropic_observer, body) for body in (WHOLE, FAILED, REFUSED, SEARCHED)),
    *((chat_observer, body) for body in (CHAT, CHAT_FAILED)),
    *((response_observer, body) for body in (RESPONSE, RESPONSE_FAILED)),
    *((make, SEARCHING) for make in (anthropic_observer, searching_observer)),
    *((make, RESPONSE_SEARCHING) for make in (response_observer, searching_response_observer)),
]
LINE_ENDS = [
    (make, body.replace(b"\n", line_end))
    for make, body in (OURS[0], OURS[4], OURS[6])
    for line_end in (b"\r\n", b"\r")
]
STREAMS = [
    *OURS,
    *LINE_ENDS,
    *((anthropic_observer, body) for body in recorded_streams("anthropic")),
    *((chat_observer, body) for body in recorded_streams("openai", "chat")),
    *((response_observer, body) for body in recorded_streams("openai", "responses")),
]
streams = st.sampled_from(STREAMS)


@settings(deadline=None)
@given(streams, st.lists(st.integers(0, 60_000), max_size=30))
def test_any_chunking_gives_the_same_usage_and_the_same_held_bytes(stream, cuts):
    assert relayed(*stream, cuts) == relayed(*stream, [])


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([*OURS, *LINE_ENDS]), st.integers(1, 9))
def test_small_pieces_give_the_same_usage_and_the_same_held_bytes(stream, step):
    assert relayed(*stream, range(step, len(stream[1]), step)) == relayed(*stream, [])


@settings(deadline=None)
@given(streams, st.integers(0, 60_000))
def test_a_stream_cut_anywhere_is_exact_only_if_it_was_whole(stream, cut):
    make, body = stream
    whole, _, *_ = relayed(make, body, [])
    reader = make()
    reader.feed(body[: cut % (len(body) + 1)])
    assert reader.usage().is_exact == (reader.is_complete and whole.is_exact)


def relayed(make, body, cuts):
    """(usage, how it ended, held bytes without the rest of an event that was already on its way)."""
    reader = make()
    edges = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    passed = b""
    for a, b in pairwise(edges):
        hold_from = reader.feed(body[a:b])
        passed += body[a:b] if hold_from == PASS_ALL else body[a : a + hold_from]
    reader.end()
    whole_events = passed.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n\n")
    return reader.usage(), reader.is_complete, reader.error, reader.at_boundary, whole_events
