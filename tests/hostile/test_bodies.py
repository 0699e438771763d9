"""Bodies that are no requests: wrong types everywhere, numbers without end, text in no encoding, endless nesting."""

import gzip
import zlib

import orjson
import pytest

from tests.hostile.stage import MESSAGES, small_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = orjson.loads(small_body())
MIB = 2**20
VALUES = {
    "null": b"null", "true": b"true", "false": b"false", "zero": b"0", "minus one": b"-1", "minus zero": b"-0", "a float": b"1.5",
    "1e2": b"1e2", "1e308": b"1e308", "int64": b"9223372036854775807", "beyond int64": b"9223372036854775808",
    "beyond uint64": b"18446744073709551616", "300 digits": b"1" * 300, "a tiny float": b"1e-400", "an empty text": b'""', "text": b'"text"',
    "a number as text": b'"100"', "NUL in text": b'"a\\u0000b"', "an empty list": b"[]", "a list of null": b"[null]",
    "a list of lists": b"[[[]]]", "a list of numbers": b"[1,2.5,-3]", "a list of texts": b'["a"]', "a list of {}": b"[{}]",
    "{}": b"{}", "an object": b'{"type":{"type":[]}}', "a type of null": b'[{"type":null}]', "a type of 1": b'{"type":1}',
    "nested 100 deep": b"[" * 100 + b"]" * 100, "a text of 100 kB": b'"' + b"x" * 100_000 + b'"',
}  # fmt: skip
"""Valid JSON, wrong here or there."""
FIELDS = (
    "model", "max_tokens", "stream", "messages", "thinking", "tools", "tool_choice", "system", "service_tier", "metadata",
    "speed", "inference_geo", "fallbacks", "cache_control", "context_management", "compaction", "container", "mcp_servers",
    "temperature", "top_k", "top_p", "stop_sequences", "output_config", "betas", "unknown",
)  # fmt: skip
REFUSED_HERE = {
    "model",
    "speed",
    "inference_geo",
    "fallbacks",
    "container",
    "mcp_servers",
    "messages",
    "tools",
    "cache_control",
}
"""Fields whose wrong types are ours to refuse; all others are the vendor's."""


def with_value(field, value):
    """A good body with one field's value, as it is written."""
    other = orjson.dumps({key: one for key, one in GOOD.items() if key != field})
    return other[:-1] + b',"%b":%b}' % (field.encode(), value)


@pytest.mark.parametrize("target", [MESSAGES, MESSAGES + b"/count_tokens"], ids=["messages", "count_tokens"])
@pytest.mark.parametrize("field", FIELDS)
async def test_any_value_in_any_field_is_served_or_refused_and_never_a_defect(stage, field, target):
    statuses = {}
    for name, value in VALUES.items():
        stage.forget()
        body = with_value(field, value)
        wire = stage.post(body=body, target=target)
        conversation = await stage.converse(wire, answers=1)
        await stage.assert_held(wire, conversation)
        (statuses[name],) = conversation.statuses
        assert len(stage.vendor.requests) == (statuses[name] == 200), name
    assert set(statuses.values()) <= {200, 400, 404}
    if field == "model":
        assert 200 not in statuses.values()
    elif field not in REFUSED_HERE:
        assert set(statuses.values()) == {200}


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("model", b'""', 400),
        ("model", b"null", 400),
        ("model", b"[]", 400),
        ("model", b'"CLAUDE-HAIKU-4-5"', 404),
        ("model", b'"claude-haiku-4-5 "', 404),
        ("model", b'"claude-haiku-4-5\\u0000"', 404),
        ("model", b'"' + b"m" * 100_000 + b'"', 404),
        ("model", b'{"model":"claude-haiku-4-5"}', 400),
        ("max_tokens", b"true", 200),
        ("max_tokens", b"-5", 200),
        ("max_tokens", b"1e308", 200),
        ("stream", b'"true"', 200),
        ("stream", b"1", 200),
        ("speed", b"1", 400),
        ("speed", b'"fastest"', 404),
        ("inference_geo", b"[]", 400),
        ("fallbacks", b'"default"', 400),
        ("fallbacks", b"[1]", 400),
        ("fallbacks", b'[{"model":1}]', 400),
        ("tools", b'[{"type":"web_search_20250305","max_uses":true}]', 400),
        ("tools", b'[{"type":"web_search_20250305","max_uses":-1}]', 400),
        ("tools", b'[{"type":"web_search_20250305","max_uses":1e99}]', 400),
        ("tools", b'[{"type":"web_search_20250305","max_uses":9223372036854775808}]', 400),
        ("tools", b'[{"type":"shell_"}]', 400),
        ("container", b'"c"', 400),
        ("thread", b'"t"', 400),
    ],
)
async def test_what_is_ours_to_refuse_is_refused(stage, field, value, status):
    wire = stage.post(body=with_value(field, value))
    conversation = await stage.converse(wire, answers=1)
    await stage.assert_held(wire, conversation)
    assert conversation.statuses == [status]
    assert len(conversation.answers[0].body) < 2_000


TEXT = small_body()
MALFORMED = {
    "NaN": with_value("max_tokens", b"NaN"),
    "Infinity": with_value("max_tokens", b"Infinity"),
    "-Infinity": with_value("max_tokens", b"-Infinity"),
    "1e999": with_value("max_tokens", b"1e999"),
    "-1e999": with_value("temperature", b"-1e999"),
    "5,000 digits": with_value("max_tokens", b"9" * 5_000),
    "hex": with_value("max_tokens", b"0x10"),
    "octal": with_value("max_tokens", b"010"),
    "a plus": with_value("max_tokens", b"+1"),
    "a dot first": with_value("max_tokens", b".5"),
    "a dot last": with_value("max_tokens", b"5."),
    "single quotes": TEXT.replace(b'"', b"'"),
    "comments": b"/* a */" + TEXT,
    "a comma at the end": TEXT[:-1] + b",}",
    "two documents": TEXT + TEXT,
    "two lines": TEXT + b"\n" + TEXT,
    "something behind it": TEXT + b"x",
    "half of it": TEXT[: len(TEXT) // 2],
    "a form": b"model=claude-haiku-4-5&max_tokens=5",
    "XML": b"<model>claude-haiku-4-5</model>",
    "a BOM": b"\xef\xbb\xbf" + TEXT,
    "UTF-16": TEXT.decode().encode("utf-16"),
    "UTF-32": TEXT.decode().encode("utf-32-le"),
    "Latin-1": TEXT.replace(b"Hello", b"Hall\xf6"),
    "an overlong slash": TEXT.replace(b"Hello", b"\xc0\xaf"),
    "a surrogate in UTF-8": TEXT.replace(b"Hello", b"\xed\xa0\x80"),
    "a lone high surrogate": TEXT.replace(b"Hello", b"\\ud800"),
    "a lone low surrogate": TEXT.replace(b"Hello", b"\\udc00"),
    "surrogates exchanged": TEXT.replace(b"Hello", b"\\udc00\\ud800"),
    "beyond Unicode": TEXT.replace(b"Hello", b"\xf4\x90\x80\x80"),
    "a NUL in text": TEXT.replace(b"Hello", b"a\0b"),
    "a NUL behind it": TEXT + b"\0",
    "a line break in text": TEXT.replace(b"Hello", b"a\nb"),
    "a broken escape": TEXT.replace(b"Hello", b"\\x41"),
    "lists 100,000 deep": b"[" * 100_000,
    "objects 50,000 deep": b'{"a":' * 50_000,
    "1,000 deep": with_value("messages", b"[" * 1_000 + b"]" * 1_000),
    "300 deep": with_value("metadata", b'{"a":' * 300 + b"1" + b"}" * 300),
    "two models": TEXT[:-1] + b',"model":"claude-haiku-4-5"}',
    "two models, one escaped": TEXT[:-1] + b',"m\\u006fdel":"claude-opus-4-5"}',
    "two keys deep inside": with_value("metadata", b'{"a":[{"b":{"c":1,"d":2,"c":1}}]}'),
    "two keys, and quotes that make up for them": with_value("metadata", b'{"a":1,"a":"\\u0022\\u0022"}'),
    "two empty keys": with_value("metadata", b'{"":1,"":2}'),
    "a list": b"[" + TEXT + b"]",
    "a number": b"7",
    "null": b"null",
    "nothing": b"",
    "blanks": b"  \r\n\t ",
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_body_that_can_be_read_in_no_way_or_in_two_is_400(stage, name):
    wire = stage.post(body=MALFORMED[name])
    conversation = await stage.converse(wire, answers=1)
    await stage.assert_held(wire, conversation)
    (answer,) = conversation.answers
    assert (answer.status, b'"type":"invalid_request_error"' in answer.body) == (400, True)
    assert len(answer.body) < 1_000
    assert stage.vendor.requests == []
    assert stage.gateway.lines[-1]["reason"] == "bad_request"


BOMB = gzip.compress(b" " * 100 * MIB)
CODED = {
    "a gzip bomb": (b"content-encoding: gzip\r\n", BOMB),
    "gzip": (b"content-encoding: gzip\r\n", gzip.compress(TEXT)),
    "gzip twice": (b"content-encoding: gzip, gzip\r\n", gzip.compress(gzip.compress(TEXT))),
    "two headers": (b"content-encoding: identity\r\ncontent-encoding: gzip\r\n", gzip.compress(TEXT)),
    "two headers, gzip first": (
        b"content-encoding: gzip\r\ncontent-encoding: identity\r\n",
        gzip.compress(TEXT),
    ),
    "deflate": (b"content-encoding: deflate\r\n", zlib.compress(TEXT)),
    "br": (b"content-encoding: br\r\n", TEXT),
    "unknown": (b"content-encoding: rot13\r\n", TEXT),
    "GZIP": (b"Content-Encoding: GZIP\r\n", TEXT),
    "a comma": (b"content-encoding: identity, \r\n", TEXT),
    "compressed without a word": (b"", gzip.compress(TEXT)),
}


@pytest.mark.parametrize("name", CODED)
async def test_a_compressed_body_is_400_and_not_unpacked(stage, name):
    fields, body = CODED[name]
    wire = stage.head(fields + b"content-length: %d" % len(body)) + body
    conversation = await stage.converse(wire, answers=1)
    await stage.assert_held(wire, conversation)
    assert conversation.statuses == [400]
    assert stage.vendor.requests == []


@pytest.mark.parametrize("chunk_bytes", [0, 1_000, 100_000])
async def test_a_body_beyond_its_bound_is_413_however_it_is_framed(stage, chunk_bytes):
    """The bound of this stage is 300,000 bytes."""
    body = with_value("system", b'"' + b"x" * 400_000 + b'"')
    wire = stage.post(body=body)
    if chunk_bytes:
        pieces = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        wire = stage.head(b"transfer-encoding: chunked") + chunks + b"0\r\n\r\n"
    conversation = await stage.converse(
        *(wire[at : at + 50_000] for at in range(0, len(wire), 50_000)), answers=1
    )
    await stage.assert_held(wire, conversation)
    assert conversation.statuses == [413]
    assert b'"type":"request_too_large"' in conversation.answers[0].body
    assert stage.vendor.requests == []
