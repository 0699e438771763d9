"""However a stream is cut, an observer reports the same usage and holds back the same bytes."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.surface import PASS_ALL
from tests.fixtures_llm import recorded
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

STREAMS = [
    *(WHOLE, FAILED, REFUSED, SEARCHED),
    WHOLE.replace(b"\n", b"\r\n"),
    WHOLE.replace(b"\n", b"\r"),
    *(one.body for one in recorded("anthropic") if one.file.endswith(".sse")),
]
streams = st.sampled_from(STREAMS)


@settings(deadline=None)
@given(streams, st.lists(st.integers(0, 60_000), max_size=30))
def test_any_chunking_gives_the_same_usage_and_the_same_held_bytes(body, cuts):
    assert relayed(body, cuts) == relayed(body, [])


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(STREAMS[:6]), st.integers(1, 9))
def test_small_pieces_give_the_same_usage_and_the_same_held_bytes(body, step):
    assert relayed(body, range(step, len(body), step)) == relayed(body, [])


@settings(deadline=None)
@given(streams, st.integers(0, 60_000))
def test_a_stream_cut_anywhere_is_exact_only_if_it_was_whole(body, cut):
    reader = observer(wanted=demand(ttl="1h"))
    reader.feed(body[: cut % (len(body) + 1)])
    assert reader.usage().is_exact == reader.is_complete


def relayed(body, cuts):
    """(usage, how it ended, held bytes without the rest of an event that was already on its way)."""
    reader = observer(wanted=demand(ttl="1h"))
    edges = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    passed = b""
    for a, b in pairwise(edges):
        hold_from = reader.feed(body[a:b])
        passed += body[a:b] if hold_from == PASS_ALL else body[a : a + hold_from]
    reader.end()
    whole_events = passed.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n\n")
    return reader.usage(), reader.is_complete, reader.error, reader.at_boundary, whole_events
