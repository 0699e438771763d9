"""However an answer of Gemini is cut, it is billed the same, and the same bytes wait for the settle."""

import itertools

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.usage import INPUT, OUTPUT
from proxy.surface import PASS_ALL
from tests.fixtures_llm import recorded
from tests.unit.routes.gemini_bodies import JSON, SSE, chunk, demand, events, failed, listed, observer, tokens

QUOTED = '"usageMetadata": {} "finishReason": "STOP"\r\n\r\n}]{["\\'
FOUND = {"webSearchQueries": ["a", "b"], "groundingChunks": [{"web": {}}]}
CHUNKS = [
    [
        chunk(QUOTED, usage=tokens(7)),
        chunk("é" * 40, usage=tokens(7, 3)),
        chunk(finish="STOP", usage=tokens(7, 9, 4)),
    ],
    [chunk("a", usage=tokens(7, 50), grounding=FOUND), chunk("", finish="STOP", usage=tokens(7, 2))],
    [
        chunk("a", usage=tokens(7, 2), data="x" * 5_000),
        chunk("b", finish="STOP"),
        {"usageMetadata": tokens(8, 3)},
    ],
    [{"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": tokens(4)}],
    [chunk("half", usage=tokens(7, 2)), failed()],
]
STREAMS = [
    *((events(*chunks), SSE) for chunks in CHUNKS),
    *((events(*chunks).replace(b"\r\n", b"\n"), SSE) for chunks in CHUNKS[:2]),
    *((listed(*chunks), JSON) for chunks in CHUNKS),
    *((orjson.dumps(chunks), JSON) for chunks in CHUNKS[:2]),
    *((one.body, one.content_type) for one in recorded("gemini") if "stream" in one.file),
]
streams = st.sampled_from(STREAMS)
cuts = st.lists(st.integers(0, 10_000), max_size=30)


def relayed(body, content_type, cuts):
    """(usage, how it ended, the bytes that waited)."""
    reader = observer(content_type)
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(body)}), len(body)]
    held_from = PASS_ALL
    for a, b in itertools.pairwise(edges):
        hold = reader.feed(body[a:b])
        if hold != PASS_ALL and held_from == PASS_ALL:
            held_from = a + hold
    reader.end()
    return reader.usage(), reader.is_complete, reader.error, reader.at_boundary, held_from


@settings(deadline=None)
@given(streams, cuts)
def test_any_chunking_gives_the_same_usage_and_the_same_end(stream, cuts):
    whole, cut = relayed(*stream, []), relayed(*stream, cuts)
    assert cut[1:4] == whole[1:4]
    if whole[1]:
        assert cut[0] == whole[0]
        assert whole[0].is_exact
        assert cut[4] == whole[4]
    else:  # An estimate remembers what it saw; an event that began earlier is held from there on.
        assert not cut[0].is_exact
        assert cut[0].total(INPUT) == whole[0].total(INPUT)
        assert (cut[4] == PASS_ALL) is (whole[4] == PASS_ALL)


@settings(deadline=None, max_examples=30)
@given(streams, st.integers(1, 9))
def test_small_pieces_give_the_same_usage(stream, step):
    whole, cut = relayed(*stream, []), relayed(*stream, range(step, len(stream[0]), step))
    assert cut[1:4] == whole[1:4]
    assert cut[0].total(INPUT) == whole[0].total(INPUT)
    assert cut[0].total(OUTPUT) == whole[0].total(OUTPUT)


@settings(deadline=None)
@given(streams, st.integers(0, 10_000))
def test_a_stream_cut_anywhere_is_never_whole(stream, cut):
    body, content_type = stream
    reader = observer(content_type)
    reader.feed(body[: cut % len(body)])
    assert not reader.is_complete
    assert not reader.usage().is_exact


@settings(deadline=None)
@given(st.integers(0, 20_000), st.lists(st.integers(0, 25_000), max_size=9), st.booleans())
def test_a_whole_answer_is_billed_the_same_whatever_its_length_and_chunking(size, cuts, is_indented):
    answer = chunk("x" * size, finish="STOP", usage=tokens(7, 9, 4), rows=[[0.25] * 900] * (size % 20))
    body = orjson.dumps(answer, option=orjson.OPT_INDENT_2 if is_indented else None)
    reader = observer(JSON, wanted=demand(is_streaming=False))
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for a, b in itertools.pairwise(edges):
        assert reader.feed(body[a:b]) == PASS_ALL
    reader.end()
    assert reader.is_complete
    assert reader.usage().is_exact
    assert (reader.usage().total(INPUT), reader.usage().total(OUTPUT)) == (7, 13)
