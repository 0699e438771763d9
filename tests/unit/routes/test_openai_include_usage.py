"""The one edit of a body: a chat stream is asked for its usage, and nothing else of the request changes."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import Reason, Refused
from proxy.surface import AddedEvent
from routes.openai_chat import ChatMeter, CompletionsMeter, EmbeddingsMeter
from routes.openai_include_usage import ADDED_CHUNK, with_usage_asked_for
from tests.unit.routes.openai_bodies import MODEL, chat_usage, chunk, inbound, pricing

ASKED = b'"include_usage":true'


def edited(body):
    return with_usage_asked_for(orjson.loads(body), body)


ROWS = [
    # client's body                                        what goes up
    (
        b'{"model":"m","stream":true}',
        b'{"stream_options":{"include_usage":true},"model":"m","stream":true}',
    ),
    (
        b'\n {  "model" : "m" , "stream":true }\n',
        b'\n {"stream_options":{"include_usage":true},  "model" : "m" , "stream":true }\n',
    ),
    (
        b'{"model":"m", "stream_options": null}',
        b'{"model":"m", "stream_options": {"include_usage":true}}',
    ),
    (b'{"stream_options":{} , "a":1}', b'{"stream_options":{"include_usage":true} , "a":1}'),
    (
        b'{"stream_options": { "include_obfuscation" : false }}',
        b'{"stream_options": {"include_usage":true, "include_obfuscation" : false }}',
    ),
    (
        b'{"stream_options": {"x":[{"include_usage":false}], "include_usage" : false , "y":"}"}}',
        b'{"stream_options": {"x":[{"include_usage":false}], "include_usage" : true , "y":"}"}}',
    ),
    (b'{"stream_options":{"include_usage":null}}', b'{"stream_options":{"include_usage":true}}'),
    (
        b'{"m":"\\"stream_options\\":{","a":{"stream_options":{}},"stream_options":{"include_usage":false}}',
        b'{"m":"\\"stream_options\\":{","a":{"stream_options":{}},"stream_options":{"include_usage":true}}',
    ),
    (
        b'{"n":0.%b,"str\\u0065am_options":{"include_us\\u0061ge":false}}' % (b"9" * 5_000),
        b'{"n":0.%b,"str\\u0065am_options":{"include_us\\u0061ge":true}}' % (b"9" * 5_000),
    ),
    (
        '{"é":"ü🙂","stream_options":null}'.encode(),
        '{"é":"ü🙂","stream_options":{"include_usage":true}}'.encode(),
    ),
    (
        b'{"my_stream_options":{},"stream_options":{"no_include_usage":false,"include_usage":false}}',
        b'{"my_stream_options":{},"stream_options":{"no_include_usage":false,"include_usage":true}}',
    ),
    (b'{"stream_options":{"include_usage":true}}', None),
]


@pytest.mark.parametrize(("body", "expected"), ROWS)
def test_only_the_wish_for_usage_is_put_in(body, expected):
    assert edited(body) == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=4), values, min_size=1, max_size=4),
    st.none() | st.fixed_dictionaries({}, optional={"include_usage": st.sampled_from([None, False, True])}),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_the_edited_body_means_the_same_but_for_the_wish(others, options, is_named, indent, is_ascii):
    fields = {**others, **({"stream_options": options} if is_named else {}), "z": 1}
    body = json.dumps(fields, indent=indent, ensure_ascii=is_ascii).encode()
    wanted = {**fields, "stream_options": {**(fields.get("stream_options") or {}), "include_usage": True}}
    sent = edited(body)
    assert orjson.loads(body if sent is None else sent) == wanted


@pytest.mark.parametrize("options", [1, "x", [], {"include_usage": "yes"}, {"include_usage": 1}])
def test_what_is_no_option_is_refused(options):
    body = json.dumps({"stream_options": options}).encode()
    with pytest.raises(Refused) as caught:
        edited(body)
    assert caught.value.reason is Reason.BAD_REQUEST
    assert "stream_options" in caught.value.message


CHUNKS = [
    (True, chunk(usage=chat_usage(1, 2))),
    (False, chunk("text", usage=chat_usage(1, 2))),
    (False, chunk(usage=None)),
    (False, chunk(usage=None, moderation={})),
    (False, {"error": {"message": "m"}}),
]


@pytest.mark.parametrize(("expected", "data"), CHUNKS)
def test_only_the_chunk_that_has_usage_and_no_choices_is_there_because_we_asked(expected, data):
    encoded = json.dumps(data).encode()
    assert ADDED_CHUNK.is_it(encoded) is expected
    assert ADDED_CHUNK.marker in encoded or not expected


@pytest.mark.parametrize("data", [b"[DONE]", b"", b"[]", b'{"choices":[],"usage":'])
def test_what_is_no_chunk_is_not_it(data):
    assert not ADDED_CHUNK.is_it(data)


@pytest.mark.parametrize("meter", [ChatMeter(), CompletionsMeter()])
def test_a_stream_is_asked_for_its_usage_and_nothing_else_is(meter):
    def read(**fields):
        return meter.read(inbound({"model": MODEL, "messages": [], "prompt": "p", **fields}), pricing())

    asked = read(stream=True)
    assert asked.is_streaming
    assert asked.body is not None
    assert ASKED in asked.body
    assert isinstance(asked.added_event, AddedEvent)
    for demand in (read(), read(stream=False), read(stream=None), read(stream_options={})):
        assert (demand.body, demand.added_event, demand.is_streaming) == (None, None, False)
    demand = read(stream=True, stream_options={"include_usage": True})
    assert (demand.body, demand.added_event, demand.is_streaming) == (None, None, True)
    for value in ("true", 1, {}):
        with pytest.raises(Refused, match="stream: must be a boolean"):
            read(stream=value)


def test_embeddings_do_not_stream():
    demand = EmbeddingsMeter().read(
        inbound({"model": "text-embedding-3-small", "input": "a", "stream": True}), pricing()
    )
    assert (demand.body, demand.is_streaming) == (None, False)
