"""What a request to the Messages API may cause, and what is refused before it is sent."""

import json

import pytest

from metering.errors import Reason, Refused
from metering.usage import CACHE_WRITE_1H, CACHE_WRITE_5M, INPUT, OUTPUT, WEB_SEARCHES, Usage, UsageLine
from routes.anthropic import SURFACE
from routes.anthropic_meter import (
    PICTURE_TOKENS_MAX,
    PICTURE_TOKENS_USUAL,
    SEARCHES_WHEN_UNSET,
    MessagesMeter,
)
from tests.unit.routes.anthropic_bodies import MODEL, inbound, pricing

HAIKU = "claude-haiku-4-5"
OPUS = "claude-opus-4-8"
CONTEXT = 1_000_000
HELLO = [{"role": "user", "content": "hello"}]


def read(headers=(), *, options=None, **fields):
    fields = {"model": MODEL, "max_tokens": 100, "messages": HELLO, **fields}
    return MessagesMeter().read(inbound(fields, headers), pricing(**(options or {})))


def refusal(**fields):
    with pytest.raises(Refused) as caught:
        read(**fields)
    return caught.value


def only_line(demand):
    (line,) = demand.ceiling.lines
    return line


def test_a_plain_request_holds_its_bytes_as_input_and_its_max_tokens_as_output():
    request = inbound({"model": MODEL, "max_tokens": 100, "messages": HELLO})
    demand = MessagesMeter().read(request, pricing(bytes_per_token=2))
    tokens = -(-len(request.body) // 2)
    assert demand.models == (MODEL,)
    assert demand.ceiling == Usage((UsageLine(MODEL, {INPUT: tokens, OUTPUT: 100}),), is_exact=False)
    assert demand.floor == Usage((UsageLine(MODEL, {INPUT: tokens}),), is_exact=False)
    assert not demand.is_streaming


def test_a_stream_is_asked_for_with_true_alone():
    assert read(stream=True).is_streaming
    assert not read(stream="true").is_streaming


@pytest.mark.parametrize(
    ("fields", "beta", "expected"),
    [
        ({}, b"", 100),
        ({"max_tokens": 0}, b"", 0),
        ({"max_tokens": 10**9}, b"", 128_000),
        ({"max_tokens": None}, b"", 128_000),
        ({"max_tokens": "9"}, b"", 128_000),
        ({"max_tokens": True}, b"", 128_000),
        ({"max_tokens": -1}, b"", 128_000),
        ({"max_tokens": 10**9}, b"a-2026-01-01,output-300k-2026-03-24", 300_000),
        ({"max_tokens": 200_000}, b"output-300k-2026-03-24", 200_000),
        ({"model": HAIKU, "max_tokens": 10**9}, b"", 64_000),
    ],
)
def test_output_is_held_as_asked_and_at_most_what_the_model_can_write(fields, beta, expected):
    headers = [(b"anthropic-beta", b"other"), (b"anthropic-beta", beta)]
    assert only_line(read(headers, **fields)).counts[OUTPUT] == expected


def test_input_is_held_at_most_as_long_as_the_context():
    demand = read(model=HAIKU, messages=[{"role": "user", "content": "x" * 900_000}])
    assert only_line(demand).counts[INPUT] == 200_000


def cached(ttl=None):
    return {"type": "ephemeral"} if ttl is None else {"type": "ephemeral", "ttl": ttl}


def content(*blocks):
    return [{"role": "user", "content": list(blocks)}]


@pytest.mark.parametrize(
    ("bucket", "fields"),
    [
        (INPUT, {}),
        (INPUT, {"cache_control": None}),
        (INPUT, {"messages": [{"role": "user", "content": '"cache_control" "1h"'}]}),
        (CACHE_WRITE_5M, {"cache_control": cached()}),
        (CACHE_WRITE_1H, {"cache_control": cached("1h")}),
        (CACHE_WRITE_5M, {"system": [{"type": "text", "text": "s", "cache_control": cached("5m")}]}),
        (CACHE_WRITE_5M, {"tools": [{"name": "t", "input_schema": {}, "cache_control": cached()}]}),
        (CACHE_WRITE_1H, {"tools": [{"name": "t", "input_schema": {}, "cache_control": cached("1h")}]}),
        (CACHE_WRITE_5M, {"messages": content({"type": "text", "cache_control": cached()})}),
        (
            CACHE_WRITE_1H,
            {
                "cache_control": cached("5m"),
                "messages": content({"type": "tool_result", "content": [{"cache_control": cached("1h")}]}),
            },
        ),
    ],
)
def test_input_is_held_at_the_dearest_rate_that_the_request_can_cause(bucket, fields):
    demand = read(**fields)
    assert set(only_line(demand).counts) == {bucket, OUTPUT}
    assert set(demand.floor.lines[0].counts) == {bucket}


def picture(data="A" * 3_000_000, kind="image", media_type="image/png"):
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data}}


def test_a_large_picture_is_held_and_estimated_as_a_picture_and_not_as_text():
    seen = {"type": "tool_result", "tool_use_id": "t", "content": [picture()]}
    quoted = {"type": "document", "source": {"type": "content", "content": [picture()]}}
    demand = read(messages=content(picture(), seen, quoted))
    held, estimated = demand.ceiling.total(INPUT), demand.floor.total(INPUT)
    assert 3 * PICTURE_TOKENS_MAX < held < 3 * PICTURE_TOKENS_MAX + 400
    assert 3 * PICTURE_TOKENS_USUAL < estimated < 3 * PICTURE_TOKENS_USUAL + 400


def test_a_picture_is_held_as_the_largest_however_few_bytes_it_has():
    """One of a single colour has some hundred bytes and costs as much as any other."""
    demand = read(messages=content(*[picture("A" * 400)] * 10))
    assert demand.ceiling.total(INPUT) > 10 * PICTURE_TOKENS_MAX
    assert demand.floor.total(INPUT) < 5_000, "which it seldom is: its bytes say what to expect"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "tool_use", "id": "t", "name": "n", "input": {"content": [picture()]}},
        {"type": "tool_use", "id": "t", "name": "n", "input": picture()},
        picture(kind="document", media_type="application/pdf"),
        picture(media_type="application/pdf"),
        picture(media_type=None),
    ],
)
def test_what_only_looks_like_a_picture_is_held_by_its_length(block):
    assert read(messages=content(block)).ceiling.total(INPUT) == CONTEXT


def pdf(data="A" * 4_000):
    return picture(data, kind="document", media_type="application/pdf")


def test_a_pdf_is_held_by_its_bytes_unless_the_operator_wants_more_held_for_each():
    seen = {"type": "tool_result", "tool_use_id": "t", "content": [pdf()]}
    plain = read(messages=content(pdf(), seen))
    for tokens, more in (("0", 0), ("2000", 0), ("30000", 2 * 28_000), ("9000000", None)):
        demand = read(messages=content(pdf(), seen), options={"ANTHROPIC_PDF_TOKENS": tokens})
        expected = CONTEXT if more is None else plain.ceiling.total(INPUT) + more
        assert demand.ceiling.total(INPUT) == expected
        assert demand.floor == plain.floor, "what is to be expected stays"


def test_a_pdf_beside_a_picture_holds_what_both_do():
    demand = read(messages=content(pdf(), picture()), options={"ANTHROPIC_PDF_TOKENS": "30000"})
    held = demand.ceiling.total(INPUT)
    assert 30_000 + PICTURE_TOKENS_MAX < held < 30_000 + PICTURE_TOKENS_MAX + 400


@pytest.mark.parametrize("odd", [None, 7, "text", [], [7], [[picture()]], {"type": "image"}])
def test_pictures_are_looked_for_in_content_of_any_shape(odd):
    """The vendor refuses it; here it must not be an error of our own."""
    result = {"type": "tool_result", "content": odd}
    for messages in ([{"role": "user", "content": odd}, *content(picture())], content(result, picture())):
        assert read(messages=messages).ceiling.total(INPUT) > PICTURE_TOKENS_MAX


def test_caching_is_found_at_the_end_of_a_long_conversation_and_when_its_name_is_escaped():
    many = [{"role": "user", "content": [{"type": "text", "text": "x"}]} for _ in range(2_000)]
    marked = {"type": "text", "cache_control": cached("1h")}
    fields = {"model": MODEL, "max_tokens": 1, "messages": [*content(marked), *many]}
    plain = json.dumps(fields).encode()
    for body in (plain, plain.replace(b"cache_control", b"cach\\u0065_control")):
        demand = MessagesMeter().read(inbound(body), pricing())
        assert CACHE_WRITE_1H in only_line(demand).counts


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": content({"type": "image", "source": {"type": "url", "url": "https://x/y.png"}})},
        {
            "messages": content(
                {"type": "tool_result", "content": [{"type": "document", "source": {"type": "url"}}]}
            )
        },
        {"tools": [{"type": "web_search_20260318", "name": "web_search", "max_uses": 1}]},
        {"tools": [{"type": "web_fetch_20260318", "name": "web_fetch"}]},
        {"tools": [{"type": "code_execution_20260521", "name": "code_execution"}]},
        {"tools": [{"type": "tool_search_tool_regex", "name": "tool_search_tool_regex"}]},
        {
            "messages": content(
                {
                    "type": "tool_addition",
                    "tool": {"type": "tool_definition", "definition": {"type": "web_fetch_20260318"}},
                }
            )
        },
    ],
)
def test_content_that_the_vendor_brings_in_holds_a_full_context(fields):
    demand = read(**fields)
    assert demand.ceiling.lines[0].counts[INPUT] == CONTEXT
    assert demand.floor.total(INPUT) < 1_000


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "t", "input_schema": {"properties": {"url": {"type": "string"}}}},
        {"type": "custom", "name": "t"},
        {"type": None, "name": "t"},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "e"},
        {"type": "computer_20251124", "name": "c"},
        {"type": "computer_toolset_20260801"},
        {"type": "browser_toolset_20260801"},
        {"type": "memory_20250818", "name": "m"},
        "nonsense",
    ],
)
def test_tools_that_the_agent_runs_cost_only_their_bytes(tool):
    assert only_line(read(tools=[tool])).counts[INPUT] < 1_000


@pytest.mark.parametrize(
    ("uses", "expected"), [({}, SEARCHES_WHEN_UNSET), ({"max_uses": 3}, 3), ({"max_uses": 0}, 0)]
)
def test_web_searches_are_held_at_their_declared_maximum(uses, expected):
    demand = read(tools=[{"type": "web_search_20250305", "name": "web_search", **uses}])
    assert demand.ceiling.total(WEB_SEARCHES) == expected


def test_an_advisor_is_held_with_its_own_model_and_uses():
    advisor = {"type": "advisor_20260301", "name": "advisor", "model": OPUS, "max_tokens": 500, "max_uses": 3}
    demand = read(tools=[advisor], speed="fast")
    assert demand.models == (MODEL, OPUS)
    main, advised = demand.ceiling.lines
    assert main == UsageLine(MODEL, {INPUT: CONTEXT, OUTPUT: 100}, {"speed": "fast"})
    assert advised == UsageLine(OPUS, {INPUT: 3 * CONTEXT, OUTPUT: 1_500})
    _, cached_line = read(tools=[{**advisor, "caching": cached("1h"), "max_tokens": None}]).ceiling.lines
    assert cached_line.counts == {CACHE_WRITE_1H: 3 * CONTEXT, OUTPUT: 3 * 128_000}


def test_every_fallback_is_held_as_each_hop_that_wrote_is_billed():
    demand = read(fallbacks=[{"model": OPUS}, {"model": HAIKU, "max_tokens": 7}])
    assert demand.models == (MODEL, OPUS, HAIKU)
    assert [(line.model, line.counts[OUTPUT]) for line in demand.ceiling.lines] == [
        (MODEL, 100),
        (OPUS, 100),
        (HAIKU, 7),
    ]
    assert [line.model for line in demand.floor.lines] == [MODEL]


def test_a_fallback_inherits_the_speed_only_where_its_model_has_it():
    demand = read(
        speed="fast", fallbacks=[{"model": OPUS}, {"model": MODEL}, {"model": MODEL, "speed": None}]
    )
    assert [line.modifiers for line in demand.ceiling.lines] == [{"speed": "fast"}, {}, {"speed": "fast"}, {}]
    assert read(fallbacks=[{"model": OPUS, "speed": "fast"}]).ceiling.lines[1].modifiers == {"speed": "fast"}


@pytest.mark.parametrize(
    "fields",
    [
        {"compaction": {"type": "summarize"}},
        {
            "context_management": {
                "edits": [{"type": "clear_tool_uses_20250919"}, {"type": "compact_20260112"}]
            }
        },
    ],
)
def test_compaction_holds_another_pass_over_a_full_context(fields):
    assert read(**fields).ceiling.lines == (UsageLine(MODEL, {INPUT: CONTEXT, OUTPUT: 100}),) * 2


@pytest.mark.parametrize("edits", [None, [], [{"type": "clear_tool_uses_20250919"}], [3], "compact_"])
def test_other_context_edits_hold_nothing_more(edits):
    assert only_line(read(context_management={"edits": edits})).counts[INPUT] < 1_000


@pytest.mark.parametrize(
    ("fields", "default_geo", "expected"),
    [
        ({}, None, {}),
        ({}, "", {}),
        ({}, "global", {}),
        ({}, "us", {"inference_geo": "us"}),
        ({"inference_geo": "global"}, "us", {}),
        ({"inference_geo": "us"}, None, {"inference_geo": "us"}),
        ({"inference_geo": None}, "us", {"inference_geo": "us"}),
        ({"model": HAIKU}, "us", {}),
        ({"model": HAIKU, "inference_geo": "us"}, "us", {"inference_geo": "us"}),
        ({"speed": "fast"}, None, {"speed": "fast"}),
        ({"speed": "standard"}, None, {}),
        ({"speed": "warp"}, None, {"speed": "warp"}),
        ({"speed": "fast", "inference_geo": "us"}, None, {"speed": "fast", "inference_geo": "us"}),
    ],
)
def test_what_changes_the_price_is_part_of_the_hold(fields, default_geo, expected):
    options = {} if default_geo is None else {"ANTHROPIC_DEFAULT_INFERENCE_GEO": default_geo}
    demand = read(options=options, **fields)
    assert only_line(demand).modifiers == expected
    assert demand.floor.lines[0].modifiers == expected


BAD = [
    # reason                    words                   fields
    (Reason.BAD_REQUEST, "model: a model name", {"model": None}),
    (Reason.BAD_REQUEST, "model: a model name", {"model": ""}),
    (Reason.BAD_REQUEST, "model: a model name", {"model": ["claude-sonnet-5"]}),
    (Reason.MODEL_UNAVAILABLE, "model: claude-sonet-4-5", {"model": "claude-sonet-4-5"}),
    (Reason.MODEL_UNAVAILABLE, "model: xxxxx", {"model": "x" * 5_000}),
    (Reason.BAD_REQUEST, "fallbacks: name the models", {"fallbacks": "default"}),
    (Reason.BAD_REQUEST, "fallbacks: name the models", {"fallbacks": [MODEL]}),
    (Reason.BAD_REQUEST, "fallbacks.model: a model", {"fallbacks": [{}]}),
    (Reason.MODEL_UNAVAILABLE, "model: nope", {"fallbacks": [{"model": "nope"}]}),
    (Reason.BAD_REQUEST, "fallbacks: at most", {"fallbacks": [{"model": MODEL}] * 9}),
    (Reason.BAD_REQUEST, "speed: must be", {"speed": 1}),
    (Reason.BAD_REQUEST, "inference_geo: must be", {"inference_geo": ["us"]}),
    (Reason.BAD_REQUEST, "advisor.max_uses", {"tools": [{"type": "advisor_20260301", "model": OPUS}]}),
    (Reason.BAD_REQUEST, "advisor.model", {"tools": [{"type": "advisor_20260301", "max_uses": 1}]}),
    (Reason.MODEL_UNAVAILABLE, "nope", {"tools": [{"type": "advisor_1", "model": "nope", "max_uses": 1}]}),
    (Reason.BAD_REQUEST, "web_search.max_uses", {"tools": [{"type": "web_search_1", "max_uses": 10**6}]}),
    (Reason.BAD_REQUEST, "web_search.max_uses", {"tools": [{"type": "web_search_1", "max_uses": "3"}]}),
    (
        Reason.BAD_REQUEST,
        "'mcp_toolset' is not",
        {"tools": [{"type": "mcp_toolset", "mcp_server_name": "s"}]},
    ),
    (Reason.BAD_REQUEST, "'video_maker_2027' is not", {"tools": [{"type": "video_maker_2027"}]}),
]


@pytest.mark.parametrize(("reason", "words", "fields"), BAD, ids=[words for _, words, _ in BAD])
def test_what_cannot_be_bounded_or_priced_is_refused_in_plain_words(reason, words, fields):
    refused = refusal(**fields)
    assert refused.reason is reason
    assert words in refused.message
    assert len(refused.message) < 200


COUNT = next(one for one in SURFACE.operations if one.path.endswith("count_tokens"))


def test_counting_tokens_is_free_and_asks_for_a_known_model_all_the_same():
    demand = COUNT.meter.read(inbound({"model": MODEL, "messages": HELLO}), pricing())
    assert (COUNT.meter.is_free, demand.models, demand.ceiling.lines) == (True, (MODEL,), ())
    with pytest.raises(Refused, match="model: nope"):
        COUNT.meter.read(inbound({"model": "nope"}), pricing())
